"""The settings of a form: each in one group, and only those that a run of its kind reads."""

from __future__ import annotations

from typing import Any

import pytest

from engine.spec import OBJECTIVES, groups, recipes, schema, settings
from tests.spec.test_ranges import resolved

# Decided elsewhere: by the recipe, by the data set, or by a control of its own.
ELSEWHERE = {
    "objective", "adapter", "adapter_args.continue", "dataset.eval_id", "dataset.grader", "train.tolerance",
    "objective_args.weights", "objective_args.keep", "objective_args.reward_model", "evaluate.against",
}  # fmt: skip


def applying(name: str, **overrides: Any) -> set[str]:
    spec = resolved(name, 7e9, **overrides)
    return {path for path in settings.fields() if groups.applies(path, lambda one: schema.value_at(spec, one))}


def test_every_setting_is_in_one_group_or_decided_elsewhere() -> None:
    grouped = [path for paths in groups.GROUPS.values() for path in paths]
    assert len(groups.GROUPS) == 4 and len(grouped) == len(set(grouped))
    assert set(grouped) | ELSEWHERE == set(settings.fields()) and not set(grouped) & ELSEWHERE


@pytest.mark.parametrize("name", recipes.recipes())
def test_a_recipe_shows_no_setting_that_its_adapter_or_objective_ignores(name: str) -> None:
    recipe, shown = recipes.recipes()[name], applying(name)
    objective = OBJECTIVES[recipe.objective]
    assert ({"adapter_args.rank", "adapter_args.alpha", "adapter_args.dropout"} <= shown) == (recipe.adapter == "lora")
    assert ("adapter_args.block_size" in shown) == (recipe.adapter == "oft")
    assert ("machine.weights" in shown) == (recipe.adapter == "full") != ("adapter_args.target_modules" in shown)
    assert ("train_head" in shown) == (recipe.adapter == "full" and "layers" in recipe.defaults)
    assert ("objective_args.beta" in shown) == objective.has_reference
    assert ("train.replay_share" in shown) == objective.replays
    assert ("objective_args.temperature" in shown) == objective.needs_judge
    assert ("evaluate.benchmarks" in shown) == (not objective.is_judge)
    assert {"train.learning_rate", "train.epochs", "train.batch_size", *recipe.basic} <= shown


def test_what_follows_from_another_setting_comes_and_goes_with_it() -> None:
    assert "train.replay_data" in applying("lora") and "train.replay_data" not in applying(
        "lora", **{"train.replay_share": 0.0}
    )
    assert "machine.port" not in applying("lora") and "machine.port" in applying("lora", **{"machine.nodes": 2})
    assert "machine.devices" not in applying("oft") and "adapter_args.block_size" in applying("lora", adapter="oft")
