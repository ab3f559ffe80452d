"""The Data page and what stands behind it: any row found, one edited in place, numbers, what is trained, the split."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from engine import starter
from engine.check import DatasetError, check_file
from engine.data import Dataset, copies, datasets, jobs, making, one_row, profile, readiness
from engine.data.fixes import DROP_BAD_ROWS, Edit, in_order, leaving_out, one_line
from engine.data.one_row import check_row
from engine.models import Base, bases
from engine.render import Coder, NoTokenizer, outcome, preview
from engine.words import Problem
from engine.workspace import Workspace
from pages import _data_rows, _delete, _theme
from tests.apps import button, has_button, open_page, texts
from tests.apps import shown as as_read
from tests.conftest import ROOT
from tests.helpers import examples, fake_spec, finished_run, wait_until

XSS = "<img src=x onerror=alert(1)> **bold** [link](javascript:alert(1)) :red[x]"
STYLE = ROOT / "pages" / "style.css"
FAST = settings(max_examples=examples(100))


def lines_of(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def stored(workspace: Workspace, content: bytes, name: str = "mine.jsonl") -> Dataset:
    file = workspace.root / "brought"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return datasets.add(workspace, file, name)


def good_rows(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(count)]


def broken(workspace: Workspace, count: int = 30) -> Dataset:
    """Rows 5 and 9 are bad."""
    lines = lines_of(good_rows(count)).splitlines()
    lines[4] = b'{"prompt": "q4", "completion": null}'
    lines[8] = lines[8][:-5]
    return stored(workspace, b"\n".join(lines) + b"\n")


def original(dataset: Dataset) -> Path:
    return dataset.folder / "original"


# --- any row ----------------------------------------------------------------------------------------------------------
CONTAINERS = {
    "lines": lambda rows: lines_of(rows),
    "array": lambda rows: json.dumps(rows).encode(),
    "indented": lambda rows: json.dumps(rows, indent=2).encode(),
    "gzip": lambda rows: gzip.compress(lines_of(rows)),
    "table": lambda rows: (
        "prompt,completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in rows)
    ).encode(),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_any_row_is_found_by_its_place_and_by_a_text_in_it(workspace: Workspace, container: str) -> None:
    dataset = stored(workspace, CONTAINERS[container](good_rows(50)))
    page = one_row.find(original(dataset), {}, start=41, count=5)
    assert [row.row for row in page.rows] == [41, 42, 43, 44, 45] and page.next_row == 46
    assert "question 40" in page.rows[0].text
    found = one_row.find(original(dataset), {}, text="ANSWER 37", count=5)
    assert [row.row for row in found.rows] == [38] and found.next_row is None


@FAST
@given(text=st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12), escaped=st.booleans())
def test_a_text_is_found_however_json_writes_it(tmp_path_factory, text: str, escaped: bool) -> None:
    file = tmp_path_factory.mktemp("search") / "rows.jsonl"
    rows = [{"text": "plain"}, {"text": f"before {text} after"}, {"text": "other"}]
    file.write_text("".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows), "utf-8")
    assert 2 in [row.row for row in one_row.find(file, {}, text=text).rows]


def test_a_search_among_rows_with_errors_sees_nothing_else(workspace: Workspace) -> None:
    dataset = broken(workspace)
    page = one_row.find(original(dataset), {}, only=(5, 9))
    assert [row.row for row in page.rows] == [5, 9] and page.next_row is None


# --- the spot ---------------------------------------------------------------------------------------------------------
def problem(where: str | None, rule: str = "null-field") -> Problem:
    return Problem(rule=rule, where=where, row=1)


@pytest.mark.parametrize(
    ("text", "found", "marked"),
    [
        ('{"messages": [{"role": "user"}, {"role": "assistant", "content": null}]}', problem("messages[1].content"), "null"),
        ('{"a": "x", "prompt": "  "}', problem("prompt"), '"  "'),
        ('{"input": {"messages": 7}}', problem("input.messages"), "7"),
        ('{"odd.name": 7}', problem("odd.name"), "7"),
        ('{"messages": [{"role": "user"}]}', problem("messages[0].content"), '{"role": "user"}'),
        ('{"a": "breaks off', problem(None, "not-json"), '"breaks off'),
        ('{"a": 1,}', problem(None, "not-json"), "}"),
        ('{"a": NaN}', problem(None, "nan"), "NaN"),
    ],
)  # fmt: skip
def test_the_spot_of_a_problem_is_marked(text: str, found: Problem, marked: str) -> None:
    span = one_row.spot(text, found)
    assert span is not None and text[span[0] : span[1]] == marked


def test_a_problem_without_a_spot_marks_nothing() -> None:
    assert one_row.spot('{"a": 1}', problem("b")) is None
    assert one_row.spot('{"a": 1}', problem(None, "duplicate-row")) is None


@FAST
@given(text=st.text(max_size=60), where=st.one_of(st.none(), st.text(max_size=20)))
def test_a_spot_lies_inside_whatever_the_row_is(text: str, where: str | None) -> None:
    for rule in ("not-json", "nan", "null-field"):
        span = one_row.spot(text, problem(where, rule))
        assert span is None or 0 <= span[0] <= span[1] <= len(text)


# --- edits ------------------------------------------------------------------------------------------------------------
def test_an_edited_row_is_checked_by_itself_as_a_row_of_its_file(workspace: Workspace) -> None:
    path = original(broken(workspace))
    found, row = check_row(path, b'{"prompt": "q", "completion": ""}')
    assert [p.rule for p in found] == ["blank-field"] and row is None
    found, row = check_row(path, b'{"prompt": "q", "completion": "a"}')
    assert found == () and row is not None and row["completion"][0]["content"] == "a"
    found, _ = check_row(path, b'{"messages": [{"role": "user", "content": "x"}], "label": true}')
    assert [p.severity for p in found] == ["error"]
    assert [p.rule for p in check_row(path, b"{broken")[0]] == ["not-json"]


def test_an_edit_is_a_dataset_beside_the_untouched_original(workspace: Workspace) -> None:
    parent = broken(workspace)
    before = original(parent).read_bytes()
    edits = [Edit(row=5, text='{"prompt": "q4",\n "completion": "mended"}'), Edit(row=9, text="  ")]
    fixed = copies.fixed(workspace, parent.id, fixes=edits)
    assert original(parent).read_bytes() == before and fixed.parent == parent.id
    assert fixed.trainable and fixed.report.rows == 29 and fixed.report.errors == {}
    assert fixed.fixes == (edits[0], edits[1])
    kept = [json.loads(line) for line in original(fixed).read_bytes().splitlines()]
    assert kept[4] == {"prompt": "q4", "completion": "mended"}
    assert kept[:4] + kept[5:] == [row for n, row in enumerate(good_rows(30)) if n not in (4, 8)]
    other = copies.fixed(workspace, parent.id, fixes=[Edit(row=5, text='{"prompt": "q", "completion": "b"}')])
    assert other.id != fixed.id and other.report.bad_rows == 1
    assert copies.fixed(workspace, parent.id, fixes=edits).id == fixed.id


def test_an_edit_comes_before_the_other_repairs_and_keeps_the_validation_rows(workspace: Workspace) -> None:
    validation = stored(workspace, lines_of(good_rows(7)), "validation")
    parent = datasets.attach(workspace, broken(workspace).id, validation.id)
    edit = Edit(row=5, text='{"prompt": "q4", "completion": "mended"}')
    fixed = copies.fixed(workspace, parent.id, fixes=[DROP_BAD_ROWS, edit])
    assert fixed.fixes == (edit, DROP_BAD_ROWS) and fixed.report.rows == 29 and fixed.eval_id == validation.id


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_row_of_any_container_can_be_edited(workspace: Workspace, container: str) -> None:
    parent = stored(workspace, CONTAINERS[container](good_rows(6)))
    fixed = copies.fixed(workspace, parent.id, fixes=[Edit(row=3, text='{"prompt": "p", "completion": "new"}')])
    rows = datasets.preview(workspace, fixed.id)
    assert len(rows) == 6 and fixed.trainable
    assert [row["completion"][0]["content"] for row in rows[1:4]] == ["answer 1", "new", "answer 3"]


def test_a_row_that_is_not_there_cannot_be_edited(workspace: Workspace) -> None:
    parent = broken(workspace)
    with pytest.raises(DatasetError) as error:
        copies.fixed(workspace, parent.id, fixes=[Edit(row=31, text="{}")])
    assert error.value.problem.rule == "row-gone" and len(datasets.list_all(workspace)) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@FAST
@given(text=st.text(max_size=60) | JSON.map(lambda value: json.dumps(value, indent=1)), row=st.integers(1, 3))
def test_whatever_is_typed_into_a_row_leaves_the_others_as_they_are(tmp_path_factory, text: str, row: int) -> None:
    workspace = Workspace(tmp_path_factory.mktemp("typed"))
    parent = stored(workspace, lines_of(good_rows(3)))
    found = check_row(original(parent), one_line(text))[0] if one_line(text) else ()
    try:
        fixed = copies.fixed(workspace, parent.id, fixes=[Edit(row=row, text=text)])
    except DatasetError as error:
        assert error.problem.rule == "row-not-json" and "error" in [p.severity for p in found]
        return
    assert fixed.report.rows == 3 - (not one_line(text))
    assert fixed.report.bad_rows == any(p.severity == "error" for p in found)
    answers = [one["completion"][0]["content"] for one in datasets.preview(workspace, fixed.id)]
    others = [f"answer {n}" for n in range(3) if n != row - 1]
    assert [answer for answer in answers if answer in others] == others


# --- numbers and what is trained --------------------------------------------------------------------------------------
@pytest.fixture
def base(workspace: Workspace) -> Base:
    return bases.describe("starter", workspace)


def test_the_numbers_are_those_of_the_rows(workspace: Workspace, base: Base) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c" * n}] * turns}
        for n, turns in ((1, 1), (2, 1), (3, 2))
    ]
    found = profile.describe(workspace, stored(workspace, lines_of(rows)).id, base)
    assert found.rows == 3 and found.turns == {2: 2, 4: 1}
    assert found.roles == {"user": 4, "assistant": 4}
    assert found.characters == {"user": 8, "assistant": 9}
    assert len(found.tokens) == 3 and not found.is_sample and found.over(1024) == 0 and found.over(0) == 1
    pairs = [{"prompt": "q", "chosen": "good", "rejected": "bad answer"}] * 4
    of_pairs = profile.describe(workspace, stored(workspace, lines_of(pairs)).id, base)
    assert of_pairs.turns == {2: 4} and of_pairs.characters == {"user": 4, "assistant": 56}
    marked = [{"prompt": f"q{n}", "completion": "a", "label": n % 4 > 0} for n in range(8)]
    assert profile.describe(workspace, stored(workspace, lines_of(marked)).id, base).labels == {
        "true": 6,
        "false": 2,
    }
    plain = stored(workspace, lines_of([{"text": "some words"}] * 3))
    assert profile.describe(workspace, plain.id, base).characters == {"text": 30}


def test_more_rows_than_the_sample_are_said_to_be_estimated(
    workspace: Workspace, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "SAMPLE_ROWS", 20)
    found = profile.describe(workspace, stored(workspace, lines_of(good_rows(200))).id, base)
    assert len(found.tokens) == 20 and found.is_sample and found.characters["assistant"] > 200 * 8


def test_a_base_without_a_tokenizer_here_is_said_so_and_the_rest_is_counted(workspace: Workspace) -> None:
    dataset = stored(workspace, lines_of(good_rows(5)))
    found = profile.describe(workspace, dataset.id, bases.describe("someone/not-here", workspace))
    assert found.problem is not None and found.problem.rule == "tokenizer-none" and found.rows == 5


def test_a_broken_tokenizer_or_template_is_said_so(workspace: Workspace, base: Base, tmp_path: Path) -> None:
    assert base.folder is not None
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(NoTokenizer):
        Coder.of_folder(tmp_path, "broken")
    (tmp_path / "tokenizer.json").write_bytes((base.folder / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(NoTokenizer):
        Coder.of_folder(tmp_path, "broken")
    (tmp_path / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}")
    evil = Coder.of_folder(tmp_path, "evil")  # jinja's sandbox keeps a template from Python
    refused = outcome.of_row({"messages": [{"role": "user", "content": "x"}]}, evil).problem
    assert refused is not None and refused.rule == "template-refuses" and "unsafe" in refused.sentence


def test_what_is_trained_is_decided_by_the_function_of_training_and_counts_as_the_numbers_do(
    workspace: Workspace, base: Base
) -> None:
    rows = [
        {"prompt": "What is 1 plus 1?", "completion": "It is 2."},
        {"prompt": "é 漢字 🎉", "completion": "naïve"},
        {"prompt": XSS, "completion": "text"},
    ]
    dataset = stored(workspace, lines_of(rows))
    made = readiness.preview(workspace, dataset.id, base, 512)
    for row, shown in zip(rows, made.rows, strict=True):
        (part,) = shown.parts
        whole = "".join(part.pieces)
        trained = "".join(piece for piece, kind in zip(part.pieces, part.kinds, strict=True) if kind == preview.TRAINED)
        assert whole == f"<|user|>{row['prompt']}<|end|><|assistant|>{row['completion']}<|end|>"
        assert trained == f"{row['completion']}<|end|>"
        marks = [piece for piece, is_mark in zip(part.pieces, part.marks, strict=True) if is_mark]
        assert marks == ["<|user|>", "<|end|>", "<|assistant|>", "<|end|>"]
        assert part.trained == part.kinds.count(preview.TRAINED)
    found = profile.describe(workspace, dataset.id, base)
    assert sorted(found.tokens) == sorted(row.parts[0].tokens for row in made.rows)


def test_a_base_without_a_template_is_counted_and_shown_with_the_plain_one(
    workspace: Workspace, base: Base, tmp_path: Path
) -> None:
    assert base.folder is not None
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(base.folder / name)
    plain = bases.describe(str(tmp_path), workspace)
    dataset = stored(workspace, lines_of(good_rows(4)))
    made, counted = readiness.preview(workspace, dataset.id, plain, 512), profile.describe(workspace, dataset.id, plain)
    assert made.is_plain and counted.plain_template and "### Answer" in "".join(made.rows[0].parts[0].pieces)
    assert sorted(counted.tokens) == sorted(row.parts[0].tokens for row in made.rows)


def test_the_preview_shows_what_is_beyond_the_window_and_says_where_no_tokenizer_is(
    workspace: Workspace, base: Base
) -> None:
    dataset = stored(workspace, lines_of([{"prompt": "word " * 3000, "completion": f"a{n}"} for n in range(3)]))
    made = readiness.preview(workspace, dataset.id, base, 20)
    part = made.rows[0].parts[0]
    assert made.trained == 0 and part.is_cut and part.kinds[:21] == (*[preview.READ] * 20, preview.CUT)
    with pytest.raises(NoTokenizer):
        readiness.preview(workspace, dataset.id, bases.describe("/nowhere/at/all", workspace), 20)


def refused(number: int) -> dict[str, Any]:
    """A conversation that the starter's template cannot write: it knows no tools."""
    call = {"type": "function", "id": "c1", "function": {"name": "look", "arguments": {"n": number}}}
    result = {"role": "tool", "content": "One", "tool_call_id": "c1"}
    turns = [{"role": "user", "content": f"Look {number}"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    return {"messages": [*turns, result, {"role": "assistant", "content": f"One {number}"}]}


def talk(number: int) -> dict[str, Any]:
    turns = ({"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}"})
    return {"messages": list(turns)}


def test_data_and_train_name_the_rows_that_the_base_refuses(workspace: Workspace) -> None:
    dataset = stored(workspace, lines_of([talk(1), refused(2), talk(3), talk(4)]))
    said = "Left out: 1 of 4 rows, lines 2: the base's chat template refuses this conversation"
    for page in ("data", "train"):
        app = open_page(page, dataset=dataset.id)
        assert not app.exception and said in texts(app)
    assert not button(app, "start").disabled
    none_left = stored(workspace, lines_of([refused(n) for n in range(4)]))
    app = open_page("train", dataset=none_left.id)
    assert button(app, "start").disabled and "unknown role: tool" in texts(app)


def test_many_rows_are_read_beside_the_page_and_the_start_stays_possible(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = stored(workspace, lines_of([talk(n) for n in range(30)]))
    started: list[jobs.Call] = []
    monkeypatch.setattr(readiness, "AT_ONCE_ROWS", 10)
    monkeypatch.setattr(jobs, "start", lambda call, token=None: started.append(call) or workspace.root / "job")
    monkeypatch.setattr(jobs, "progress", lambda folder: jobs.JobProgress(done=40, total=100, left_s=3.0))
    monkeypatch.setattr(jobs, "result", lambda folder: jobs.carry_out(started[0]) if len(started) > 1 else None)
    app = open_page("train", {"current_dataset": dataset.id}, dataset=dataset.id)
    assert started == [jobs.Call(workspace=str(workspace.root), dataset=dataset.id, base="starter")]
    assert "refuses or cuts is not known yet" in texts(app) and not button(app, "start").disabled
    started.append(started[0])
    app.run()
    assert not app.exception and not button(app, "start").disabled
    assert "refuses or cuts is not known yet" not in texts(app)  # Train says no more where nothing is wrong
    assert "All 30 rows can be read" in texts(open_page("data", dataset=dataset.id))


# --- jobs -------------------------------------------------------------------------------------------------------------
def test_a_job_stores_a_file_in_a_process_of_its_own_and_tells_how_far_it_is(workspace: Workspace) -> None:
    source = workspace.root / "upload"
    source.parent.mkdir(parents=True)
    source.write_bytes(lines_of(good_rows(30_000)))
    folder = jobs.start(jobs.Call(workspace=str(workspace.root), source=str(source), name="../big", remove_source=True))
    result = wait_until(lambda: jobs.result(folder), timeout_s=120)
    assert result is not None and result.problem is None and result.dataset is not None
    assert jobs.progress(folder).total == len(lines_of(good_rows(30_000)))
    assert datasets.load(workspace, result.dataset).report.rows == 30_000
    jobs.forget(folder)
    assert not folder.exists() and not source.exists()


def test_a_job_that_is_stopped_or_dies_leaves_nothing_half_made(workspace: Workspace) -> None:
    source = workspace.root / "upload"
    source.parent.mkdir(parents=True)
    source.write_bytes(lines_of(good_rows(200_000)))
    folder = jobs.start(jobs.Call(workspace=str(workspace.root), source=str(source), name="big", remove_source=True))
    wait_until(lambda: jobs.progress(folder).done > 0, timeout_s=60)
    jobs.stop(folder)
    assert not folder.exists() and not source.exists()
    assert list(workspace.datasets_dir.glob("*")) == [] and list(workspace.datasets_dir.glob(".new-*")) == []
    again = jobs.result(folder)
    assert again is not None and again.problem is not None and again.problem.rule == "job-ended"


@pytest.mark.usefixtures("looks_in_place")
def test_a_large_file_is_shown_at_once_while_a_job_makes_its_rows(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "ROWS_LATER_BYTES", 100)
    source = workspace.root / "upload"
    source.parent.mkdir(parents=True)
    source.write_bytes(lines_of(good_rows(30)))
    call = jobs.Call(workspace=str(workspace.root), source=str(source), name="large", remove_source=True)
    dataset = datasets.load(workspace, jobs.carry_out(call).dataset or "")
    started: list[jobs.Call] = []
    job = workspace.root / "job"
    monkeypatch.setattr(jobs, "start", lambda call, token=None: started.append(call) or job)
    monkeypatch.setattr(jobs, "progress", lambda folder: jobs.JobProgress(done=40, total=100, left_s=3.0))
    ended: list[jobs.Result] = []
    monkeypatch.setattr(jobs, "result", lambda folder: ended[0] if ended else None)
    app = open_page("data", {"current_dataset": dataset.id}, dataset=dataset.id)
    assert "30 questions with answers, ready to train on" in texts(app) and len(started) == 1
    assert started[0].rows and started[0].dataset == dataset.id
    assert len(looks(app).options) == 1 and has_button(app, "next_step")
    view = next(s for s in app.selectbox if str(s.key).startswith("view_"))
    assert len(view.options) == 1  # as they stand in the file
    app.run()
    assert len(started) == 1
    ended.append(jobs.Result(problem=Problem(rule="disk-full")))
    app.run()
    assert "the disk is full" in texts(app) and has_button(app, "rows_again") and len(started) == 1
    assert jobs.carry_out(started[0]) == jobs.Result(dataset=dataset.id)
    app.run()
    assert len(looks(app).options) == 4 and not has_button(app, "rows_again")


def made_before(dataset: Dataset, **changes: Any) -> None:
    """Let the stored report be one of an earlier version of the check."""
    report = msgspec.structs.replace(dataset.report, checker_version=dataset.report.checker_version - 1, **changes)
    (dataset.folder / "report.json").write_bytes(msgspec.json.encode(report))


def test_a_job_checks_a_large_file_again_and_one_that_is_stopped_leaves_it_as_it_was(workspace: Workspace) -> None:
    dataset = stored(workspace, lines_of(good_rows(30_000)))
    made_before(dataset, rows=1)
    call = jobs.Call(workspace=str(workspace.root), dataset=dataset.id, again=True)
    folder = jobs.start(call)
    wait_until(lambda: jobs.progress(folder).done > 0, timeout_s=60)
    jobs.stop(folder)
    assert datasets.load(workspace, dataset.id).outdated and not list(workspace.datasets_dir.glob(".new-*"))
    folder = jobs.start(call)
    assert wait_until(lambda: jobs.result(folder), timeout_s=120) == jobs.Result(dataset=dataset.id)
    jobs.forget(folder)
    assert datasets.load(workspace, dataset.id) == dataset


def test_a_file_that_cannot_be_read_is_a_problem_of_the_job(workspace: Workspace) -> None:
    made = jobs.carry_out(jobs.Call(workspace=str(workspace.root), source="/nowhere/at/all", name="x"))
    assert made.problem is not None and made.problem.rule == "file-missing"


def test_the_time_left_follows_from_the_speed_of_the_pass() -> None:
    clock, told = [0.0], []
    meter = jobs.Meter(told.append, lambda: clock[0])
    for second in range(1, 11):
        clock[0] = float(second)
        meter(second * 10, 100)
    assert [round(one.left_s, 6) for one in told] == [float(10 - s) for s in range(1, 11)]
    clock[0] = 11.0
    meter(5, 100)
    assert told[-1].passes == 2 and told[-1].left_s is None


# --- the page ---------------------------------------------------------------------------------------------------------
def keys(app: AppTest, start: str) -> list[str]:
    return [str(b.key) for b in app.button if str(b.key).startswith(start)]


@pytest.mark.parametrize(("one", "several"), [(20, 2_000_000), (100_000, 20)])
def test_what_is_written_anew_is_bounded_for_a_row_and_in_all(workspace, monkeypatch, one, several) -> None:
    app = open_page("data", dataset=broken(workspace).id)
    button(app, "edit_error_null-field_0").click().run()
    monkeypatch.setattr(_data_rows.one_row, "EDITABLE_CHARACTERS", one)
    monkeypatch.setattr(_data_rows, "MOST_EDITED_CHARACTERS", several)
    box = next(a for a in app.text_area if str(a.key).startswith("edit_text_"))
    box.set_value('{"prompt": "q4", "completion": "mended"}')
    button(app, "save_edit").click().run()
    assert "too long to be kept here" in texts(app) and len(datasets.list_all(workspace)) == 1
    assert not button(app, "close_edit").click().run().exception


def test_a_bad_row_is_mended_in_three_acts_and_the_step_before_is_one_click_away(workspace: Workspace) -> None:
    parent = broken(workspace)
    app = open_page("data", dataset=parent.id)
    assert not has_button(app, "next_step") and not has_button(app, "undo")
    button(app, "edit_error_null-field_0").click().run()
    box = next(a for a in app.text_area if str(a.key).startswith("edit_text_"))
    box.set_value('{"prompt": "q4", "completion": 7}')
    button(app, "save_edit").click().run()
    assert "completion is a number instead of" in texts(app) and len(datasets.list_all(workspace)) == 1
    next(a for a in app.text_area if str(a.key).startswith("edit_text_")).set_value(
        '{"prompt": "q4", "completion": "x"}'
    )
    button(app, "save_edit").click().run()
    assert not app.exception and "null" not in texts(app) and "30 questions with answers, 1 with errors" in texts(app)
    assert not has_button(app, "edit_error_null-field_0") and has_button(app, "edit_error_not-json_0")
    button(app, "edit_error_not-json_0").click().run()
    button(app, "delete_row").click().run()
    assert "29 questions with answers, ready to train on" in texts(app) and has_button(app, "next_step")
    assert "1 row was left out, 29 stay" in texts(app)
    button(app, "undo").click().run()
    assert "30 questions with answers, 1 with errors" in texts(app)
    button(app, "undo").click().run()
    assert "30 questions with answers, 2 with errors" in texts(app) and not has_button(app, "undo")
    assert app.session_state["current_dataset"] == parent.id and "not yet applied" not in texts(app)


def test_rows_of_a_large_file_wait_and_are_applied_together_or_discarded(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SMALL_BYTES", 0)
    parent = broken(workspace)
    app = open_page("data", dataset=parent.id)
    assert "Line 5: completion is null" in texts(app) and ":red-background[**null**]" in texts(app)
    button(app, "edit_error_null-field_0").click().run()
    box = next(a for a in app.text_area if str(a.key).startswith("edit_text_"))
    assert box.value == '{"prompt": "q4", "completion": null}'
    assert box.form_id  # it is sent on the button alone, not with each change
    box.set_value('{"prompt": "q4", "completion": "mended"}')
    button(app, "save_edit").click().run()
    assert "Rows with errors: 2 now, 1 then" in texts(app)
    assert "written anew, not yet applied" in texts(app) and ":red-background[**null**]" not in texts(app)
    assert len(datasets.list_all(workspace)) == 1  # nothing is stored before it is applied
    button(app, "edit_error_not-json_0").click().run()
    button(app, "delete_row").click().run()
    assert "Rows with errors: 2 now, 0 then" in texts(app)
    button(app, "discard_edits").click().run()
    assert "not yet applied" not in texts(app) and not app.exception
    button(app, "edit_error_not-json_0").click().run()
    button(app, "delete_row").click().run()
    button(app, "edit_error_null-field_0").click().run()
    next(a for a in app.text_area if str(a.key).startswith("edit_text_")).set_value(
        '{"prompt": "q4", "completion": "m"}'
    )
    button(app, "save_edit").click().run()
    monkeypatch.setattr(jobs, "SMALL_BYTES", 2 << 20)  # so that the page waits for it
    button(app, "apply_edits").click().run()
    assert not app.exception and has_button(app, "next_step")
    fixed = next(d for d in datasets.list_all(workspace) if d.parent)
    assert fixed.parent == parent.id and fixed.report.rows == 29 and fixed.trainable


def test_rows_with_errors_are_found_and_shown_as_they_stand_in_the_file(workspace: Workspace) -> None:
    app = open_page("data", dataset=broken(workspace).id)
    next(s for s in app.selectbox if str(s.key).startswith("view_")).set_value("bad").run()
    assert keys(app, "edit_row_") == ["edit_row_5", "edit_row_9"]
    next(s for s in app.selectbox if str(s.key).startswith("view_")).set_value("written").run()
    next(s for s in app.text_input if str(s.key).startswith("search_")).set_value("QUESTION 27").run()
    assert keys(app, "edit_row_") == ["edit_row_28"] and ":red-background[**question 27**]" in texts(app)
    assert "**line 28** " in texts(app)


def test_any_row_is_edited_where_it_is_shown_as_it_is_trained_and_the_place_is_kept(workspace: Workspace) -> None:
    """Rows 5 and 9 are bad, so that the 8th good one is row 10 of the file."""
    dataset = broken(workspace)
    app = open_page("data", dataset=dataset.id)
    app.number_input(key=f"from_{dataset.id}").set_value(8).run()
    assert list(app.dataframe[0].value["Line"]) == list(range(10, 20))
    assert app.selectbox(key=f"row_to_edit_{dataset.id}").options[1] == "line 11"
    app.selectbox(key=f"row_to_edit_{dataset.id}").set_value(11).run()
    button(app, "edit_trained").click().run()
    assert app.text_area[0].value == '{"prompt": "question 10", "completion": "answer 10"}'
    app.text_area[0].set_value('{"prompt": "question 10", "completion": "another answer"}')
    button(app, "save_edit").click().run()
    made = datasets.load(workspace, app.session_state["current_dataset"])
    assert not app.exception and made.parent == dataset.id and app.number_input(key=f"from_{made.id}").value == 8
    assert "another answer" in app.dataframe[0].value.to_string()


def test_rows_are_shown_by_their_line_and_by_a_number_of_their_own_only_where_that_is_another(
    workspace: Workspace,
) -> None:
    """The first line of a CSV file names its columns."""
    same = open_page("data", dataset=stored(workspace, lines_of(good_rows(3))).id)
    assert list(same.dataframe[0].value.columns) == ["Line", "prompt", "completion"]
    assert "**Line**: 3  \n**prompt**: user: question 2  \n**completion**: assistant: answer 2" in texts(same)
    other = open_page("data", dataset=stored(workspace, b"prompt,completion\nwhat,this\nwho,that\n", "rows.csv").id)
    shown = other.dataframe[0].value
    assert list(shown["Row"]) == [1, 2] and list(shown["Line"]) == [2, 3]


def test_the_view_of_the_rows_is_kept_after_a_row_was_mended_as_long_as_it_is_one(workspace: Workspace) -> None:
    app = open_page("data", dataset=broken(workspace).id)
    view = next(s for s in app.selectbox if str(s.key).startswith("view_"))
    for view_after in ("bad", "trained"):  # with the last bad row goes the view of the bad ones
        view.set_value("bad").run()
        button(app, keys(app, "edit_row_")[0]).click().run()
        button(app, "delete_row").click().run()
        view = next(s for s in app.selectbox if str(s.key).startswith("view_"))
        assert not app.exception and view.value == view_after


def looks(app: AppTest) -> Any:
    return next(r for r in app.radio if str(r.key).startswith("look_"))


def look(app: AppTest, name: str) -> AppTest:
    return looks(app).set_value(name).run()


def test_the_numbers_have_a_table_behind_every_chart(workspace: Workspace) -> None:
    marked = datasets.add_sample(workspace, starter.sample("good-bad"))
    app = look(open_page("data", dataset=marked.id), "numbers")
    assert not app.exception
    tables = [str(frame.value) for frame in app.dataframe]
    assert len(tables) == 5  # lengths, characters, roles, messages, labels
    assert any("8038" in table for table in tables) and any("240" in table and "60" in table for table in tables)
    assert "Tokens as Starter" in texts(app)
    drawn = [json.loads(chart.proto.spec)["data"][0] for chart in app.get("plotly_chart")]
    assert {one["marker"]["color"] for one in drawn} == {_theme.of("chartCategoricalColors")[0]}


def test_the_split_is_shown_as_training_draws_it_and_other_rows_can_be_validated_on(workspace: Workspace) -> None:
    rows = [*good_rows(40), {"prompt": "question 3", "completion": "another answer"}]
    dataset = stored(workspace, lines_of(rows))
    other = stored(workspace, lines_of(good_rows(9)), "validation.jsonl")
    stored(workspace, lines_of([{"text": "other kind"}] * 3), "text.jsonl")
    app = look(open_page("data", dataset=dataset.id), "division")
    values = [m.value for m in app.metric]
    assert "37" in values and "4" in values and "40" in values
    assert "1 row repeats the question of another row" in texts(app)
    chosen = next(s for s in app.selectbox if str(s.key).startswith("validation_"))
    assert chosen.options == ["a part of these rows, held out", "validation.jsonl"]
    chosen.set_value(other.id).run()
    assert not app.exception and datasets.load(workspace, dataset.id).eval_id == other.id
    assert "questions that belong to this data" in texts(app)


def test_like_lines_are_one_group_and_left_out_in_one_go(workspace: Workspace) -> None:
    rows = [{"prompt": f"question {n % 9}", "completion": "a"} for n in range(446)]
    app = open_page("data", dataset=stored(workspace, lines_of(rows)).id)
    assert "437 rows repeat an earlier row" in [e.label for e in app.expander]
    assert "The same in lines 14-446" in texts(app) and "9 rows stay" in texts(app)
    assert button(app, "drop_repeats").label == "Leave out all 437"
    button(app, "drop_repeats").click().run()
    assert not app.exception and "9 questions with answers, ready to train on" in texts(app)


def test_each_of_a_few_like_rows_can_be_edited_and_what_to_do_is_said_once(workspace: Workspace) -> None:
    rows = [*good_rows(12), *good_rows(10)]
    app = open_page("data", dataset=stored(workspace, lines_of(rows)).id)
    assert len(keys(app, "edit_warning_duplicate-row_")) == 10
    assert "**line 22: this row repeats line 10 exactly**" in texts(app)
    assert texts(app).count("unless the repetition is meant") == 1


def test_each_sample_has_a_button_of_its_own_name(workspace: Workspace) -> None:
    app = open_page("data", {"way": "sample"})
    assert [as_read(button(app, key).label) for key in keys(app, "sample_")] == [
        f"Use {one.title}" for one in starter.SAMPLES
    ]


def test_the_first_page_says_once_how_to_begin(workspace: Workspace) -> None:
    assert "No data yet" in texts(open_page("data"))
    app = AppTest.from_file(str(ROOT / "pages" / "_frame.py"), default_timeout=60).run()
    assert has_button(app, "try_it") and "No data yet" not in texts(app)


def test_what_deletes_for_good_is_red_enough_to_read_on() -> None:
    rule = re.search(
        r'st-key-delete_"\] button\[kind="primary"\]:not\(:disabled\) \{([^}]*)\}', STYLE.read_text("utf-8")
    )
    assert rule is not None

    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    ground, ink = (re.search(rf"(?<!-){name}: (#\w{{6}})", rule[1]) for name in ("background", "color"))
    assert ground is not None and ink is not None
    assert (light(ink[1]) + 0.05) / (light(ground[1]) + 0.05) >= 4.5 and int(ground[1][1:3], 16) > 150


@pytest.mark.parametrize("container", ["jsonl", "json", "csv"])
def test_rows_with_one_warning_are_left_out_and_no_others(workspace: Workspace, container: str) -> None:
    rows = good_rows(6)
    rows[2]["completion"] = "Dear {{name}}, hello {{name}} and {{other}}"
    rows[4]["completion"] = ""
    content = {
        "jsonl": lines_of(rows),
        "json": json.dumps(rows).encode(),
        "csv": "".join(f"{row['prompt']},{row['completion']!r}\n" for row in rows).replace("'", '"').encode(),
    }[container]
    parent = stored(workspace, b"prompt,completion\n" * (container == "csv") + content)
    assert leaving_out(parent.report, "placeholder") == "drop_placeholders"
    fixed = datasets.add(workspace, original(parent), "fixed", fixes=("drop_placeholders",))
    assert fixed.report.rows == 5 and fixed.report.bad_rows == parent.report.bad_rows == 1
    assert "placeholder" not in fixed.report.warnings


def several_faults(workspace: Workspace) -> Dataset:
    """Rows 3, 4 and 6 have one error, row 9 another; row 12 has two of the first."""
    rows: list[dict[str, Any]] = [{"prompt": f"q{n}", "completion": f"a{n}"} for n in range(1, 21)]
    for row in (3, 4, 6):
        rows[row - 1]["completion"] = None
    rows[8]["completion"] = 7
    rows[11] = {"prompt": None, "completion": None}
    return stored(workspace, lines_of(rows))


def test_each_rule_has_its_number_of_rows_and_a_click_for_all_of_them(workspace: Workspace) -> None:
    parent = several_faults(workspace)
    assert parent.report.errors["null-field"] == 5 and parent.report.rows_with == {"null-field": 4, "wrong-type": 1}
    app = open_page("data", dataset=parent.id)
    folds = [as_read(fold.label) for fold in app.expander]
    assert "4 rows lack a field that is needed: it is null" in folds
    assert any(fold.startswith("Line 9: completion is a number") for fold in folds)
    assert button(app, "drop_bad_rows").label == "Leave out all 5 rows with errors" and "15 rows stay." in texts(app)
    assert button(app, "leave_out:null-field").label == "Leave out all 4" and "16 rows stay." in texts(app)
    assert button(app, "leave_out:wrong-type").label == "Leave out this row"
    button(app, "leave_out:null-field").click().run()
    assert "16 questions with answers, 1 with errors" in texts(app) and "4 rows were left out, 16 stay" in texts(app)
    assert not has_button(app, "leave_out:wrong-type")  # the button above leaves out the same row
    button(app, "drop_bad_rows").click().run()
    assert "15 questions with answers, ready to train on" in texts(app) and has_button(app, "next_step")
    button(app, "undo").click().run()
    button(app, "undo").click().run()
    assert app.session_state["current_dataset"] == parent.id and "20 questions with answers, 5 with errors" in texts(
        app
    )


def test_fixes_are_applied_in_one_order_and_what_is_no_fix_is_not_applied() -> None:
    asked = ["leave_out:wrong-type", DROP_BAD_ROWS, "leave_out:no-such-rule", "drop_repeats", "leave_out:", "rm -rf"]
    assert in_order(asked) == ("drop_repeats", "leave_out:wrong-type", DROP_BAD_ROWS)


def test_labels_are_mended_with_a_click_that_says_what_becomes_of_them(workspace: Workspace) -> None:
    rows = [{"prompt": f"q{n}", "completion": "a", "label": "yes" if n % 2 else "no"} for n in range(20)]
    app = open_page("data", dataset=stored(workspace, lines_of(rows)).id)
    assert button(app, "convert_labels").label == "Fix all labels"
    assert '"yes" becomes true in 10 rows' in texts(app) and '"no" becomes false in 10 rows' in texts(app)
    button(app, "convert_labels").click().run()
    assert "10 marked good, 10 marked bad" in texts(app)


def test_of_data_that_was_mended_the_latest_state_alone_is_listed(workspace: Workspace) -> None:
    parent = several_faults(workspace)
    fixed = copies.fixed(workspace, parent.id)
    state = {"way": "stored"}
    app = open_page("data", state)
    assert has_button(app, f"open_{fixed.id}") and not has_button(app, f"open_{parent.id}")
    button(app, f"open_{fixed.id}").click().run()
    button(app, "undo").click().run()
    assert has_button(app, f"open_{parent.id}")  # what is open is listed too


def test_data_that_other_data_is_scored_on_asks_for_a_tick_before_it_goes(workspace: Workspace) -> None:
    scored_on = stored(workspace, lines_of(good_rows(7)), "validation")
    datasets.attach(workspace, stored(workspace, lines_of(good_rows(9)), "rows").id, scored_on.id)
    app = open_page("data", {f"manage_{scored_on.id}": True}, dataset=scored_on.id)
    assert "“rows” is scored on these rows" in texts(app) and button(app, f"delete_data_{scored_on.id}").disabled
    next(c for c in app.checkbox if c.key == f"delete_anyway_data_{scored_on.id}").check().run()
    button(app, f"delete_data_{scored_on.id}").click().run()
    assert not app.exception and [one.name for one in datasets.list_all(workspace)] == ["rows"]


def test_internal_names_stand_in_a_fold_and_plain_words_in_front(workspace: Workspace) -> None:
    rows = [{"conversations": [{"from": "human", "value": f"q{n}"}], "chosen": {"from": "gpt", "value": "a"},
             "rejected": {"from": "gpt", "value": "b"}} for n in range(9)]  # fmt: skip
    app = open_page("data", dataset=stored(workspace, lines_of(rows)).id)
    assert "**Pairs: a better and a worse answer**" in texts(app)
    internal = next(fold for fold in app.expander if fold.label == "How the file was read")
    told = as_read(internal.markdown[0].value)
    assert "Layout: sharegpt_ranking" in told and "Kind: Pairs: a better and a worse answer (preference)" in told
    assert not any("sharegpt_ranking" in str(one.value) for one in [*app.caption, *app.success, *app.header])


def test_more_repeats_than_the_report_holds_are_all_left_out(workspace: Workspace) -> None:
    parent = stored(workspace, lines_of(good_rows(700) * 3))
    assert parent.report.problems_file and parent.report.warnings == {"duplicate-row": 1_400}
    fixed = datasets.add(workspace, original(parent), "fixed", fixes=("drop_repeats",))
    assert fixed.report.rows == 700 and not fixed.report.warnings
    assert sorted(p.name for p in fixed.folder.iterdir()) == ["meta.json", "original", "report.json", "rows.parquet"]


def test_a_dataset_is_renamed_and_deleted_only_when_a_person_is_sure(workspace: Workspace) -> None:
    dataset = stored(workspace, lines_of(good_rows(5)))
    app = open_page("data", {f"manage_{dataset.id}": True}, dataset=dataset.id)
    next(i for i in app.text_input if str(i.key).startswith("name_")).set_value(XSS).run()
    button(app, "rename_dataset").click().run()
    assert not app.exception and datasets.load(workspace, dataset.id).name == XSS
    assert "This deletes “" in texts(app) and "It frees" in texts(app) and not app.checkbox  # nothing depends on it
    button(app, f"delete_data_{dataset.id}").click().run()
    assert not app.exception and datasets.list_all(workspace) == [] and "No data yet" in texts(app)
    assert [as_read(one.value) for one in app.toast] == [f"Deleted: {XSS}"]
    assert not app.run().toast  # said once


def test_the_data_of_the_open_run_does_not_take_the_place_of_data_that_is_deleted(workspace: Workspace) -> None:
    learned, dataset = stored(workspace, lines_of(good_rows(6))), stored(workspace, lines_of(good_rows(5)))
    spec = fake_spec()
    spec = msgspec.structs.replace(spec, dataset=msgspec.structs.replace(spec.dataset, id=learned.id))
    run = finished_run(workspace, 1, spec).name
    app = open_page("data", {f"manage_{dataset.id}": True}, dataset=dataset.id, run=run)
    button(app, f"delete_data_{dataset.id}").click().run()
    assert not app.exception and datasets.list_all(workspace) == [learned]
    assert not app.metric and "ready to train on" not in texts(app) and "dataset" not in app.query_params


def test_deleting_mended_data_deletes_all_states_of_it_and_names_those_that_stay(workspace: Workspace) -> None:
    parent = broken(workspace)
    used = copies.fixed(workspace, parent.id, fixes=[Edit(row=5, text="")])
    last = copies.fixed(workspace, used.id)
    run = workspace.runs_dir / "20260101-000000-abcdef"
    run.mkdir(parents=True)
    (run / "spec.json").write_text(json.dumps({"dataset": {"id": used.id}}))
    app = open_page("data", {f"manage_{last.id}": True}, dataset=last.id)
    assert "2 states of the rows in all" in texts(app) and "need stays: “mine.jsonl (fixed)”" in texts(app)
    assert f"It frees {_delete.size_of(parent.folder, last.folder)}." in texts(app)
    button(app, f"delete_data_{last.id}").click().run()
    assert not app.exception and datasets.list_all(workspace) == [used]


def test_a_dataset_that_a_run_uses_is_kept(workspace: Workspace) -> None:
    dataset = stored(workspace, lines_of(good_rows(5)))
    run = workspace.runs_dir / "20260101-000000-abcdef"
    run.mkdir(parents=True)
    (run / "spec.json").write_text(json.dumps({"dataset": {"id": dataset.id}}))
    app = open_page("data", {f"manage_{dataset.id}": True}, dataset=dataset.id)
    assert "Runs use it: 20260101-000000-abcdef. Delete these first." in texts(app)
    assert not has_button(app, f"delete_data_{dataset.id}") and len(datasets.list_all(workspace)) == 1


def test_a_report_of_an_earlier_version_is_made_anew_on_a_click(workspace: Workspace) -> None:
    dataset = broken(workspace)
    said = "An earlier version of the check made this report."
    app = open_page("data", dataset=dataset.id)
    assert said not in texts(app) and not has_button(app, "check_again")
    made_before(dataset, errors={}, bad_rows=0, problems=())
    app.run()
    assert said in texts(app) and "Line 5: completion is null" not in texts(app)
    button(app, "check_again").click().run()
    assert not app.exception and said not in texts(app) and not has_button(app, "check_again")
    assert "Line 5: completion is null" in texts(app) and datasets.list_all(workspace) == [dataset]


def test_a_large_file_is_checked_again_beside_the_page(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = stored(workspace, lines_of(good_rows(30)))
    made_before(dataset)
    started: list[jobs.Call] = []
    monkeypatch.setattr(jobs, "SMALL_BYTES", 10)
    monkeypatch.setattr(jobs, "start", lambda call, token=None: started.append(call) or workspace.root / "job")
    monkeypatch.setattr(jobs, "progress", lambda folder: jobs.JobProgress(done=40, total=100, left_s=3.0))
    monkeypatch.setattr(jobs, "result", lambda folder: jobs.carry_out(started[0]) if len(started) > 1 else None)
    app = open_page("data", dataset=dataset.id)
    button(app, "check_again").click().run()
    assert started == [jobs.Call(workspace=str(workspace.root), dataset=dataset.id, again=True)]
    assert has_button(app, "cancel_job") and datasets.load(workspace, dataset.id).outdated
    started.append(started[0])
    app.run()
    assert not app.exception and not has_button(app, "check_again") and not has_button(app, "cancel_job")
    assert datasets.list_all(workspace) == [dataset]


def test_steps_are_said_to_have_no_recipe(workspace: Workspace) -> None:
    rows = [{"prompt": f"p{n}", "completions": ["a", "b"], "labels": [True, False]} for n in range(5)]
    app = open_page("data", dataset=stored(workspace, lines_of(rows)).id)
    assert "no recipe trains on step labels yet" in texts(app) and not has_button(app, "next_step")
    look(app, "mask")
    assert "no token of them is trained" in texts(app)


def test_an_unknown_layout_shows_what_its_columns_hold(workspace: Workspace) -> None:
    rows = [{"ask": f"q{n}", "reply": XSS} for n in range(5)]
    app = open_page("data", dataset=stored(workspace, lines_of(rows)).id)
    assert "q0" in app.dataframe[0].value.to_string() and has_button(app, "map_submit")
    assert texts(app).count("are none of the known layouts") == 1  # said once


def test_plain_text_is_offered_as_texts_to_train_on(workspace: Workspace) -> None:
    dataset = stored(workspace, b"First paragraph, of some words.\n\nThe second one.\n\nAnd a third.\n", "book")
    app = open_page("data", dataset=dataset.id)
    button(app, "as_text").click().run()
    assert not app.exception and "3 texts, ready to train on" in texts(app)


def test_hostile_text_stays_text_wherever_the_page_shows_it(workspace: Workspace) -> None:
    rows = [{"prompt": XSS, "completion": XSS}, {"prompt": XSS, "completion": None}, *good_rows(4)]
    dataset = stored(workspace, lines_of(rows) + f'{{"{XSS}\n'.encode(), XSS)
    app = open_page("data", dataset=dataset.id)
    button(app, "edit_error_null-field_0").click().run()
    next(s for s in app.selectbox if str(s.key).startswith("view_")).set_value("written").run()
    for name in ("numbers", "division", "rows"):
        look(app, name)
        assert not app.exception
        for kind in ("markdown", "caption", "error", "warning", "success", "subheader"):
            for element in getattr(app, kind):
                assert "[link](javascript" not in str(element.value) and "**bold**" not in str(element.value)


def test_a_path_on_this_machine_is_checked_and_a_wrong_one_explained(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(lines_of(good_rows(12)))
    for typed, said in (("/nowhere/at/all.jsonl", "there is no file"), (str(file), "12 questions with answers, ready")):
        app = open_page("data")
        next(r for r in app.radio if r.key == "way").set_value("path").run()
        next(i for i in app.text_input if i.key == "path").set_value(typed)
        button(app, "check_path").click().run()
        assert not app.exception and said in texts(app)


def test_a_check_and_its_report_agree_on_what_a_row_is(workspace: Workspace) -> None:
    dataset = broken(workspace)
    for found in check_file(original(dataset)).problems:
        (row,) = one_row.find(original(dataset), {}, only=(found.row or 0,)).rows
        assert row.line == found.line


def test_half_a_character_in_columns_that_nobody_knows_is_shown_escaped(workspace: Workspace) -> None:
    content = b'{"q\\ud8001": "a", "zz": "b"}\n{"q": "c", "zz": "d"}\n'
    app = open_page("data", dataset=stored(workspace, content).id)
    assert any("q\\ud8001" in frame.value.columns for frame in app.dataframe)
