"""The run's own task as a grader sees it: what a model writes to rows, seen and unseen, and whether that is right."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from engine import events, graders
from engine.benchmarks import library
from engine.report import Item, items
from engine.train import backend
from engine.train.run import Run
from engine.train.scoring import scores, written
from engine.train.scoring.asking import Question
from engine.train.tokenize import render
from engine.words import later

# So many rows of a family are answered, in whole answers.
MOST_ROWS = 100
# An answer may be twice as long as the right one, and so many tokens longer: to end, or to say the same otherwise; and
# where the right one may stand at the end of a longer one, to get there, as a base does that was not taught to be short.
MARGIN_TOKENS, WAY_TOKENS = 32, 128

Row = tuple[str, str, dict[str, Any]]  # id, family, canonical row


def question(run: Run) -> Question | None:
    """Return what a run is asked by its grader; None where it names none, or no row has an answer."""
    ref = run.spec.dataset.grader
    if ref is None:
        return None
    grader, scored = graders.make(ref), _answered(run.rows.scored)
    asked = [row for family in (items.SEEN, items.UNSEEN) for row in _spread(scored, family, MOST_ROWS)]
    if not asked:
        return None
    if len(asked) < len(scored):
        told = later("Of {total} rows {n} are answered and graded.", total=len(scored), n=len(asked))
        run.log.append(events.Log(level="scores", text=told))
    used = {"grader": grader.told, "answer_tokens": [written.MOST_ANSWER_TOKENS, margin_tokens(grader)]}
    return Question(
        scores.TASK_GRADED, asked, lambda m, t, rows: score(m, t, rows, grader, run.stop.asked), used
    )  # fmt: skip


def margin_tokens(grader: graders.Grader) -> int:
    """Return how many tokens longer than twice the right one an answer may be."""
    return WAY_TOKENS if grader.reads_within else MARGIN_TOKENS


def _answered(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if graders.as_asked(row[2]) is not None]


def _spread(rows: list[Row], family: str, most: int) -> list[Row]:
    found = [row for row in rows if row[1] == family]
    return [found[at] for at in library.spread(len(found), min(most, len(found)))]


def score(
    model: Any, tokenizer: Any, rows: list[Row], grader: graders.Grader, stopped: Callable[[], bool] = lambda: False
) -> list[Item]:
    """Return an item per row: what the model wrote greedily, its grade, and whether that is right. Nothing when it is to
    stop."""
    asked = [graders.as_asked(row) or {} for _, _, row in rows]
    prompts = [render(tokenizer, one["turns"], row[2].get("tools")) for one, row in zip(asked, rows, strict=True)]
    wanted = [len(tokenizer(one["reference"], add_special_tokens=False)["input_ids"]) for one in asked]
    most = [min(written.MOST_ANSWER_TOKENS, 2 * n + margin_tokens(grader)) for n in wanted]
    answers = written.write(model, tokenizer, prompts, most, stopped)
    if stopped():
        return []
    return [
        written.graded(name, family, prompt, one, answer, grader)
        for (name, family, _), one, prompt, answer in zip(rows, asked, prompts, answers, strict=True)
    ]


def to_choose_by(run: Run) -> list[Row]:
    """Return the rows that a run's grader can choose weights by, in an order of which every beginning is spread over all of
    them: held-out ones that the report does not count. Nothing where no grader is named, or nothing is chosen."""
    found = _answered(run.rows.choosing) if run.spec.dataset.grader is not None else []
    random.Random(run.spec.dataset.split_seed).shuffle(found)  # noqa: S311 - an order, not a secret
    return found


def grade_of(run: Run, model: Any, rows: list[Row]) -> float:
    """Return the mean grade, 0 to 1, of a model as it is now on rows of a run. A stop waits for it: half an evaluation would
    choose otherwise than a whole one."""
    ref = run.spec.dataset.grader
    if ref is None:
        raise ValueError("the run names no grader")
    was_training = model.training
    model.eval()
    try:
        found = score(model, run.tokenizer, rows, graders.make(ref))
    finally:
        backend.back_to_training(model, was_training)
    return sum(one.score or 0.0 for one in found) / len(found)
