"""The settings of a run in named groups, as a form shows them, and which of them a run of its kind reads at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.spec.objectives import OBJECTIVES

# Every setting that a person may change by itself, in the order in which they matter. What is not here is decided by the
# recipe, by the data set, or by another control.
GROUPS: dict[str, tuple[str, ...]] = {
    "learning": (
        "train.epochs", "train.learning_rate", "objective_args.beta", "objective_args.answer_tokens",
        "objective_args.temperature", "objective_args.ppo_epochs", "objective_args.missing_end_penalty",
        "objective_args.least_reward_accuracy", "train.max_steps", "train.schedule", "train.warmup",
        "train.weight_decay", "train.max_grad_norm", "train.keep_best", "train.early_stopping", "train.evaluations",
        "train.seed",
    ),
    "rows": (
        "train.batch_size", "train.accumulation", "train.max_length", "train.padding_free", "dataset.most_rows",
        "dataset.eval_share", "dataset.split_seed", "train.replay_share", "train.replay_data", "train.replay_budget_s",
    ),
    "adapter": (
        "adapter_args.rank", "adapter_args.alpha", "adapter_args.dropout", "adapter_args.block_size",
        "adapter_args.target_modules", "layers", "train_head", "quantize", "machine.weights",
        "train.gradient_checkpointing", "train.optimizer", "machine.precision",
    ),
    "machine": (
        "evaluate.benchmarks", "evaluate.limit", "evaluate.budget_s", "evaluate.shots", "evaluate.template",
        "evaluate.along", "machine.backend", "machine.devices", "machine.nodes", "machine.address", "machine.port",
        "train.threads", "train.report_to",
    ),
}  # fmt: skip
_OF_PPO = (
    "objective_args.answer_tokens", "objective_args.temperature", "objective_args.ppo_epochs",
    "objective_args.missing_end_penalty", "objective_args.least_reward_accuracy",
)  # fmt: skip


def applies(path: str, given: Callable[[str], Any]) -> bool:
    """Whether a run reads this setting, when its settings are as `given` says by their paths: a rotation has no rank, a
    judge is asked no questions. The trainers (engine/train) and preflight (engine/plan/checks.py) are what it goes by."""
    objective, adapter = OBJECTIVES[given("objective")], given("adapter")
    shares = objective.shares_devices and adapter != "oft"
    mixes = objective.replays and bool(given("train.replay_share"))
    conditions: dict[str, bool] = {
        "objective_args.beta": objective.has_reference,
        "train.early_stopping": objective.loss_falls,
        "train.keep_best": objective.loss_falls,
        "train.padding_free": objective.padding_free,
        "train.replay_share": objective.replays,
        "train.replay_data": mixes,
        "train.replay_budget_s": mixes and not given("train.replay_data"),
        "adapter_args.rank": adapter == "lora",
        "adapter_args.alpha": adapter == "lora",
        "adapter_args.dropout": adapter == "lora",
        "adapter_args.block_size": adapter == "oft",
        "adapter_args.target_modules": adapter != "full",
        "layers": not objective.is_judge,
        "train_head": adapter == "full" and given("layers") != "all",
        "quantize": adapter != "full" and not objective.is_judge,
        "machine.weights": adapter == "full",
        "evaluate.benchmarks": not objective.is_judge,
        "evaluate.budget_s": not objective.is_judge,
        "evaluate.shots": not objective.is_judge,
        "evaluate.template": not objective.is_judge,
        "evaluate.along": objective.is_scored_on_its_way,
        "machine.devices": shares,
        "machine.nodes": shares,
        "machine.address": shares and given("machine.nodes") != 1,
        "machine.port": shares and given("machine.nodes") != 1,
        **dict.fromkeys(_OF_PPO, objective.needs_judge),
    }
    return conditions.get(path, True)
