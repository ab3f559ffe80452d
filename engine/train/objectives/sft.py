"""Supervised fine-tuning with TRL's SFTTrainer on our own input_ids and labels."""

from __future__ import annotations

import random
from contextlib import nullcontext
from typing import Annotated, Any

import msgspec
from datasets import Dataset, Features, List, Value
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from engine import events
from engine.benchmarks import forms, library, shipped
from engine.render import Encoded
from engine.report import items
from engine.spec import RunSpec, counts
from engine.train import batches, head, keep, ranks, replay, rows
from engine.train import held_out as held_out_rows
from engine.train.callback import EventCallback
from engine.train.objectives import common
from engine.train.run import Run
from engine.train.scoring import graded, harness, losses, scores, written
from engine.train.scoring.scores import Question
from engine.words import Text, later
from engine.workspace import find_struct, write_atomically

# Held-out rows whose whole answers are compared with their references; more would only take time.
MOST_TEXTS = 100
# How many general rows a run has taken.
_COUNT: Any = Annotated[int, msgspec.Meta(ge=0)]

_FEATURES = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})


def as_dataset(rows: list[Encoded]) -> Dataset:
    """Return encoded rows as a data set with explicit features; nothing is inferred."""
    return Dataset.from_dict(
        {"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]}, features=_FEATURES
    )


def one_pass(spec: RunSpec, rows: list[Encoded], replay: list[list[Encoded]]) -> list[Encoded]:
    """Lay all epochs out as one pass, each shuffled by itself with general rows of its own: the Trainer would show the
    same general rows in every epoch, and these are soon learned by heart."""
    dice = random.Random(spec.train.seed)  # noqa: S311 - an order, not a secret
    laid: list[Encoded] = []
    for general in replay:
        epoch = [*rows, *general]
        dice.shuffle(epoch)
        laid += epoch
    return laid[: counts.rows_with_replay(spec.train, len(rows), [len(general) for general in replay])]


def prepare(run: Run) -> None:
    """Read, split and encode the rows, with general ones to mix in: a run that goes on has as many of these as at its start,
    however many there are by now. Raises RunRefused when no token would be trained."""
    path = run.run_dir / "replay.json"

    def generate(count: int) -> list[Encoded]:
        run.told.begin("replay", total=min(count, replay.MOST_WRITTEN))
        with ranks.one_after_the_first():  # which writes them; the others read the same
            settled = find_struct(path, _COUNT)
            found = replay.from_base(
                run.model, run.tokenizer, run.base, run.spec.base_form, count, run.workspace, run.stop.asked,
                budget_s=run.spec.train.replay_budget_s, told=run.told.upto,
                reads_only=not ranks.first() or settled is not None,
            )[:settled]  # fmt: skip
            if settled is None and not run.stop.asked():
                write_atomically(path, str(len(found)).encode())
        run.told.begin("loading", "rows")
        return found

    run.rows = rows.prepare(run.spec, run.workspace, run.tokenizer, generate)
    keep.prepare(run)


def config(run: Run, shared: dict[str, Any]) -> SFTConfig:
    """Return TRL's arguments. With replay the rows are one pass in an order of ours (one_pass). Its loss by chunks takes
    the output layer's weights, past an adapter on it (sft_trainer.py, _patch_chunked_ce_lm_head): that one asks the layer.
    Rows come cut, so no length is named: TRL would cut them once more, and not take rows that lie end to end.
    """
    wrapped = isinstance(run.model.get_output_embeddings(), (BaseTunerLayer, AuxiliaryTrainingWrapper))
    padding_free: dict[str, Any] = {} if run.chosen.padding_free is None else {"padding_free": run.chosen.padding_free}
    return SFTConfig(
        **{**shared, "max_length": None},
        **padding_free,
        loss_type="nll" if wrapped else "chunked_nll",
        num_train_epochs=1 if run.rows.replay else run.spec.train.epochs,
        train_sampling_strategy="sequential" if run.rows.replay else "random",
    )


def trainer(run: Run, args: SFTConfig, model: Any, callback: EventCallback) -> SFTTrainer:
    """Return TRL's trainer on encoded rows."""
    train = one_pass(run.spec, run.rows.train, run.rows.replay) if run.rows.replay else run.rows.train
    held_out = batches.sorted_by_length(as_dataset(run.rows.evaluate)) if run.rows.evaluate else None
    if held_out is not None and args.world_size > 1:
        held_out = held_out_rows.filled(held_out, args.world_size * args.per_device_eval_batch_size)
    with head.named(model) if run.chosen.backend == "plain" else nullcontext(True) as is_multiple:
        if not is_multiple:
            args.loss_type = "nll"
        made = common.trainer(SFTTrainer, args, model, run.tokenizer, as_dataset(train), held_out, callback)
    batches.settle(run, made)
    keep.hook(run, made)
    return made


samples = common.written_samples


def questions(run: Run) -> list[Question]:
    """Choices where rows have them, what the grader of the data says or, without one, exact words where answers are not
    open, and the loss of the rows always."""
    scored, used, found = run.rows.scored, {"window_tokens": run.length}, []
    docs = harness.choice_docs([row for row in scored if row[1] != items.SEEN])
    if docs:
        found.append(
            Question(scores.TASK_CHOICES, docs, lambda m, t, rows: harness.score_choices(m, t, rows, run.length), used)
        )
    pairs = [row for row in scored if row[2].get("completion") and row[2].get("prompt")]
    unseen = [row for row in pairs if row[1] != items.SEEN]
    exact = unseen if docs else pairs
    references = [row["completion"][-1]["content"] for _, _, row in exact]
    if (asked := graded.question(run)) is not None:
        found.append(asked)
    elif written.are_open(references):
        run.log.append(events.Log(level="scores", text=_why_not_matched(references)))
    elif exact:
        form = forms.form_of(references)

        def score_exact(model: Any, tokenizer: Any, rows: list[Any]) -> list[items.Item]:
            return written.score_exact(model, tokenizer, rows, run.stop.asked, form)

        found.append(Question(scores.TASK_EXACT, exact, score_exact, {"form": form}))
    if scored:
        found.append(
            Question(scores.TASK_LOSS, scored, lambda m, t, rows: losses.score_loss(m, t, rows, run.length), used)
        )
    if shipped.HELD_OUT in run.spec.evaluate.benchmarks and unseen:
        most = min(MOST_TEXTS, run.spec.evaluate.limit or MOST_TEXTS)
        docs = [scores.text_doc(*unseen[at]) for at in library.spread(len(unseen), most)]
        found.append(scores.texts([doc for doc in docs if doc is not None], run.length))
    return found


def _why_not_matched(references: list[str]) -> Text:
    """Say that open answers are not compared word for word, and what is scored instead."""
    return later(
        "The answers are open: most of the {n} right ones are different and longer than {words} words, so they are not "
        "compared word for word. Scored is how likely the model finds them (loss per token); “{name}” among the benchmarks "
        "adds BLEU and ROUGE-L.",
        n=len(references), words=written.MOST_MATCHED_WORDS, name=shipped.HELD_OUT,
    )  # fmt: skip
