"""How many rows of a data set a run trains on and holds out."""

from __future__ import annotations

from engine.check import DatasetError
from engine.data import datasets
from engine.spec import RunSpec, split
from engine.workspace import Workspace


def split_rows(run_spec: RunSpec, dataset: datasets.Dataset, workspace: Workspace) -> tuple[int, int]:
    """Return how many rows a run trains on, and about how many it holds out."""
    if not run_spec.dataset.eval_id:
        return of_rows(run_spec, dataset.good_rows)
    rows = min(dataset.good_rows, run_spec.dataset.most_rows or dataset.good_rows)
    try:
        return rows, datasets.load(workspace, run_spec.dataset.eval_id).good_rows
    except (DatasetError, OSError, ValueError):
        return rows, 0


def of_rows(run_spec: RunSpec, rows: int) -> tuple[int, int]:
    """Return how many of so many rows train, and about how many are held out of them."""
    held_out = min(split.MOST_HELD_OUT, round(rows * run_spec.dataset.eval_share))
    return max(1, min(rows - held_out, run_spec.dataset.most_rows or rows)), held_out
