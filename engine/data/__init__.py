"""Data sets: stored, divided, mended, mixed, counted; and the files they come from.

datasets.add(workspace, path, name) checks and stores one, datasets.load(...) gives it back; uploads brings large files in,
jobs does what takes long in a process of its own: a check, a mended copy, an older report made anew. fixes says what can
be mended, one_row finds and edits, division says how a run divides it, readiness how a base reads every row of it.
"""

from typing import TYPE_CHECKING

from engine._faces import lazily

if TYPE_CHECKING:
    from engine.data.datasets import Dataset
else:
    __getattr__ = lazily(__name__, datasets="Dataset")

__all__ = [
    "Dataset",
    "datasets",
    "division",
    "fixes",
    "hub_data",
    "jobs",
    "lengths",
    "mix",
    "one_row",
    "profile",
    "readiness",
    "uploads",
]
