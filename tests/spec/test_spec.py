"""RunSpec, its dotted paths and the recipes: fully resolved, refused with a reason, the same again after spec.json."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.spec import RunSpec, counts, recipes, schema
from engine.spec import settings as spec_settings
from engine.words import Problem
from engine.workspace import Unreadable
from tests.conftest import ROOT

RECIPES = sorted(path.stem for path in recipes.RECIPES_DIR.glob("*.yaml"))
TOY, SMALL, LARGE = 1e6, 5e8, 7e9
EXACT = 2**53  # whole numbers up to here are exact as a float too
VALID_LAYERS = st.one_of(
    st.sampled_from(["all", "top:0.25", "bottom_frozen:0.5"]), st.lists(st.integers(0, 200), min_size=1, max_size=5)
)


def resolved(recipe: str = "lora", parameters: float | None = LARGE, **overrides: Any) -> RunSpec:
    """The spec of a recipe; overrides are written train__epochs=3."""
    made, problems = recipes.resolve(
        recipes.recipes()[recipe],
        base="owner/name",
        revision=None,
        parameters=parameters,
        dataset_id="a" * 64,
        overrides={path.replace("__", "."): value for path, value in overrides.items()},
    )
    assert problems == []
    return made


def read(text: str) -> Any:
    """What --set makes of a text: the value as it goes into the spec, or the Problem."""
    parsed = spec_settings.parse_setting(text)
    return parsed if isinstance(parsed, Problem) else spec_settings.convert_setting(*parsed)


# --- the dotted paths --------------------------------------------------------------------------------------------


def leaves(tree: dict[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name, value in tree.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}"}
    return found


def test_every_leaf_of_spec_json_is_a_setting_but_what_names_the_run():
    written = leaves(json.loads(schema.encode(resolved())))
    named = {"schema", "kind", "day", "recipe.name", "recipe.sha256", "base.ref", "base.revision", "dataset.id"}
    assert set(spec_settings.fields()) == written - named


def test_every_setting_has_a_title_and_a_help_text():
    for path, field in spec_settings.fields().items():
        assert field.path == path
        assert field.title and field.title != path.rpartition(".")[2], path
        assert field.help.endswith("."), path


def test_a_choice_lists_its_words_and_a_number_its_limits():
    fields = spec_settings.fields()
    assert fields["quantize"].choices == ("none", "8bit", "4bit")
    assert fields["train.schedule"].choices == ("cosine", "linear", "constant")
    assert fields["train.learning_rate"].limits == {"gt": 0, "le": 1}
    assert fields["train.replay_share"].limits == {"ge": 0, "le": 0.99}
    assert fields["dataset.eval_share"].limits == {"ge": 0, "lt": 1}


def test_value_at_reads_every_path():
    made = msgspec.to_builtins(resolved())
    for path in spec_settings.fields():
        node: Any = made
        for part in path.split("."):
            node = node[part]
        assert schema.value_at(resolved(), path) == node


# --- the recipes that ship ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_loads_with_at_most_six_basic_fields_and_a_source_for_every_number(name):
    recipe = recipes.recipes()[name]
    assert recipe.name == name and len(recipe.sha256) == 64
    assert recipe.title and recipe.when and recipe.trade and recipe.data_types
    assert 1 <= len(recipe.basic) <= 6 and len(set(recipe.basic)) == len(recipe.basic)
    for group in (recipe.defaults, *(size.set for size in recipe.sizes)):
        for path, default in group.items():
            assert len(default.source) > 5, path


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("parameters", [None, TOY, SMALL, LARGE, 7e10])
def test_the_default_spec_of_a_recipe_is_the_same_after_spec_json(name, parameters):
    made = resolved(name, parameters)
    assert schema.decode(schema.encode(made)) == made
    assert made.recipe.name == name and made.train.threads >= 1


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_says_is_what_its_spec_holds(name):
    recipe = recipes.recipes()[name]
    for parameters in (None, TOY, SMALL, LARGE):
        made = resolved(name, parameters)
        for path in spec_settings.fields():
            default = recipe.default(path, parameters)
            if default is not None:
                assert schema.value_at(made, path) == default.value, (path, parameters)


@pytest.mark.parametrize("name", RECIPES)
def test_the_samples_and_kinds_of_data_a_recipe_names_exist(name):
    from engine import starter
    from engine.read import formats

    recipe = recipes.recipes()[name]
    assert set(recipe.data_types) <= set(formats.TYPES)
    assert starter.sample(recipe.sample).type in recipe.data_types


# --- sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_no_base_is_of_two_sizes(name):
    sizes = sorted(recipes.recipes()[name].sizes, key=lambda size: size.at_least_parameters)
    for size in sizes:
        assert size.at_least_parameters < size.below_parameters
    for below, above in itertools.pairwise(sizes):
        assert below.below_parameters <= above.at_least_parameters


@pytest.mark.parametrize("name", RECIPES)
def test_the_rates_of_a_toy_do_not_reach_a_7b_base_nor_the_other_way(name):
    toy, large = resolved(name, TOY), resolved(name, LARGE)
    # OFT's rates are higher on a real model and lower on a toy: a rotation knows no scale of the weights.
    times, highest = (2, 4e-4) if toy.adapter == "oft" else (10, 2e-4)
    assert toy.train.learning_rate >= times * large.train.learning_rate
    assert large.train.learning_rate <= highest and toy.train.learning_rate >= 1e-3
    assert large.train.epochs <= 5 < toy.train.epochs
    assert resolved(name, None).train == msgspec.structs.replace(
        large.train, learning_rate=recipes.recipes()[name].defaults["train.learning_rate"].value
    )


def test_a_size_begins_at_its_lower_bound_and_ends_before_its_upper_one():
    recipe = recipes.recipes()["full"]
    rate = {p: recipe.default("train.learning_rate", p) for p in (5e7 - 1, 5e7, 1e9 - 1, 1e9, 6.5e9 - 1, 6.5e9)}
    values = [default.value for default in rate.values() if default is not None]
    assert values == [2e-3, 1e-4, 1e-4, 2e-5, 2e-5, 1e-5]


def test_overrides_stay_when_the_base_is_of_another_size():
    for parameters in (None, TOY, SMALL, LARGE):
        made = resolved("full", parameters, train__learning_rate=3e-4, layers="top:0.5", train__epochs=7)
        assert (made.train.learning_rate, made.layers, made.train.epochs) == (3e-4, "top:0.5", 7.0)


def test_threads_are_resolved_to_the_cores_unless_chosen():
    assert resolved(train__threads=3).train.threads == 3
    assert resolved(train__threads=0).train.threads == (os.cpu_count() or 1)


# --- recipe files that are refused -------------------------------------------------------------------------------

GOOD = """\
title: Mine
when: now
trade: none
objective: sft
adapter: lora
data_types: [prompt-completion]
sample: new-facts
guide_rules: []
basic: [train.epochs]
defaults:
  train.epochs: {value: 2, source: "a paper"}
