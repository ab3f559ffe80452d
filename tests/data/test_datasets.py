"""Stored datasets: whole or not there at all, made of canonical rows, and safe from whatever else goes wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec
import pyarrow.parquet
import pytest

from engine.check import DatasetError, check_file
from engine.check.canonical import ParquetSink, canonical, schema, target_characters
from engine.data import copies, datasets, making, recheck
from engine.data.fixes import Edit
from engine.read.formats import BY_NAME, TYPES, Reading
from engine.workspace import Workspace
from tests.conftest import SHARED_DATA


class Sample(NamedTuple):
    name: str
    title: str
    file: Path
    eval_file: Path | None


PAIR = {"prompt": "What is red?", "completion": "A colour."}


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "home")


def file_of(tmp_path: Path, rows: list, name: str = "mine.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def texts(messages: list[dict]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


def problem_of(call) -> str:
    with pytest.raises(DatasetError) as caught:
        call()
    return caught.value.problem.rule


# --- storing -----------------------------------------------------------------------------------------------------


def test_a_file_is_stored_with_its_original_rows_report_and_meta(workspace, tmp_path):
    source = file_of(tmp_path, [PAIR, PAIR | {"prompt": "b", "choices": ["A colour.", "A taste."], "family": "kinds"}])
    dataset = datasets.add(workspace, source, "Colours")
    assert sorted(p.name for p in dataset.folder.iterdir()) == ["meta.json", "original", "report.json", "rows.parquet"]
    assert (dataset.folder / "original").read_bytes() == source.read_bytes()
    assert len(dataset.id) == 64 and dataset.name == "Colours" and dataset.trainable
    rows = datasets.preview(workspace, dataset.id)
    assert [row["line"] for row in rows] == [1, 2]
    assert rows[1]["choices"] == ["A colour.", "A taste."] and rows[1]["family"] == "kinds"
    assert texts(rows[0]["prompt"]) == [("user", "What is red?")]
    assert texts(rows[0]["completion"]) == [("assistant", "A colour.")]
    assert datasets.load(workspace, dataset.id) == dataset


def test_strings_that_look_like_json_stay_strings(workspace, tmp_path):
    values = ["144", "null", "[1, 2]", "007", "false", "  padded \n"]
    source = file_of(
        tmp_path, [{"prompt": "a", "completion": value} for value in values] + [{"prompt": "b", "completion": 1}]
    )
    dataset = datasets.add(workspace, source, "n")
    assert [row["completion"][0]["content"] for row in datasets.preview(workspace, dataset.id)] == values


def test_the_same_bytes_are_stored_once_and_left_as_they_are(workspace, tmp_path):
    first = datasets.add(workspace, file_of(tmp_path, [PAIR]), "First")
    before = {p.name: p.read_bytes() for p in first.folder.iterdir()}
    again = datasets.add(workspace, file_of(tmp_path, [PAIR], "other.json"), "Second")
    assert again == first and again.name == "First"
    assert {p.name: p.read_bytes() for p in first.folder.iterdir()} == before
    assert [p.name for p in workspace.datasets_dir.iterdir()] == [first.id]


def test_a_file_with_errors_is_stored_but_not_trainable(workspace, tmp_path):
    dataset = datasets.add(workspace, file_of(tmp_path, [PAIR, "{oops", PAIR | {"prompt": "b"}]), "Broken")
    assert not dataset.trainable and dataset.good_rows == 2
    assert [row["line"] for row in datasets.preview(workspace, dataset.id)] == [1, 3]
    assert [p.line for p in datasets.problems(workspace, dataset.id)] == [2]


def test_a_file_that_is_no_data_is_stored_to_be_shown(workspace, tmp_path):
    source = tmp_path / "picture.jsonl"
    source.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)
    dataset = datasets.add(workspace, source, "picture.jsonl")
    assert not dataset.trainable and "a PNG image" in dataset.report.sentence
    assert datasets.preview(workspace, dataset.id) == []
    assert problem_of(lambda: datasets.rows_path(workspace, dataset.id)) == "nothing-to-keep"
    assert problem_of(lambda: copies.fixed(workspace, dataset.id)) == "not-data"
    assert len(datasets.list_all(workspace)) == 1


def test_dropping_the_bad_rows_gives_a_clean_dataset_beside_the_untouched_original(workspace, tmp_path):
    source = file_of(tmp_path, [PAIR, "{oops", PAIR | {"prompt": "b"}, {"prompt": "c"}])
    parent = datasets.add(workspace, source, "Mine")
    before = {p.name: p.read_bytes() for p in parent.folder.iterdir()}
    fixed = copies.fixed(workspace, parent.id)
    assert fixed.id != parent.id and fixed.parent == parent.id and fixed.fixes == ("drop_bad_rows",)
    assert (fixed.report.rows, fixed.report.errors) == (2, {}) and fixed.trainable
    assert check_file(fixed.folder / "original").errors == {}
    assert (fixed.folder / "original").read_text() == "".join(
        json.dumps(PAIR | {"prompt": p}) + "\n" for p in (PAIR["prompt"], "b")
    )
    assert {p.name: p.read_bytes() for p in parent.folder.iterdir()} == before
    assert copies.fixed(workspace, parent.id) == fixed
    assert fixed == datasets.add(workspace, source, "any", drop_bad_rows=True)


def test_the_fix_of_an_indented_array_is_json_lines_of_the_same_rows(workspace, tmp_path):
    rows = [PAIR, {"prompt": "a\nb"}, {"prompt": "c", "completion": "d\n\ne  "}]
    source = tmp_path / "array.json"
    source.write_text(json.dumps(rows, indent=2))
    fixed = datasets.add(workspace, source, "Array", drop_bad_rows=True)
    assert fixed.report.container == "jsonl"
    kept = [json.loads(line) for line in (fixed.folder / "original").read_text().splitlines()]
    assert kept == [rows[0], rows[2]]


def test_many_rows_are_previewed_from_any_place(workspace, tmp_path):
    dataset = datasets.add(workspace, file_of(tmp_path, [PAIR | {"prompt": str(n)} for n in range(4_500)]), "Many")
    shown = datasets.preview(workspace, dataset.id, 1_990, 20)
    assert [row["prompt"][0]["content"] for row in shown] == [str(n) for n in range(1_990, 2_010)]
    assert len(datasets.preview(workspace, dataset.id, 4_490, 20)) == 10
    assert datasets.preview(workspace, dataset.id, 9_999, 20) == []


def test_a_sample_brings_its_evaluation_file(workspace, tmp_path):
    rows = file_of(tmp_path, [PAIR], "rows.jsonl")
    questions = file_of(tmp_path, [PAIR | {"choices": ["A colour.", "A taste."]}], "questions.jsonl")
    datasets.add(workspace, rows, "Uploaded before")
    sample = Sample(name="facts", title="New facts", file=rows, eval_file=questions)
    dataset = datasets.add_sample(workspace, sample)
    assert dataset.eval_id and datasets.load(workspace, dataset.eval_id).good_rows == 1
    assert datasets.add_sample(workspace, sample) == dataset
    plain = Sample(name="p", title="Plain", file=questions, eval_file=None)
    assert datasets.add_sample(workspace, plain).eval_id is None


def test_datasets_are_listed_newest_first_and_can_be_renamed(workspace, tmp_path):
    first = datasets.add(workspace, file_of(tmp_path, [PAIR]), "First")
    second = datasets.add(workspace, file_of(tmp_path, [PAIR | {"prompt": "b"}]), "Second")
    assert [d.id for d in datasets.list_all(workspace)] == [second.id, first.id]
    assert datasets.rename(workspace, first.id, "  ../../etc\n").name == "../../etc"
    assert problem_of(lambda: datasets.rename(workspace, first.id, " \u200b ")) == "dataset-name"
    assert datasets.load(workspace, first.id).name == "../../etc"


def test_a_dataset_that_a_run_uses_is_kept(workspace, tmp_path):
    dataset = datasets.add(workspace, file_of(tmp_path, [PAIR]), "Used")
    spec = workspace.run_dir("20260101-000000-abcdef") / "spec.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"dataset": {"id": "other", "eval_id": dataset.id}}))
    assert problem_of(lambda: datasets.delete(workspace, dataset.id)) == "dataset-in-use"
    assert datasets.load(workspace, dataset.id) == dataset
    spec.unlink()
    datasets.delete(workspace, dataset.id)
    assert datasets.list_all(workspace) == [] and list(workspace.datasets_dir.iterdir()) == []


def used_by_a_run(workspace: Workspace, dataset_id: str) -> None:
    spec = workspace.run_dir(f"20260101-000000-{dataset_id[:6]}") / "spec.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"dataset": {"id": dataset_id}}))


def mended_twice(workspace: Workspace, tmp_path: Path) -> tuple[datasets.Dataset, ...]:
    """A file, a state of it in which a row was left out, one of that in which another was, and one beside these."""
    brought = datasets.add(workspace, file_of(tmp_path, [PAIR | {"prompt": str(n)} for n in range(6)]), "Mine")
    first = copies.fixed(workspace, brought.id, fixes=[Edit(row=1, text="")])
    second = copies.fixed(workspace, first.id, fixes=[Edit(row=1, text="")])
    beside = copies.fixed(workspace, brought.id, fixes=[Edit(row=6, text="")])
    return brought, first, second, beside


def test_states_of_one_file_have_names_of_their_own(workspace, tmp_path):
    made = mended_twice(workspace, tmp_path)
    assert [one.name for one in made] == ["Mine", "Mine (fixed)", "Mine (fixed 2)", "Mine (fixed 3)"]


@pytest.mark.parametrize("number", range(4))
def test_deleting_any_state_of_a_file_deletes_all_of_them(workspace, tmp_path, number):
    chosen = mended_twice(workspace, tmp_path)[number]
    other = datasets.add(workspace, file_of(tmp_path, [PAIR], "other.jsonl"), "Other")
    found = datasets.states(workspace, chosen.id)
    assert found.going[0] == chosen and len(found.going) == 4 and not found.staying
    datasets.delete(workspace, chosen.id)
    assert datasets.list_all(workspace) == [other]


def test_a_state_that_a_run_uses_or_other_data_needs_stays(workspace, tmp_path):
    brought, first, second, beside = mended_twice(workspace, tmp_path)
    used_by_a_run(workspace, first.id)
    scored = datasets.add(workspace, file_of(tmp_path, [PAIR], "scored.jsonl"), "Scored", eval_id=beside.id)
    made = datasets.add(workspace, file_of(tmp_path, [PAIR | {"prompt": "c"}]), "Made of it", parent=brought.id)
    assert {one.id for one in datasets.states(workspace, second.id).staying} == {brought.id, first.id, beside.id}
    datasets.delete(workspace, second.id)
    assert {one.id for one in datasets.list_all(workspace)} == {brought.id, first.id, beside.id, scored.id, made.id}


def test_of_data_that_a_run_uses_no_state_is_deleted(workspace, tmp_path):
    made = mended_twice(workspace, tmp_path)
    used_by_a_run(workspace, made[1].id)
    assert problem_of(lambda: datasets.delete(workspace, made[1].id)) == "dataset-in-use"
    assert len(datasets.list_all(workspace)) == 4


def test_states_whose_first_one_is_gone_are_known_as_of_one_file(workspace, tmp_path):
    brought, _, second, _ = mended_twice(workspace, tmp_path)
    shutil.rmtree(brought.folder)
    datasets.delete(workspace, second.id)
    assert datasets.list_all(workspace) == []


# --- when something goes wrong -----------------------------------------------------------------------------------


def test_an_id_that_names_nothing_is_said_so(workspace):
    for identifier in ("../../etc", "0" * 64, "", "a/b"):
        assert problem_of(lambda identifier=identifier: datasets.load(workspace, identifier)) == "no-dataset"
        assert problem_of(lambda identifier=identifier: datasets.delete(workspace, identifier)) == "no-dataset"


def test_a_source_that_cannot_be_read_has_a_sentence(workspace, tmp_path):
    assert problem_of(lambda: datasets.add(workspace, tmp_path / "nowhere", "n")) == "file-missing"
    assert problem_of(lambda: datasets.add(workspace, tmp_path, "n")) == "file-is-folder"
    assert problem_of(lambda: datasets.add(workspace, file_of(tmp_path, [PAIR]), " ")) == "dataset-name"
    assert not list(workspace.datasets_dir.glob("*"))


@pytest.mark.usefixtures("looks_in_place")
def test_a_file_without_permission_has_a_sentence(workspace, tmp_path, monkeypatch):
    source = file_of(tmp_path, [PAIR])

    def refuse(path, *how, **more):
        if Path(path) == source:
            raise PermissionError(errno.EACCES, "Permission denied", str(source))
        return opened(path, *how, **more)

    opened = os.open
    monkeypatch.setattr(os, "open", refuse)
    assert problem_of(lambda: datasets.add(workspace, source, "n")) == "file-no-permission"
    assert problem_of(lambda: check_file(source)) == "file-no-permission"


@pytest.mark.usefixtures("looks_in_place")
@pytest.mark.parametrize("place", ["copy", "rows", "meta"])
def test_a_full_disk_leaves_no_half_dataset_and_harms_nothing(workspace, tmp_path, monkeypatch, place):
    stored = datasets.add(workspace, file_of(tmp_path, [PAIR]), "Stored")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = {"copy": (shutil, "copyfileobj"), "rows": (ParquetSink, "finish")}
    monkeypatch.setattr(*target.get(place, (making, "write_atomically")), full)
    source = file_of(tmp_path, [PAIR | {"prompt": "b"}])
    with pytest.raises(DatasetError, match="the disk is full; free some space and try again"):
        datasets.add(workspace, source, "Second")
    assert [p.name for p in workspace.datasets_dir.iterdir()] == [stored.id]
    assert datasets.load(workspace, stored.id) == stored
    monkeypatch.undo()
    assert datasets.add(workspace, source, "Second").trainable
    with pytest.raises(DatasetError) as caught:
        monkeypatch.setattr(making, "write_atomically", full)
        datasets.rename(workspace, stored.id, "New")
    assert caught.value.problem.rule == "disk-full" and datasets.load(workspace, stored.id).name == "Stored"


@pytest.mark.usefixtures("looks_in_place")
def test_a_large_file_is_reported_first_and_its_rows_are_made_after(workspace, tmp_path, monkeypatch):
    rows = [PAIR | {"prompt": f"q{n}"} for n in range(50)]
    whole = datasets.add(Workspace(tmp_path / "other"), file_of(tmp_path, rows), "Whole")
    monkeypatch.setattr(making, "ROWS_LATER_BYTES", 100)
    source = file_of(tmp_path, rows)
    first = datasets.add(workspace, source, "Large", wait_for_rows=False)
    assert first.trainable and not first.has_rows and datasets.preview(workspace, first.id) == []
    assert datasets.load(workspace, first.id) == first and first.report == msgspec.structs.replace(
        whole.report, file="Large"
    )
    checks: list[Path] = []
    monkeypatch.setattr(making, "check_file", lambda path, **how: checks.append(path) or check_file(path, **how))
    with ThreadPoolExecutor(3) as several:  # whoever reads them first makes them, and the others wait
        paths = list(several.map(lambda _: datasets.rows_path(workspace, first.id), range(3)))
    assert len(checks) == 1 and first.has_rows and len(set(paths)) == 1
    assert datasets.preview(workspace, first.id, 0, 50) == datasets.preview(
        Workspace(tmp_path / "other"), whole.id, 0, 50
    )
    assert datasets.add(workspace, source, "Again").has_rows and len(checks) == 2  # the report alone was made anew


@pytest.mark.usefixtures("looks_in_place")
def test_rows_that_were_not_finished_are_made_anew(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(making, "ROWS_LATER_BYTES", 100)
    dataset = datasets.add(workspace, file_of(tmp_path, [PAIR] * 9), "Large", wait_for_rows=False)
    with monkeypatch.context() as broken:
        broken.setattr(ParquetSink, "finish", lambda sink: sink._flush() or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            datasets.rows_path(workspace, dataset.id)
    assert not dataset.has_rows
    datasets.make_rows(workspace, dataset.id)
    assert len(datasets.preview(workspace, dataset.id)) == 9


def test_an_upload_is_moved_and_not_copied(workspace, tmp_path):
    source = file_of(tmp_path, [PAIR])
    inode = source.stat().st_ino
    dataset = datasets.add(workspace, source, "Moved", move=True)
    assert not source.exists() and (dataset.folder / "original").stat().st_ino == inode


@pytest.mark.usefixtures("looks_in_place")
def test_an_error_of_the_disk_has_a_sentence(workspace, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shutil, "copyfileobj", broken)
    assert problem_of(lambda: datasets.add(workspace, file_of(tmp_path, [PAIR]), "n")) == "file-unreadable"


def test_a_damaged_dataset_is_said_so_and_left_out_of_the_list(workspace, tmp_path):
    dataset = datasets.add(workspace, file_of(tmp_path, [PAIR]), "n")
    (dataset.folder / "rows.parquet").write_bytes(b"PAR1 nonsense")
    assert problem_of(lambda: datasets.preview(workspace, dataset.id)) == "dataset-damaged"
    (dataset.folder / "report.json").write_text("{")
    assert problem_of(lambda: datasets.load(workspace, dataset.id)) == "dataset-damaged"
    assert datasets.list_all(workspace) == []
    datasets.delete(workspace, dataset.id)
    assert datasets.add(workspace, file_of(tmp_path, [PAIR]), "n").trainable


def test_what_a_killed_add_left_is_not_listed_and_later_removed(workspace, tmp_path):
    half = workspace.datasets_dir / ".new-half"
    half.mkdir(parents=True)
    (half / "original").write_text("x")
    assert datasets.list_all(workspace) == []
    datasets.add(workspace, file_of(tmp_path, [PAIR]), "n")
    assert half.exists()
    os.utime(half, (0, 0))
    datasets.add(workspace, file_of(tmp_path, [PAIR | {"prompt": "b"}]), "n")
    assert not half.exists()


# --- a report of an earlier version of the check -------------------------------------------------------------------


def made_before(dataset: datasets.Dataset, stored: list[dict] | None = None, **changes) -> datasets.Dataset:
    """Let the stored report be one of an earlier version, with the rows its rules made where they were others."""
    report = msgspec.structs.replace(dataset.report, checker_version=dataset.report.checker_version - 1, **changes)
    (dataset.folder / "report.json").write_bytes(msgspec.json.encode(report))
    if stored is not None:
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(stored, schema("prompt-completion")), dataset.folder / "rows.parquet"
        )
    return msgspec.structs.replace(dataset, report=report)


def in_folder(dataset: datasets.Dataset) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in dataset.folder.iterdir() if path.name != "rows.lock"}


def test_an_older_report_is_made_anew_under_the_same_id_and_the_same_rows_stay_untouched(workspace, tmp_path):
    questions = datasets.add(workspace, file_of(tmp_path, [PAIR | {"prompt": "b"}]), "Questions")
    source = file_of(tmp_path, [PAIR, "{", PAIR | {"prompt": "c", "reply": "no"}])
    parent = datasets.add(workspace, source, "Mine", eval_id=questions.id)
    fixed = copies.mapped(workspace, copies.fixed(workspace, parent.id).id, {"reply": "ignore"})
    for today in (parent, fixed):
        files, inode = in_folder(today), (today.folder / "rows.parquet").stat().st_ino
        assert not today.outdated
        before = made_before(today, errors={}, problems=(), bad_rows=0)
        assert before.outdated and datasets.load(workspace, today.id) == before
        renamed = datasets.rename(workspace, today.id, "Other")
        assert recheck.check_again(workspace, today.id) == msgspec.structs.replace(renamed, report=today.report)
        datasets.rename(workspace, today.id, today.name)
        assert in_folder(today) == files and (today.folder / "rows.parquet").stat().st_ino == inode
    assert list(workspace.datasets_dir.glob(".*")) == []


def test_rows_that_today_reads_otherwise_are_replaced_with_what_was_made_of_them(workspace, tmp_path):
    today = datasets.add(workspace, file_of(tmp_path, [PAIR, PAIR | {"prompt": "b"}]), "Mine")
    whole = datasets.preview(workspace, today.id)
    made_before(today, whole[:1], rows=1)
    for name in ("statistics-0.json", "readiness-0.bin"):
        (today.folder / name).write_text("{}")
    with (today.folder / "rows.parquet").open("rb") as read_by_a_run:
        assert recheck.check_again(workspace, today.id) == today
        assert pyarrow.parquet.read_table(read_by_a_run).to_pylist() == whole[:1]
    assert datasets.preview(workspace, today.id) == whole
    assert {path.name for path in today.folder.glob("*.json")} == {"meta.json", "report.json"}


@pytest.mark.parametrize("row", ['{"prompt": "q", "completion": 7}', '{"unknown": 1}'])
def test_where_today_finds_no_good_row_those_that_runs_were_trained_on_stay(workspace, tmp_path, row):
    today = datasets.add(workspace, file_of(tmp_path, [row]), "Bad")
    made_before(today, [canonical(PAIR, BY_NAME["prompt_completion"])], bad_rows=0)
    rows = (today.folder / "rows.parquet").read_bytes()
    assert recheck.check_again(workspace, today.id) == today and not today.trainable
    assert datasets.rows_path(workspace, today.id).read_bytes() == rows


def test_the_file_of_many_problems_is_made_anew_too(workspace, tmp_path):
    many = datasets.add(workspace, file_of(tmp_path, [PAIR, *["{"] * 1_001]), "Many")
    every = (many.folder / "problems.jsonl").read_bytes()
    (many.folder / "problems.jsonl").unlink()
    made_before(many, problems_file=None)
    assert recheck.check_again(workspace, many.id) == many
    assert (many.folder / "problems.jsonl").read_bytes() == every
    few = datasets.add(workspace, file_of(tmp_path, [PAIR, "{"]), "Few")
    (few.folder / "problems.jsonl").write_text("")
    made_before(few, problems_file="problems.jsonl")
    assert recheck.check_again(workspace, few.id) == few and not (few.folder / "problems.jsonl").exists()


@pytest.mark.usefixtures("looks_in_place")
@pytest.mark.parametrize("place", ["check", "rows", "report"])
def test_a_check_that_ends_early_leaves_data_that_can_be_read_and_checked_again(
    workspace, tmp_path, monkeypatch, place
):
    today = datasets.add(workspace, file_of(tmp_path, [PAIR, PAIR | {"prompt": "b"}]), "Mine")
    whole = datasets.preview(workspace, today.id)
    before = made_before(today, whole[:1], rows=1)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = {"check": (ParquetSink, "finish"), "rows": (os, "replace"), "report": (making, "write")}[place]
    with monkeypatch.context() as broken:
        broken.setattr(*target, full)
        assert problem_of(lambda: recheck.check_again(workspace, today.id)) == "disk-full"
    assert datasets.load(workspace, today.id) == before and list(workspace.datasets_dir.glob(".*")) == []
    assert datasets.preview(workspace, today.id) == (whole if place == "report" else whole[:1])
    assert recheck.check_again(workspace, today.id) == today and datasets.preview(workspace, today.id) == whole


@pytest.mark.usefixtures("looks_in_place")
def test_a_large_file_whose_rows_are_still_to_be_made_is_checked_again_without_them(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(making, "ROWS_LATER_BYTES", 10)
    today = datasets.add(workspace, file_of(tmp_path, [PAIR]), "Large", wait_for_rows=False)
    made_before(today)
    assert recheck.check_again(workspace, today.id) == today and not today.has_rows
    rows = datasets.rows_path(workspace, today.id).read_bytes()
    made_before(today, [])
    assert recheck.check_again(workspace, today.id) == today and (today.folder / "rows.parquet").read_bytes() == rows


def test_data_that_a_run_uses_is_checked_again_and_kept(workspace, tmp_path):
    today = datasets.add(workspace, file_of(tmp_path, [PAIR]), "Used")
    spec = workspace.run_dir("20260101-000000-abcdef") / "spec.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"dataset": {"id": today.id}}))
    rows = datasets.rows_path(workspace, today.id).read_bytes()
    made_before(today)
    assert recheck.check_again(workspace, today.id) == today
    assert datasets.rows_path(workspace, today.id).read_bytes() == rows
    assert problem_of(lambda: datasets.delete(workspace, today.id)) == "dataset-in-use"
    assert problem_of(lambda: recheck.check_again(workspace, "0" * 64)) == "no-dataset"


# --- canonical rows ----------------------------------------------------------------------------------------------


def reading(name: str, **changes: bool) -> Reading:
    layout = BY_NAME[name]
    return Reading(**{"layout": layout, "conversational": bool(layout.conversational), **changes})


def test_alpaca_rows_join_instruction_and_input():
    row = {"instruction": "Add.", "input": "1 and 2", "output": " 3\n", "system": "Be brief.", "history": [["a", "b"]]}
    result = canonical(row, reading("alpaca"), 7)
    expected = [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "Add.\n\n1 and 2")]
    assert texts(result["prompt"]) == expected and texts(result["completion"]) == [("assistant", " 3\n")]
    assert result["line"] == 7
    for empty in ("", None, " "):
        result = canonical({"instruction": "Add.", "input": empty, "output": "3"}, reading("alpaca"))
        assert texts(result["prompt"]) == [("user", "Add.")]


def test_sharegpt_roles_are_mapped():
    names = ["system", "human", "function_call", "observation", "gpt"]
    row = {"conversations": [{"from": name, "value": name} for name in names], "tools": [{"name": "f"}]}
    result = canonical(row, reading("sharegpt", sharegpt=True))
    assert [m["role"] for m in result["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    assert [m["content"] for m in result["messages"]] == names
    assert json.loads(result["tools"]) == [{"type": "function", "function": {"name": "f"}}]


def test_tool_calls_are_kept_as_json_text():
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "a", "name": "bob"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "assistant", "content": "", "function_call": {"name": "f"}},
    ]
    result = canonical({"messages": messages}, reading("messages"))["messages"]
    called = {"type": "function", "function": {"name": "f", "arguments": {}}}
    assert result[0]["name"] == "bob" and result[1]["content"] == "" and json.loads(result[1]["tool_calls"]) == [called]
    assert json.loads(result[2]["tool_calls"]) == [called]


def test_a_transcript_is_cut_after_the_last_shared_assistant_mark():
    head = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: How are you?\n\nAssistant:"
    row = {"chosen": head + " I'm fine.", "rejected": head + " I'd rather not say."}
    result = canonical(row, reading("preference_implicit"))
    assert texts(result["prompt"]) == [("user", " Hi"), ("assistant", " Yes?"), ("user", " How are you?")]
    assert texts(result["chosen"]) == [("assistant", " I'm fine.")]
    assert texts(result["rejected"]) == [("assistant", " I'd rather not say.")]


def test_conversational_pairs_are_cut_at_whole_messages():
    def chat(answer: str) -> list[dict]:
        return [{"role": "user", "content": "Q"}, {"role": "assistant", "content": answer}]

    result = canonical(
        {"chosen": chat("I am"), "rejected": chat("I was")}, reading("preference_implicit", conversational=True)
    )
    assert texts(result["prompt"]) == [("user", "Q")] and texts(result["chosen"]) == [("assistant", "I am")]
    repeated = {"prompt": "Q", "chosen": chat("I am"), "rejected": chat("I was")}
    assert canonical(repeated, reading("preference", conversational=True)) == result


def test_a_judged_conversation_ends_in_its_completion():
    chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    result = canonical({"messages": chat, "label": False}, reading("messages_kto"))
    assert texts(result["prompt"]) == [("user", "Q")] and texts(result["completion"]) == [("assistant", "A")]
    assert result["label"] is False


def test_prompts_and_steps_and_texts_have_their_own_columns():
    assert texts(canonical({"prompt": " Q "}, reading("prompt_only"))["prompt"]) == [("user", " Q ")]
    chat = {"messages": [{"role": "user", "content": "Q"}]}
    assert texts(canonical(chat, reading("messages", prompts_only=True))["prompt"]) == [("user", "Q")]
    assert canonical({"text": " x\n"}, BY_NAME["text"])["text"] == " x\n"
    steps = {"prompt": "Q", "completions": ["a", "b"], "labels": [True, False]}
    assert canonical(steps, BY_NAME["stepwise"])["labels"] == [True, False]


def test_every_type_has_a_schema_with_the_common_columns():
    for kind in TYPES:
        assert {"line", "family", "choices", "tools"} < set(schema(kind).names)


REAL = [
    "alpaca_en_200.jsonl",
    "conversations.jsonl",
    "c4_demo.jsonl",
    "dpo_en_demo.json",
    "glaive_toolcall_en_demo.json",
    "gsm8k_pairs.jsonl",
    "gsm8k_seed_kto.jsonl",
    "hh_harmless_first600.jsonl",
    "kto_en_demo_first100.json",
    "oaast_sft_zh.json",
    "rlvr_test.jsonl",
    "stepwise_math_shepherd.jsonl",
]


@pytest.mark.parametrize("name", REAL)
def test_storing_a_real_file_keeps_every_target_character(workspace, name):
    if not (SHARED_DATA / name).exists():
        pytest.skip("the folder of real data files is not beside this checkout")
    dataset = datasets.add(workspace, SHARED_DATA / name, name)
    rows = datasets.preview(workspace, dataset.id, 0, 10_000)
    assert len(rows) == dataset.good_rows
    kind = dataset.report.type
    assert kind and sum(target_characters(row, kind) for row in rows) == dataset.report.target_characters
