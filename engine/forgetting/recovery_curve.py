"""The way back as a curve: gain and loss at each point, and the point to take, chosen on one half of the questions and read
on the other.

A point that looks best on some questions looks better there than it is, since it was chosen for its luck too. So each half
of the questions chooses a point that is read on the other half, and both readings are pooled (cross-fitting: arXiv
1608.00060).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from engine.benchmarks import library
from engine.report import Comparison, Item, frontier, headline, paired, verdicts
from engine.report import items as report_items
from engine.runs import ScoredRun
from engine.words import t

# A point must keep so much of the greatest gain on the way; of those, the one that loses least is taken.
KEPT = 0.95
CURVE = "curve.json"

Answers = Mapping[str, list[Item]]  # by benchmark
Unit = Literal["points", "nats", ""]
Kind = Literal["scale", "interpolate", "intruders"]


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A change against the base with its 95 % interval, more being better; without ends where too little was asked."""

    value: float
    low: float | None = None
    high: float | None = None


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """What the model is at one point, against the base: of the new task, of general knowledge and of behaviour, as far as
    these were asked; `lines` has each benchmark by itself (whole, or its held-out rows)."""

    at: float
    gain: Figure | None = None
    general: Figure | None = None
    behaviour: Figure | None = None
    lines: dict[str, Figure] = {}


class Suggested(msgspec.Struct, frozen=True, kw_only=True):
    """The point to take: of `halves`, those that each half of the questions chose, the nearer to the run itself. The figures
    are of each read on the other half's questions. `got_back` is general knowledge against that of the run itself."""

    at: float
    halves: tuple[float, float]
    gain: Figure
    general: Figure | None = None
    behaviour: Figure | None = None
    got_back: Figure | None = None


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """The way of a run from its base (0) to what it made (1), or of its intruder dimensions from none taken away (0) to all
    (1). `measure` is what the gain is told by and `general_in` what general knowledge is told in."""

    run: str
    way: Kind
    measure: str = ""
    general_in: Unit = ""
    points: list[Point] = []
    suggested: Suggested | None = None

    @property
    def end(self) -> float:
        """Where the run itself stands."""
        return 0.0 if self.way == "intruders" else 1.0

    @property
    def tuned(self) -> Point | None:
        """The run itself."""
        return self.at(self.end)

    @property
    def to_take(self) -> float | None:
        """The point that is suggested; None where none is, or what it gains cannot be told from noise."""
        found = self.suggested
        return None if found is None or found.gain.low is None or found.gain.low <= 0 else found.at

    def at(self, at: float) -> Point | None:
        """Return the point that was scored there."""
        return next((one for one in self.points if math.isclose(one.at, at)), None)

    @property
    def in_points(self) -> bool:
        """Whether the gain is a change of a share, told in points of 100."""
        return frontier.in_points(self.measure)


