"""Scoring a run at points on its way, without the training noticing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy
import torch

from engine import events
from engine.report import items as report_items
from engine.train import allocator, ranks
from engine.train.run import Run
from engine.train.scoring import check
from engine.train.scoring.asking import Question
from engine.train.scoring.scores import Side


def score(run: Run, model: Any, asked: list[Question], step: int) -> None:
    """Score the model as it is after a step. What random numbers this draws, the training does not miss."""
    allocator.give_back()
    side = Side(report_items.at_step(step), None, run.tokenizer, lambda: nullcontext(model))
    with unnoticed():
        _ask(run, side, model, asked, step)


@contextmanager
def unnoticed() -> Iterator[None]:
    """Leave every generator of random numbers as it was."""
    python, numbers = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(numbers)


def _ask(run: Run, side: Side, model: Any, asked: list[Question], step: int) -> None:
    budget_s, counts = run.spec.evaluate.budget_s, None
    if budget_s is not None:
        asked = [one for one in asked if one.score_whole is None]
        counts = check.counts_on_the_way(run, side, asked, budget_s)
        if counts is None:
            return
    sizes = [one.size if counts is None else counts[one.benchmark] for one in asked]
    before = 0
    run.told.begin("evaluating", side.role, total=sum(sizes))
    for one, size in zip(asked, sizes, strict=True):
        answers = side.answers(run, one)
        if not answers.target.exists():

            def on_done(done: int, fresh: bool = True, before: int = before, one: Question = one) -> None:
                run.told.upto(before + done, what=one.benchmark)

            if not answers.ask(model, run.tokenizer, run.stop.asked, upto=size, on_done=on_done):
                return
            found = answers.items(size)
            report_items.write_items(answers.target, found)
            answers.part.unlink(missing_ok=True)
            run.log.append(events.Scored(model=side.role, benchmark=one.benchmark, items=len(found)))
        before += size


def forget_after(run_dir: Path, step: int) -> None:
    """Remove what was scored on the way after a step: a resumed run goes there again, with weights of its own. The process
    that scored it does so; another one would find that it is gone."""
    if not ranks.first():
        return
    for path in (run_dir / "items").glob("at-*"):
        found = report_items.step_of(path.name)
        if path.suffix == ".part" or (found is not None and found > step):
            path.unlink()
