"""A check in bounded time: base and tuned model are asked the same questions, as many of each set as fit.

How many that are follows from the pace of the first ones, and from nothing that was answered. It is looked after a
quarter, a half and three quarters of them, and a set that shows a real drop by the bounds of report/sequential.py is asked
no further. What was answered is kept, so that "ask everything" later goes on from here.
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import msgspec

from engine import events
from engine.benchmarks import shares
from engine.report import about, paired, statistics, verdicts
from engine.report import items as report_items
from engine.report.items import Asked, Check
from engine.train.run import Run
from engine.train.scoring import scores
from engine.train.scoring.asking import SMALL_PIECE, Answers, Question
from engine.train.scoring.scores import Side
from engine.words import later
from engine.workspace import write_atomically

ROUNDS = 4
# The first questions of a set also load what scores it: they say nothing of its pace.
_WARM = 2
# What the check of a run is called that was planned on its way: its weights were not there yet.
ON_THE_WAY = "on the way"


class _Set(NamedTuple):
    """One question set, and what each side has answered of it."""

    question: Question
    answers: list[Answers]


def carry_out(run: Run, sides: list[Side], asked: list[Question], budget_s: float) -> bool:
    """Ask base and tuned model as much as fits into the seconds; False when a stop came first: then the run goes on where
    it was."""
    sets = [_Set(one, [side.answers(run, one) for side in sides]) for one in asked if one.score_whole is None]
    assert sides[-1].name is not None
    of = sides[-1].name.weights
    check = report_items.read_check(run.run_dir)
    if check is None or check.of not in (of, ON_THE_WAY) or check.budget_s != budget_s:
        run.told.begin("evaluating", "check")
        check = _planned(run, sides, sets, budget_s, of)
        if check is None:
            return False
    run.told.begin("evaluating", "check", total=2 * sum(one.planned for one in check.sets.values()))
    for one in check.sets.values():
        one.ended = False  # what was shown before a stop is shown again
    for number in range(1, ROUNDS + 1):
        going_on = [one for one in sets if not check.sets[one.question.benchmark].ended]
        slow = check.of != ON_THE_WAY and check.spent_s + _round_s(check, going_on) / 2 > budget_s
        if number > 1 and slow:
            break  # slower than its first questions let expect
        if not _round(run, sides, going_on, check, number / ROUNDS):
            _write(run, check)
            return False
        for name in _shown(run, sets, check):
            check.sets[name].ended = True
        _write(run, check)
    _keep(run, sides, sets, check)
    _say(run, asked, check)
    return True


def _planned(run: Run, sides: list[Side], sets: list[_Set], budget_s: float, of: str) -> Check | None:
    """Ask the first questions, and plan by their pace how many of each set fit; None when a stop came first."""
    began_s = time.monotonic()
    paces = [[0.0] * len(sides) for _ in sets]
    for number, side in enumerate(sides):
        with side.lent() as model:
            for place, one in enumerate(sets):
                answers = one.answers[number]
                first = answers.done
                for upto in (
                    (first + shares.FIRST,) if one.question.is_written else (first + _WARM, first + shares.FIRST)
                ):
                    timed_s, before = time.monotonic(), answers.done
                    if not answers.ask(model, side.tokenizer, run.stop.asked, upto=upto):
                        return None
                    spent_s = time.monotonic() - timed_s
                    side.spent_s += spent_s
                    if answers.done > before:
                        paces[place][number] = spent_s / (answers.done - before)

    done = [[answers.done for answers in one.answers] for one in sets]

    times = 2 if of == ON_THE_WAY else 1

    def cost_s(place: int, n: int) -> float:
        return times * sum(pace * max(0, n - there) for pace, there in zip(paces[place], done[place], strict=True))

    spent_s = time.monotonic() - began_s
    sizes = [one.question.size for one in sets]
    counts = shares.fitting(
        sizes, [min(there) for there in done], cost_s, budget_s - spent_s, statistics.LEAST_QUESTIONS
    )
    check = Check(of=of, budget_s=budget_s, spent_s=0.0 if of == ON_THE_WAY else spent_s)
    for one, n, pace in zip(sets, counts, paces, strict=True):
        name = one.question.benchmark
        may_end = verdicts.is_general(name) and of != ON_THE_WAY and _is_right_or_wrong(one)
        looks = verdicts.looks(n) if may_end else ()
        check.sets[name] = Asked(size=one.question.size, planned=n, looks=looks, pace_s=sum(pace))
    _write(run, check)
    return check


def counts_on_the_way(run: Run, side: Side, asked: list[Question], budget_s: float) -> dict[str, int] | None:
    """Return how many questions of each set are asked of a run that is scored on its way: planned at its first point for
    base and tuned model, and kept to, so that all points and both ends are asked the same. None when a stop came first."""
    check = report_items.read_check(run.run_dir)
    if check is None or check.of != ON_THE_WAY:
        sets = [_Set(one, [side.answers(run, one)]) for one in asked if one.score_whole is None]
        check = _planned(run, [side], sets, budget_s, ON_THE_WAY)
    return None if check is None else {name: one.planned for name, one in check.sets.items()}


def _is_right_or_wrong(one: _Set) -> bool:
    found = one.answers[-1].items()
    return bool(found) and found[0].correct is not None


def _round_s(check: Check, sets: list[_Set]) -> float:
    """Return what a round is expected to take."""
    return sum(one.planned * one.pace_s for one in (check.sets[each.question.benchmark] for each in sets)) / ROUNDS


def _round(run: Run, sides: list[Side], sets: list[_Set], check: Check, share: float) -> bool:
    """Ask all sets up to a share of what is planned; False when a stop came first."""
    began_s = time.monotonic()
    try:
        for number, side in enumerate(sides):
            with side.lent() as model:
                for one in sets:
                    planned = check.sets[one.question.benchmark]
                    answers, upto = one.answers[number], math.ceil(share * planned.planned)

                    def on_done(done: int, fresh: bool = True, one: _Set = one) -> None:
                        left_s = max(0.0, check.budget_s - check.spent_s - (time.monotonic() - began_s))
                        run.told.upto(_done(sets, check), left_s=left_s, what=one.question.benchmark)

                    timed_s = time.monotonic()
                    if not answers.ask(
                        model, side.tokenizer, run.stop.asked, upto=upto, piece=SMALL_PIECE, on_done=on_done
                    ):
                        return False
                    side.spent_s += time.monotonic() - timed_s
        for one in sets:
            planned = check.sets[one.question.benchmark]
            planned.asked = max(planned.asked, math.ceil(share * planned.planned))
        return True
    finally:
        check.spent_s += time.monotonic() - began_s


def _done(sets: list[_Set], check: Check) -> int:
    return sum(min(answers.done, check.sets[one.question.benchmark].planned) for one in sets for answers in one.answers)


def _shown(run: Run, sets: list[_Set], check: Check) -> set[str]:
    """Return the sets that show a real drop at the look that was just reached: they are asked no further. The others are
    judged with them, as in the report, where each makes the test of all a stricter one."""
    rows, chance = [], {}
    looked = {name for name, one in check.sets.items() if one.looks and one.asked >= one.looks[0]}
    for one in sets if looked else []:
        name, planned = one.question.benchmark, check.sets[one.question.benchmark]
        if not verdicts.is_general(name):
            continue
        base, tuned = (answers.items(planned.asked) for answers in one.answers)
        rows += paired.compare_all(run.run_dir.name, name, base, tuned, looks=planned.looks)
        chance[name] = verdicts.chance_of(base)
    return {one.row.benchmark for one in verdicts.judge(rows, chance) if one.verdict == "real drop"} & looked


def _keep(run: Run, sides: list[Side], sets: list[_Set], check: Check) -> None:
    """Write what was asked of both as the items of the run, and keep the answers for whoever asks more."""
    for one in sets:
        n = check.sets[one.question.benchmark].asked
        for side, answers in zip(sides, one.answers, strict=True):
            cached, found = answers.new == 0, answers.items(n)
            answers.share()
            scores.keep(answers, found, side.role)
            told = events.Scored(model=side.role, benchmark=one.question.benchmark, items=len(found), cached=cached)
            run.log.append(told)


def _say(run: Run, asked: list[Question], check: Check) -> None:
    """Say in the log what was asked, and wherever the scores are shown what was left out as a whole."""
    for text in about.bounded(check):
        run.log.append(events.Log(text=text))
    if left := [one.benchmark for one in asked if one.score_whole is not None]:
        text = later(
            "{names}: not asked, since such a task is asked as a whole or not at all. “Ask everything” asks it.",
            names=", ".join(left),
        )
        run.log.append(events.Log(level="scores", text=text))


def _write(run: Run, check: Check) -> None:
    write_atomically(run.run_dir / "items" / report_items.CHECK, msgspec.json.encode(check))
