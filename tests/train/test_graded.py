"""The run's own task as a grader sees it: written, graded, kept apart by grader, and told in the report."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers

from engine import starter
from engine.data import datasets
from engine.report import items, paired
from engine.spec import schema
from engine.train import rows
from engine.train.scoring import graded, keys, scores, written
from engine.train.tokenize import get_ready, render
from engine.workspace import Workspace
from tests.train.test_train import train

pytestmark = pytest.mark.train

KNOWN = {"What is the opposite of hot?": "cold", "Which day comes after Monday?": "Tuesday", "What is 2 plus 3?": "5"}


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(starter.MODEL_DIR)
    get_ready(tokenizer, starter.MODEL_DIR)
    return transformers.AutoModelForCausalLM.from_pretrained(starter.MODEL_DIR).eval(), tokenizer


def asking(tokenizer: Any, right: dict[str, str], name: str | None = "holds-the-words", **parameters: Any) -> Any:
    """A run as far as its grader reads it, of rows that are all unseen but the first; one of them a conversation."""
    made = [
        {"prompt": [{"role": "user", "content": q}], "completion": [{"role": "assistant", "content": a}], "line": n}
        for n, (q, a) in enumerate(right.items(), 1)
    ]
    made[-1] = {"messages": made[-1]["prompt"] + made[-1]["completion"], "line": len(made)}
    scored = [(f"row-{n}", items.SEEN if n == 0 else items.UNSEEN, row) for n, row in enumerate(made)]
    choosing = [(f"choosing-{n}", items.UNSEEN, row) for n, row in enumerate(made[1:])]
    ref = None if name is None else schema.GraderRef(name, parameters)
    return SimpleNamespace(
        spec=SimpleNamespace(dataset=schema.DatasetRef("d" * 64, grader=ref)),
        rows=rows.Rows([], [], [], scored, [], [], choosing=choosing), tokenizer=tokenizer,
        stop=SimpleNamespace(asked=lambda: False), log=[],
    )  # fmt: skip


def test_an_answer_says_whether_it_came_to_its_end(loaded: Any) -> None:
    model, tokenizer = loaded
    prompts = [render(tokenizer, [{"role": "user", "content": one}]) for one in KNOWN]
    whole, cut = (written.write(model, tokenizer, prompts, most) for most in (40, 1))
    assert [one.ended for one in whole] == [True] * 3 and [one.ended for one in cut] == [False] * 3
    assert [one.text for one in whole] == written.answer(model, tokenizer, prompts, 40)


def test_rows_and_conversations_are_answered_and_graded_with_what_was_said(loaded: Any) -> None:
    model, tokenizer = loaded
    run = asking(tokenizer, KNOWN)
    question = graded.question(run)
    assert question is not None and question.size == 3 and question.benchmark == scores.TASK_GRADED
    found = question.score(model, tokenizer, question.asked)
    assert [one.family for one in found] == [items.SEEN, items.UNSEEN, items.UNSEEN]
    assert all(one.correct and one.score == 1 and one.text and one.reference for one in found)
    wrong = graded.question(asking(tokenizer, dict.fromkeys(KNOWN, "purple")))
    assert wrong is not None
    assert [(one.correct, one.score) for one in wrong.score(model, tokenizer, wrong.asked)] == [(False, 0.0)] * 3


@pytest.mark.parametrize(("name", "room"), [("last-number", 34 + 96), ("right-and-ends", 34 + 96), ("same-words", 34)])
def test_an_answer_that_may_lie_at_the_end_of_a_way_has_room_for_it(
    loaded: Any, monkeypatch: pytest.MonkeyPatch, name: str, room: int
) -> None:
    told: list[int] = []

    def write(_model: Any, _tokenizer: Any, prompts: list[str], most: list[int], _asked: Any) -> list[Any]:
        told.extend(most)
        return [written.Written("5", True)] * len(prompts)

    monkeypatch.setattr(written, "write", write)
    asked = graded.question(asking(loaded[1], {"What is 2 plus 3?": "5"}, name))
    assert asked is not None and asked.score(None, loaded[1], asked.asked) and told == [room]


def test_the_grade_on_the_way_is_of_rows_that_the_report_does_not_count_and_leaves_the_model_as_it_was(
    loaded: Any,
) -> None:
    model, tokenizer = loaded
    run = asking(tokenizer, {**KNOWN, "What is 2 plus 3?": "never"})
    chosen_by = graded.to_choose_by(run)
    assert {name for name, _, _ in chosen_by} == {"choosing-0", "choosing-1"}
    model.train()
    run.stop.asked = lambda: True  # half an evaluation would choose otherwise than a whole one
    assert graded.grade_of(run, model, chosen_by) == 0.5
    assert model.training
    model.eval()
    assert graded.to_choose_by(asking(tokenizer, KNOWN, None)) == []
    assert graded.to_choose_by(asking(tokenizer, {"What is 2 plus 3?": "5"})) == []  # a seen row alone


def test_scores_by_another_grader_or_other_parameters_are_other_scores(loaded: Any) -> None:
    _, tokenizer = loaded
    model = keys.Model("weights", "settings", "held")
    asked = [
        graded.question(asking(tokenizer, KNOWN, name, **parameters))
        for name, parameters in (
            ("same-words", {}),
            ("holds-the-words", {}),
            ("exact", {"case": True}),
            ("same-words", {}),
        )
    ]
    told = [keys.of_question(model, one, tokenizer) for one in asked]
    assert len(set(told)) == 3 and told[0] == told[3]


def test_a_run_names_the_grader_of_its_data_and_is_scored_by_it_before_and_after(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "home")
    data = datasets.add_sample(workspace, starter.sample("new-facts"))
    datasets.grade_by(workspace, data.id, schema.GraderRef("holds-the-words"))
    status, _, run_dir = train(
        tmp_path, "lora", "--data", data.id, "--set", "train.max_steps=2", "--set", "evaluate.benchmarks=[]",
        "--set", "evaluate.limit=12",
    )  # fmt: skip
    assert status == 0
    assert json.loads((run_dir / "spec.json").read_text())["dataset"]["grader"]["name"] == "holds-the-words"
    asked = set(items.benchmarks_of(run_dir))
    assert items.GRADED in asked and "new-task-exact" not in asked
    settings = json.loads((run_dir / "items" / "settings.json").read_text())[items.GRADED]
    assert settings["grader"]["name"] == "exact" and settings["grader"]["inside"] is True
    lines = {row.family: row for row in paired.compare_run(run_dir) if row.benchmark == items.GRADED}
    assert set(lines) == {items.SEEN, items.UNSEEN} and lines[items.UNSEEN].n == 12
    tuned = items.read_items(run_dir / "items" / f"tuned-{items.GRADED}.jsonl")
    assert all(one.score == float(bool(one.correct)) and one.text is not None for one in tuned)
