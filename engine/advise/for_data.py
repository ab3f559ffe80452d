"""Advice on some data, a base and this machine, and on what a person says of them: for the page and the command line."""

from __future__ import annotations

from typing import Any

import msgspec

from engine import machine
from engine.advise import case as advise_case
from engine.advise.advice import Advice, advise
from engine.advise.case import Case
from engine.advise.facts import Facts
from engine.check import kind_of
from engine.data import Dataset
from engine.models import Base
from engine.plan import judges
from engine.spec import schema
from engine.workspace import Workspace


def for_data(
    workspace: Workspace, *, base: Base | None, data: Dataset | None, said: dict[str, Any]
) -> tuple[Case, Advice]:
    """Return the advice, and the case it is on. `said`: facts by name that a person states; they stand above what data,
    base and machine say."""
    report = data.report if data is not None else None
    wanted = said.get("data_type")
    same_kind = report is not None and (
        wanted is None or kind_of(wanted, said.get("conversational", report.conversational)) == report.kind
    )
    known: dict[str, Any] = {}
    if report is not None and same_kind:
        labels = report.label_counts or {}
        known |= {"rows": report.rows - report.bad_rows, "data_type": report.type}
        known |= {"conversational": report.type == "language-modeling" and report.conversational}
        known |= {"good_rows": labels.get("true"), "bad_rows": labels.get("false")}
    judge = None
    if base is not None:
        least = schema.ObjectiveArgs().least_reward_accuracy
        judge = judges.own(workspace, base, data, least)
        known |= {"base_parameters": base.parameters, "base_is_tuned": base.kind == "run"}
        known["has_reward_model"] = bool(judges.fitting(workspace, base, least))
    gpus = machine.facts().gpus
    known["gpu_memory_gib"] = gpus[0].memory_mib / 1024 if gpus else None
    facts = msgspec.structs.replace(Facts(), **{**known, **said})
    case = advise_case.of(facts, workspace, base=base, dataset=data if same_kind else None, judge=judge)
    return case, advise(case)