class Way:
    """The questions of a run, ready to be held against the answers of any point on its way."""

    def __init__(self, origin: ScoredRun, way: Kind):
        self.way: Kind = way
        self.origin = origin
        rows = [row for row in origin.rows if row.benchmark in origin.joined]
        chosen = headline.asked(rows)
        self.measure = "" if chosen is None or paired.too_few(chosen) else chosen.benchmark
        self.family = "" if chosen is None else chosen.family
        # What was learned may be recognised at a point and not said any more: each way of asking has to keep it.
        self.families = {self.measure: self.family} if self.measure else {}
        if chosen is not None and self.measure and not paired.is_loss(chosen):
            self.families |= {
                row.benchmark: row.family for row in rows if _tells(row) and row.benchmark != self.measure
            }
        self.general_in: Unit
        self.general, self.behaviour, self.general_in = _general(rows, origin)
        self.known: dict[float, Answers] = {self.end: {n: one.tuned for n, one in origin.joined.items()}}
        if way != "intruders":
            self.known[0.0] = {n: one.base for n, one in origin.joined.items()}
        self._halves = {(n, i.item): half_of(n, i) for n, one in origin.joined.items() for i in one.base}
        self._held: dict[tuple[float, str], list[tuple[Item, Item]]] = {}

    @property
    def end(self) -> float:
        return 0.0 if self.way == "intruders" else 1.0

    def add(self, at: float, answers: Answers) -> None:
        """Take over what the model at one point has answered. A model tuned elsewhere was asked in words of its own: its
        questions are the base's all the same, as in its report (scoring/paired.py)."""
        if self.origin.spec.adopted is not None:
            for name, found in answers.items():
                asked = {one.item: one.prompt_sha for one in self.origin.joined[name].base}
                for one in found:
                    one.prompt_sha = asked.get(one.item, one.prompt_sha)
        self.known[at] = answers

    def curve(self, *, finished: bool) -> Curve:
        """Return what is known of the way; of one that was scored to its end with the point to take."""
        points = [self._point(at) for at in sorted(self.known)]
        suggested = self._suggested() if finished and self.measure else None
        return Curve(
            run=self.origin.run_id, way=self.way, measure=self.measure, general_in=self.general_in, points=points,
            suggested=suggested,
        )  # fmt: skip

    def _rows(self, answers: Answers, against: Answers | None = None) -> list[Comparison]:
        joined = []
        for name, one in self.origin.joined.items():
            before = one.base if against is None else against.get(name, [])
            before, after = paired.common(before, answers.get(name, []))
            if after:
                joined.append(report_items.Joined(name, before, after, one.looks))
        return paired.compare_joined(self.origin.run_id, joined)

    def _point(self, at: float) -> Point:
        rows = self._rows(self.known[at])
        return Point(
            at=at, gain=self._gain(rows), general=_mean(rows, self.general), behaviour=_mean(rows, self.behaviour),
            lines={row.benchmark: _figure(row) for row in rows if self._is_told(row)},
        )  # fmt: skip

    def _is_told(self, row: Comparison) -> bool:
        return ":" not in row.benchmark and row.family in (report_items.ALL, report_items.UNSEEN)

    def _gain(self, rows: Sequence[Comparison]) -> Figure | None:
        found = (row for row in rows if row.benchmark == self.measure and row.family == self.family)
        return next((_figure(row) for row in found), None)

    def _suggested(self) -> Suggested:
        halves = (self._chosen(0), self._chosen(1))
        pooled = {
            name: [one for half in (0, 1) for one in self.known[halves[1 - half]].get(name, [])
                   if self._halves[name, one.item] == half]
            for name in self.origin.joined
        }  # fmt: skip
        rows = self._rows(pooled)
        against = self._rows(pooled, self.known[self.end])
        gain = self._gain(rows)
        assert gain is not None
        return Suggested(
            at=min(halves, key=lambda at: abs(at - self.end)), halves=halves, gain=gain, general=_mean(rows, self.general),
            behaviour=_mean(rows, self.behaviour), got_back=_mean(against, self.general),
        )  # fmt: skip

    def _chosen(self, half: int) -> float:
        """Return the point that half of the questions chooses."""
        gains = self._kept(half)
        kept = {at: self._values(at, self.general, half) for at in self.known}
        return choose(gains, kept, self.end)

    def _kept(self, half: int) -> dict[float, float]:
        """Return which part of the greatest gain on the way each point has, by the way of asking that shows least."""
        found = dict.fromkeys(self.known, math.inf)
        for name in self.families:
            values = {at: self._value(at, name, half) for at in self.known}
            best = max(values.values())
            for at, value in values.items():
                found[at] = min(found[at], value / best if best > 0 else 0.0)
        return found

    def _values(self, at: float, names: Iterable[str], half: int) -> float:
        found = [self._value(at, name, half) for name in names]
        return sum(found) / len(found) if found else 0.0

    def _value(self, at: float, name: str, half: int) -> float:
        """Return the change at a point by some of the questions of a benchmark, without an interval; more is better."""
        family = self.families.get(name, report_items.ALL)
        of_rows = "" if family == report_items.ALL else family
        pairs = [
            (before, after)
            for before, after in self._pairs(at, name)
            if self._halves[name, before.item] == half and of_rows in ("", before.family)
        ]
        return _change(name, pairs) if pairs else 0.0

    def _pairs(self, at: float, name: str) -> list[tuple[Item, Item]]:
        if (at, name) not in self._held:
            both = paired.common(self.origin.joined[name].base, list(self.known[at].get(name, [])))
            self._held[at, name] = list(zip(*both, strict=True))
        return self._held[at, name]


