"""Judges for PPO: which runs made a reward model, how well it judges, and whether it reads text as another base does.

Read from files alone: the run's items, and the tokenizer.json and chat template beside the weights; no torch.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from engine.check import DatasetError
from engine.data import Dataset, datasets
from engine.models import Base, alike, made
from engine.report import Comparison, items, paired
from engine.runs import store
from engine.spec import OBJECTIVES
from engine.words import t
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
    except (OSError, ValueError):
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


def fitting(workspace: Workspace, base: Base, least_accuracy: float) -> list[str]:
    """Return run:<id> of the finished reward runs that may judge answers of this base, newest first."""
    found = []
    for ref in candidates(workspace):
        folder = made_by(workspace, ref)
        judged = accuracy(folder.parent) if folder is not None else None
        good = judged is not None and judged.tuned >= least_accuracy
        if folder is not None and good and alike.reads_alike(base, folder) is not False:
            found.append(ref)
    return found


def own(workspace: Workspace, base: Base, data: Dataset | None, least_accuracy: float) -> str | None:
    """Return the newest reward run that fits and was made from this base and these rows, or from what they were taken
    from; None without one. A judge of other data is offered, and never taken unasked: it would be obeyed all the same."""
    if data is None:
        return None
    for ref in fitting(workspace, base, least_accuracy):
        told = store.load_spec(workspace, ref.removeprefix("run:"))
        if told.base.ref == base.spec_ref and told.dataset.id in (data.id, data.parent):
            return ref
    return None


def title(workspace: Workspace, ref: str) -> str:
    """Return what a judge is called, from which data it was made, and how often it is right."""
    run_id = ref.removeprefix("run:")
    if not store.exists(workspace, run_id):
        return ref
    judged, name = accuracy(workspace.run_dir(run_id)), store.name(workspace, run_id)
    try:
        rows = datasets.load(workspace, store.load_spec(workspace, run_id).dataset.id).name
    except (DatasetError, OSError, ValueError):
        rows = "?"
    share = "?" if judged is None else f"{100 * judged.tuned:.0f}"
    return t("{name}, from {data}: right on {share} % of unseen pairs", name=name, data=rows, share=share)