sizes:
  - title: toys
    below_parameters: 5.0e+7
    set:
      train.epochs: {value: 20, source: "measured"}
"""


def write(tmp_path: Path, text: str | bytes, name: str = "mine.yaml") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_recipe_dropped_into_the_folder_is_found(tmp_path, monkeypatch):
    write(tmp_path, GOOD)
    monkeypatch.setattr(recipes, "RECIPES_DIR", tmp_path)
    assert list(recipes.recipes()) == ["mine"]
    assert resolved("mine", TOY).train.epochs == 20 and resolved("mine", LARGE).train.epochs == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("title: Mine", "title: Mine\nlearning_rate: 1"),
        ("title: Mine\n", ""),
        ("train.epochs: {value: 2", "train.epoch: {value: 2"),
        ("basic: [train.epochs]", "basic: [train.epoch]"),
        ("train.epochs: {value: 20", "train.epoch: {value: 20"),
        ("train.epochs: {value: 2,", "dataset.id: {value: a,"),
        ("{value: 2,", "{value: often,"),
        ("{value: 2,", "{value: -1,"),
        ("{value: 2,", "{value: [2],"),
        ("{value: 20,", "{value: often,"),
        ('{value: 2, source: "a paper"}', "{value: 2}"),
        ('{value: 2, source: "a paper"}', "2"),
        ("[train.epochs]", "[train.epochs, layers, quantize, adapter, train.seed, train.threads, train_head]"),
        ("below_parameters: 5.0e+7", "below_parameters: many"),
        ("guide_rules: []", "guide_rules: ["),
        ("guide_rules: []", "guide_rules: !!python/object/apply:os.getcwd []"),
        ("{value: 2,", "{value: !!python/object:engine.spec.Train {},"),
        ("{value: 2,", "{value: 2020-99-99,"),  # YAML reads it as a date, and there is none
        ("{value: 2,", "{value: 0b_,"),
        ("objective: sft", "objective: banana"),
        ("adapter: lora", "adapter: banana"),
        ("adapter: lora", "adapter: lora\nquantize: 3bit"),
    ],
)
def test_a_recipe_file_that_cannot_be_used_is_refused_with_its_name(tmp_path, old, new):
    assert old in GOOD
    with pytest.raises(recipes.RecipeError, match=r"^mine\.yaml: "):
        recipes.load_recipe(write(tmp_path, GOOD.replace(old, new)))


@pytest.mark.parametrize("data", [b"", b"- 1\n", b"\xff\xfe\x00", b"a: " + b"[" * 5000, b"just words"])
def test_a_file_that_is_no_recipe_at_all_is_refused_with_its_name(tmp_path, data):
    with pytest.raises(recipes.RecipeError, match=r"^mine\.yaml: "):
        recipes.load_recipe(write(tmp_path, data))


def bomb(levels: int = 9) -> list[str]:
    """YAML in flow style that would be ten to the power of `levels` texts if it were written out."""
    lines = ["&a0 [x,x,x,x,x,x,x,x,x,x]"]
    for level in range(1, levels):
        lines.append(f"&a{level} [" + ",".join(f"*a{level - 1}" for _ in range(10)) + "]")
    return lines


@pytest.mark.parametrize("place", ["data_types: [prompt-completion]", "train.epochs: {value: 2,"])
def test_a_yaml_bomb_is_refused(tmp_path, place):
    packed = "[" + ", ".join(bomb()) + "]"
    new = f"data_types: {packed}" if place.startswith("data") else f"evaluate.benchmarks: {{value: {packed},"
    with pytest.raises(recipes.RecipeError, match=r"^mine\.yaml: "):
        recipes.load_recipe(write(tmp_path, GOOD.replace(place, new)))


def test_a_yaml_bomb_in_a_setting_is_a_problem_and_not_the_end_of_the_process():
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28))
from engine.spec.settings import convert_setting, parse_setting
print(type(convert_setting(*parse_setting("evaluate.benchmarks=[" + {", ".join(bomb())!r} + "]"))).__name__)
"""
    root = ROOT
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "Problem", done.stderr[-300:]


