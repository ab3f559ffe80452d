"""A reward model: the base with a head of one output, trained to give the chosen answer more than the rejected one.

Loss: -log sigmoid(r(chosen) - r(rejected)), Bradley and Terry's model as in Ouyang and others, arXiv 2203.02155,
equation 1; plus 0.01 (r(chosen) + r(rejected))^2, which keeps rewards around 0 (Eisenstein and others,
arXiv 2312.09244, equation 2; the coefficient is the one of TRL's documentation).
"""

from __future__ import annotations

import copy
from typing import Any

import transformers
from datasets import Dataset, Features, List, Value
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from engine.runs import failures
from engine.train import batches, precision
from engine.train import judge as reading
from engine.train.callback import EventCallback
from engine.train.objectives import common, preference
from engine.train.objectives.preference import Pair
from engine.train.run import Run
from engine.train.scoring import judged, scores
from engine.train.scoring.scores import Question
from engine.words import Problem, later, t

CENTERING = 0.01
_IDS = List(Value("int32"))
_FEATURES = Features({"chosen_ids": _IDS, "rejected_ids": _IDS})


def judge(model: Any, tokenizer: Any, seed: int) -> Any:
    """Return the loaded model with a new head of one output, drawn from the seed, in place of its output layer. It is
    read at the last token (engine/train/judge.py)."""
    settings = copy.deepcopy(model.config)
    settings.num_labels = 1
    transformers.set_seed(seed)
    kind: Any = transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(settings), None)
    if kind is None:
        reason = later("transformers has no reward model of the kind {kind}", kind=settings.model_type)
        raise failures.RunRefused(Problem(rule="model-load", parameters={"reason": reason}))
    made = kind(settings).to(model.dtype)
    setattr(made, made.base_model_prefix, getattr(model, model.base_model_prefix))
    reading.settle_padding(made, tokenizer)
    if (rounded := precision.format_of(model)) is not model.dtype:
        precision.compute_in(made, rounded)
    return reading.read_by_mask(made.to(model.device))


def as_dataset(rows: list[Pair]) -> Dataset:
    """Return pairs, each side with its question, as a data set with explicit features; nothing is inferred."""
    sides = {
        "chosen_ids": [row.prompt_ids + row.chosen_ids for row in rows],
        "rejected_ids": [row.prompt_ids + row.rejected_ids for row in rows],
    }
    return Dataset.from_dict(sides, features=_FEATURES)


def prepare(run: Run) -> None:
    """Read, split and encode the pairs, and give the model a head of one output."""
    preference.prepare(run)
    run.rows = run.rows._replace(prompts=[])  # a judge writes nothing
    run.model = judge(run.model, run.tokenizer, run.spec.train.seed)


def config(run: Run, shared: dict[str, Any]) -> RewardConfig:
    """Return TRL's arguments."""
    return RewardConfig(**shared, num_train_epochs=run.spec.train.epochs, center_rewards_coefficient=CENTERING)


def trainer(run: Run, args: RewardConfig, model: Any, callback: EventCallback) -> RewardTrainer:
    """Return TRL's trainer on pairs; it takes token ids as they are."""
    held_out = batches.sorted_by_length(as_dataset(run.rows.evaluate)) if run.rows.evaluate else None
    made = common.trainer(RewardTrainer, args, model, run.tokenizer, as_dataset(run.rows.train), held_out, callback)
    batches.settle_pairs(run, made)
    return made


def samples(run: Run, model: Any) -> list[tuple[str, str]]:
    """Return for three fixed pairs the question and, in words, what the judge gives its two answers: what a judge has
    instead of answers to watch."""
    rows = run.rows.evaluate or run.rows.train
    shown = rows[:: max(1, len(rows) // 3)][:3]
    better = judged.rewards(model, run.tokenizer.pad_token_id, [row.prompt_ids + row.chosen_ids for row in shown])
    worse = judged.rewards(model, run.tokenizer.pad_token_id, [row.prompt_ids + row.rejected_ids for row in shown])
    return [
        (
            run.tokenizer.decode(row.prompt_ids, skip_special_tokens=True).strip(),
            t("better answer {better}, worse answer {worse}", better=f"{one:+.2f}", worse=f"{other:+.2f}"),
        )
        for row, one, other in zip(shown, better, worse, strict=True)
    ]


def questions(run: Run) -> list[Question]:
    """Whether it judges each pair as the person did. The head that is there before training is drawn from the seed, so
    the base's scores belong to the seed too."""
    return [
        Question(
            scores.TASK_REWARD, run.rows.scored,
            lambda m, t, rows: judged.score_reward(m, t, rows, run.length),
            {"seed": run.spec.train.seed, "window_tokens": run.length, "read_at": "last token"},
        )
    ]  # fmt: skip
