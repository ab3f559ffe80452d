"""The hand-off to the Train page: a draft of what the advice starts."""

from __future__ import annotations

from typing import Any

from engine.advise import ways
from engine.advise.advice import Advice
from engine.advise.alternatives import method_trade
from engine.advise.case import Case
from engine.advise.ways import Way
from engine.plan import drafts
from engine.words import t


def draft(advice: Advice, case: Case, *, dataset: str | None, way: Way | None = None) -> drafts.Draft | None:
    """Return the draft that "Use this" opens, or None when nothing is advised. `way` is another one of the advice, such
    as a runner-up. It starts the run whose plan the advice shows."""
    chosen = way or advice.advised
    if chosen is None:
        return None
    reasons, rules = [advice.sentence, *advice.stands_in, *advice.reasons], list(advice.rules)
    if way is not None:
        reasons, rules = [t("You chose {choice} instead of the advice.", choice=way.title), method_trade(way)], []
    return drafts.Draft(
        recipe=ways.recipe_for(chosen).name,
        base=case.starts_with.ref or "starter",
        dataset=dataset,
        overrides=_overrides(case, chosen),
        reasons=reasons,
        rules=rules,
        came_from="advisor" if case.target.is_here else _planned_for(case),
    )


def _planned_for(case: Case) -> str:
    """Say that Train speaks of this machine again, as it must: it is what starts the run."""
    return t(
        "From the advisor, planned for {machine}. The figures here are those of this machine.",
        machine=case.machine_words,
    )


def _overrides(case: Case, way: Way) -> dict[str, Any]:
    """Return what the run has otherwise than its recipe. What is planned for another machine keeps what makes it fit there:
    left open, this machine would decide it anew."""
    found, plan = case.overrides(way), case.plan(way)
    if not case.target.is_here and plan.setup.gradient_checkpointing:
        found["train.gradient_checkpointing"] = True
    return found
