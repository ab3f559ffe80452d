"""Runs against each other: gain on the new task against what was kept, and the one to pick."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from engine.report import headline, statistics
from engine.report.items import ALL, ANSWERS, GAP, GENERAL_TEXT, LOSS
from engine.report.paired import Comparison, too_few
from engine.report.verdicts import judge
from engine.words import t


class Point(msgspec.Struct, kw_only=True):
    """One run, or one recipe over several seeds, in the trade of gain against retention.

    `gain` is the change on the new task by `measure` (a benchmark; a loss counts as gained where it fell), `new_task`
    the tuned model's own score there. `change` is the mean change in accuracy over the general benchmarks that the base
    knows, `retention` the mean share kept above chance; None where nothing general was asked. `text_loss` is by how much the
    loss on general text rose: what is left to go by where a base knows no benchmark. Intervals are over items
    for one run and over seeds for several. `left_out` names benchmarks at chance, `too_few` those of which so few questions
    were asked that nothing can be said; where the new task is one, the point is on no frontier. `step` is set for the
    points along one run, its end among them.
    """

    name: str
    runs: list[str]
    measure: str | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    new_task: float | None = None
    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    retention: float | None = None
    retention_low: float | None = None
    retention_high: float | None = None
    text_loss: float | None = None
    text_loss_low: float | None = None
    text_loss_high: float | None = None
    left_out: list[str] = []
    too_few: list[str] = []
    on_frontier: bool = False
    step: int | None = None


def in_points(measure: str | None) -> bool:
    """Whether a gain is a change of a share, told in points; else it is one of a loss, a gap or a reward."""
    return measure not in (GAP, LOSS, ANSWERS, "", None)


def point(name: str, rows: Sequence[Comparison], chance: Mapping[str, float], measure: str | None) -> Point:
    """Return where one run stands, from its own lines. `measure` is what tells the gain of all that it is held against
    (headline.common_measure)."""
    found = Point(name=name, runs=sorted({row.run for row in rows}))
    gained = None if measure is None else headline.asked(rows, measure)
    if gained is not None:
        loss = gained.benchmark == LOSS
        found.measure, found.new_task = gained.benchmark, gained.tuned
        ends = (-gained.high, -gained.low) if loss else (gained.low, gained.high)
        found.gain, (found.gain_low, found.gain_high) = (-gained.change if loss else gained.change), ends
    judged = judge(rows, chance)
    found.left_out = [j.row.benchmark for j in judged if j.verdict == "at chance"]
    found.too_few = [j.row.benchmark for j in judged if j.verdict == "too few"]
    if gained is not None and too_few(gained):
        found.too_few.append(gained.benchmark)
    if text := next(
        (row for row in rows if row.benchmark == GENERAL_TEXT and row.family == ALL and not too_few(row)), None
    ):
        found.text_loss, found.text_loss_low, found.text_loss_high = text.change, text.low, text.high
    told = [j for j in judged if j.retention is not None]
    if told:
        # Different benchmarks share no items, so that their errors are independent and add up as squares.
        found.change, found.change_low, found.change_high = _mean([(j.row.change, j.row.low, j.row.high) for j in told])
        found.retention, found.retention_low, found.retention_high = _mean(
            [(j.retention or 0.0, j.retention_low or 0.0, j.retention_high or 0.0) for j in told]
        )
    return found


def _mean(figures: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    k = len(figures)
    mean = sum(value for value, _, _ in figures) / k
    below = math.sqrt(sum((value - low) ** 2 for value, low, _ in figures)) / k
    above = math.sqrt(sum((high - value) ** 2 for value, _, high in figures)) / k
    return mean, mean - below, mean + above


def over_seeds(name: str, points: Sequence[Point]) -> Point:
    """Return one point for a recipe that was run with several seeds: means, with intervals over the seeds. Noise of the
    items says nothing about the luck of a training, so that seeds are the unit; one seed keeps its own intervals."""
    if len(points) == 1:
        only = points[0]
        return msgspec.structs.replace(only, name=name)
    found = Point(name=name, runs=[run for one in points for run in one.runs])
    measures = {one.measure for one in points}
    if len(measures) == 1:
        found.measure = points[0].measure
        found.gain, found.gain_low, found.gain_high = _over(one.gain for one in points)
        found.new_task = _over(one.new_task for one in points)[0]
    found.change, found.change_low, found.change_high = _over(one.change for one in points)
    found.retention, found.retention_low, found.retention_high = _over(one.retention for one in points)
    found.text_loss, found.text_loss_low, found.text_loss_high = _over(one.text_loss for one in points)
    found.left_out = sorted({benchmark for one in points for benchmark in one.left_out})
    found.too_few = sorted({benchmark for one in points for benchmark in one.too_few})
    return found


def _over(values: Iterable[float | None]) -> tuple[float | None, float | None, float | None]:
    known = list(values)
    if not known or any(value is None for value in known):
        return None, None, None
    return statistics.t_interval([value for value in known if value is not None])


def by_text(points: Sequence[Point]) -> bool:
    """Whether what was kept of these can only be told by the loss on general text: no benchmark of them was known."""
    return all(one.retention is None for one in points) and any(one.text_loss is not None for one in points)


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points, marked where no other has at least as much gain and kept as much, and more of one. Points without
    both are on no frontier. All are told by one measure, and what was kept by one of two (by_text)."""
    in_text = by_text(points)

    def kept(one: Point) -> float | None:
        if not in_text:
            return one.retention
        return None if one.text_loss is None else -one.text_loss

    def counts(one: Point) -> bool:
        return one.gain is not None and kept(one) is not None and _is_known(one)

    def beats(other: Point, one: Point) -> bool:
        a, b = (other.gain or 0.0, kept(other) or 0.0), (one.gain or 0.0, kept(one) or 0.0)
        return a != b and a[0] >= b[0] and a[1] >= b[1]

    rivals = [one for one in points if counts(one)]
    return [
        msgspec.structs.replace(one, on_frontier=counts(one) and not any(beats(other, one) for other in rivals))
        for one in points
    ]