# --- one setting -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("train.learning_rate=1e-3", 1e-3),
        ("train.learning_rate = 5e-05", 5e-5),
        ("train.epochs=3", 3.0),
        ("train.batch_size=4", 4),
        ("layers=[1,2]", [1, 2]),
        ("layers=top:0.5", "top:0.5"),
        ("layers=all", "all"),
        ("quantize=none", "none"),
        ("train_head=false", False),
        ("train.gradient_checkpointing=true", True),
        ("adapter_args.target_modules=q_proj,v_proj", "q_proj,v_proj"),
        ("adapter_args.target_modules=a=b", "a=b"),
        ("objective_args.beta=0.1", 0.1),
        ("objective_args.beta=null", None),
        ("objective_args.weights=[1, 1.5]", [1.0, 1.5]),
        ("evaluate.benchmarks=[toy-world]", ["toy-world"]),
        ("evaluate.benchmarks=[]", []),
        ("dataset.eval_id=0123", "0123"),
    ],
)
def test_a_setting_is_read_as_its_type(text, value):
    found = read(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("nonsense", "setting-unknown"),
        ("nonsense=1", "setting-unknown"),
        ("train.epochs", "setting-unknown"),
        ("train=1", "setting-unknown"),
        ("dataset.id=abc", "setting-unknown"),
        ("base.ref=other", "setting-unknown"),
        ("", "setting-unknown"),
        ("train.epochs=abc", "setting-value"),
        ("train.epochs=", "setting-value"),
        ("train.epochs=0", "setting-value"),
        ("train.epochs=[", "setting-value"),
        ("train.epochs=nan", "setting-value"),
        ("train.epochs=true", "setting-value"),
        ("train.batch_size=2.5", "setting-value"),
        ("train.learning_rate=2", "setting-value"),
        ("quantize=3bit", "setting-value"),
        ("layers=[a]", "setting-value"),
        ("layers=&a [*a]", "setting-value"),
        ("train.replay_share=1", "setting-value"),
        ("train.epochs=!!python/object/apply:os.getcwd []", "setting-value"),
        ("train.epochs=2020-99-99", "setting-value"),  # YAML reads a date, and there is none
        ("train.epochs=0b_", "setting-value"),
        ("train.batch_size=" + "9" * 5000, "setting-value"),
        ("evaluate.benchmarks=" + "[" * 3000, "setting-value"),
    ],
)
def test_a_setting_that_cannot_be_is_a_problem_that_names_it(text, rule):
    found = read(text)
    assert isinstance(found, Problem) and found.rule == rule
    assert found.where == text.partition("=")[0].strip()
    assert found.sentence and len(found.sentence) < 400


