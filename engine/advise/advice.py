"""The advisor: facts about data, machine and goal in, one way out, with its reasons, rules and what would change it.

Precedence where the guide's tables disagree (its contradiction X11): what fits the memory, then the form of the data,
then the number of rows, then preference. It never names a way that does not fit or that the data cannot feed; when
nothing is left it says so and `advised` is None.
"""

from __future__ import annotations

import msgspec

from engine.advise import alternatives, evidence, guide, stages
from engine.advise import reasons as advise_reasons
from engine.advise import tables as advise_tables
from engine.advise.alternatives import Alternative, RunnerUp
from engine.advise.case import Case
from engine.advise.evidence import Seen
from engine.advise.facts import Facts
from engine.advise.reasons import Overruled
from engine.advise.stages import Stage
from engine.advise.tables import TableRow
from engine.advise.ways import Way, named
from engine.estimate import duration, memory
from engine.words import Problem, t


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict. `advised` is None when nothing fits or the data feeds nothing; `sentence` says all that a person wants
    to know first. `stands_in` says whose figures these are where they are not those of the base and the machine that are
    here, and what was assumed; `doubts` what leaves the advice less sure, and `seen` what runs like it came to here."""

    facts: Facts
    headline: str
    sentence: str
    advised: Way | None
    tables: dict[str, tuple[TableRow, ...]]
    reasons: tuple[str, ...]
    rules: tuple[str, ...]
    overruled: tuple[Overruled, ...]
    would_change: tuple[str, ...]
    runners_up: tuple[RunnerUp, ...]
    alternatives: tuple[Alternative, ...]
    plan: tuple[Stage, ...]
    doubts: tuple[str, ...]
    seen: tuple[Seen, ...]
    replay_share: float
    stands_in: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def evidence(self) -> str:
        """How often runs like the advised one were right here."""
        return evidence.sentence(self.seen)

    @property
    def followed(self) -> tuple[str, ...]:
        """The rules that speak for it and were followed in all they say, one of those that say the same. Not where the
        guide says two things, or the sources say otherwise: that speaks for nothing, and stands among the doubts."""
        said = {rule: guide.rules()[rule].words for rule in (*self.rules, *(one.rule for one in self.overruled))}
        against = {said[one.rule] for one in self.overruled}
        sound = [one for one in self.rules if guide.rules()[one].verdict not in advise_reasons.SPEAK_FOR_NOTHING]
        return tuple({said[one]: one for one in reversed(sound) if said[one] not in against}.values())

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
    return Advice(
        facts=facts,
        headline=_headline(advised, case),
        sentence=_sentence(advised, case),
        advised=advised,
        tables=tables,
        reasons=tuple(advise_reasons.reasons(case, advised)),
        rules=tuple(speaking),
        overruled=tuple(advise_reasons.overruled(case, advised, fired)),
        would_change=tuple(alternatives.would_change(case, advised)),
        runners_up=tuple(alternatives.runners_up(advised, fitting, fired)),
        alternatives=tuple(alternatives.alternatives(case)),
        plan=tuple(stages.plan(facts, advised)),
        doubts=tuple(advise_reasons.doubts(case, advised, speaking)),
        seen=evidence.of(case, advised),
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


def _sentence(advised: Way | None, case: Case) -> str:
    """Return the advice in one sentence: what to take, how it fits, how long it takes, and what that stands on."""
    if advised is None:
        return _headline(advised, case)
    plan = case.plan(advised)
    told = {"choice": named(advised), "machine": case.machine_words, "how": memory.room_words()[plan.room]}
    if plan.time is None:
        if plan.room == "unknown":
            return t("Take {choice}; whether it fits {machine} is not known, as the shape of this base is not.", **told)
        return t("Take {choice}: on {machine} it {how}.", **told)
    told |= {"low": duration.duration_words(plan.time.low_s), "high": duration.duration_words(plan.time.high_s)}
    told |= {"basis": plan.time.stands_on, "rows": case.assumed_rows}
    if told["rows"]:
        return t("Take {choice}: on {machine} it {how}. {rows} would take {low} to {high} ({basis}).", **told)
    return t("Take {choice}: on {machine} it {how}, and takes {low} to {high} ({basis}).", **told)
