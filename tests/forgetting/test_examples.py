"""What the base can do without training: asked of these very rows, with what tuning can add, beside what a run made."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine import starter
from engine.data import datasets
from engine.forgetting import evaluations, examples, summary
from engine.report import Item, items
from engine.runs import scored
from engine.spec import RunSpec, schema
from engine.workspace import Workspace
from tests.helpers import finished_run, planned

TASK = "new-task-choices"


def run_dir_of(workspace: Workspace, number: int, spec: RunSpec, sides: dict[str, int], prompts: str = "p") -> str:
    """A finished run whose sides, by the names of their items, got so many of 100 questions right."""
    folder = finished_run(workspace, number, spec)
    for side, right in sides.items():
        sha = prompts if "examples" not in side else f"{prompts} after examples"
        found = [
            Item(item=str(n), family="facts", prompt_sha=sha, choices=["a", "b", "c", "d"], gold=0, correct=n < right)
            for n in range(100)
        ]
        items.write_items(folder / "items" / f"{side}.jsonl", found)
    return folder.name


@pytest.fixture
def spec(workspace: Workspace) -> RunSpec:
    data = datasets.add_sample(workspace, starter.sample("new-facts"))
    return planned(workspace, "lora", base="starter", dataset=data.id, overrides={})[0]


def asked_first(workspace: Workspace, spec: RunSpec, number: int = 1, plain: int = 27, shown: int = 61) -> str:
    made, problems = examples.build(workspace, spec.base, spec.dataset)
    assert made is not None and problems == [] and made.evaluate.shots == examples.SHOTS
    sides = {f"base-{TASK}": plain, f"{items.with_examples(examples.SHOTS)}-{TASK}": shown}
    return run_dir_of(workspace, number, made, sides)


def test_what_the_base_gets_right_bounds_what_tuning_can_gain(workspace: Workspace, spec: RunSpec) -> None:
    assert examples.known(workspace, spec.base, spec.dataset) is None
    asked_first(workspace, spec)
    found = examples.known(workspace, spec.base, spec.dataset)
    assert found is not None and found.sentence == (
        "The base already gets 61 % right with 4 examples in its context, 27 % without (100 held-out rows): tuning gains at "
        "most 39 points. Guessing gets 25 %."
    )


def test_examples_that_change_nothing_beyond_noise_are_not_said_to_help(workspace: Workspace, spec: RunSpec) -> None:
    asked_first(workspace, spec, plain=25, shown=27)
    found = examples.known(workspace, spec.base, spec.dataset)
    assert found is not None and "already" not in found.sentence and "at most 73 points" in found.sentence


@pytest.mark.parametrize(
    "changes",
    [{"split_seed": 1}, {"eval_id": None}, {"eval_share": 0.3}, {"most_rows": 10}],
    ids=lambda one: next(iter(one)),
)
def test_what_was_asked_of_other_rows_says_nothing_of_these(
    workspace: Workspace, spec: RunSpec, changes: dict[str, Any]
) -> None:
    asked_first(workspace, spec)
    other = msgspec.structs.replace(spec.dataset, **changes)
    assert examples.known(workspace, spec.base, other) is None
    assert examples.known(workspace, schema.BaseRef("other"), spec.dataset) is None


def test_it_stands_beside_what_a_run_of_the_same_base_and_rows_made(workspace: Workspace, spec: RunSpec) -> None:
    run_id = run_dir_of(workspace, 2, spec, {f"base-{TASK}": 27, f"tuned-{TASK}": 97})
    run = scored.of(workspace, run_id)
    assert examples.beside(run) is None
    asked_first(workspace, spec)
    beside = examples.beside(run)
    assert beside is not None and beside.sentence == (
        "Tuned 97 %, base with 4 examples in its context 61 %, base 27 % (100 held-out rows)."
    )
    assert summary.of(run).action == "ask"  # nothing general was asked


def test_a_base_held_in_other_bits_is_another_one(workspace: Workspace, spec: RunSpec) -> None:
    in_four = msgspec.structs.replace(spec, quantize="4bit")
    run_id = run_dir_of(workspace, 2, in_four, {f"base-{TASK}": 27, f"tuned-{TASK}": 97})
    asked_first(workspace, spec)
    assert examples.beside(scored.of(workspace, run_id)) is None


def test_a_training_or_an_evaluation_against_a_base_is_none(workspace: Workspace, spec: RunSpec) -> None:
    sides = {f"base-{TASK}": 27, f"tuned-{TASK}": 97}
    run_dir_of(workspace, 2, spec, sides)
    made, _ = examples.build(workspace, spec.base, spec.dataset)
    assert made is not None
    against = msgspec.structs.replace(made.evaluate, against="starter")
    run_dir_of(workspace, 3, msgspec.structs.replace(made, evaluate=against), sides)
    assert examples.asked(workspace, spec.base, spec.dataset) == []


@pytest.mark.parametrize(("sample", "rule"), [("preference-pairs", "examples-rows"), ("ppo-prompts", "examples-rows")])
def test_rows_that_are_no_questions_with_answers_are_refused_by_name(
    workspace: Workspace, sample: str, rule: str
) -> None:
    data = datasets.add_sample(workspace, starter.sample(sample))
    made, problems = examples.build(workspace, schema.BaseRef("starter"), schema.DatasetRef(data.id))
    assert made is None and [one.rule for one in problems] == [rule] and data.name in problems[0].sentence
    assert not examples.has_pairs(workspace, schema.DatasetRef(data.id))


def test_without_held_out_rows_or_data_there_is_nothing_to_ask(workspace: Workspace, spec: RunSpec) -> None:
    nothing = schema.DatasetRef(spec.dataset.id, eval_share=0.0)
    assert [one.rule for one in examples.build(workspace, spec.base, nothing)[1]] == ["examples-held-out"]
    gone = schema.DatasetRef("d" * 64)
    assert [one.rule for one in examples.build(workspace, spec.base, gone)[1]] == ["dataset-none"]


@pytest.mark.parametrize(
    ("rows", "rule"), [({"eval_id": None, "eval_share": 0.0}, "texts-held-out"), ({"id": "d" * 64}, "dataset-none")]
)
def test_where_no_prompt_is_held_out_no_answers_are_written_and_the_reason_is_said(
    workspace: Workspace, spec: RunSpec, rows: dict[str, Any], rule: str
) -> None:
    other = msgspec.structs.replace(spec, dataset=msgspec.structs.replace(spec.dataset, **rows))
    made, problems = evaluations.texts(workspace, run_dir_of(workspace, 2, other, {}))
    assert made is None and [one.rule for one in problems] == [rule]


def test_an_evaluation_of_some_rows_leaves_the_rest_to_be_asked(workspace: Workspace, spec: RunSpec) -> None:
    run_id = run_dir_of(workspace, 2, spec, {f"base-{TASK}": 27, f"tuned-{TASK}": 97})
    folder = workspace.run_dir(run_id) / "items"
    check = items.Check(of="w", budget_s=10, sets={TASK: items.Asked(size=144, planned=100, asked=100)})
    (folder / items.CHECK).write_bytes(msgspec.json.encode(check))
    whole = RunSpec(
        kind="evaluate", recipe=evaluations.RECIPE, base=schema.BaseRef(f"run:{run_id}"), dataset=spec.dataset,
        evaluate=msgspec.structs.replace(spec.evaluate, against="starter"),
    )  # fmt: skip
    some = msgspec.structs.replace(
        whole, evaluate=schema.Evaluate(benchmarks=["held-out-texts"], limit=30, against="starter")
    )
    run_dir_of(workspace, 3, some, {})
    assert scored.of(workspace, run_id).left_to_ask == 44
    run_dir_of(workspace, 4, whole, {})
    assert scored.of(workspace, run_id).left_to_ask == 0
