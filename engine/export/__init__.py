"""Take a run along: its adapter, the merged model, a GGUF file, an upload, or its recipe for another trainer."""

from typing import TYPE_CHECKING

from engine._faces import lazily

if TYPE_CHECKING:
    from engine.export.artifacts import NotExportable
else:
    __getattr__ = lazily(__name__, artifacts="NotExportable")

__all__ = [
    "NotExportable",
    "archive",
    "artifacts",
    "card",
    "job",
    "job_runner",
    "ollama",
    "other_trainers",
    "parity",
    "portable_recipe",
    "usage",
]