def seed_note(points: Sequence[Point], picked: Point | None = None) -> str:
    """Return what has to be said where points of one run each are held against each other: nothing of them tells a better
    recipe from a luckier seed. `picked` was named just before. Empty where seeds were repeated, or there is nothing to
    compare."""
    if len({tuple(one.runs) for one in points}) < 2 or all(len(one.runs) > 1 for one in points):
        return ""
    single = [one for one in points if len(one.runs) == 1 and one.step is None] or points
    if (best := _better_in_both(single)) is not None:
        if picked is not None and best.runs == picked.runs:
            return t(
                "It is better in both, beyond the noise of the questions. It is one seed: another may still differ."
            )
        return t(
            "{name} is better in both, beyond the noise of the questions. It is one seed: another may still differ.",
            name=best.name,
        )
    gained = _by_chance([(one.gain_low, one.gain_high) for one in single if in_points(one.measure)])
    kept = _by_chance([(one.change_low, one.change_high) for one in single])
    if gained is not None and kept is not None:
        return t(
            "One seed cannot tell which is better: a difference under {gained} points gained, or {kept} points of general "
            "knowledge, may be chance of the questions alone, and another seed may turn the order round. Run each with "
            "three seeds or more.",
            gained=f"{100 * gained:.0f}", kept=f"{100 * kept:.0f}",
        )  # fmt: skip
    if gained is not None or kept is not None:
        return t(
            "One seed cannot tell which is better: a difference under {points} points may be chance of the questions alone, "
            "and another seed may turn the order round. Run each with three seeds or more.",
            points=f"{100 * (gained if gained is not None else kept or 0.0):.0f}",
        )  # fmt: skip
    return t(
        "One seed cannot tell which is better: another may turn the order round. Run each with three seeds or more."
    )


def _better_in_both(points: Sequence[Point]) -> Point | None:
    """Return the point that gained more and kept more than every other one, their intervals apart; None without one."""

    def is_apart(low: float | None, high: float | None) -> bool:
        return low is not None and high is not None and low > high

    def beats(one: Point, other: Point) -> bool:
        return is_apart(one.gain_low, other.gain_high) and is_apart(one.change_low, other.change_high)

    if len(points) < 2:
        return None
    return next((one for one in points if all(other is one or beats(one, other) for other in points)), None)


def _by_chance(intervals: Iterable[tuple[float | None, float | None]]) -> float | None:
    """Return the half width of the widest 95 % interval of a difference between two of these; None of fewer. The noise of
    the questions adds up as squares; what both were asked alike makes it smaller, so this is the careful figure."""
    halves = sorted((high - low) / 2 for low, high in intervals if low is not None and high is not None)
    found = math.hypot(*halves[-2:]) if len(halves) > 1 else math.inf
    return found if 0.005 <= found < math.inf else None  # half a point would be told as none


def _is_known(one: Point) -> bool:
    """Whether enough was asked to say how much of the new task was learned."""
    return one.measure not in one.too_few


def pick(points: Sequence[Point], tolerance: float) -> Point | None:
    """Return the point to take when at most `tolerance` (0.01: one point) may be lost: by the bad end of its interval
    it stays within that, and it gains the most. None when no point is that safe."""
    safe = [one for one in points if one.gain is not None and _is_known(one) and -(_least(one)) <= tolerance + 1e-12]
    return max(safe, key=lambda one: (one.gain or 0.0, one.change or 0.0)) if safe else None


def _least(one: Point) -> float:
    return -math.inf if one.change_low is None else one.change_low


def weighted_score(one: Point, weight: float) -> float | None:
    """Return the guide's combined score (its rule M8): `weight` times the new task's score plus the rest times the
    retention. None when either is unknown, or when the new task is measured by a loss or a reward, which no weight can
    turn into points. Raises ValueError for a weight outside 0 to 1."""
    if not 0 <= weight <= 1:
        raise ValueError("a weight lies between 0 and 1")
    if one.new_task is None or one.retention is None or not in_points(one.measure):
        return None
    return weight * one.new_task + (1 - weight) * one.retention
