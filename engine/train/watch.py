"""Watching general text while a run trains: by how much more it surprises the model than it did at the start.

How many of the texts are read is settled once, before the first step, by the pace at which this machine reads them, so
that all evaluations together take a small share of the run; it is kept with the run, so that one that goes on reads the
same. No random number is drawn that the training would miss.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from engine import events
from engine.benchmarks import watch as texts
from engine.render import Encoded
from engine.spec import counts, tolerances
from engine.train import backend, load, ranks
from engine.train.run import Run
from engine.train.scoring import losses, on_the_way
from engine.train.tokenize import encode
from engine.words import later
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


class Start(msgspec.Struct, frozen=True):
    """What stands in a run's watch.json: the loss of the model as it was before the first step, nats per token, over the
    first `texts`, and the seconds of a reading."""

    texts: int
    tokens: int
    loss: float
    seconds: float


class Watch:
    """What a run is watched on. `limit` is the most nats by which the loss may rise, None where nothing hangs on it."""

    def __init__(self, model: Any, coded: list[Encoded], start: Start, limit: float | None):
        self._model, self._coded = model, coded[: start.texts]
        self.start, self.limit = start, limit

    def rises(self, history: list[dict[str, float]]) -> list[float]:
        """Return by how many nats general loss lay above that of the start at each evaluation of a trainer's history, which
        a checkpoint keeps."""
        return [one["eval_general_loss"] - self.start.loss for one in history if "eval_general_loss" in one]

    def runs_away(self, rises: list[float]) -> bool:
        """Whether the run is to end: beyond its limit, and not coming back."""
        return self.limit is not None and runs_away(rises, self.limit)

    def read(self, held_out: float | None) -> dict[str, float]:
        """Return the figures of an evaluation, as a trainer keeps them; the same in every process."""
        loss = _read(self._model, self._coded)[0] if ranks.first() else 0.0
        loss = ranks.of_first(loss)
        told = {"eval_general_loss": loss}
        if self.limit is not None and held_out is not None:
            told["eval_choice"] = choice(held_out, loss - self.start.loss, self.limit)
        return told


def choice(held_out: float, rise: float, limit: float) -> float:
    """Return the key by which weights are chosen, the lowest the best: within the limit by what the held-out rows say (a
    loss, or a grade turned round), and behind all of those, beyond it, by how much was forgotten."""
    return held_out if rise <= limit else BEYOND + rise


def is_within(key: float) -> bool:
    """Whether the weights of such a key lie within the limit."""
    return key < BEYOND / 2


def runs_away(rises: list[float], limit: float) -> bool:
    """Whether general loss lies beyond the limit and is not coming back: at the last PATIENCE evaluations, and no lower at
    the last than at the one before."""
    last = rises[-PATIENCE:]
    return len(last) == PATIENCE and min(last) > limit and last[-1] >= last[-2]


def begin(run: Run, model: Any, expected_s: float) -> Watch | None:
    """Read the texts before the first step, as many as there is time for, and say what the model makes of them; None where
    this run is not watched. `expected_s`: how long the run is expected to take."""
    if not (run.objective.is_scored_on_its_way and run.rows.evaluate) or run.only_probes:
        return None
    path = run.run_dir / "watch.json"
    coded = [encode(row, run.tokenizer, _length(run)) for row in texts.rows(toy=run.base.is_toy)]
    coded = [one for one in coded if one.trained_tokens]
    with ranks.one_after_the_first():
        start = find_struct(path, Start)
        if start is None and ranks.first():
            start = _settle(run, model, coded, expected_s)
            write_atomically(path, msgspec.json.encode(start))
            _tell(run, start)
    if start is None or not start.texts:
        return None
    return Watch(model, coded, start, tolerances.nats(run.spec.train, toy=run.base.is_toy))


def _length(run: Run) -> int:
    return min(MOST_TOKENS, load.question_window(run.base))


def _settle(run: Run, model: Any, coded: list[Encoded], expected_s: float) -> Start:
    """Read more and more of the texts, twice as many each time, as long as that fits the time of one reading."""
    steps = counts.optimizer_steps(run.spec.train, len(run.rows.train))
    readings = counts.evaluations(run.spec.train, steps) + 1
    most_s = PLANNED_SHARE * expected_s / readings
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
