"""How many rows of a data set a run trains on and holds out."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache

from engine.check import DatasetError
from engine.data import datasets, lengths
from engine.spec import RunSpec, schema, split
from engine.workspace import Workspace


def split_rows(run_spec: RunSpec, dataset: datasets.Dataset, workspace: Workspace) -> tuple[int, int]:
    """Return how many rows a run trains on and holds out: as it divides them. Of a data set too large to be read while
    somebody waits (lengths.py) about so many: off by less than one group."""
    chosen = run_spec.dataset
    with suppress(DatasetError, OSError, ValueError):
        read = [dataset, *([datasets.load(workspace, chosen.eval_id)] if chosen.eval_id else [])]
        if all(one.has_rows and one.good_rows <= lengths.MOST_ROWS_READ for one in read):
            changed = [datasets.rows_path(workspace, one.id).stat().st_mtime_ns for one in read]
            return _divided(str(workspace.root), chosen, tuple(changed))
    if not run_spec.dataset.eval_id:
        return of_rows(run_spec, dataset.good_rows)
    rows = min(dataset.good_rows, run_spec.dataset.most_rows or dataset.good_rows)
    try:
        return rows, datasets.load(workspace, run_spec.dataset.eval_id).good_rows
    except (DatasetError, OSError, ValueError):
        return rows, 0


def of_rows(run_spec: RunSpec, rows: int) -> tuple[int, int]:
    """Return how many of so many rows train, and about how many are held out of them."""
    held_out = split.most_held_out(rows, run_spec.dataset.eval_share) if rows > 1 else 0
    return max(1, min(rows - held_out, run_spec.dataset.most_rows or rows)), held_out


@lru_cache(maxsize=64)  # a page asks at every click
def _divided(root: str, chosen: schema.DatasetRef, _changed: tuple[int, ...]) -> tuple[int, int]:
    workspace = Workspace(root)
    train, held_out = split.divide(chosen, lambda dataset_id: datasets.read_rows(workspace, dataset_id))
    return len(train), len(held_out)
