"""What of a home cannot be read: data sets, chains, drafts, models and questions in one list, each with its place and why,
and how it is deleted. Runs, evaluations among them, stand in the list of runs, where runs.store says of each why."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from engine.benchmarks import own
from engine.data import datasets
from engine.models import shortlist
from engine.plan import chains, drafts
from engine.words import Problem
from engine.workspace import Workspace, scratch

Kind = Literal["data", "chain", "draft", "model", "questions"]


class Damaged(msgspec.Struct, frozen=True):
    """Something that lies at `place` and cannot be read; `problem` says why and what to do."""

    kind: Kind
    place: Path
    problem: Problem


def find(workspace: Workspace, *kinds: Kind) -> list[Damaged]:
    """Return what of these kinds, or of any, cannot be read. Whatever the files hold, this raises nothing."""
    return [Damaged(kind, place, why) for kind in kinds or _FINDERS for place, why in _FINDERS[kind](workspace).items()]


def delete(one: Damaged) -> None:
    """Delete something that cannot be read. Raises OSError."""
    if one.place.is_dir() and not one.place.is_symlink():
        # first: a folder that is half deleted is not looked at
        gone = one.place.with_name(f"{scratch('old')}{one.place.name}")
        one.place.rename(gone)
        shutil.rmtree(gone)
    else:
        one.place.unlink()


_FINDERS: dict[Kind, Callable[[Workspace], dict[Path, Problem]]] = {
    "data": datasets.unreadable,
    "chain": chains.unreadable,
    "draft": drafts.unreadable,
    "model": shortlist.unreadable,
    "questions": own.unreadable,
}
