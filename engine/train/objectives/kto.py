"""Kahneman-Tversky optimisation with TRL's KTOTrainer on our own token ids: single answers, each good or bad.

Loss: weight of the label times (1 - sigmoid(beta (log pi/ref - z))) for good answers and (1 - sigmoid(beta (z - log
pi/ref))) for bad ones, z an estimate of the KL to the reference from mismatched answers of the batch; Ethayarajh and
others, arXiv 2402.01306, section 4.1. Weights: kto_weights of engine/spec.py. The reference is as for DPO (dpo.py).
"""

from __future__ import annotations

import os
import random
from typing import Any

from datasets import Dataset, Features, List, Value
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from engine.spec import RunSpec, objectives
from engine.train.callback import EventCallback
from engine.train.objectives import arguments
from engine.train.objectives.dpo import drop_copied_reference
from engine.train.objectives.preference import Marked, TokenIdsAlready

_IDS = List(Value("int32"))
_FEATURES = Features(
    {"prompt_ids": _IDS, "completion_ids": _IDS, "KL_completion_ids": _IDS, "label": Value("bool")}
)  # fmt: skip


def shuffled(rows: list[Marked], seed: int) -> list[Marked]:
    """Return the rows in an order drawn from the seed. TRL's sampler for KTO never shuffles, and rows that come sorted
    by label would make batches of one label."""
    mixed = list(rows)
    random.Random(seed).shuffle(mixed)  # noqa: S311 - an order, not a secret
    return mixed


def mismatched(answers: list[list[int]], batch: int) -> list[list[int]]:
    """Return for each row the answer of another row of its batch: the one before it, the last one's for the first.

    So does TRL (kto_trainer.py, 1.12), but for a last batch of one row, which gets the answer before it instead of its
    own: with its own the estimate of the KL would be the reward itself.
    """
    moved = []
    for start in range(0, len(answers), batch):
        one = answers[start : start + batch]
        moved += [one[-1], *one[:-1]] if len(one) > 1 else [answers[start - 1]]
    return moved


def as_dataset(rows: list[Marked], batch: int) -> Dataset:
    """Return marked answers as a data set with explicit features; nothing is inferred."""
    answers = [row.completion_ids for row in rows]
    return Dataset.from_dict(
        {
            "prompt_ids": [row.prompt_ids for row in rows],
            "completion_ids": answers,
            "KL_completion_ids": mismatched(answers, batch),
            "label": [row.label for row in rows],
        },
        features=_FEATURES,
    )


def config(spec: RunSpec, common: dict[str, Any]) -> KTOConfig:
    """Return TRL's arguments for a spec. Rows come in our order, and evaluation batches are as large as the others, so
    that the answers of a batch and its mismatched ones are the same set."""
    good, bad = spec.objective_args.weights or (1.0, 1.0)
    return KTOConfig(
        **{**common, "per_device_eval_batch_size": spec.train.batch_size},
        num_train_epochs=spec.train.epochs,
        train_sampling_strategy="sequential",
        beta=spec.objective_args.beta or objectives.USUAL_BETA,
        desirable_weight=good,
        undesirable_weight=bad,
        precompute_ref_log_probs=spec.adapter == "full",
    )


class _OnOurIds(TokenIdsAlready, KTOTrainer):
    """TRL's trainer on our rows."""


def trainer(
    spec: RunSpec,
    args: KTOConfig,
    model: Any,
    tokenizer: Any,
    train_rows: list[Marked],
    eval_rows: list[Marked],
    callback: EventCallback,
) -> KTOTrainer:
    """Return TRL's trainer on marked answers."""
    os.environ["TQDM_DISABLE"] = "1"  # no progress bar of the reference's log-probabilities in the log
    batch = spec.train.batch_size
    train = as_dataset(shuffled(train_rows, spec.train.seed), batch)
    held_out = as_dataset(shuffled(eval_rows, spec.train.seed), batch) if len(eval_rows) > 1 else None
    made = arguments.trainer(_OnOurIds, args, model, tokenizer, train, held_out, callback)
    drop_copied_reference(made.model)
    return made