def choose(gains: Mapping[float, float], general: Mapping[float, float], end: float) -> float:
    """Return the point to take: of those that keep at least 95 % of the greatest of `gains` on the way, the one where
    general knowledge is best; of equals the nearest to the run itself, which stands at `end`; that where nothing is
    gained."""
    best = max(gains.values())
    if best <= 0:
        return end
    kept = [at for at, gain in gains.items() if gain >= KEPT * best - 1e-12]
    return max(kept, key=lambda at: (round(general[at], 12), -abs(at - end)))


def half_of(benchmark: str, item: Item) -> int:
    """Return which half of the questions an item belongs to; those about one passage belong to one."""
    return hashlib.sha256(f"{benchmark}:{item.cluster or item.item}".encode()).digest()[0] & 1


def _tells(row: Comparison) -> bool:
    """Whether a line shows that the new task was learned, by right answers to held-out rows."""
    asked = row.benchmark.startswith("new-task") and row.family in (report_items.ALL, report_items.UNSEEN)
    return asked and not paired.is_loss(row) and verdicts.change_of(row) == "better" and ":" not in row.benchmark


def _general(rows: Sequence[Comparison], origin: ScoredRun) -> tuple[list[str], list[str], Unit]:
    """Return the benchmarks that tell general knowledge, those that tell behaviour, and what the former count in: right
    answers where the base knows any, else the loss."""
    judged = [one for one in verdicts.judge(rows, origin.chance) if ":" not in one.row.benchmark]
    known = [one.row for one in judged if one.verdict not in ("at chance", "too few")]
    right = [row.benchmark for row in known if not paired.is_loss(row)]
    behaviour = [name for name in right if library.is_behaviour(name, origin.workspace)]
    general = [name for name in right if name not in behaviour]
    if general:
        return general, behaviour, "points"
    losses = [row.benchmark for row in known if paired.is_loss(row)]
    return losses, behaviour, "nats" if losses else ""


def _figure(row: Comparison) -> Figure:
    """Return the change of a line, more being better."""
    ends = (None, None) if paired.too_few(row) else (row.low, row.high)
    if _falls(row):
        low, high = (None if one is None else -one for one in (ends[1], ends[0]))
        return Figure(value=-row.change, low=low, high=high)
    return Figure(value=row.change, low=ends[0], high=ends[1])


def _falls(row: Comparison) -> bool:
    return paired.is_loss(row) and row.benchmark not in (report_items.GAP, report_items.ANSWERS, report_items.MARGIN)


def _mean(rows: Sequence[Comparison], names: Sequence[str]) -> Figure | None:
    """Return the mean change over benchmarks. They share no items, so that their errors add up as squares."""
    found = [_figure(row) for row in rows if row.benchmark in names and row.family == report_items.ALL]
    if not found:
        return None
    value, count = sum(one.value for one in found) / len(found), len(found)
    known = [(one.value, one.low, one.high) for one in found if one.low is not None and one.high is not None]
    if len(known) < count:
        return Figure(value=value)
    below = math.sqrt(sum((middle - low) ** 2 for middle, low, _ in known)) / count
    above = math.sqrt(sum((high - middle) ** 2 for middle, _, high in known)) / count
    return Figure(value=value, low=value - below, high=value + above)


def _change(name: str, pairs: Sequence[tuple[Item, Item]]) -> float:
    if name == report_items.GAP:
        moved = [(one.gold, other.loglikelihoods[0] - one.loglikelihoods[0]) for one, other in pairs]
        sides = [[change for gold, change in moved if (gold == 0) == good] for good in (True, False)]
        return _average(sides[0]) - _average(sides[1])
    if name == report_items.ANSWERS:
        return _average([other.rewards[0] - one.rewards[0] for one, other in pairs])
    if pairs[0][0].correct is not None:
        return _average([float(bool(other.correct)) - float(bool(one.correct)) for one, other in pairs])
    moved_nats = sum(other.loglikelihoods[0] - one.loglikelihoods[0] for one, other in pairs)
    return moved_nats / max(1, sum(one.tokens or 0 for one, _ in pairs))


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


