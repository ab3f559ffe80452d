"""An evaluation run: a model and its base, asked the same questions under the same settings, and nothing trained."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import msgspec

from engine import events
from engine.models import Base, bases
from engine.report import items as report_items
from engine.runs import failures, store
from engine.spec import RunSpec, schema
from engine.train import allocator, load, oft, precision
from engine.train.run import Run
from engine.train.scoring import keys, own_rows, paired, scores
from engine.train.scoring.asking import Question
from engine.train.tokenize import get_ready
from engine.words import Problem, Text
from engine.workspace import Workspace

EXIT_FINISHED, EXIT_STOPPED = 0, 3


def run(one: Run) -> int:
    """Score the models of an evaluation; returns the exit status. What is cached needs no model at all."""
    run_spec, workspace, log = one.spec, one.workspace, one.log
    precision.multiply_fp32_faster(one.chosen)
    wanted = {"base": run_spec.evaluate.against, "tuned": run_spec.base.ref}
    if not wanted["base"]:
        wanted = {"base": run_spec.base.ref}
    described = {role: bases.describe(str(ref), workspace) for role, ref in wanted.items()}
    for described_one in described.values():
        if described_one.problems:
            raise failures.RunRefused(described_one.problems[0])
    tokenizers = {role: _tokenizer(run_spec, model, workspace) for role, model in described.items()}
    own = is_adopted(described.get("tuned"), workspace)
    if len(tokenizers) == 2 and not own and not same_tokens(tokenizers["base"], tokenizers["tuned"]):
        raise failures.RunRefused(
            Problem(
                rule="tokenizers-differ",
                parameters={"base": described["base"].ref, "tuned": described["tuned"].ref},
            )
        )
    # One window for both: what one of them cannot read is not put to the other.
    narrow = min(described.values(), key=lambda model: model.window_tokens or load.MOST_WINDOW_TOKENS)
    one.base, one.tokenizer = described["base"], tokenizers["base"]
    general, of_rows = scores.general(run_spec, workspace, narrow), own_rows.questions(one)
    asked = {role: [(role, question) for question in [*general, *of_rows.plain]] for role in wanted}
    again = report_items.with_examples(run_spec.evaluate.shots)
    asked["base"] += [(again, question) for question in of_rows.after_examples]
    pace = _Pace(log, sum(question.size for each in asked.values() for _, question in each))
    for role, model in described.items():
        log.append(events.Phase(phase="evaluating", detail=role))
        # The chat template is the base's for both: a question must not change with the model. One that was tuned
        # elsewhere is asked in its own words, as in its run.
        if not _score(one, model, tokenizers[role if own else "base"], asked[role], pace):
            log.append(events.Stopped(step=pace.done, resumable=True))
            return EXIT_STOPPED
    if of_rows.after_examples and pace.all_were_new:
        scores.note_rows(workspace, one.base, of_rows.after_examples[0].size, pace.spent_s)
    if own:
        paired.pair(one.run_dir, log)
    log.append(events.Finished(step=pace.total))
    return EXIT_FINISHED


def is_adopted(base: Base | None, workspace: Workspace) -> bool:
    """Whether a model was tuned elsewhere."""
    return (
        base is not None and base.kind == "run"
        and store.load_spec(workspace, base.ref.removeprefix("run:")).adopted is not None
    )  # fmt: skip


class _Pace:
    """Counts questions and says how long the rest will take, by the pace of those scored in this attempt."""

    def __init__(self, log: events.EventLog, total: int):
        self._log, self.total, self.done = log, total, 0
        self._began_s, self._new = time.monotonic(), 0

    def add(self, questions: int, detail: str, *, scored: bool) -> None:
        self.done += questions
        if scored:
            self._new += questions
        left_s = (self.total - self.done) * self.spent_s / self._new if self._new else None
        self._log.append(
            events.Progress(
                done=self.done, total=self.total, left_s=None if left_s is None else round(left_s, 1), detail=detail
            )
        )

    @property
    def spent_s(self) -> float:
        """Seconds since the first question was put to a model."""
        return time.monotonic() - self._began_s

    @property
    def all_were_new(self) -> bool:
        """Whether every question was asked in this attempt, so that the clock says how long all of them take."""
        return self._new == self.total

    def start(self) -> None:
        """Begin to count: loading a model says nothing about the pace of questions."""
        if not self._new:
            self._began_s = time.monotonic()


class _Counted:
    """Turns how many questions of a benchmark are done into how many more these are."""

    def __init__(self, pace: _Pace, benchmark: str):
        self._pace, self._benchmark, self._before = pace, benchmark, 0

    def upto(self, done: int, fresh: bool = True) -> None:
        if done > self._before:
            self._pace.add(done - self._before, self._benchmark, scored=fresh)
            self._before = done


def _score(run: Run, base: Base, tokenizer: Any, asked: list[tuple[str, Question]], pace: _Pace) -> bool:
    """Score one model, which is called as stands beside each question; False when a stop came first."""
    log, stop = run.log, run.stop.asked
    name = keys.model(base, run.workspace, load.held(_plain(run.spec, base), run.workspace))
    model = None
    for role, question in asked:
        answers = scores.Side(role, name, tokenizer, nullcontext).answers(run, question)
        if scores.is_kept(answers, role) or answers.is_stored:
            if not scores.is_kept(answers, role):
                scores.keep(answers, answers.items(), role)
                log.append(
                    events.Scored(model=role, benchmark=question.benchmark, items=len(answers.items()), cached=True)
                )
            pace.add(question.size, question.benchmark, scored=False)
            continue
        if stop():
            return False
        if model is None:
            log.append(events.Phase(phase="loading", detail=role))
            model, notes = _model(run.spec, run.workspace, base)
            for note in notes:
                log.append(events.Log(text=note))
            log.append(events.Phase(phase="evaluating", detail=role))
        pace.start()
        counted = _Counted(pace, question.benchmark)
        counted.upto(answers.done, fresh=False)
        began_s = time.monotonic()
        if not answers.ask(model, tokenizer, stop, on_done=counted.upto):
            return False
        counted.upto(question.size)
        scores.note_speed(run.workspace, base, question, answers.new, time.monotonic() - began_s)
        answers.share()
        scores.keep(answers, answers.items(), role)
        log.append(events.Scored(model=role, benchmark=question.benchmark, items=len(answers.items())))
    del model
    allocator.give_back()
    return True


def _plain(run_spec: RunSpec, base: Base) -> RunSpec:
    """Return the spec that loads a model to be asked."""
    return msgspec.structs.replace(run_spec, adapter="lora", base=schema.BaseRef(base.ref, run_spec.base.revision))


def _model(run_spec: RunSpec, workspace: Workspace, base: Base) -> tuple[Any, list[Text]]:
    """Load a model to be asked. An adapter is laid over its base as it was trained, also over one in 4 bits: merging
    would round again."""
    plain = _plain(run_spec, base)
    if base.kind == "run" and base.folder is not None and base.folder.name == "adapter":
        below = store.over_its_base(workspace, store.load_spec(workspace, base.ref.removeprefix("run:")))
        loaded = load.load(msgspec.structs.replace(plain, base=below.base), workspace)
        return oft.lay_over(loaded.model, base.folder).eval(), loaded.notes
    loaded = load.load(plain, workspace)
    return loaded.model.eval(), loaded.notes


def _tokenizer(run_spec: RunSpec, base: Base, workspace: Workspace) -> Any:
    source = str(base.folder) if base.folder is not None else base.ref
    revision = run_spec.base.revision if base.ref == run_spec.base.ref else None
    asked = msgspec.structs.replace(run_spec, base=schema.BaseRef(source, revision))
    tokenizer = load.read_tokenizer(source, asked)
    get_ready(tokenizer, load.files_of(base, workspace), run_spec.day)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def same_tokens(one: Any, other: Any) -> bool:
    """Whether two tokenizers split text alike: the same tokens by the same numbers, and the same split of a probe."""
    return one.get_vocab() == other.get_vocab() and one(load.PROBE)["input_ids"] == other(load.PROBE)["input_ids"]
