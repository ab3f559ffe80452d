"""Copies of stored data sets: mended, or with their columns read otherwise. The data set itself stays."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from engine.data import datasets
from engine.data.fixes import DROP_BAD_ROWS, Edit
from engine.read import OnProgress
from engine.workspace import NAME_CHARACTERS, Workspace


def fixed(
    workspace: Workspace,
    dataset_id: str,
    progress: OnProgress | None = None,
    *,
    fixes: Iterable[str | Edit] = (DROP_BAD_ROWS,),
    **how: Any,
) -> datasets.Dataset:
    """Store a dataset with `fixes` applied as a new one that names it as its parent.

    `how`: further arguments of datasets.add().
    """
    dataset = datasets.load(workspace, dataset_id)
    made = datasets.add(
        workspace,
        dataset.folder / "original",
        _name(workspace, dataset.name),
        fixes=fixes,
        mapping=dataset.mapping,
        parent=dataset_id,
        eval_id=dataset.eval_id,
        progress=progress,
        **how,
    )
    return made if dataset.grader is None else datasets.grade_by(workspace, made.id, dataset.grader, tries=False)


def mapped(
    workspace: Workspace, dataset_id: str, mapping: dict[str, str], progress: OnProgress | None = None, **how: Any
) -> datasets.Dataset:
    """Store a dataset once more with another mapping of its columns."""
    dataset = datasets.load(workspace, dataset_id)
    name = f"{dataset.name[: NAME_CHARACTERS - 9]} (mapped)"
    original = dataset.folder / "original"
    return datasets.add(workspace, original, name, mapping=mapping, parent=dataset_id, progress=progress, **how)


def _name(workspace: Workspace, name: str) -> str:
    """Return a name for a mended copy that no data set has: "x (fixed)", then "x (fixed 2)"."""
    taken = {one.name for one in datasets.list_all(workspace)}
    stem = re.sub(r" \(fixed( \d+)?\)$", "", name)[: NAME_CHARACTERS - 14]
    number, found = 1, f"{stem} (fixed)"
    while found in taken:
        number += 1
        found = f"{stem} (fixed {number})"
    return found
