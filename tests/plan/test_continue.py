"""Going on with the adapter of an earlier run: what is taken from it, what is refused, what lies below, and the memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine import starter
from engine.data.datasets import add_sample
from engine.estimate import machine_choices, memory
from engine.models import bases
from engine.plan import Plan, checks, plans, targets
from engine.runs import store
from engine.spec import RunSpec, schema, settings
from engine.workspace import Workspace, new_run_id


def made(workspace: Workspace, recipe: str, base: str = "starter", **overrides: Any) -> tuple[str, RunSpec]:
    """Write a run of a recipe whose adapter is there, and return its ref and spec."""
    facts = add_sample(workspace, starter.sample("new-facts")).id
    spec = plans.make(workspace, recipe, base=base, dataset=facts, overrides=overrides).spec
    folder = workspace.run_dir(new_run_id())
    (folder / "adapter").mkdir(parents=True)
    (folder / "spec.json").write_bytes(schema.encode(spec))
    weights = (starter.MODEL_DIR / "model.safetensors").read_bytes()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(weights)
    (folder / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    return f"run:{folder.name}", spec


def plan(workspace: Workspace, recipe: str, base: str, sample: str = "preference-pairs", **overrides: Any) -> Plan:
    changes = {path.replace("__", "."): value for path, value in overrides.items()}
    data = add_sample(workspace, starter.sample(sample)).id
    return plans.make(workspace, recipe, base=base, dataset=data, overrides=changes)


def rules(made_plan: Plan) -> list[str]:
    return [problem.rule for problem in made_plan.problems]


CONTINUE: dict[str, Any] = {"adapter_args__continue": True}


def test_the_setting_is_written_continue_and_a_spec_of_the_first_schema_still_reads(workspace: Workspace) -> None:
    assert settings.parse_setting("adapter_args.continue=true") == ("adapter_args.continue", True)
    ref, _ = made(workspace, "lora")
    spec = plan(workspace, "dpo", ref, **CONTINUE).spec
    told = json.loads(schema.encode(spec))
    assert told["schema"] == 2 and told["adapter_args"]["continue"] is True
    assert schema.value_at(spec, "adapter_args.continue") is True and schema.decode(schema.encode(spec)) == spec
    del told["adapter_args"]["continue"]
    older = schema.decode(json.dumps(told | {"schema": 1}).encode())
    assert older.schema == 1 and not older.adapter_args.continues
    assert schema.decode(schema.encode(older)) == older


def test_what_the_adapter_decides_is_taken_from_its_run_and_nothing_else_can_be_chosen(workspace: Workspace) -> None:
    ref, earlier = made(workspace, "oft", **{"adapter_args.block_size": 16, "layers": [2, 3]})
    going_on = plan(workspace, "dpo", ref, **CONTINUE)
    spec = going_on.spec
    assert (spec.adapter, spec.layers, spec.quantize) == ("oft", [2, 3], "none") and going_on.problems == []
    assert spec.adapter_args == msgspec.structs.replace(earlier.adapter_args, continues=True)
    assert rules(plan(workspace, "dpo", ref, **CONTINUE, adapter_args__block_size=8)) == ["continue-setting"]
    assert rules(plan(workspace, "dpo", ref, **CONTINUE, quantize="4bit")) == ["continue-setting"]
    assert rules(plan(workspace, "dpo", ref, **CONTINUE, adapter_args__block_size=16)) == []


def test_where_it_makes_no_sense_it_is_refused(workspace: Workspace) -> None:
    ref, _ = made(workspace, "lora")
    assert rules(plan(workspace, "reward", ref, **CONTINUE)) == ["continue-judge"]
    assert rules(plan(workspace, "full", ref, "new-facts", **CONTINUE)) == ["continue-full"]
    assert rules(plan(workspace, "dpo", "starter", **CONTINUE)) == ["continue-no-adapter"]
    config = workspace.run_dir(ref.removeprefix("run:")) / "adapter" / "adapter_config.json"
    config.write_text('{"peft_type": "PREFIX_TUNING"}')
    assert rules(plan(workspace, "dpo", ref)) == rules(plan(workspace, "dpo", ref, **CONTINUE)) == ["merge-adds-tokens"]


def test_a_recipe_does_not_become_another_one_by_what_it_goes_on_with(workspace: Workspace) -> None:
    whole, rounded = made(workspace, "lora")[0], made(workspace, "qlora")[0]
    for recipe in ("oft", "qlora", "qoft"):
        refused = plan(workspace, recipe, whole, "new-facts", **CONTINUE)
        assert rules(refused) == ["continue-recipe"] and refused.spec.adapter == recipe[-4:].lstrip("q")
        assert not plans.offers_to_continue(refused)
    assert rules(plan(workspace, "oft", rounded, "new-facts", **CONTINUE)) == ["continue-recipe"]
    assert not plan(workspace, "oft", rounded, "new-facts").spec.adapter_args.continues
    for recipe, ref in (("lora", whole), ("lora", rounded), ("qlora", rounded), ("dpo", rounded)):
        followed = plan(workspace, recipe, ref, "preference-pairs" if recipe == "dpo" else "new-facts", **CONTINUE)
        assert "continue-recipe" not in rules(followed) and followed.spec.adapter_args.continues
        assert followed.spec.quantize == ("none" if ref == whole else "4bit")


def test_that_merging_what_was_trained_on_4_bits_makes_another_model_is_said(workspace: Workspace) -> None:
    whole, rounded = made(workspace, "lora")[0], made(workspace, "qlora")[0]
    said = "\n".join(map(str, plan(workspace, "full", rounded, "new-facts").base.notes))
    assert "held in 4 bits" in said and "adapter_args.continue" in said
    assert bases.describe(whole, workspace).notes == ()
    on_it, _ = made(workspace, "lora", rounded, **{"adapter_args.continue": False})
    assert bases.describe(on_it, workspace).notes == ()  # it was trained on what was merged, and merges the same


def test_one_that_was_trained_on_4_bits_is_trained_on_unless_merging_is_asked_for(workspace: Workspace) -> None:
    ref, _ = made(workspace, "qlora")
    spec = plan(workspace, "dpo", ref).spec
    assert spec.adapter_args.continues and spec.quantize == "4bit"
    merged = plan(workspace, "dpo", ref, adapter_args__continue=False).spec
    assert not merged.adapter_args.continues and merged.quantize == "none"
    fresh = plan(workspace, "dpo", ref, adapter_args__rank=4).spec  # another adapter is wanted, as the advisor may
    assert not fresh.adapter_args.continues and fresh.adapter_args.rank == 4
    whole, _ = made(workspace, "lora")
    assert not plan(workspace, "dpo", whole).spec.adapter_args.continues
    assert plans.offers_to_continue(plan(workspace, "dpo", whole))
    assert not plans.offers_to_continue(plan(workspace, "full", whole, "new-facts"))
    assert not plans.offers_to_continue(plan(workspace, "dpo", "starter"))


def test_what_lies_below_a_continued_adapter_is_the_first_base(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    for path in starter.MODEL_DIR.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    first, _ = made(workspace, "lora", str(folder))
    second, spec = made(workspace, "lora", first, **{"adapter_args.continue": True})
    third, last = made(workspace, "lora", second, **{"adapter_args.continue": True})
    assert spec.base.ref == first and store.over_its_base(workspace, last).base.ref == str(folder)
    assert [bases.describe(ref, workspace).adapter_of for ref in (first, second, third)] == [str(folder)] * 3
    merged, _ = made(workspace, "lora", third)
    assert bases.describe(merged, workspace).adapter_of == third


def test_the_frozen_copy_is_counted_and_unsloth_is_not_used(workspace: Workspace) -> None:
    ref, _ = made(workspace, "lora")
    fresh, going_on = plan(workspace, "dpo", ref), plan(workspace, "dpo", ref, **CONTINUE)
    assert (fresh.memory.parts or {}).get("reference") is None
    assert (going_on.memory.parts or {})["reference"] == 4 * (going_on.memory.trained_parameters or 0) > 0
    again = plan(workspace, "lora", ref, "new-facts", **CONTINUE)
    assert "reference" not in (again.memory.parts or {})  # nothing is held to it
    card = machine_choices.Device("cuda", 2**33, bf16=True, unsloth=True)
    shape = going_on.base.shape
    assert machine_choices.choose(fresh.spec, card, shape, memory.setup_of(fresh.spec)).backend == "unsloth"
    chosen = machine_choices.choose(going_on.spec, card, shape, memory.setup_of(going_on.spec))
    assert chosen.backend == "plain" and "trained on" in str(chosen.backend_reason)


def test_what_is_merged_before_it_is_held_in_fewer_bits_must_fit_in_16_first(workspace: Workspace) -> None:
    ref, _ = made(workspace, "lora")
    merged_first = plan(workspace, "qlora", ref, "new-facts")
    size = 2 * (merged_first.base.parameters or 0)
    for memory_bytes, found in ((size, []), (size - 1, ["merge-memory"])):
        target = targets.Target(machine_choices.Device("cuda", memory_bytes, bf16=True), is_here=False)
        there = Plan(
            workspace, merged_first.spec, merged_first.base, merged_first.dataset, target, look=checks.problems
        )
        assert [rule for rule in rules(there) if rule == "merge-memory"] == found


@pytest.mark.parametrize(
    "told",
    [
        '{"base": {"ref": "run:r1"}, "adapter_args": {"continue": true}}',
        '{"base": {"ref": "starter"}, "adapter_args": []}',
    ],
)
def test_a_broken_line_of_runs_is_a_problem_and_no_error(workspace: Workspace, told: str) -> None:
    folder = workspace.run_dir("r1")
    (folder / "adapter").mkdir(parents=True)
    (folder / "spec.json").write_text(told)
    assert bases.describe("run:r1", workspace).problems


def test_the_train_page_offers_it_in_one_place_and_hides_what_the_adapter_has_already(workspace: Workspace) -> None:
    from tests.apps import open_page

    ref, _ = made(workspace, "lora")
    app = open_page("train", base=ref)
    (toggle,) = (one for one in app.checkbox if one.label == "Go on with its adapter")
    assert not toggle.value and any(one.label == "Rank" for one in app.number_input)
    toggle.check().run()
    assert not app.exception and not any(one.label == "Rank" for one in app.number_input)
    assert any("Kind, rank and modules of the adapter are those of" in one.value for one in app.caption)
    fresh = open_page("train", base="starter")
    assert not any(one.label == "Go on with its adapter" for one in fresh.checkbox)
