"""Values that are known to work: every default lies within them, what breaks a model without, and each has its source."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from engine.plan import plans
from engine.spec import RunSpec, ranges, recipes, settings
from engine.workspace import Workspace

SIZES = (9e5, 1.35e8, 3e9, 7e9, 7e10, None)


def resolved(name: str, parameters: float | None, **overrides: Any) -> RunSpec:
    spec, wrong = recipes.resolve(
        recipes.recipes()[name],
        base="starter",
        revision=None,
        parameters=parameters,
        dataset_id="",
        overrides=overrides,
    )
    assert not wrong
    return spec


def told(name: str, parameters: float | None, **overrides: Any) -> dict[str, float]:
    found = ranges.outside(resolved(name, parameters, **overrides), recipes.recipes()[name], parameters)
    return {one.path: value for one, value in found}


@pytest.mark.parametrize("name", recipes.recipes())
def test_no_default_of_a_recipe_lies_outside_its_range_at_any_size(name: str) -> None:
    for parameters in SIZES:
        assert told(name, parameters) == {}, parameters


@pytest.mark.parametrize("name", recipes.recipes())
def test_every_recipe_has_a_range_for_its_rate_at_every_size_with_a_source_and_its_default_within(name: str) -> None:
    recipe = recipes.recipes()[name]
    for parameters in SIZES:
        found = {one.path: one for one in ranges.of(resolved(name, parameters), recipe, parameters)}
        rate = found["train.learning_rate"]
        assert rate.holds(rate.usual) and rate.source and rate.low < rate.high, parameters
        assert set(found) <= set(settings.fields())


@pytest.mark.parametrize(
    ("name", "parameters", "path", "value"),
    [
        ("dpo", 1.35e8, "train.learning_rate", 5e-4),  # the guide's own number
        ("kto", 7e9, "train.learning_rate", 5e-4),
        ("lora", 9e5, "train.learning_rate", 0.5),
        ("lora", 1.35e8, "train.learning_rate", 0.5),
        ("full", 7e9, "train.learning_rate", 1e-6),
        ("ppo", 9e5, "train.learning_rate", 0.1),
        ("dpo", 7e9, "objective_args.beta", 0.8),
        ("lora", 7e9, "adapter_args.rank", 1),
        ("lora", 7e9, "adapter_args.dropout", 0.5),
        ("lora", 7e9, "train.epochs", 20),
        ("oft", 7e9, "adapter_args.block_size", 2),
        ("lora", 7e9, "train.warmup", 0.5),
        ("full", 7e9, "train.weight_decay", 0.5),
    ],
)
def test_what_breaks_a_model_or_teaches_it_nothing_is_outside(
    name: str, parameters: float, path: str, value: float
) -> None:
    assert told(name, parameters, **{path: value}) == {path: value}


def test_what_was_measured_to_learn_most_and_a_warm_up_in_steps_are_not() -> None:
    assert told("lora", 1.35e8, **{"train.learning_rate": 1e-3}) == {}  # docs/measured/rates.md
    assert told("lora", 7e9, **{"train.warmup": 10}) == {}
    assert told("dpo", 7e9, adapter="full") == {}


def test_the_plan_says_it_in_words_and_knows_what_puts_it_right(workspace: Workspace) -> None:
    plan = plans.make(
        workspace,
        "lora",
        base="starter",
        dataset=None,
        overrides={"train.learning_rate": 0.5, "train.weight_decay": 0.5},
    )
    assert [one.sentence for one in plan.warnings] == [
        "a learning rate of 0.5 is above what is known to work here, 0.000375 to 0.006, and can break the model; "
        "set it to 0.003",
        "Weight decay: 0.5 is outside of what is known to work here, 0 to 0.1; set it to 0",
    ]
    assert plan.put_right == {"train.learning_rate": 0.003, "train.weight_decay": 0.0}
    assert not any(one.where == "train.learning_rate" for one in plan.problems)  # it may be meant
    mended = plans.make(workspace, "lora", base="starter", dataset=None, overrides={**plan.overrides, **plan.put_right})
    assert mended.warnings == []
    assert dataclasses.replace(plan, recipe=None).warnings == []  # of a stored run nothing is known of its recipe
