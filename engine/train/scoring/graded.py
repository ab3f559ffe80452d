"""The run's own task as a grader sees it: what a model writes to rows, seen and unseen, and whether that is right."""

from __future__ import annotations

from typing import Any

from engine import events, graders
from engine.benchmarks import library
from engine.report import Item, items
from engine.train.run import Run
from engine.train.scoring import scores, written
from engine.train.scoring.asking import Question
from engine.train.scoring.harness import sha
from engine.train.tokenize import render
from engine.words import later

# So many rows of a family are answered, in whole answers; and so many of the unseen ones on the way (grade_of).
MOST_ROWS, MOST_ON_THE_WAY = 100, 32
# An answer may be twice as long as the right one, and so many tokens longer: to end, or to say the same otherwise; and
# where the right one may stand at the end of a longer one, to get there, as a base does that was not taught to be short.
MARGIN_TOKENS, WAY_TOKENS = 32, 128

Row = tuple[str, str, dict[str, Any]]  # id, family, canonical row


def question(run: Run) -> Question | None:
    """Return what a run is asked by its grader; None where it names none, or no row has an answer."""
    ref = run.spec.dataset.grader
    if ref is None:
        return None
    grader, scored = graders.make(ref), _answered(run)
    asked = [row for family in (items.SEEN, items.UNSEEN) for row in _spread(scored, family, MOST_ROWS)]
    if not asked:
        return None
    if len(asked) < len(scored):
        told = later("Of {total} rows {n} are answered and graded.", total=len(scored), n=len(asked))
        run.log.append(events.Log(level="scores", text=told))
    used = {"grader": grader.told, "answer_tokens": [written.MOST_ANSWER_TOKENS, margin_tokens(grader)]}
    return Question(scores.TASK_GRADED, asked, lambda m, t, rows: score(run, m, t, rows, grader), used)


def margin_tokens(grader: graders.Grader) -> int:
    """Return how many tokens longer than twice the right one an answer may be."""
    return WAY_TOKENS if grader.reads_within else MARGIN_TOKENS


def _answered(run: Run) -> list[Row]:
    return [row for row in run.rows.scored if graders.as_asked(row[2]) is not None]


def _spread(rows: list[Row], family: str, most: int) -> list[Row]:
    found = [row for row in rows if row[1] == family]
    return [found[at] for at in library.spread(len(found), min(most, len(found)))]


def score(run: Run, model: Any, tokenizer: Any, rows: list[Row], grader: graders.Grader) -> list[Item]:
    """Return an item per row: what the model wrote greedily, its grade, and whether that is right. Nothing when the run is
    stopped."""
    asked = [graders.as_asked(row) or {} for _, _, row in rows]
    prompts = [render(tokenizer, one["turns"], row[2].get("tools")) for one, row in zip(asked, rows, strict=True)]
    wanted = [len(tokenizer(one["reference"], add_special_tokens=False)["input_ids"]) for one in asked]
    most = [min(written.MOST_ANSWER_TOKENS, 2 * n + margin_tokens(grader)) for n in wanted]
    found = []
    answers = written.write(model, tokenizer, prompts, most, run.stop.asked)
    if run.stop.asked():
        return []
    for (name, family, _), one, prompt, answer in zip(rows, asked, prompts, answers, strict=True):
        grade = grader.grade(answer.text, {**one, "ended": answer.ended})
        found.append(
            Item(
                item=name, family=family, prompt_sha=sha(prompt), prompt=one["prompt"], text=answer.text[:4_000],
                reference=one["reference"][:4_000], correct=grade.right, score=round(grade.score, 6),
            )
        )  # fmt: skip
    return found


def grade_of(run: Run, model: Any, most: int = MOST_ON_THE_WAY) -> float | None:
    """Return the mean grade, 0 to 1, of a model as it is now on unseen rows of a run, the same ones each time; None where
    the run names no grader, has no such rows, or is stopped. For choosing the best checkpoint."""
    ref = run.spec.dataset.grader
    if ref is None or not (rows := _spread(_answered(run), items.UNSEEN, most)):
        return None
    was_training = model.training
    model.eval()
    try:
        found = score(run, model, run.tokenizer, rows, graders.make(ref))
    finally:
        model.train(was_training)
    return sum(one.score or 0.0 for one in found) / len(found) if found else None
