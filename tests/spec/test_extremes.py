"""Every number of a run, and of all that leads to one, has a lowest and a highest value, wherever it comes from."""

from __future__ import annotations

import math
import typing

import msgspec
import pytest
import yaml

from engine import limits
from engine.advise import facts
from engine.chat import protocol
from engine.check import DatasetError
from engine.data import mix
from engine.forgetting import sweep_plan
from engine.runs import lifecycle
from engine.spec import recipes, schema, settings
from engine.words import Problem
from engine.workspace import Workspace
from tests.apps import button, open_page, texts
from tests.helpers import fake_spec

EXTREMES = [
    1e308, -1e308, math.inf, -math.inf, math.nan, 10**30, -(10**30), 2**63, 10**400, -1,
    "1e308", "1e400", "inf", "nan", "-inf", "1" * 5000, "9" * 30, "-1", "0x" + "f" * 40, "1_000_000_000_000_000_000_000",
]  # fmt: skip


def numbers(annotation: object) -> bool:
    """Whether a type holds numbers: itself, where it may be left open, or in a list."""
    if annotation in (int, float):
        return True
    return annotation is not bool and any(numbers(one) for one in typing.get_args(annotation))


NUMERIC = [path for path, field in settings.fields().items() if numbers(field.type)]


def test_what_is_a_number_is_found():
    assert len(NUMERIC) > 30
    assert {"train.epochs", "objective_args.beta", "objective_args.weights", "layers", "machine.port"} <= {*NUMERIC}


@pytest.mark.parametrize("path", NUMERIC)
def test_every_number_has_a_lowest_and_a_highest_value_that_a_page_and_a_formula_can_hold(path):
    bounds = settings.fields()[path].limits
    least, most = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    assert least is not None and most is not None
    assert abs(least) < 2**53 and abs(most) < 2**53


@pytest.mark.parametrize("path", NUMERIC)
def test_no_extreme_number_is_taken_from_a_page_a_draft_or_the_command_line_and_a_sentence_says_why(path):
    for value in EXTREMES:
        for given in (value, [value], [value, value]):
            converted = settings.convert_setting(path, given)
            if isinstance(converted, Problem):
                assert converted.rule == "setting-value" and len(converted.sentence) < 400
            else:
                assert path == "layers" and isinstance(converted, str), (path, given, converted)
        parsed = settings.parse_setting(f"{path}={value}")
        assert not isinstance(parsed, Problem)
        assert isinstance(settings.convert_setting(*parsed), Problem) or path == "layers", (path, parsed)


@pytest.mark.parametrize("path", NUMERIC)
def test_a_stored_spec_with_an_extreme_number_is_refused_with_its_setting(path):
    for text in ("1e308", "-1e308", "1e400", "9" * 30):
        spec = msgspec.json.decode(schema.encode(fake_spec()))
        *parents, leaf = path.split(".")
        node = spec
        for part in parents:
            node = node[part]
        node[leaf] = "extreme"
        with pytest.raises(ValueError, match=r"\$|integer|number|float"):
            schema.decode(msgspec.json.encode(spec).replace(b'"extreme"', text.encode()))


@pytest.mark.parametrize("value", ["1.0e+308", ".inf", ".nan", "1" * 30, "-1.0e+308"])
def test_a_recipe_with_an_extreme_number_is_refused_by_its_name(tmp_path, value):
    whole = yaml.safe_load((recipes.RECIPES_DIR / "lora.yaml").read_bytes())
    for path in set(NUMERIC) - {"layers"}:
        changed = {**whole, "defaults": {**whole["defaults"], path: {"value": "extreme", "source": "a test"}}}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(changed).replace("value: extreme", f"value: {value}"))
        with pytest.raises(recipes.RecipeError, match=r"mine\.yaml"):
            recipes.load_recipe(tmp_path / "mine.yaml")


