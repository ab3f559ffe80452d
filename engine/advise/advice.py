"""The advisor: facts about data, machine and goal in, one way out, with its reasons, rules and what would change it.

Precedence where the guide's tables disagree (its contradiction X11): what fits the memory, then the form of the data,
then the number of rows, then preference. It never names a way that does not fit or that the data cannot feed; when
nothing is left it says so and `advised` is None.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from engine.advise import alternatives, stages
from engine.advise import reasons as advise_reasons
from engine.advise import tables as advise_tables
from engine.advise.alternatives import Alternative, RunnerUp
from engine.advise.case import Case
from engine.advise.facts import Facts
from engine.advise.reasons import Overruled
from engine.advise.stages import Stage
from engine.advise.tables import TableRow
from engine.advise.ways import Way, named
from engine.words import Problem, t


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict. `advised` is None when nothing fits or the data feeds nothing. `stands_in` says whose figures these
    are where they are not those of the base and the machine that are here."""

    facts: Facts
    headline: str
    advised: Way | None
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
    stands_in: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def fired(self) -> tuple[str, ...]:
        """The rules of the three scenario tables that apply."""
        return tuple(row.rule for rows in self.tables.values() for row in rows if row.fired)


def advise(case: Case) -> Advice:
    """Return the advice on a case."""
    facts = case.facts
    fitting = [way for way in case.ways if case.fits(way)]
    advised = fitting[0] if fitting else None
    tables = advise_tables.tables(facts)
    fired = [row.rule for rows in tables.values() for row in rows if row.fired]
    speaking = advise_reasons.speaking(facts, advised, fired)
    confidence, confidence_reason = advise_reasons.confidence(case, advised, speaking)
    return Advice(
        facts=facts,
        headline=_headline(advised, case),
        advised=advised,
        tables=tables,
        reasons=tuple(advise_reasons.reasons(case, advised)),
        rules=tuple(speaking),
        overruled=tuple(advise_reasons.overruled(case, advised, fired)),
        would_change=tuple(alternatives.would_change(case, advised)),
        runners_up=tuple(alternatives.runners_up(advised, fitting, fired)),
        alternatives=tuple(alternatives.alternatives(case)),
        plan=tuple(stages.plan(facts, advised)),
        confidence=confidence,
        confidence_reason=confidence_reason,
        replay_share=(advised.value("train.replay_share") or 0.0) if advised else 0.0,
        stands_in=tuple(case.stands_in),
        problems=case.problems,
    )


def _headline(advised: Way | None, case: Case) -> str:
    if advised is not None:
        return t("{choice}.", choice=named(advised, capital=True))
    if case.ways:
        return t("Nothing fits this machine with this base.")
    if case.facts.data_type == "prompt-only":
        return t("Questions alone train nothing without a reward model or answers.")
    return t("No method of Tunebook learns from rows of this kind.")
