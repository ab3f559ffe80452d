"""Watching general text while a run trains: by how much more it surprises the model than it did at the start; and, where
the data name a grader and weights are chosen, how right the answers are that choose.

How many texts are read and rows are answered is settled once, before the first step, by the pace of this machine, so
that all evaluations together take a small share of the run; it is kept with the run, so that one that goes on reads the
same. No random number is drawn that the training would miss.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import msgspec

from engine import events
from engine.benchmarks import watch as texts
from engine.render import Encoded
from engine.runs import failures
from engine.spec import counts, tolerances
from engine.train import backend, load, ranks
from engine.train.run import Run
from engine.train.scoring import graded, losses, on_the_way
from engine.train.tokenize import encode
from engine.words import Problem, later
from engine.workspace import find_struct, write_atomically

# All readings together may take this share of a run; it is planned for less, as its length is only estimated.
MOST_SHARE, PLANNED_SHARE = 0.03, 0.02
# So few texts at least; where even they take too long, only a run that hangs on them is watched. A toy reads its own, of a
# few tokens each, in less than a millisecond.
FEWEST, FEWEST_OF_TOY = 8, 64
# A text is read up to so many tokens.
MOST_TOKENS = 512
# A general loss beyond the limit so many evaluations in a row, and no lower at the last, is not coming back.
PATIENCE = 2
# Put on the key of what lies beyond the limit: more than any loss, reward or grade.
BEYOND = 1e6
# Grading may take this share of a run, and so long at each evaluation, since a stop waits for it. So few rows at least, or
# the held-out loss chooses; their answers are written at once, so that more take little longer.
GRADED_SHARE, GRADED_MOST_S = 0.2, 20.0
FEWEST_GRADED, MOST_GRADED = 16, 32
# Of equal grades the lower held-out loss chooses, counted so little that it never outweighs an answer.
TIE = 1e-4


class Start(msgspec.Struct, frozen=True):
    """What stands in a run's watch.json: the loss of the model as it was before the first step, nats per token, over the
    first `texts`, and the seconds of a reading; and how many rows are graded at each evaluation."""

    texts: int
    tokens: int
    loss: float
    seconds: float
    graded: int = 0


class Watch:
    """What a run is watched on. `limit` is the most nats by which the loss may rise, None where nothing hangs on it; `grade`
    returns the grade, 0 to 1, of the model as it is, None where the held-out loss chooses."""

    def __init__(
        self, model: Any, coded: list[Encoded], start: Start, limit: float | None,
        grade: Callable[[], float] | None = None,
    ):  # fmt: skip
        self._model, self._coded, self._grade = model, coded[: start.texts], grade
        self.start, self.limit = start, limit

    @property
    def chooses(self) -> bool:
        """Whether weights are chosen by something else than the held-out loss alone."""
        return self.limit is not None or self._grade is not None

    def rises(self, history: list[dict[str, float]]) -> list[float]:
        """Return by how many nats general loss lay above that of the start at each evaluation of a trainer's history, which
        a checkpoint keeps."""
        return [one["eval_general_loss"] - self.start.loss for one in history if "eval_general_loss" in one]

    def runs_away(self, rises: list[float]) -> bool:
        """Whether the run is to end: beyond its limit, and not coming back."""
        return self.limit is not None and runs_away(rises, self.limit)

    def read(self, held_out: float | None) -> dict[str, float]:
        """Return the figures of an evaluation, as a trainer keeps them; the same in every process."""
        told, rise = {}, 0.0
        if self._coded:
            loss = _read(self._model, self._coded)[0] if ranks.first() else 0.0
            told["eval_general_loss"] = ranks.of_first(loss)
            rise = told["eval_general_loss"] - self.start.loss
        by = held_out
        if self._grade is not None and held_out is not None:
            told["eval_grade"] = ranks.of_first(self._grade() if ranks.first() else 0.0)
            by = TIE * held_out - told["eval_grade"]
        if self.chooses and by is not None:
            told["eval_choice"] = choice(by, rise, math.inf if self.limit is None else self.limit)
        return told


def choice(held_out: float, rise: float, limit: float) -> float:
    """Return the key by which weights are chosen, the lowest the best: within the limit by what the held-out rows say (a
    loss, or a grade turned round), and behind all of those, beyond it, by how much was forgotten. What is no number lies
    farthest beyond: as a key it would never be outdone."""
    if rise <= limit:
        return held_out
    return BEYOND + (rise if math.isfinite(rise) else BEYOND)


def is_within(key: float) -> bool:
    """Whether the weights of such a key lie within the limit."""
    return key < BEYOND / 2


def runs_away(rises: list[float], limit: float) -> bool:
    """Whether general loss lies beyond the limit and is not coming back: at the last PATIENCE evaluations, and no lower at
    the last than at the one before."""
    last = rises[-PATIENCE:]
    return len(last) == PATIENCE and min(last) > limit and last[-1] >= last[-2]


def begin(run: Run, model: Any, expected_s: float) -> Watch | None:
    """Read the texts before the first step, as many as there is time for, and say what the model makes of them; try how long
    grading takes where grades choose. None where nothing is looked at. `expected_s`: how long the run is expected to take.
    Raises RunRefused where something is to be chosen and no row says by what."""
    if run.only_probes:
        return None
    if tolerances.chooses(run.spec.train) and not run.rows.evaluate:
        raise failures.RunRefused(Problem(rule="choosing-too-long", parameters={"length": run.spec.train.max_length}))
    if not (run.objective.is_scored_on_its_way and run.rows.evaluate):
        return None
    path = run.run_dir / "watch.json"
    coded = [encode(row, run.tokenizer, _length(run)) for row in texts.rows(toy=run.base.is_toy)]
    coded = [one for one in coded if one.trained_tokens]
    rows = graded.to_choose_by(run)

    def grade(most: int) -> float:
        with on_the_way.unnoticed():
            return graded.grade_of(run, model, rows[:most])

    with ranks.one_after_the_first():
        start = find_struct(path, Start)
        if start is None and ranks.first():
            start = _settle(run, model, coded, expected_s)
            if rows:
                start = msgspec.structs.replace(start, graded=_settle_graded(run, len(rows), grade, expected_s))
            write_atomically(path, msgspec.json.encode(start))
            _tell(run, start)
    if start is None or not (start.texts or start.graded):
        return None
    by_grade = (lambda: grade(start.graded)) if start.graded else None
    return Watch(model, coded, start, tolerances.nats(run.spec.train, toy=run.base.is_toy), by_grade)


def _length(run: Run) -> int:
    return min(MOST_TOKENS, load.question_window(run.base))


def _settle(run: Run, model: Any, coded: list[Encoded], expected_s: float) -> Start:
    """Read more and more of the texts, twice as many each time, as long as that fits the time of one reading."""
    most_s = PLANNED_SHARE * expected_s / _readings(run)
    fewest = FEWEST_OF_TOY if run.base.is_toy else FEWEST
    needed = run.base.is_toy or run.spec.train.tolerance != "off"
    number, nats, tokens, text_s = 0, 0.0, 0, 0.0
    _read(model, coded[:fewest])  # what a model is tried with once is no part of its pace
    while number < len(coded):
        end = min(len(coded), max(fewest, 2 * number))
        began_s = time.monotonic()
        loss, read = _read(model, coded[number:end])
        text_s = (time.monotonic() - began_s) / (end - number)  # more at once are read faster
        nats, tokens, number = nats + loss * read, tokens + read, end
        if number == fewest and number * text_s > MOST_SHARE / PLANNED_SHARE * most_s and not needed:
            return Start(0, 0, 0.0, 0.0)
        if 2 * number * text_s > most_s:
            break
    return Start(number, tokens, nats / max(1, tokens), number * text_s)


def _readings(run: Run) -> int:
    steps = counts.optimizer_steps(run.spec.train, len(run.rows.train))
    return counts.evaluations(run.spec.train, steps) + len(counts.early_looks(run.spec.train, steps)) + 1


def _settle_graded(run: Run, rows: int, grade: Callable[[int], float], expected_s: float) -> int:
    """Return how many rows are graded at each evaluation, by how long the first few take now; 0 where that is too long."""
    grade(1)  # what a model is tried with once is no part of its pace
    few, began_s = min(rows, FEWEST_GRADED), time.monotonic()
    grade(few)
    took_s = time.monotonic() - began_s
    most_s = min(GRADED_MOST_S, GRADED_SHARE * expected_s / _readings(run))
    if took_s <= most_s or run.base.is_toy:
        return max(few, min(rows, MOST_GRADED, int(few * most_s / max(1e-6, took_s))))
    told = {"seconds": f"{took_s:.0f}", "n": few}
    text = later(
        "The held-out loss chooses the weights, not the grader: grading {n} answers took {seconds} s, too long for every "
        "evaluation.", **told,
    )  # fmt: skip
    run.log.append(events.Log(level="warning", text=text))
    return 0


def _read(model: Any, coded: list[Encoded]) -> tuple[float, int]:
    """Return the loss over texts, summed over all their tokens and divided once, and how many tokens that are."""
    was_training = model.training
    model.eval()
    try:
        with on_the_way.unnoticed():
            nats, tokens = -sum(losses.likelihoods(model, coded)), sum(one.trained_tokens for one in coded)
    finally:
        backend.back_to_training(model, was_training)
    return nats / max(1, tokens), tokens


def _tell(run: Run, start: Start) -> None:
    if not start.texts:
        text = later("General text is not watched on the way: it would take more than 3 % of this run.")
        run.log.append(events.Log(text=text))
        return
    limit = tolerances.nats(run.spec.train, toy=run.base.is_toy)
    run.log.append(events.Watched(step=0, general_loss=start.loss, texts=start.texts, limit=limit))
