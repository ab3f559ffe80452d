"""Kahneman-Tversky optimisation with TRL's KTOTrainer on our own token ids: single answers, each good or bad.

Loss: weight of the label times (1 - sigmoid(beta (log pi/ref - z))) for good answers and (1 - sigmoid(beta (z - log
pi/ref))) for bad ones, z an estimate of the KL to the reference from mismatched answers of the batch; Ethayarajh and
others, arXiv 2402.01306, section 4.1. Weights: kto_weights of engine/spec/counts.py. The reference is as for DPO (dpo.py).
"""

from __future__ import annotations

import os
import random
from typing import Any

from datasets import Dataset, Features, List, Value
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from engine.train import batches
from engine.train.callback import EventCallback
from engine.train.objectives import common, preference
from engine.train.objectives.dpo import settle_reference
from engine.train.objectives.preference import Marked, TokenIdsAlready
from engine.train.run import Run
from engine.train.scoring import judged, scores
from engine.train.scoring.scores import Question

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


def by_length(rows: list[Marked], batch: int, seed: int) -> list[Marked]:
    """Return the rows so that those of a batch are of like length among the answers of their own label: good ones may be
    longer than bad ones, and a batch is to hold both."""
    lengths = [len(row.prompt_ids) + len(row.completion_ids) for row in rows]
    place: dict[int, float] = {}
    for label in (True, False):
        alike = sorted((n for n, row in enumerate(rows) if row.label is label), key=lambda n: lengths[n])
        place |= {row: rank / len(alike) for rank, row in enumerate(alike)}
    laid = batches.by_length([place[n] for n in range(len(rows))], batch, range(len(rows)), random.Random(seed))  # noqa: S311
    if batches.factor(lengths, batch) < batches.WORTH:
        return rows
    return [rows[n] for n in laid]


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


def prepare(run: Run) -> None:
    """Read, split and encode the marked answers. A single held-out one is left: there is no other to hold it against."""
    preference.prepare(run)
    if len(run.rows.evaluate) < 2:
        run.rows = run.rows._replace(evaluate=[])


def config(run: Run, shared: dict[str, Any]) -> KTOConfig:
    """Return TRL's arguments. Rows come in our order, and evaluation batches are as large as the others, so that the
    answers of a batch and its mismatched ones are the same set."""
    good, bad = run.spec.objective_args.weights or (1.0, 1.0)
    return KTOConfig(
        **shared,
        num_train_epochs=run.spec.train.epochs,
        train_sampling_strategy="sequential",
        beta=run.beta,
        desirable_weight=good,
        undesirable_weight=bad,
        precompute_ref_log_probs=run.spec.adapter == "full",
    )


class _OnOurIds(TokenIdsAlready, KTOTrainer):
    """TRL's trainer on our rows."""


def trainer(run: Run, args: KTOConfig, model: Any, callback: EventCallback) -> KTOTrainer:
    """Return TRL's trainer on marked answers."""
    os.environ["TQDM_DISABLE"] = "1"  # no progress bar of the reference's log-probabilities in the log
    batch, seed = run.spec.train.batch_size, run.spec.train.seed
    train = as_dataset(by_length(shuffled(run.rows.train, seed), batch, seed), batch)
    held_out = (
        as_dataset(by_length(shuffled(run.rows.evaluate, seed), batch, seed), batch) if run.rows.evaluate else None
    )
    made = common.trainer(_OnOurIds, args, model, run.tokenizer, train, held_out, callback)
    settle_reference(run, made.model)
    return made


samples = common.written_samples


def questions(run: Run) -> list[Question]:
    """How likely each marked answer is: good ones are to gain on bad ones."""
    return [
        Question(
            scores.TASK_GAP, run.rows.scored,
            lambda m, t, rows: judged.score_marked(m, t, rows, run.length), {"window_tokens": run.length},
        )
    ]  # fmt: skip