# --- in words ---


def percent(at: float) -> str:
    """Return a part as a person reads it, in per cent."""
    return f"{100 * at:g}"


def told(value: float | None, in_points: bool) -> str:
    """Return a figure in points of 100, or in nats."""
    if value is None:
        return "–"
    return f"{100 * value:+.1f}" if in_points else f"{value:+.3f}"


def sentences(curve: Curve) -> list[str]:
    """Return what the curve says, the point to take first."""
    found, tuned = curve.suggested, curve.tuned
    if not curve.measure:
        return [
            t(
                "How much of the new task was learned was not asked, or by too few held-out questions, so no point is "
                "suggested: choose one by hand."
            )
        ]
    if found is None or tuned is None or tuned.gain is None:
        return []
    if curve.to_take is None and any(one.gain and one.gain.low and one.gain.low > 0 for one in curve.points):
        return [
            t(
                "No point is suggested: on questions that did not choose it, what the chosen one gained cannot be told from "
                "noise."
            )
        ]
    if curve.to_take is None:
        return [
            t(
                "Nothing was gained on the new task that can be told from noise, at no point of the way: going back has "
                "nothing to keep (as arXiv 2510.17776 found in places)."
            )
        ]
    if found.at == curve.end and found.general is None:
        return [
            t(
                "Stay with the run as it is, by the new task alone: general knowledge was not asked, or by too few "
                "questions, or the base only guesses there, so what going back gives back is not known."
            )
        ]
    if found.at == curve.end:
        return [
            t(
                "Stay with the run as it is: no other point keeps {kept} % of the gain and is better by both halves of the "
                "questions.",
                kept=percent(KEPT),
            )
        ]
    lines = [_suggestion(curve, found, tuned)]
    if found.got_back is not None and (found.got_back.low is None or found.got_back.low <= 0):
        lines.append(t("What is got back by it cannot be told from noise."))
    if found.halves[0] != found.halves[1]:
        one, other = (percent(at) for at in found.halves)
        lines.append(t("The two halves of the questions chose {one} % and {other} %.", one=one, other=other))
    return lines


def _suggestion(curve: Curve, found: Suggested, tuned: Point) -> str:
    points = curve.general_in == "points"
    assert tuned.gain is not None
    figures = {
        "at": percent(found.at), "gain": told(found.gain.value, curve.in_points),
        "before": told(tuned.gain.value, curve.in_points),
    }  # fmt: skip
    if found.general is None or tuned.general is None:
        if curve.way == "intruders":
            return t(
                "Suggested: {at} % of each intruder dimension taken away. Gain {gain}, of the run {before}.", **figures
            )
        return t("Suggested: {at} % of the way. Gain {gain}, of the run itself {before}.", **figures)
    figures |= {
        "general": told(found.general.value, points), "was": told(tuned.general.value, points),
        "low": told(found.general.low, points), "high": told(found.general.high, points),
    }  # fmt: skip
    if curve.way == "intruders":
        return t(
            "Suggested: {at} % of each intruder dimension taken away. Gain {gain} (the run: {before}); general knowledge "
            "{general} [{low}, {high}] (the run: {was}), read on questions that did not choose it.",
            **figures,
        )
    return t(
        "Suggested: {at} % of the way. Gain {gain} (the run: {before}); general knowledge {general} [{low}, {high}] (the "
        "run: {was}), read on questions that did not choose it.",
        **figures,
    )


def rule() -> str:
    """Return how a point is chosen, in words."""
    return t(
        "The rule: of the points that keep at least {kept} % of the greatest gain on the way, by each way the new task was "
        "asked, the one where general knowledge is best. One half of the questions chooses, the other is read, and the "
        "reverse; both readings are pooled, so that no point is judged by the questions it was chosen on.",
        kept=percent(KEPT),
    )  # fmt: skip
