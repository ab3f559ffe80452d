"""Take a run along: its adapter, the merged model, a GGUF file, an upload, or its recipe for another trainer."""

from typing import TYPE_CHECKING

from engine._faces import lazily

if TYPE_CHECKING:
    from engine.export.made import NotExportable
else:
    __getattr__ = lazily(__name__, made="NotExportable")

__all__ = [
    "NotExportable",
    "archive",
    "card",
    "carry_out",
    "elsewhere",
    "job",
    "lines",
    "made",
    "ollama",
    "parity",
    "recipe",
]