def test_a_number_with_more_digits_than_python_writes_is_refused_too():
    found = settings.convert_setting(*typing.cast(tuple, settings.parse_setting("train.epochs=0x" + "f" * 9000)))
    assert isinstance(found, Problem) and len(found.sentence) < 300


def test_there_is_one_zero():
    assert repr(settings.convert_setting("train.warmup", -0.0)) == "0.0"


def test_what_is_put_together_past_the_settings_is_not_begun(tmp_path):
    spec = msgspec.structs.replace(fake_spec(), train=schema.Train(epochs=1e308, max_steps=10**15, threads=1))
    assert {problem.where for problem in settings.problems(spec)} == {"train.epochs", "train.max_steps"}
    with pytest.raises(ValueError, match="train"):
        lifecycle.start(Workspace(tmp_path / "home"), spec)
    assert not list((tmp_path / "home" / "runs").glob("*/spec.json"))


@pytest.mark.parametrize("struct", [limits.Limits, protocol.Sampling, sweep_plan.Ready, recipes.Size])
def test_every_number_of_a_demo_an_answer_a_sweep_and_a_recipe_has_its_limits(struct):
    hints = typing.get_type_hints(struct, include_extras=True)
    found = {
        name: hint for name, hint in hints.items() if name != "set" and typing.get_args(hint)[:1] in ((int,), (float,))
    }
    assert found and not [name for name, hint in hints.items() if hint in (int, float)]
    for hint in found.values():
        (meta,) = hint.__metadata__
        assert (meta.ge is not None or meta.gt is not None) and meta.le is not None


@pytest.mark.parametrize("value", [value for value in EXTREMES if not isinstance(value, str)])
def test_every_fact_of_the_advisor_has_its_limits(value):
    numeric = {name for name, hint in typing.get_type_hints(facts.Facts).items() if numbers(hint)}
    assert numeric == {*facts.LIMITS}
    found, problems = facts.checked(msgspec.structs.replace(facts.Facts(), **dict.fromkeys(numeric, value)))
    assert found == facts.Facts() and {problem.where for problem in problems} == numeric
    assert all(len(problem.sentence) < 300 for problem in problems)


def test_a_sweep_beyond_all_measure_is_refused_before_anything_is_planned(tmp_path):
    many = {path: list(range(100)) for path in ("train.seed", "train.max_steps", "adapter_args.rank")}
    asked: list[dict[str, typing.Any]] = [{"seeds": 10**30}, {"settings": many}]
    for more in asked:
        made, problems = sweep_plan.make(
            Workspace(tmp_path), title="", data="d" * 64, base="starter", recipes=["lora"], **more
        )
        assert not made.trials and [problem.rule for problem in problems] == ["sweep-large"]


@pytest.mark.parametrize("weights", [(1.0, math.inf), (math.nan, 1.0), (1e308, 1.0), (5e-324, 5e-324), (-1.0, 1.0)])
def test_a_mix_takes_no_extreme_weights(tmp_path, weights):
    with pytest.raises(DatasetError):
        mix.add(Workspace(tmp_path), [("a" * 64, weights[0]), ("b" * 64, weights[1])], "a mix")


@pytest.mark.parametrize("text", ["1e308", "-1", "9" * 18, '"nan"', "[1e308, -1]", '{"a": 1}', "null", "true"])
def test_train_opens_with_extreme_numbers_in_a_draft_and_says_what_is_wrong(workspace, text):
    overrides = ", ".join(f'"{path}": {text}' for path in NUMERIC)
    path = workspace.draft_path("ab" * 8)
    path.parent.mkdir(parents=True)
    path.write_text(f'{{"recipe": "lora", "overrides": {{{overrides}}}}}')
    app = open_page("train", draft="ab" * 8)
    if len(text) == 30:  # no number of any file of ours: the draft itself cannot be read
        assert "not here, or cannot be read" in texts(app)
    elif text not in ("null", "true"):
        assert "Epochs cannot be" in texts(app) and button(app, "start").disabled
