"""How many rows of a data set a run trains on, holds out, and takes how many steps for."""

from __future__ import annotations

from engine.check import DatasetError
from engine.data import datasets
from engine.spec import RunSpec, split
from engine.spec import counts as spec_counts
from engine.workspace import Workspace


def split_rows(run_spec: RunSpec, dataset: datasets.Dataset, workspace: Workspace) -> tuple[int, int]:
    """Return how many rows a run trains on, and about how many it holds out."""
    rows, most = dataset.good_rows, run_spec.dataset.most_rows or dataset.good_rows
    if not run_spec.dataset.eval_id:
        held_out = min(split.MOST_HELD_OUT, round(rows * run_spec.dataset.eval_share))
        return max(1, min(rows - held_out, most)), held_out
    rows = min(rows, most)
    try:
        return rows, datasets.load(workspace, run_spec.dataset.eval_id).good_rows
    except (DatasetError, OSError, ValueError):
        return rows, 0


def steps(run_spec: RunSpec, rows: int) -> int:
    """Return how many optimizer steps a run takes whose data has so many rows to train on."""
    return spec_counts.optimizer_steps(run_spec.train, rows)
