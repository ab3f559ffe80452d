"""What base and tuned model are asked alike: the benchmarks of the spec, and the run's own rows, seen and unseen.

A base is scored once for all runs: its items are kept in evals/<key>/, keyed by weights, questions and settings
(asking.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import events, machine
from engine.benchmarks import library, shipped, speeds
from engine.models import Base
from engine.report import Item, verdicts
from engine.report import items as report_items
from engine.spec import RunSpec
from engine.train import load
from engine.train.run import Run
from engine.train.scoring import harness, keys, written
from engine.train.scoring.asking import PIECE, Answers, Question
from engine.words import later
from engine.workspace import Workspace, find_struct, write_atomically

TASK_CHOICES, TASK_EXACT, TASK_LOSS = report_items.CHOICES, report_items.EXACT, report_items.LOSS
TASK_PREFERENCE, TASK_GAP, TASK_REWARD = report_items.PREFERENCE, report_items.GAP, report_items.REWARD
TASK_TEXTS, TASK_GRADED = "new-task-texts", report_items.GRADED


def general(spec: RunSpec, workspace: Workspace, base: Base) -> list[Question]:
    """Return the benchmarks of a spec: what is asked, with the same examples, template and window for every model."""
    found = []
    window = load.question_window(base)
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
        elif benchmark.kind == "graded":
            # all that decides a grade belongs to the key
            docs = [{**doc, "graded_by": written.grader_of(doc).told} for doc in docs]
            found.append(Question(name, docs, written.score_graded, used, read, is_written=True))
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


def text_doc(name: str, family: str, row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the prompt of a canonical row as a question to be answered at length, with its own answer to compare with
    where the row has the one; None where nobody is asked anything."""
    answer, messages = row.get("completion"), row.get("prompt")
    if not messages:
        turns = row.get("messages") or []
        last = max((at for at, turn in enumerate(turns) if turn["role"] == "assistant"), default=0)
        messages, answer = turns[:last], turns[last : last + 1]
    if not messages:
        return None
    reference = answer[-1].get("content") if answer else None
    return {
        "item": name, "family": family, "messages": messages, "question": messages[-1].get("content"),
        "reference": reference,
    }  # fmt: skip


def texts(docs: list[dict[str, Any]], length: int) -> Question:
    """Ask for whole answers to held-out prompts, which BLEU and ROUGE-L compare with the references where there are any."""
    score, used = answer_scorer([doc["reference"] or "" for doc in docs], length)
    settings = {"window_tokens": length, **used}
    return Question(TASK_TEXTS, docs, score, settings, questions=len(docs))


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


@dataclass
class Side:
    """A model that is asked: base or tuned, what names it where its answers are stored (None: nowhere but with the run),
    and what lends it. `shares`: its answers are kept for all that ask it the same. `spent_s` counts the seconds it was asked
    for."""

    role: str
    name: keys.Model | None
    tokenizer: Any
    lent: Callable[[], AbstractContextManager[Any]]
    shares: bool = True
    spent_s: float = 0.0
    _told: bool = False

    def answers(self, run: Run, question: Question) -> Answers:
        """Return what it has answered of a question set, as far as this run or another has asked it."""
        target, seed = run.run_dir / "items" / f"{self.role}-{question.benchmark}.jsonl", run.spec.dataset.split_seed
        if self.name is None:
            return Answers(question, "", target, seed, None)
        key = keys.of_question(self.name, question, self.tokenizer)
        made = Answers(question, key, target, seed, run.workspace.eval_dir(key))
        if not (made.done or self._told):
            self._tell_of_earlier(run, question)
        return made

    def _tell_of_earlier(self, run: Run, question: Question) -> None:
        """Say where a model is asked although the version before had stored its answers."""
        assert self.name is not None
        earlier = run.workspace.eval_dir(keys.before(self.name, question, self.tokenizer))
        if (earlier / "items.jsonl").is_file():
            self._told = True
            told = later(
                "Scores that an earlier version stored of this model are not used: through Unsloth they could be wrong. "
                "It is asked once more."
            )
            run.log.append(events.Log(level="scores", text=told))


def ask_all(run: Run, side: Side, asked: list[Question]) -> bool:
    """Ask one model everything, as far as it was not asked before, and keep the items with the run; False when a stop came
    first: what is answered so far waits in its part file."""
    run.told.begin("evaluating", side.role, total=sum(question.size for question in asked))
    before, stop = 0, run.stop.asked
    with ExitStack() as lending:
        model = None
        for question in asked:
            if stop():
                return False
            answers = side.answers(run, question)
            cached = answers.is_stored
            if not is_kept(answers, side.role):
                if not cached and model is None:
                    model = lending.enter_context(side.lent())
                began_s = time.monotonic()
                run.told.upto(before + answers.done, what=question.benchmark)

                def on_done(done: int, fresh: bool = True, before: int = before) -> None:
                    run.told.upto(before + done)

                if not answers.ask(model, side.tokenizer, stop, on_done=on_done):
                    return False
                side.spent_s += time.monotonic() - began_s
                if side.role == "base":
                    note_speed(run.workspace, run.base, question, answers.new, time.monotonic() - began_s)
                if side.shares:
                    answers.share()
                keep(answers, answers.items(), side.role)
                told = events.Scored(
                    model=side.role, benchmark=question.benchmark, items=len(answers.items()), cached=cached
                )
                run.log.append(told)
            before += question.size
    return True


def _settings(target: Path) -> dict[str, dict[str, Any]]:
    return find_struct(target.parent / "settings.json", dict[str, dict[str, Any]]) or {}


def is_kept(answers: Answers, role: str) -> bool:
    """Whether the items of a model are with the run already, all of them and of these very weights."""
    told = _settings(answers.target).get(answers.question.benchmark, {})
    known = told.get(f"{role}_key")
    return answers.target.exists() and known == answers.key


def keep(answers: Answers, items: list[Item], role: str) -> None:
    """Write the items of a model with what they were scored under, and take the part file away."""
    question, target = answers.question, answers.target
    report_items.write_items(target, items)
    answers.part.unlink(missing_ok=True)
    told = _settings(target)
    used = {
        **question.settings,
        "questions": len(items),
        "chance": verdicts.chance_of(items),
        "pieces": PIECE,
        "scoring": keys.SCORING,
    }
    if measures := sorted({item.measure for item in items if item.measure}):
        used["measure"] = "; ".join(measures)
    told[question.benchmark] = {**told.get(question.benchmark, {}), **used, f"{role}_key": answers.key}
    write_atomically(target.parent / "settings.json", json.dumps(told, indent=1, sort_keys=True).encode())


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


def note_rows(workspace: Workspace, base: Base, rows: int, seconds: float) -> None:
    """Keep how long so many rows took without worked examples and after some."""
    speeds.note_speed(
        workspace,
        speeds.Speed(
            device=machine.facts().device, base=base.ref, benchmark=speeds.AFTER_EXAMPLES, items=rows,
            seconds=round(seconds, 3),
        ),
    )  # fmt: skip
