"""What a run was asked, put once more: to points of its way back to the base, or to a file that was made of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from engine import events
from engine.check import DatasetError
from engine.runs import ScoredRun, failures, store
from engine.train import adopted, objectives, rows
from engine.train.run import Run
from engine.train.scoring import own_rows, scores
from engine.train.scoring.asking import Question
from engine.words import later


def questions(run: Run, origin: ScoredRun, tokenizer: Any) -> list[Question]:
    """Return what a run was asked, with its later evaluations: of each benchmark the questions that both its base and itself
    have answered, as these were put. `tokenizer` is that of the run, which for a model tuned elsewhere is its own."""
    return list(_asked(run, origin, tokenizer))


def _asked(run: Run, origin: ScoredRun, tokenizer: Any) -> Iterator[Question]:
    settings, seen = origin.settings(), set[str]()
    for question in _every(run, origin, tokenizer):
        joined = origin.joined.get(question.benchmark)
        told = settings.get(question.benchmark, {})
        if joined is None or question.benchmark in seen:
            continue
        if any(told.get(name) != value for name, value in question.settings.items()):
            continue
        if question.score_whole is None:
            names = {one.item for one in joined.tuned}
            some = [one for one, name in zip(question.asked, question.names, strict=True) if name in names]
            if len(some) < len(names):
                continue  # another evaluation has asked more of it
            question = question if len(some) == question.size else question._replace(asked=some)
        seen.add(question.benchmark)
        yield question
    if left := sorted(set(origin.joined) - seen):
        run.log.append(events.Log(text=later("Not asked along the way: {names}.", names=", ".join(left)[:300])))


def _every(run: Run, origin: ScoredRun, tokenizer: Any) -> list[Question]:
    run.told.begin("loading", "rows")
    run.rows = rows.Rows([], [], [], [], [], [])
    found = scores.general(run.spec, run.workspace, run.base)
    if run.spec.adopted is None:
        found += _of_rows(run)
    else:
        with suppress(DatasetError):  # as in _of_rows
            found = adopted.questions(run, tokenizer)[1]
    for one in origin.evaluations:
        if one.status == "finished":
            found += scores.general(store.load_spec(run.workspace, one.id), run.workspace, run.base)
    return found


def _of_rows(run: Run) -> list[Question]:
    # where the rows or the judge are gone, general knowledge is asked all the same
    with suppress(failures.RunRefused, DatasetError):
        if not run.objective.needs_judge:
            return own_rows.of_run(run)
        objective = objectives.of(run.spec.objective)
        objective.prepare(run)
        return objective.questions(run)
    return []
