"""What an evaluation asks about the rows of its data: what a run itself asks, held-out prompts to be answered at length, or
of a base by itself the held-out rows, also after worked examples."""

from __future__ import annotations

from typing import Any, NamedTuple

from engine import events
from engine.benchmarks import library, shipped
from engine.render import NotWritten
from engine.spec import RunSpec, split
from engine.train import objectives, rows
from engine.train.run import Run
from engine.train.scoring import scores
from engine.train.scoring.asking import Question
from engine.train.scoring.written import MARGIN_TOKENS, SHORT_TOKENS
from engine.train.tokenize import render
from engine.words import Text, later


class Asked(NamedTuple):
    """What is asked as it is, and what of it once more after worked examples."""

    plain: list[Question]
    after_examples: list[Question]


def questions(run: Run) -> Asked:
    """Return what is asked of the data that an evaluation names; nothing where it names none."""
    spec = run.spec
    if not spec.dataset.id or run.objective.needs_judge:
        return Asked([], [])
    parts = rows.divided(spec, run.workspace)
    if spec.evaluate.against:
        found = of_run(run)
        if shipped.HELD_OUT in spec.evaluate.benchmarks and all(one.benchmark != scores.TASK_TEXTS for one in found):
            found += _texts(run, rows.apart(spec, rows.read(parts.unseen, run.tokenizer))[1].rows)
        return Asked(found, [])
    train, unseen = (rows.read(part, run.tokenizer).rows for part in (parts.train, parts.unseen))
    held_out = rows.to_score([], [row for row in unseen if _is_pair(row)], spec=spec)
    plain = _of_rows(run, held_out)
    if not spec.evaluate.shots:
        return Asked(_right_or_wrong(plain), [])
    shown, notes = after_examples(spec, train, held_out, run.tokenizer)
    for note in notes:
        run.log.append(events.Log(level="scores", text=note))
    return Asked(_right_or_wrong(plain), _right_or_wrong(_of_rows(run, shown)))


def of_run(run: Run) -> list[Question]:
    """Return what a run itself asks about its rows, row by row."""
    if not run.spec.dataset.id:
        return []
    parts = rows.divided(run.spec, run.workspace)
    train, unseen = (rows.read(part, run.tokenizer) for part in (parts.train, parts.unseen))
    _, reported, _ = rows.apart(run.spec, unseen)
    return _of_rows(run, rows.to_score(train.rows, reported.rows, rows.readable(parts.seen, run.tokenizer), run.spec))


def _is_pair(row: dict[str, Any]) -> bool:
    """Whether a row is a question with its answer."""
    return bool(row.get("prompt") and row.get("completion"))


def _of_rows(run: Run, scored: list[rows.Named]) -> list[Question]:
    """Return what the objective asks of rows."""
    run.rows = rows.Rows([], [], [], scored, [], [])
    return objectives.of(run.spec.objective).questions(run)


def _right_or_wrong(found: list[Question]) -> list[Question]:
    """Return the questions without the loss, which says nothing that can be counted, where there are others."""
    return [one for one in found if one.benchmark != scores.TASK_LOSS] or found


def _texts(run: Run, unseen: list[dict[str, Any]]) -> list[Question]:
    """Return the held-out prompts of rows that have no one answer each, such as pairs, to be answered at length."""
    named = rows.to_score([], unseen)
    docs = [doc for one in named if (doc := scores.text_doc(*one)) is not None and _is_written(run, doc)]
    most = run.spec.evaluate.limit or len(docs)
    return [scores.texts([docs[at] for at in library.spread(len(docs), most)], run.length)] if docs else []


def _is_written(run: Run, doc: dict[str, Any]) -> bool:
    try:
        render(run.tokenizer, doc["messages"])
    except NotWritten:
        return False
    return True


def after_examples(
    spec: RunSpec, train: list[dict[str, Any]], asked: list[rows.Named], tokenizer: Any
) -> tuple[list[rows.Named], list[Text]]:
    """Return the questions with spec.evaluate.shots rows of `train` before each, drawn by the split seed, as turns of the
    conversation, and what has to be said of it. A question keeps its id; where its window has no room for all examples it
    takes fewer."""
    shown = split.drawn([row for row in train if _is_pair(row)], spec.evaluate.shots, spec.dataset.split_seed)
    found, fewer = [], 0
    for name, family, row in asked:
        made, count = _fitting(row, shown, tokenizer, spec.train.max_length)
        fewer += count < spec.evaluate.shots
        found.append((name, family, made))
    told = {"n": fewer, "total": len(found), "shots": spec.evaluate.shots, "length": spec.train.max_length}
    text = later(
        "Before {n} of {total} questions fewer than {shots} examples were shown: {length} tokens have no room for more.",
        **told,
    )
    return found, [text] if fewer else []


def _fitting(
    row: dict[str, Any], shown: list[dict[str, Any]], tokenizer: Any, length: int
) -> tuple[dict[str, Any], int]:
    """Return a row after as many examples as leave room for its answer, and how many that are."""

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    answers = [*(row.get("choices") or ()), row["completion"][-1]["content"] or ""]
    room = length - max(SHORT_TOKENS, *map(tokens, answers)) - MARGIN_TOKENS
    for count in range(len(shown), 0, -1):
        made = _with(row, shown[:count])
        if tokens(render(tokenizer, made["prompt"], row.get("tools"))) <= room:
            return made, count
    return row, 0


def _with(row: dict[str, Any], shown: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a row whose question comes after worked ones; what the system is told stands first, as without them."""
    own, others = row["prompt"], [turn for one in shown for turn in (*one["prompt"], *one["completion"])]
    first = next((at for at, turn in enumerate(own) if turn["role"] != "system"), len(own))
    return {**row, "prompt": [*own[:first], *(turn for turn in others if turn["role"] != "system"), *own[first:]]}
