"""Which graders fit rows, how one is tried on their right answers, and how a data set keeps the one it names."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from engine import cli, graders
from engine.check import DatasetError
from engine.data import copies, datasets
from engine.graders import offers
from engine.plan import drafts, plans, take_along
from engine.spec.schema import GraderRef
from engine.workspace import Workspace
from tests.apps import button, open_page, texts
from tests.helpers import planned


def rows(*answers: str, **more: Any) -> list[dict[str, Any]]:
    """Canonical rows with these right answers."""
    return [
        {
            "prompt": [{"role": "user", "content": f"Question {n}?"}],
            "completion": [{"role": "assistant", "content": answer}], "line": n, **more,
        }
        for n, answer in enumerate(answers, 1)
    ]  # fmt: skip


def first(*answers: str, **more: Any) -> str:
    found = graders.offer(rows(*answers, **more))
    return found[0].ref.name if found else ""


LONG = "It is a long answer that nobody would ever write in just the same words, number {n}, since it says so much."
JSON = ['{"name": "Ann", "age": 7}', '{"age": 8, "name": "Bo", "x": []}'] * 3


def test_the_grader_that_says_most_is_offered_first():
    assert first("Paris", "Rome", "Berlin and Bonn") == "same-words"
    assert first("北京", "上海市", "广州") == "same-words"
    assert first("12", "3/4", "1,000 apples") == "last-number"
    assert first("2 boxes of 12.\n#### 24", "So 3.\n#### 3") == "marked-number"
    assert first("A", "B", choices=["A", "B"]) == "right-choice"
    assert first(*["positive", "negative", "neutral"] * 10) == "right-choice"
    assert first(*JSON) == "same-json"
    assert first(*(LONG.format(n=n) for n in range(9))) == "comes-to-an-end"


def test_json_of_one_shape_offers_its_keys_and_their_types():
    (form,) = (one for one in graders.offer(rows(*JSON)) if one.ref.name == "valid-json")
    made = graders.make(form.ref)
    assert made.grade('{"age": 1, "name": "Cy"}', {}).right and not made.grade('{"age": "1", "name": "Cy"}', {}).right


def test_what_is_offered_finds_nearly_all_right_answers_right():
    for answers in (
        ["Paris", "Rome"],
        JSON,
        ["#### 1", "#### 2"],
        [LONG.format(n=n) for n in range(9)],
        ["是", "否"] * 20,
    ):
        for one in graders.offer(rows(*answers)):
            assert one.trial.right >= 0.9 * one.trial.tried == 0.9 * len(answers)


@pytest.mark.parametrize("row", [{"text": "a"}, {"messages": None}, {"prompt": [], "completion": []}, {}])
def test_rows_without_answers_are_offered_nothing(row):
    assert graders.offer([row] * 3) == []
    assert graders.trial(graders.make(GraderRef("exact")), [row]).tried == 0


def test_a_trial_names_the_lines_that_fail_and_refuses_where_most_do():
    number = graders.make(GraderRef("last-number"))
    few = graders.trial(number, rows("1", "two", "3", "4"))
    assert (few.tried, few.right, few.lines, few.problem("last-number")) == (4, 3, "2", None)
    problem = graders.trial(number, rows("one", "two", "3")).problem("last-number")
    assert problem is not None and problem.rule == "grader-references"
    assert "2 of 3" in problem.sentence and "lines 1, 2 " in problem.sentence


def test_a_trial_has_an_end_where_a_pattern_is_slow_on_the_rows_themselves(monkeypatch):
    monkeypatch.setattr(offers, "MOST_TRIAL_S", 0.3)
    made = graders.make(GraderRef("regex", {"pattern": r"qz7(\p{Greek}|\p{Greek}\p{Greek})+$"}))
    found = graders.trial(made, rows(*["qz7" + "α" * 500 + "!"] * 200))
    problem = found.problem("regex")
    assert found.tried < 5 and problem is not None and problem.rule == "grader-slow"


# --- a data set that names one --------------------------------------------------------------------------------------


def stored(workspace: Workspace, *answers: str) -> datasets.Dataset:
    path = workspace.root / "mine.jsonl"
    workspace.root.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"prompt": f"q{n}", "completion": one}) + "\n" for n, one in enumerate(answers)))
    return datasets.add(workspace, path, "mine")


FACTS = ["Paris", "Rome", "Berlin", "Bonn", "Oslo"]


def test_a_data_set_keeps_its_grader_its_copies_too_and_gives_it_up(workspace):
    data = stored(workspace, *FACTS)
    ref = GraderRef("exact", {"case": True})
    assert datasets.grade_by(workspace, data.id, ref).grader == ref
    assert datasets.rename(workspace, data.id, "other").grader == ref
    assert copies.fixed(workspace, data.id, fixes=("drop-duplicates",)).grader == ref
    assert datasets.grade_by(workspace, data.id, None).grader is None


def test_a_grader_that_the_rows_fail_or_that_cannot_be_made_is_not_kept(workspace):
    data = stored(workspace, *FACTS)
    with pytest.raises(DatasetError):
        datasets.grade_by(workspace, data.id, GraderRef("last-number"))
    with pytest.raises(graders.Refused):
        datasets.grade_by(workspace, data.id, GraderRef("regex", {"pattern": "(a+)+$"}))
    assert datasets.load(workspace, data.id).grader is None


def test_a_plan_takes_the_grader_where_the_run_learns_answers(workspace):
    data = stored(workspace, *FACTS * 4)
    data = datasets.grade_by(workspace, data.id, GraderRef("same-words"))
    spec, problems = planned(workspace, "lora", base="starter", dataset=data.id, overrides={})
    assert spec.dataset.grader == data.grader and problems == []
    assert plans.make(workspace, "dpo", base="starter", dataset=data, overrides={}).spec.dataset.grader is None
    assert drafts.set_words(drafts.changed_settings(spec, workspace)) == []
    datasets.grade_by(workspace, data.id, None)
    words = drafts.set_words(drafts.changed_settings(spec, workspace))
    assert words == ["--set", 'dataset.grader={"name": "same-words", "parameters": {}}']


@pytest.mark.parametrize(
    ("grader", "rule"),
    [
        ({"name": "last-number"}, "grader-references"),
        ({"name": "nobody"}, "grader-unknown"),
        ({"name": "regex", "parameters": {"pattern": "(a+)+$"}}, "grader-explodes"),
        ({"name": "number", "parameters": {"absolute": -1}}, "grader-parameter"),
        ({"name": "sum", "parameters": {"parts": []}}, "grader-parameter"),
        ({"parameters": {}}, "setting-value"),
    ],
)
def test_what_is_wrong_with_a_grader_is_said_before_the_start(workspace, grader, rule):
    data = stored(workspace, *FACTS * 4)
    _, problems = planned(workspace, "lora", base="starter", dataset=data.id, overrides={"dataset.grader": grader})
    assert [(one.rule, one.where) for one in problems] == [(rule, "dataset.grader")]


def test_a_grader_goes_along_to_another_home(workspace, tmp_path):
    data = stored(workspace, *FACTS)
    datasets.grade_by(workspace, data.id, GraderRef("same-words"))
    with (tmp_path / "a.zip").open("wb") as out:
        take_along.pack(workspace, drafts.Draft(recipe="lora", dataset=data.id), out)
    opened = take_along.unpack(Workspace(tmp_path / "another"), tmp_path / "a.zip")
    assert opened.dataset is not None and opened.dataset.grader == GraderRef("same-words")


def test_what_is_taken_along_without_a_grader_is_as_it_was(workspace):
    data, out = stored(workspace, *FACTS), io.BytesIO()
    take_along.pack(workspace, drafts.Draft(recipe="lora", dataset=data.id), out)
    assert b"grader" not in out.getvalue()


def test_the_command_line_offers_a_grader_and_names_it(workspace, capsys):
    data = stored(workspace, *FACTS)

    def told(*arguments: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["grade", data.id, *arguments])
        return ended.value.code, *capsys.readouterr()

    status, out, _ = told("--json")
    assert status == 0 and json.loads(out)["offers"][0]["grader"]["name"] == "same-words"
    status, _, error = told("--grader", "last-number")
    assert status == 2 and "5 of 5 right answers" in error
    assert told("--grader", "exact", "--set", "case=true")[0] == 0
    assert datasets.load(workspace, data.id).grader == GraderRef("exact", {"case": True})


@pytest.mark.page
def test_the_data_page_offers_tries_and_keeps_a_grader(workspace):
    data = stored(workspace, *FACTS)
    page = open_page("data", dataset=data.id)
    page.selectbox(key=f"grader_{data.id}").select("last-number").run()
    button(page, "use_grader").click().run()
    assert "5 of 5 right answers" in texts(page) and datasets.load(workspace, data.id).grader is None
    page.selectbox(key=f"grader_{data.id}").select("same-words").run()
    button(page, "try_grader").click().run()
    assert "all 5 right answers that were tried pass." in texts(page)
    button(page, "use_grader").click().run()
    assert datasets.load(workspace, data.id).grader == GraderRef("same-words")
    assert "Right answers are told by: The same words." in texts(page)