@given(st.text())
def test_no_text_whatever_makes_a_setting_raise(text):
    assert isinstance(spec_settings.parse_setting(text), Problem | tuple)


@given(st.sampled_from(sorted(spec_settings.fields())), st.text())
def test_no_value_whatever_makes_a_setting_raise(path, text):
    read(f"{path}={text}")


@pytest.mark.parametrize("path", ["train.epochs", "train.warmup", "train.max_grad_norm", "objective_args.beta"])
def test_infinity_is_refused_since_spec_json_cannot_hold_it(path):
    found = read(f"{path}=inf")
    assert isinstance(found, Problem) and found.rule == "setting-value"


def test_all_wrong_settings_come_back_at_once_and_keep_their_defaults():
    wrong = {"train.epochs": -1, "no.such": 1, "quantize": "3bit", "train.batch_size": "x", "train.seed": 5}
    made, problems = recipes.resolve(
        recipes.recipes()["lora"], base="owner/name", revision=None, parameters=LARGE, dataset_id="a", overrides=wrong
    )
    assert [(p.rule, p.where) for p in problems] == [
        ("setting-value", "train.epochs"),
        ("setting-unknown", "no.such"),
        ("setting-value", "quantize"),
        ("setting-value", "train.batch_size"),
    ]
    plain = resolved()
    assert (made.train.epochs, made.quantize, made.train.batch_size) == (
        plain.train.epochs,
        plain.quantize,
        plain.train.batch_size,
    )
    assert made.train.seed == 5


# --- spec.json ---------------------------------------------------------------------------------------------------


def values(field: spec_settings.Field) -> st.SearchStrategy[Any]:
    """Values of a setting's type within its limits."""

    def of(annotation: Any) -> st.SearchStrategy[Any]:
        if hasattr(annotation, "__metadata__"):
            annotation = typing.get_args(annotation)[0]
        arguments = typing.get_args(annotation)
        if typing.get_origin(annotation) is Literal:
            return st.sampled_from(arguments)
        if typing.get_origin(annotation) is list:
            return st.lists(of(arguments[0]), max_size=4)
        if arguments:
            return st.one_of(*map(of, arguments))
        limits = field.limits
        if annotation is bool:
            return st.booleans()
        if annotation is int:
            return st.integers(int(limits.get("ge", 0)), int(limits.get("le", EXACT)))
        if annotation is float:
            return st.floats(
                limits.get("ge", limits.get("gt")),
                limits.get("le", limits.get("lt")),
                exclude_min="gt" in limits,
                exclude_max="lt" in limits,
                allow_nan=False,
                allow_infinity=False,
            )
        text = st.from_regex(field.pattern, fullmatch=True) if field.pattern else st.text()
        grader = st.builds(
            schema.GraderRef, st.text(min_size=1, max_size=80), st.dictionaries(st.text(), st.booleans())
        )
        return {str: text, type(None): st.none(), schema.GraderRef: grader}[annotation]

    return of(field.type)


MAY_BE_EMPTY = (*spec_settings.NAMES_DATA, "objective_args.reward_model")  # an empty text is none
OVERRIDES = st.fixed_dictionaries({}, optional={path: values(field) for path, field in spec_settings.fields().items()})


@settings(max_examples=60)
@given(OVERRIDES)
def test_any_valid_override_comes_back_from_spec_json_as_it_was(overrides):
    made, problems = recipes.resolve(
        recipes.recipes()["lora"], base="owner/name", revision="r", parameters=None, dataset_id="a", overrides=overrides
    )
    assert problems == []
    again = schema.decode(schema.encode(made))
    assert again == made
    for path, value in overrides.items():
        if (path, value) not in (("train.threads", 0), *((name, "") for name in MAY_BE_EMPTY)):
            assert schema.value_at(again, path) == value


@given(st.data())
def test_a_value_written_for_the_command_line_is_read_back_as_itself(data):
    fields = [f for p, f in spec_settings.fields().items() if p not in ("evaluate.benchmarks", *MAY_BE_EMPTY)]
    field = data.draw(st.sampled_from(fields))
    value = data.draw(VALID_LAYERS if field.path == "layers" else values(field))
    shown = value if isinstance(value, str) else json.dumps(value)
    assert read(f"{field.path}={shown}") == value


