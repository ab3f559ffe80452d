"""Supervised fine-tuning with TRL's SFTTrainer on our own input_ids and labels."""

from __future__ import annotations

import random
from typing import Any

from datasets import Dataset, Features, List, Value
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from engine.spec import RunSpec, counts
from engine.train.callback import EventCallback
from engine.train.objectives import arguments
from engine.train.tokenize import Encoded

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
    return laid[: counts.rows_with_replay(spec.train, len(rows))]


def config(spec: RunSpec, common: dict[str, Any]) -> SFTConfig:
    """Return TRL's arguments for a spec. With replay the rows are one pass in an order of ours (one_pass)."""
    return SFTConfig(
        **common,
        num_train_epochs=1 if spec.train.replay_share else spec.train.epochs,
        train_sampling_strategy="sequential" if spec.train.replay_share else "random",
    )


def trainer(
    spec: RunSpec,
    args: SFTConfig,
    model: Any,
    tokenizer: Any,
    train_rows: list[Encoded],
    eval_rows: list[Encoded],
    callback: EventCallback,
) -> SFTTrainer:
    """Return TRL's trainer on encoded rows."""
    held_out = as_dataset(eval_rows) if eval_rows else None
    return arguments.trainer(SFTTrainer, args, model, tokenizer, as_dataset(train_rows), held_out, callback)
