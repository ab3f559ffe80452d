"""Copies of stored data sets: mended, or with their columns read otherwise. The data set itself stays beside them, and all
states of one file are deleted together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

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


# --- all states of a file ---------------------------------------------------------------------------------------------


class States(NamedTuple):
    """The states of a file: those that deleting one of them deletes, it the first, and those that stay, since a run uses
    them or other data is scored on them or made of them."""

    going: list[datasets.Dataset]
    staying: list[datasets.Dataset]


def states(workspace: Workspace, dataset_id: str) -> States:
    """Return the states of a data set's file: it, what it was mended of, and every other mending of that. Raises
    DatasetError when there is no such data set."""
    chosen = datasets.load(workspace, dataset_id)
    known = {one.id: one for one in datasets.list_all(workspace)}
    # a parent that is gone still tells that two are states of one file
    links = [{one.id, one.parent} for one in known.values() if one.parent and _is_state(one)]
    chain = {dataset_id}
    while more := {state for link in links if link & chain for state in link if state} - chain:
        chain |= more
    others = [one for one in known.values() if one.id not in chain]
    needed = {one.eval_id for one in others} | {one.parent for one in others}
    staying = [
        one
        for one in known.values()
        if one.id in chain - {dataset_id} and (one.id in needed or datasets.users(workspace, one.id))
    ]
    kept = {one.id for one in staying} | {dataset_id}
    return States([chosen, *(one for one in known.values() if one.id in chain - kept)], staying)


def _is_state(one: datasets.Dataset) -> bool:
    """Whether a data set is its parent mended or read otherwise, and not rows of another kind made of it."""
    return bool(one.fixes or one.mapping)


def delete(workspace: Workspace, dataset_id: str) -> None:
    """Delete a data set with all states of its file but those that stay (see States). Raises DatasetError while a run uses
    the data set itself; nothing is deleted then."""
    going = states(workspace, dataset_id).going
    for one in going:  # the one that was asked for is the first, and refuses before anything is gone
        datasets.delete(workspace, one.id)
