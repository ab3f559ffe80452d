"""The advisor: facts about data, machine and goal in, one choice out, with its reasons, rules and what would change it.

Pure: it reads nothing but the guide's tables. Precedence where the guide's tables disagree (its contradiction X11):
what fits the memory, then the form of the data, then the number of rows, then preference. It never names a choice
that does not fit or that the data cannot feed; when nothing is left it says so and `advised` is None.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from engine.advise import otherwise, stages, ways
from engine.advise import reasons as advise_reasons
from engine.advise import tables as advise_tables
from engine.advise.facts import Facts, checked
from engine.advise.otherwise import Alternative, RunnerUp
from engine.advise.reasons import Overruled, speaking
from engine.advise.stages import Stage
from engine.advise.tables import TableRow
from engine.advise.ways import Choice, Need, Test, named, roughly_fits
from engine.words import Problem, t


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict. `advised` is None when nothing fits or the data feeds nothing; `nearest` is what runs today instead,
    None when the advised one runs or nothing near it does (`nearest_reason` says which)."""

    facts: Facts
    headline: str
    advised: Choice | None
    runs: bool
    nearest: Choice | None
    nearest_reason: str
    tables: dict[str, tuple[TableRow, ...]]
    reasons: tuple[str, ...]
    rules: tuple[str, ...]
    overruled: tuple[Overruled, ...]
    would_change: tuple[str, ...]
    runners_up: tuple[RunnerUp, ...]
    alternatives: tuple[Alternative, ...]
    plan: tuple[Stage, ...]
    confidence: Literal["high", "medium", "low"]
    confidence_reason: str
    replay_share: float
    problems: tuple[Problem, ...] = ()

    @property
    def start(self) -> Choice | None:
        """The choice "Use this" opens: the advised one when it runs, else the nearest."""
        return self.advised if self.runs else self.nearest

    @property
    def fired(self) -> tuple[str, ...]:
        """The rules of the three scenario tables that apply."""
        return tuple(row.rule for rows in self.tables.values() for row in rows if row.fired)


def advise(
    facts: Facts, *, runnable: Test, fits: Test | None = None, need: Need | None = None, tight: Test | None = None
) -> Advice:
    """Return the advice for these facts.

    `runnable` says whether this version trains a choice (runnable_now asks the recipes); `fits` whether it fits the
    machine, by the caller's own estimate of memory; without it a rule of thumb decides. `need` says that estimate in
    words, such as "14 to 19 GiB", for the reasons; `tight` whether its upper end is more than there is.
    """
    facts, problems = checked(facts)

    def may_fit(choice: Choice) -> bool:
        return roughly_fits(choice, facts) if fits is None else fits(choice)

    ranked = ways.ranked(facts)
    fitting = [choice for choice in ranked if may_fit(choice)]
    advised = fitting[0] if fitting else None
    runs = advised is not None and runnable(advised)
    nearest, nearest_reason = (None, "") if runs else otherwise.nearest(advised, ranked, fitting, runnable, facts)
    tables = advise_tables.tables(facts)
    fired = [row.rule for rows in tables.values() for row in rows if row.fired]
    confidence, confidence_reason = advise_reasons.confidence(facts, advised, estimated=fits is not None)
    if confidence == "high" and advised is not None and tight is not None and tight(advised):
        confidence, confidence_reason = "medium", t("The memory is tight: keep rows short.")
    return Advice(
        facts=facts,
        headline=_headline(advised, ranked, facts),
        advised=advised,
        runs=runs,
        nearest=nearest,
        nearest_reason=nearest_reason,
        tables=tables,
        reasons=tuple(advise_reasons.reasons(facts, advised, ranked, estimated=fits is not None, need=need)),
        rules=tuple(speaking(facts, advised, fired)),
        overruled=tuple(advise_reasons.overruled(facts, advised, ranked, fitting, fired)),
        would_change=tuple(otherwise.would_change(facts, advised, ranked)),
        runners_up=tuple(otherwise.runners_up(advised, fitting, fired)),
        alternatives=tuple(otherwise.alternatives(ranked, fitting, runnable)),
        plan=tuple(stages.plan(facts, advised)),
        confidence=confidence,
        confidence_reason=confidence_reason,
        replay_share=(advised.value("train.replay_share") or 0.0) if advised else 0.0,
        problems=tuple(problems),
    )


def _headline(advised: Choice | None, ranked: list[Choice], facts: Facts) -> str:
    if advised is not None:
        return t("{choice}.", choice=named(advised, capital=True))
    if ranked:
        return t("Nothing fits this machine with this base.")
    if facts.data_type == "prompt-only":
        return t("Questions alone train nothing without a reward model or answers.")
    return t("No method of Tunebook learns from rows of this kind.")
