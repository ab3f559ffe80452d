"""Take a run along: its adapter, the merged model, a GGUF file, an upload, or its recipe for another trainer.

To add a trainer: write a file like axolotl.py, whose `files` makes the texts of its files of a portable recipe, and name it
in the table TRAINERS of other_trainers.py and in EXPORTS of engine/cli/export.py; where its rows are laid out otherwise, say
so in portable_recipe.row_for; one with chat templates of its own is handed texts (written_out.py). A script is a template
(trl.py.jinja), filled in by scripts.py.
"""

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
    "gguf",
    "job",
    "job_runner",
    "ollama",
    "other_trainers",
    "parity",
    "portable_recipe",
    "usage",
]
