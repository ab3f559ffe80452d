"""Score base and tuned on the same items: the benchmarks of the spec, and the run's own rows, seen and unseen.

A base is scored once for all runs: its items are kept in evals/<key>/, keyed by weights, questions and settings. Items
are scored in pieces that are written as they come, so that after a kill no item is scored twice.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy
import torch

from engine import events, machine
from engine.benchmarks import library, shipped, speeds
from engine.models import Base
from engine.report import Item, verdicts
from engine.report import items as report_items
from engine.spec import RunSpec
from engine.train.scoring import harness, keys, written
from engine.workspace import Workspace, write_atomically

TASK_CHOICES, TASK_EXACT, TASK_LOSS = "new-task-choices", "new-task-exact", "new-task-loss"
TASK_PREFERENCE, TASK_GAP, TASK_REWARD = "new-task-preference", "new-task-gap", "new-task-reward"
TASK_TEXTS = "new-task-texts"
# A kill or a stop loses no more than the piece in hand; the pieces are always cut the same way, so that figures after
# a kill are those of an unbroken run.
PIECE = 64
# Longer windows cost memory and change nothing for questions this short.
MOST_WINDOW_TOKENS = 2048


class Question(NamedTuple):
    """One benchmark: what is asked and under which settings (both hashed into the key), and the function that scores a
    piece of it. `pace_by` is what a model reads, in characters, for the estimates of later runs.

    One of the harness's own tasks, which the harness reads by itself, is asked in one piece of about `questions`
    questions by `score_whole`, which keeps every answer as it comes.
    """

    benchmark: str
    asked: list[Any]
    score: Callable[[Any, Any, list[Any]], list[Item]]
    settings: dict[str, Any] = {}  # noqa: RUF012 - never changed
    pace_by: int = 0
    questions: int = 0
    score_whole: Callable[[Any, Any, Any], list[Item]] | None = None

    @property
    def size(self) -> int:
        return self.questions or len(self.asked)


def general(spec: RunSpec, workspace: Workspace, base: Base) -> list[Question]:
    """Return the benchmarks of a spec: what is asked, with the same examples, template and window for every model."""
    found = []
    window = min(base.window_tokens or MOST_WINDOW_TOKENS, MOST_WINDOW_TOKENS)
    for name in spec.evaluate.benchmarks:
        benchmark = library.find(name, workspace)
        if benchmark is None:
            continue  # preflight names it; HELD_OUT is made of the run's own rows
        asked = spec.evaluate.template
        chat = (benchmark.template if asked == "auto" else asked) == "chat"
        docs = library.docs(benchmark, spec.evaluate.limit)
        examples, docs = library.examples_and_questions(docs, spec.evaluate.shots)
        shots = spec.evaluate.shots if benchmark.kind == "harness" else len(examples)
        used = {"shots": shots, "template": "chat" if chat else "none", "window_tokens": window}
        if benchmark.kind == "harness":
            used |= {"limit": spec.evaluate.limit, "harness": keys.HARNESS}
            whole = _harness_score(spec, name, chat, window)
            size = min(benchmark.size, spec.evaluate.limit or benchmark.size)
            found.append(
                Question(name, [name], lambda m, t, _, f=whole: f(m, t, None), used, 0, size, score_whole=whole)
            )
            continue
        read = speeds.characters(docs)
        docs = [_as_read(doc, examples, benchmark, chat) for doc in docs]
        if benchmark.kind == "text":
            found.append(Question(name, docs, lambda m, t, d, w=window: harness.score_text(m, t, d, w), used, read))
        elif benchmark.kind == "answers":
            score, how = answer_scorer([doc.get("reference") or "" for doc in docs], window)
            found.append(Question(name, docs, score, used | how, read))
        else:
            found.append(Question(name, docs, lambda m, t, d, w=window: harness.score_choices(m, t, d, w), used, read))
    return found


def answer_scorer(
    references: list[str], window: int
) -> tuple[Callable[[Any, Any, list[Any]], list[Item]], dict[str, Any]]:
    """Return what scores written answers with such references, and the settings that follow from them."""
    unspaced, is_open = written.is_unspaced(references), written.are_open([one for one in references if one])
    used = {"tokenizer": "zh" if unspaced else "13a", **({"words_matched": False} if is_open else {})}
    return lambda m, t, docs: written.score_answers(m, t, docs, window, unspaced, is_open), used


def _harness_score(spec: RunSpec, name: str, chat: bool, window: int) -> Callable[[Any, Any, Any], list[Item]]:
    def score(model: Any, tokenizer: Any, answered: Any) -> list[Item]:
        return harness.score_harness(
            model, tokenizer, name, limit=spec.evaluate.limit, shots=spec.evaluate.shots, chat=chat, max_length=window,
            answered=answered,
        )  # fmt: skip

    return score


def _as_read(
    doc: dict[str, Any], examples: list[dict[str, Any]], benchmark: shipped.Benchmark, chat: bool
) -> dict[str, Any]:
    """Return a question as it is put to a model: after worked examples, as messages or as plain text."""
    if benchmark.kind == "text" or "contexts" in doc:
        return {**doc, "delimiter": benchmark.delimiter}
    question = doc.get("question") or ""

    def right(one: dict[str, Any]) -> str:
        return one["choices"][one["gold"]] if one.get("choices") else one.get("reference") or ""

    if chat:
        turns = [
            turn
            for one in examples
            for turn in (
                {"role": "user", "content": one["question"]}, {"role": "assistant", "content": right(one)},
            )
        ]  # fmt: skip
        return {**doc, "messages": [*turns, {"role": "user", "content": question}], "delimiter": ""}
    delimiter = benchmark.delimiter or (" " if question else "")
    shown = "".join(f"{one['question']}{delimiter}{right(one)}\n\n" for one in examples)
    return {**doc, "text": shown + question, "delimiter": delimiter}


def kept_items(workspace: Workspace, key: str) -> Path:
    return workspace.eval_dir(key) / "items.jsonl"


def score_base(
    model: Any, tokenizer: Any, base: Base, held: str, asked: list[Question],
    workspace: Workspace, run_dir: Path, log: events.EventLog, stop: Callable[[], bool],
) -> None:  # fmt: skip
    """Score the untouched base, from the cache where it was scored before, and keep the items with the run. `held` says
    in which number format and where its weights are (load.held)."""
    answers = keys.model(base, workspace, held)
    for question in asked:
        target = run_dir / "items" / f"base-{question.benchmark}.jsonl"
        if stop() or target.exists():
            continue
        key = keys.of_question(answers, question, tokenizer)
        kept = kept_items(workspace, key)
        cached = kept.exists()
        items = report_items.read_items(kept) if cached else None
        if items is None:
            began_s = time.monotonic()
            items, new = score(model, tokenizer, question, key, _part(target), stop)
            if items is None:
                return  # what was asked for is a stop: what is scored so far waits in its part file
            report_items.write_items(kept, items)
            note_speed(workspace, base, question, new, time.monotonic() - began_s)
        keep(target, items, question, key)
        log.append(events.Scored(model="base", benchmark=question.benchmark, items=len(items), cached=cached))


def score_tuned(
    model: Any, tokenizer: Any, asked: list[Question], run_dir: Path, log: events.EventLog, stop: Callable[[], bool]
) -> None:
    """Score the tuned model on the same questions."""
    for question in asked:
        target = run_dir / "items" / f"tuned-{question.benchmark}.jsonl"
        _part(target).unlink(missing_ok=True)  # of an earlier attempt, whose weights may have been others
        items, _ = score(model, tokenizer, question, "", _part(target), stop)
        if items is None:
            return
        keep(target, items, question, None)
        log.append(events.Scored(model="tuned", benchmark=question.benchmark, items=len(items)))


def score_on_the_way(
    model: Any, tokenizer: Any, asked: list[Question], step: int, run_dir: Path, log: events.EventLog,
    stop: Callable[[], bool],
) -> None:  # fmt: skip
    """Score the model as it is after a step. What random numbers this draws, the training does not miss."""
    python, numbers = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng():
        for question in asked:
            target = run_dir / "items" / f"{report_items.at_step(step)}-{question.benchmark}.jsonl"
            if target.exists():
                continue
            items, _ = score(model, tokenizer, question, "", _part(target), stop)
            if items is None:
                break
            report_items.write_items(target, items)
            _part(target).unlink(missing_ok=True)
            log.append(events.Scored(model=report_items.at_step(step), benchmark=question.benchmark, items=len(items)))
    random.setstate(python)
    numpy.random.set_state(numbers)


def forget_points_after(run_dir: Path, step: int) -> None:
    """Remove what was scored on the way after a step: a resumed run goes there again, with weights of its own."""
    for path in (run_dir / "items").glob("at-*"):
        found = report_items.step_of(path.name)
        if path.suffix == ".part" or (found is not None and found > step):
            path.unlink()


def _part(target: Path) -> Path:
    return target.with_suffix(".part")


class _Piece(msgspec.Struct):
    """One line of a part file: the items of a piece, and the key of what they belong to."""

    key: str
    piece: int
    items: list[Item]


def read_part(part: Path, key: str) -> list[_Piece]:
    """Return the whole pieces of a part file from the first on; a line that was cut off by a kill is cut away."""
    decoder, pieces, good = msgspec.json.Decoder(_Piece), [], 0
    data = part.read_bytes() if part.is_file() else b""
    for line in data.splitlines(keepends=True):
        try:
            piece = decoder.decode(line)
        except msgspec.MsgspecError:
            break
        if not line.endswith(b"\n") or piece.key != key or piece.piece != len(pieces):
            break
        pieces.append(piece)
        good += len(line)
    if good < len(data):
        with part.open("rb+") as file:
            file.truncate(good)
    return pieces


def score(
    model: Any, tokenizer: Any, question: Question, key: str, part: Path, stop: Callable[[], bool],
    on_piece: Callable[..., None] | None = None,
) -> tuple[list[Item] | None, int]:  # fmt: skip
    """Score a question in pieces, going on where an earlier attempt ended, and return the items and how many questions
    were scored now; None for items when a stop came first. `on_piece` hears how many questions are done, and, when an
    earlier attempt did them, False."""
    if question.score_whole is not None:
        return _score_whole(model, tokenizer, question, key, part, stop, on_piece)
    done = read_part(part, key)
    part.parent.mkdir(parents=True, exist_ok=True)
    was_training, new = model.training, 0
    model.eval()
    try:
        with part.open("ab", buffering=0) as file:
            for start in range(len(done) * PIECE, len(question.asked), PIECE):
                rows = question.asked[start : start + PIECE]
                items = [] if stop() else question.score(model, tokenizer, rows)
                if stop():
                    return None, new
                piece = _Piece(key, len(done), items)
                file.write(msgspec.json.encode(piece) + b"\n")
                done.append(piece)
                new += len(rows)
                if on_piece is not None:
                    on_piece(start + len(rows))
    finally:
        model.train(was_training)
    return [item for piece in done for item in piece.items], new


def _score_whole(
    model: Any, tokenizer: Any, question: Question, key: str, part: Path, stop: Callable[[], bool],
    on_piece: Callable[..., None] | None,
) -> tuple[list[Item] | None, int]:  # fmt: skip
    """Score one of the harness's tasks, going on with the answers that an earlier attempt left in the part file."""
    from engine.train.scoring import lm

    assert question.score_whole is not None

    def on_share(share: float, fresh: bool) -> None:
        if on_piece is not None:
            on_piece(int(share * question.size), fresh)

    answered = lm.Answered(part, key, on_share, stop)
    was_training, before = model.training, len(answered)
    model.eval()
    try:
        items = question.score_whole(model, tokenizer, answered)
    except lm.Stopped:
        return None, 0
    finally:
        model.train(was_training)
        answered.close()
    return items, 0 if before else question.size


def keep(target: Path, items: list[Item], question: Question, key: str | None) -> None:
    """Write the items of a model with what they were scored under, and take the part file away."""
    report_items.write_items(target, items)
    _part(target).unlink(missing_ok=True)
    path = target.parent / "settings.json"
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError):
        told = {}
    used = {**question.settings, "questions": len(items), "chance": verdicts.chance_of(items), "pieces": PIECE}
    if measures := sorted({item.measure for item in items if item.measure}):
        used["measure"] = "; ".join(measures)
    told[question.benchmark] = {**told.get(question.benchmark, {}), **used, **({"base_key": key} if key else {})}
    write_atomically(path, json.dumps(told, indent=1, sort_keys=True).encode())


def note_speed(workspace: Workspace, base: Base, question: Question, new: int, seconds: float) -> None:
    """Keep how long a whole benchmark took, for the estimates of later runs; a few questions say too little."""
    if new == question.size and new and (question.pace_by or question.questions):
        speeds.note_speed(
            workspace,
            speeds.Speed(
                device=machine.facts().device, base=base.ref, benchmark=question.benchmark, items=new,
                seconds=round(seconds, 3), parameters=base.parameters, characters=question.pace_by,
            ),
        )  # fmt: skip