@pytest.mark.parametrize("place", [(), ("train",), ("machine",), ("recipe",), ("base",), ("adapter_args",)])
def test_an_unknown_field_in_spec_json_is_refused(place):
    tree = json.loads(schema.encode(resolved()))
    node = tree
    for part in place:
        node = node[part]
    node["trust_remote_code"] = True
    with pytest.raises(Unreadable, match="trust_remote_code"):
        schema.decode(json.dumps(tree).encode())


def test_a_spec_of_a_later_schema_is_refused():
    tree = json.loads(schema.encode(resolved())) | {"schema": schema.SCHEMA + 1}
    with pytest.raises(Unreadable):
        schema.decode(json.dumps(tree).encode())


def test_a_spec_cannot_be_changed():
    with pytest.raises(AttributeError):
        resolved().layers = "top:0.5"  # pyright: ignore[reportAttributeAccessIssue]


# --- arithmetic --------------------------------------------------------------------------------------------------

SHARES = st.floats(0, 1, exclude_min=True, exclude_max=True)


@given(st.integers(1, 200), SHARES)
def test_top_trains_the_last_layers_and_at_least_one(depth, share):
    found = counts.layer_indices(f"top:{share}", depth)
    assert found is not None and found == list(range(found[0], depth))
    assert found[0] >= 0 and (len(found) == 1 or abs(len(found) - depth * share) <= 0.5)


@given(st.integers(1, 200), SHARES)
def test_bottom_frozen_freezes_the_first_layers_and_never_all(depth, share):
    found = counts.layer_indices(f"bottom_frozen:{share}", depth)
    assert found is not None and found == list(range(found[0], depth))
    assert found[0] >= 0 and (len(found) == 1 or abs(found[0] - depth * share) <= 0.5 + 1e-9)


@given(st.lists(st.integers(-3, 12), max_size=6), st.integers(1, 10))
def test_indices_are_sorted_and_inside_the_model_or_refused(chosen, depth):
    if chosen and all(0 <= index < depth for index in chosen):
        assert counts.layer_indices(chosen, depth) == sorted(set(chosen))
    else:
        with pytest.raises(ValueError, match=f"0 to {depth - 1}"):
            counts.layer_indices(chosen, depth)


def test_all_layers_are_no_list():
    assert counts.layer_indices("all", 12) is None


@pytest.mark.parametrize(
    "layers", ["", "top", "top:", "top:0", "top:1", "top:-0.5", "top:nan", "top:inf", "middle:0.5", "ALL", "bottom:0.5"]
)
def test_layers_in_no_known_form_are_refused_with_the_forms(layers):
    with pytest.raises(ValueError, match=r"top:0\.25"):
        counts.layer_indices(layers, 12)


def counted_steps(rows: int, batch_size: int, accumulation: int, epochs: int) -> int:
    """Go through the rows as a trainer does and count."""
    steps = 0
    for _ in range(epochs):
        held = 0
        for start in range(0, rows, batch_size):
            held += 1
            if held == accumulation or start + batch_size >= rows:
                steps, held = steps + 1, 0
    return steps


@given(st.integers(1, 300), st.integers(1, 20), st.integers(1, 9), st.integers(1, 5))
def test_steps_are_those_of_going_through_the_rows(rows, batch_size, accumulation, epochs):
    train = schema.Train(epochs=epochs, batch_size=batch_size, accumulation=accumulation)
    assert counts.optimizer_steps(train, rows) == counted_steps(rows, batch_size, accumulation, epochs)


@given(st.integers(1, 300), st.integers(1, 8), st.integers(1, 20))
def test_parts_of_an_epoch_are_rounded_up_to_a_step(rows, batch_size, quarters):
    train = schema.Train(epochs=quarters / 4, batch_size=batch_size, accumulation=1)
    whole = counted_steps(rows, batch_size, 1, 1)
    assert counts.optimizer_steps(train, rows) == math.ceil(quarters * whole / 4)


def test_a_number_of_steps_goes_before_the_epochs():
    assert counts.optimizer_steps(schema.Train(epochs=50, max_steps=7), 10_000) == 7


@given(st.integers(1, 100_000), st.floats(0, 0.9))
def test_the_replay_share_is_that_share_of_the_mix(rows, share):
    added = counts.replayed_rows(schema.Train(replay_share=share), rows)
    assert abs(added - share * (rows + added)) <= 0.5 + 1e-6
