"""Judges for PPO: which runs made a reward model, how well it judges, and whether it reads text as another base does.

Read from files alone: the run's items, and the tokenizer.json and chat template beside the weights; no torch.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from engine.models import Base, alike, made
from engine.report import Comparison, items, paired
from engine.runs import store
from engine.spec import OBJECTIVES
from engine.workspace import BadId, Workspace


def sha(text: str) -> str:
    """Return the sha256 of a text, as items name their questions."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def made_by(workspace: Workspace, ref: str) -> Path | None:
    """Return the folder of what run:<id> made, or None when there is no such run or it has made nothing yet."""
    try:
        run_dir = workspace.run_dir(ref.removeprefix("run:"))
    except BadId:
        return None
    if not ref.startswith("run:"):
        return None
    return made.made_by(run_dir)


def accuracy(run_dir: Path) -> Comparison | None:
    """Return how a reward run judges pairs it has not seen: `tuned` is the share judged as the person did, `n` the pairs.
    None when no pair was held out or the run has not been scored."""
    try:
        found = paired.compare_run(run_dir)
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    rows = [row for row in found if row.benchmark == items.REWARD]
    return next((row for row in rows if row.family == items.UNSEEN), None)


def candidates(workspace: Workspace) -> list[str]:
    """Return run:<id> of every finished reward run, newest first."""
    found = []
    for run in store.list_all(workspace):
        if run.status == "finished" and OBJECTIVES[store.load_spec(workspace, run.id).objective].is_judge:
            found.append(f"run:{run.id}")
    return found


def newest(workspace: Workspace, base: Base, least_accuracy: float) -> str | None:
    """Return the newest finished reward run that may judge answers of this base, or None."""
    for ref in candidates(workspace):
        folder = made_by(workspace, ref)
        judged = accuracy(folder.parent) if folder is not None else None
        good = judged is not None and judged.tuned >= least_accuracy
        if folder is not None and good and alike.reads_alike(base, folder) is not False:
            return ref
    return None
