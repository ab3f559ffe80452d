"""What is wrong with the grader of a run, before it starts: it cannot be made, or the rows' own right answers fail it."""

from __future__ import annotations

from typing import Any

import msgspec

from engine import graders
from engine.check import DatasetError
from engine.data import Dataset, datasets
from engine.spec import OBJECTIVES, RunSpec, schema
from engine.words import Problem
from engine.workspace import Workspace

PATH = "dataset.grader"


def default(objective: str, dataset: Dataset | None) -> dict[str, Any]:
    """Return the grader that a data set names as a setting, where a run learns answers that it can grade."""
    if dataset is None or dataset.grader is None or not fits(objective):
        return {}
    return {PATH: msgspec.to_builtins(dataset.grader)}


def fits(objective: str) -> bool:
    """Whether a run of an objective is asked by a grader: one whose rows hold the right answers."""
    return OBJECTIVES[objective].replays


def problems(spec: RunSpec, workspace: Workspace) -> list[Problem]:
    """Return everything that is wrong with the grader of a spec; it is tried on the rows and on the evaluation data."""
    ref = spec.dataset.grader
    if ref is None:
        return []
    if not fits(spec.objective):
        return [Problem(rule="grader-sft-only", where=PATH)]
    found = []
    for dataset_id in (spec.dataset.id, spec.dataset.eval_id):
        try:
            problem = _of_rows(workspace, dataset_id, ref) if dataset_id else None
        except graders.Refused as refused:
            return [msgspec.structs.replace(one, where=PATH) for one in refused.problems]
        if problem is not None:
            found.append(msgspec.structs.replace(problem, where=PATH))
    return found


def _of_rows(workspace: Workspace, dataset_id: str, ref: schema.GraderRef) -> Problem | None:
    try:
        dataset = datasets.load(workspace, dataset_id)
        # rows that are still to be made, or bad, are named where they are trained on
        if not dataset.trainable or not dataset.has_rows:
            graders.make(ref)
            return None
        return datasets.tried(workspace, dataset, ref).problem(ref.name)
    except (DatasetError, OSError):
        graders.make(ref)
        return None
