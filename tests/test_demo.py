"""The hosted demo: visitors apart from each other, and limits that the engine holds whatever a page lets through."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from streamlit.testing.v1 import AppTest

from engine import events, machine, starter, visitors
from engine import limits as engine_limits
from engine.check import DatasetError, rows
from engine.data import datasets, jobs, uploads
from engine.export import NotExportable, job_runner
from engine.export import job as export_job
from engine.forgetting import evaluations
from engine.models import bases, cache
from engine.plan import drafts
from engine.runs import admission, device_queue, lifecycle
from engine.spec import recipes, schema
from engine.words import Problem
from engine.workspace import Workspace, default_workspace
from pages import _visitor
from tests.apps import PAGES, button, open_page, texts
from tests.conftest import ROOT
from tests.helpers import FakeRuns, fake_spec, planned, wait_until

ROWS = b"".join(
    json.dumps({"prompt": f"Question {n}?", "completion": f"Answer {n}."}).encode() + b"\n" for n in range(40)
)


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Turn the demo on; returns a function that changes limits of limits.toml."""
    monkeypatch.setenv("TUNEBOOK_DEMO", "1")
    usual = msgspec.to_builtins(engine_limits.limits())

    def change(**limits: Any) -> None:
        path = tmp_path / f"demo-{len(list(tmp_path.iterdir()))}.toml"
        path.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in {**usual, **limits}.items()))
        monkeypatch.setenv("TUNEBOOK_DEMO_LIMITS", str(path))

    return change


@pytest.fixture
def visitor(limited: Any) -> Workspace:
    return visitors_workspace()


def visitors_workspace() -> Workspace:
    """The workspace of somebody who has stored something."""
    found = visitors.place(visitors.draw())
    engine_limits.settle(found)
    return found


def in_uploads(workspace: Workspace, data: bytes, name: str = "a" * 32) -> Path:
    path = workspace.uploads_dir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def refused(workspace: Workspace, source: Path) -> str:
    with pytest.raises(DatasetError) as error:
        datasets.add(workspace, source, "rows")
    assert "demo" in error.value.problem.sentence or error.value.problem.rule == "upload-too-large"
    assert [path for path in workspace.datasets_dir.glob("*") if (path / "meta.json").exists()] == []
    return error.value.problem.rule


@pytest.mark.parametrize(
    ("chosen", "space", "on"),
    [("1", "", True), ("", "me/tunebook", True), ("0", "me/tunebook", False), ("", "", False), ("yes", "", True)],
)
def test_a_space_or_a_switch_turns_the_demo_on(monkeypatch, chosen, space, on):
    monkeypatch.setenv("TUNEBOOK_DEMO", chosen)
    monkeypatch.setenv("SPACE_ID", space)
    assert engine_limits.on() == on


def test_a_file_of_limits_that_lacks_one_or_misspells_one_opens_no_demo(limited, tmp_path, monkeypatch):
    limited(stepps=3)
    with pytest.raises(msgspec.ValidationError, match="stepps"):
        engine_limits.limits()
    (tmp_path / "few.toml").write_text("rows = 3\n")
    monkeypatch.setenv("TUNEBOOK_DEMO_LIMITS", str(tmp_path / "few.toml"))
    with pytest.raises(msgspec.ValidationError, match="missing"):
        engine_limits.limits()


# --- visitors ---------------------------------------------------------------------------------------------------------
def test_a_visitors_number_has_128_bits_of_chance_and_a_folder_of_its_own(limited):
    found = {visitors.draw() for _ in range(20)}
    assert len(found) == 20 and all(re.fullmatch(r"[0-9a-f]{32}", one) for one in found)
    bits = [int(one, 16) for one in found]
    assert all(any(one >> bit & 1 for one in bits) for bit in range(128))  # none of them is always 0
    assert not visitors.visitors_dir().exists()  # a page that is only looked at leaves nothing
    for one in found:
        engine_limits.settle(visitors.place(one))
    roots = {visitors.workspace_of(one).root for one in found}  # type: ignore[union-attr]
    assert len(roots) == 20 and all(root.parent == visitors.visitors_dir().resolve() for root in roots)
    assert all(root.stat().st_mode & 0o077 == 0 for root in roots)


@pytest.mark.parametrize(
    "guess",
    ["", "0" * 32, "../" + "0" * 29, "..", ".", "/", "F" * 32, "0" * 31, "0" * 33, None, 7, "\0" * 32, "é" * 32],
)
def test_a_number_that_was_not_drawn_here_opens_nothing(visitor, guess):
    assert visitors.workspace_of(guess) is None


def test_a_full_demo_takes_nobody_more_until_empty_workspaces_are_old(limited):
    limited(visitors=2)
    first, second = visitors_workspace(), visitors_workspace()
    with pytest.raises(engine_limits.OverLimit, match="come back later"):
        visitors_workspace()
    for one in (first, second):
        visitors.remember(one, "mark")
        os.utime(one.root / ".arrived", (0, time.time() - 700))
    in_uploads(second, b"x")
    assert visitors.sweep() == 1 and visitors_workspace().root.is_dir()
    assert visitors.workspace_of(first.root.name) is None and visitors.workspace_of(second.root.name) is not None


@pytest.mark.parametrize("write", ["data", "sample", "job", "draft", "run", "upload"])
def test_a_workspace_is_made_with_the_first_write_which_a_full_demo_refuses_in_words(limited, monkeypatch, write):
    monkeypatch.setattr(jobs.processes, "start", lambda *_, **__: subprocess.Popen(["true"]))

    def written(workspace: Workspace) -> object:
        match write:
            case "data":
                return datasets.add(workspace, starter.sample("new-facts").file, "rows")
            case "sample":
                return datasets.add_sample(workspace, starter.sample("new-facts"))
            case "job":
                return jobs.start(jobs.Call(workspace=str(workspace.root)))
            case "draft":
                return drafts.save(workspace, drafts.Draft(recipe="lora"))
            case "run":
                return lifecycle.one_at_a_time(workspace)
            case _:
                return sent(workspace, [1000], hold=False)[0]

    limited(visitors=1)
    here, late = (visitors.place(visitors.draw()) for _ in range(2))
    assert written(here) and visitors.workspace_of(here.root.name) is not None
    assert here.root.stat().st_mode & 0o777 == 0o700
    try:
        said = written(late)
    except engine_limits.OverLimit as refusal:
        said = refusal.problems[0].rule
    except DatasetError as refusal:
        said = refusal.problem.rule
    assert said == "demo-full" and not late.root.exists()


def test_visitors_who_come_at_once_are_counted_one_after_the_other(limited):
    limited(visitors=3)
    came: list[bool] = []

    def come() -> None:
        try:
            came.append(visitors_workspace().root.is_dir())
        except engine_limits.OverLimit:
            came.append(False)

    threads = [threading.Thread(target=come) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert came.count(True) == 3 == len(list(visitors.visitors_dir().iterdir()))


def test_a_browser_is_known_by_a_mark_of_which_the_workspace_keeps_no_more_than_a_hash(visitor):
    assert not visitors.knows(visitor, None) and not visitors.knows(visitor, "a" * 43)
    visitors.remember(visitor, "a" * 43)
    visitors.remember(visitor, "a" * 43)
    visitors.remember(visitor, None)
    assert visitors.knows(visitor, "a" * 43) and not visitors.is_shared(visitor)
    for forged in (None, "", "b" * 43, visitors.LINK, (visitor.root / ".browsers").read_text().strip()):
        assert not visitors.knows(visitor, forged)
    assert not any(b"a" * 43 in path.read_bytes() for path in visitor.root.rglob("*") if path.is_file())
    visitors.remember(visitor, "b" * 43, came_by_link=True)
    assert visitors.knows(visitor, "b" * 43) and visitors.is_shared(visitor)
    for number in range(500):
        visitors.remember(visitor, str(number), came_by_link=True)
    assert len((visitor.root / ".browsers").read_text().split()) <= visitors.MOST_BROWSERS + 2


def test_everything_of_a_visitor_is_deleted_when_the_stated_time_is_over(limited, monkeypatch):
    workspace, new = visitors_workspace(), visitors_workspace().root.name
    old = workspace.root.name
    assert 23.9 < visitors.hours_left(workspace) <= 24
    run_dir = workspace.run_dir("20260101-000000-" + "a" * 32)
    run_dir.mkdir(parents=True)
    os.utime(workspace.root / ".arrived", (0, time.time() - 24.1 * 3600))
    with monkeypatch.context() as patch:
        patch.setattr(device_queue, "live", lambda device: [run_dir.name])
        assert visitors.sweep() == 0 and (run_dir / "stop").exists()  # it goes on: stopped first
    assert visitors.sweep() == 1
    assert [path.name for path in visitors.visitors_dir().iterdir()] == [new]
    assert visitors.workspace_of(old) is None


def test_the_server_sweeps_when_it_starts(limited, monkeypatch):
    swept = threading.Event()
    monkeypatch.setattr(visitors, "sweep", swept.set)
    end = visitors.keep_clean()
    assert swept.wait(10)
    end()


# --- files ------------------------------------------------------------------------------------------------------------
def test_a_workspace_that_cannot_be_deleted_keeps_no_other_from_it(limited, monkeypatch):
    found = [visitors_workspace().root for _ in range(3)]
    for root in found:
        os.utime(root / ".arrived", (0, 0))
    odd = sorted(found)[0]
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, to: rename(path, odd / "x" / "y" if path == odd else to))
    assert visitors.sweep() == 2 and [path for path in found if path.exists()] == [odd]
    monkeypatch.undo()


def test_what_was_left_of_a_number_that_is_written_under_again_goes_too(limited):
    root = visitors_workspace().root
    left = root.with_name(f".gone-{root.name}") / "runs"
    left.mkdir(parents=True)
    os.utime(left.parent, (time.time(), time.time()))
    os.utime(root / ".arrived", (0, 0))
    assert visitors.sweep() == 1 and not root.exists() and not left.exists()


def test_a_ticket_of_a_workspace_that_is_gone_leads_into_no_other(visitor, limited):
    other = visitors_workspace()
    first = uploads.ticket(visitor)
    assert uploads.ticket(visitor, first) == first and uploads.ticket(other, first) != first


def test_only_uploads_and_samples_are_read(visitor, tmp_path):
    outside = tmp_path / "rows.jsonl"
    outside.write_bytes(ROWS)
    link = in_uploads(visitor, b"", "b" * 32)
    link.unlink()
    link.symlink_to(outside)
    assert refused(visitor, outside) == refused(visitor, link) == "demo-path"
    assert refused(visitor, Path("/etc/passwd")) == refused(visitor, Path("/nowhere")) == "demo-path"
    other = visitors_workspace()
    assert refused(visitor, in_uploads(other, ROWS)) == "demo-path"
    assert datasets.add(visitor, in_uploads(visitor, ROWS), "mine").report.rows == 40
    assert datasets.add_sample(visitor, starter.sample("new-facts")).trainable


def test_files_beyond_the_limits_are_refused_and_leave_nothing(visitor, limited):
    limited(rows=39, upload_mib=1, unpacked_mib=2)
    assert refused(visitor, in_uploads(visitor, ROWS)) == "demo-rows"
    assert refused(visitor, in_uploads(visitor, b" " * (2**20 + 1))) == "upload-too-large"
    assert refused(visitor, in_uploads(visitor, gzip.compress(b" " * (3 << 20)))) == "demo-unpacked"
    two = gzip.compress(b" " * (3 << 19)) + gzip.compress(b" " * (3 << 19))
    assert refused(visitor, in_uploads(visitor, two)) == "demo-unpacked"
    assert refused(visitor, in_uploads(visitor, b"PAR1 and more")) == "demo-parquet"
    limited(disk_mib_per_visitor=0)
    assert refused(visitor, in_uploads(visitor, ROWS)) == "demo-disk"
    limited(free_disk_mib=10**9)
    assert refused(visitor, in_uploads(visitor, ROWS)) == "demo-full"


def test_several_texts_together_stay_within_the_limits_and_lie_in_the_visitors_own_folder(visitor, limited):
    limited(upload_mib=1)
    text = in_uploads(visitor, b"word " * 60_000)
    both = ((str(text), "a.md"), (str(text), "b.md"))
    begun = jobs.start(jobs.Call(workspace=str(visitor.root), texts=both, name="both"))
    wait_until(lambda: jobs.result(begun) is not None)
    made = jobs.result(begun)
    assert made is not None and made.problem is None and made.dataset is not None
    jobs.forget(begun)


def test_a_text_that_is_named_a_thousand_times_is_refused_before_anything_is_written(visitor, monkeypatch):
    monkeypatch.setattr(jobs.text_files, "write_rows", lambda *_: pytest.fail("written"))
    text = in_uploads(visitor, b"word " * 60_000)
    found = jobs.carry_out(jobs.Call(workspace=str(visitor.root), texts=((str(text), "a.md"),) * 1000))
    assert found.problem is not None and found.problem.rule == "upload-too-large"
    elsewhere = jobs.carry_out(jobs.Call(workspace=str(visitor.root), texts=((__file__, "a.md"),)))
    assert elsewhere.problem is not None and elsewhere.problem.rule == "demo-path"


def test_an_upload_beyond_the_limits_is_refused_before_it_is_sent(visitor, limited):
    limited(upload_mib=1, disk_mib_per_visitor=2)
    assert uploads.check_room(visitor, str(2**20)) == 2**20
    in_uploads(visitor, b" " * (3 << 19))
    for size, status, rule in ((2**20 + 1, 413, "upload-too-large"), (2**20, 507, "demo-disk")):
        with pytest.raises(uploads.UploadRefused) as error:
            uploads.check_room(visitor, str(size))
        assert (error.value.status, error.value.problem.rule) == (status, rule)
        answer = {"rule": rule, "parameters": error.value.problem.parameters}
        assert uploads.refusal(answer).sentence == error.value.problem.sentence


def job_folder(workspace: Workspace) -> Path:
    folder = workspace.root / "jobs" / "one"
    folder.mkdir(parents=True)
    (folder / jobs.WATCHED).touch()
    (folder / "call.json").write_bytes(msgspec.json.encode(jobs.Call(workspace=str(workspace.root))))
    return folder


def work(folder: Path, what: str, first: str = "") -> subprocess.Popen[bytes]:
    """Begin a job that does `what` instead of a check."""
    code = f"import sys; from engine.data import jobs; {first}jobs.main(jobs.Path(sys.argv[1]), lambda *_: {what})"
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=ROOT, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_checking_a_file_ends_when_its_processor_time_is_over(visitor, limited):
    limited(check_cpu_s=2)
    folder = job_folder(visitor)
    with work(folder, "any(iter(int, 1))") as process:
        assert process.wait(60) == -signal.SIGXCPU
    result = jobs.result(folder)
    assert result is not None and result.problem is not None and result.problem.rule == "job-ended"


def test_checking_a_file_ends_when_it_wants_more_memory_than_a_check_has(visitor):
    most_bytes = engine_limits.limits().check_memory_mib << 20
    folder = job_folder(visitor)
    with work(folder, f"bytes({most_bytes})") as process:
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and b"MemoryError" in said
    result = jobs.result(folder)
    assert result is not None and result.problem is not None and result.problem.rule == "job-ended"


def test_checking_a_file_ends_when_no_page_asks_for_it_any_more(visitor):
    folder = job_folder(visitor)
    with work(folder, "any(x for x in iter(int, 1))", "jobs.UNWATCHED_S = 1.0; ") as process:
        assert process.wait(60) == 1 and not folder.exists()


def test_a_page_that_asks_keeps_a_check_alive(visitor, monkeypatch):
    folder = job_folder(visitor)
    os.utime(folder / jobs.WATCHED, (0, 0))
    monkeypatch.setitem(jobs._started, str(folder), subprocess.Popen(["sleep", "60"]))
    assert jobs.result(folder) is None and time.time() - (folder / jobs.WATCHED).stat().st_mtime < 10
    jobs.stop(folder)


@pytest.mark.usefixtures("looks_in_place")
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("data", [b"{}\n" * 200_000, b"1\n" * 200_000, b"[" + b"{},\n" * 200_000 + b"{}]"])
def test_reading_stops_one_row_beyond_the_limit(visitor, limited, monkeypatch, data, pack):
    limited(rows=39)
    seen = []
    block = rows.RowChecks.block
    monkeypatch.setattr(rows.RowChecks, "block", lambda *a: seen.append(len(a[2])) or block(*a))
    assert refused(visitor, in_uploads(visitor, pack(data))) == "demo-rows" and sum(seen) == 40


def test_the_image_bounds_a_message_as_the_limits_say():
    assert f"MAX_MESSAGE_SIZE={engine_limits.limits().message_mb} " in (ROOT / "Dockerfile").read_text()


def test_every_limit_of_a_run_or_its_data_that_is_met_names_the_way_on():
    """Not those that end by themselves: a queue, a full disk, one run too many at a time."""
    ways_on = {"demo-limit", "demo-steps", "demo-model", "demo-kind", "demo-benchmark", "demo-rows"}
    for rule in ways_on:
        assert "Take this along" in str(Problem(rule=rule).texts[1]), rule


def test_as_many_rows_as_the_limit_are_taken(visitor, limited):
    limited(rows=40)
    assert datasets.add(visitor, in_uploads(visitor, ROWS), "mine").report.rows == 40


def test_checks_are_counted_for_a_visitor_and_in_all_while_they_go_on(visitor, limited, monkeypatch):
    limited(checks_per_visitor=1, checks=2)
    monkeypatch.setattr(jobs.processes, "start", lambda *_, **__: subprocess.Popen(["sleep", "60"]))
    other, third = visitors_workspace(), visitors_workspace()
    begun = [jobs.start(jobs.Call(workspace=str(visitor.root)))]
    try:
        with pytest.raises(engine_limits.OverLimit, match="1 checks of yours"):
            jobs.start(jobs.Call(workspace=str(visitor.root)))
        begun.append(jobs.start(jobs.Call(workspace=str(other.root))))
        with pytest.raises(engine_limits.OverLimit, match="as many files"):
            jobs.start(jobs.Call(workspace=str(third.root)))
        jobs.stop(begun.pop())
        begun.append(jobs.start(jobs.Call(workspace=str(third.root))))
    finally:
        for folder in begun:
            jobs.stop(folder)


def test_what_a_job_is_told_counts_as_the_visitors_too(visitor, limited, monkeypatch):
    limited(disk_mib_per_visitor=1)
    monkeypatch.setattr(jobs.processes, "start", lambda *_, **__: pytest.fail("started"))
    edits = tuple(jobs.Edit(row=row, text="x" * 100_000) for row in range(20))
    with pytest.raises(engine_limits.OverLimit):
        jobs.start(jobs.Call(workspace=str(visitor.root), dataset="0" * 64, fixes=edits))
    assert not list((visitor.root / "jobs").glob("*"))


def test_questions_of_ones_own_are_no_way_around_the_limits(visitor, limited):
    limited(rows=3, questions_mib=1)
    for data, rule in ((b"{}\n" * 400_000, "upload-too-large"), (b"{}\n" * 4, "demo-rows")):
        with pytest.raises(engine_limits.OverLimit) as error:
            engine_limits.read_questions(in_uploads(visitor, data), 50 << 20)
        assert [problem.rule for problem in error.value.problems] == [rule]
    assert engine_limits.read_questions(in_uploads(visitor, b"{}\n{}\n{}\n"), 50 << 20) == b"{}\n{}\n{}\n"


def sent(workspace: Workspace, sizes: list[int], *, hold: bool) -> list[object]:
    """Send files at once, each in two halves; the second ones come when all first ones are there, or never."""

    async def halves(size: int, all_begun: asyncio.Event) -> AsyncIterator[bytes]:
        yield bytes(size // 2)
        await all_begun.wait()
        yield bytes(size - size // 2)

    async def all_at_once() -> list[object]:
        all_begun = asyncio.Event()
        tasks = [asyncio.create_task(uploads.receive(workspace, str(size), halves(size, all_begun))) for size in sizes]
        await asyncio.sleep(0)  # each has run until it waits for its second half
        if not hold:
            all_begun.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    return [one.problem.rule if isinstance(one, uploads.UploadRefused) else one for one in asyncio.run(all_at_once())]


def test_uploads_at_once_take_no_more_than_one_after_the_other(visitor, limited):
    limited(upload_mib=1, disk_mib_per_visitor=2, uploads_per_visitor=25)
    found = sent(visitor, [900_000] * 25, hold=False)
    assert found.count("demo-disk") == 23
    stored = sum(path.stat().st_size for path in visitor.uploads_dir.iterdir())
    assert stored == 1_800_000
    assert uploads.check_room(visitor, "200000") == 200_000  # nothing is reserved any more


def test_what_one_visitor_was_promised_is_not_promised_to_another(visitor, limited, monkeypatch):
    other = visitors_workspace()
    limited(free_disk_mib=1, disk_mib_per_visitor=10_000)
    monkeypatch.setattr(engine_limits.shutil, "disk_usage", lambda _: SimpleNamespace(free=(1 << 20) + (1 << 30)))
    with uploads._reserved(visitor, str(15 << 20)):
        monkeypatch.setattr(engine_limits.shutil, "disk_usage", lambda _: SimpleNamespace(free=21 << 20))
        with pytest.raises(uploads.UploadRefused, match="demo"):
            uploads.check_room(other, str(10 << 20))


def test_two_uploads_of_a_visitor_come_at_a_time(visitor, limited):
    found = sent(visitor, [1000] * 5, hold=False)
    assert found.count("upload-busy") == 3
    assert uploads.refusal({"rule": "upload-busy", "parameters": {"most": 2}}).rule == "upload-busy"
    assert sent(visitor, [1000], hold=False) != ["upload-busy"]


def test_a_body_that_does_not_come_in_time_is_given_up_and_leaves_nothing(visitor, limited):
    limited(upload_s=1)
    assert sent(visitor, [1000], hold=True) == ["upload-slow"]
    assert list(visitor.uploads_dir.iterdir()) == [] and sent(visitor, [10, 10], hold=False) != ["upload-busy"] * 2


# --- models and runs --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "ref", ["/etc", "~", "../..", "engine", "Qwen/Qwen3-0.6B", "gpt2", "", "starter/../..", "C:\\x"]
)
def test_no_other_base_is_even_looked_up(visitor, monkeypatch, ref):
    monkeypatch.setattr(bases, "is_folder", lambda folder: pytest.fail(f"looked at {folder}"))
    monkeypatch.setattr(cache, "hub_snapshot", lambda ref: pytest.fail(f"looked for {ref}"))
    assert [problem.rule for problem in bases.describe(ref, visitor).problems] == ["demo-model"]


def test_a_run_of_another_visitor_is_no_base(visitor):
    other = visitors_workspace()
    made = other.run_dir("20260101-000000-" + "a" * 32)
    (made / "model").mkdir(parents=True)
    (made / "spec.json").write_bytes(schema.encode(fake_spec()))
    for ref in (f"run:{made.name}", f"run:../../{other.root.name}/runs/{made.name}"):
        assert [problem.rule for problem in bases.describe(ref, visitor).problems] == ["base-run"]


def test_every_recipe_trains_its_sample_within_the_limits(visitor):
    said = []
    for name, recipe in recipes.recipes().items():
        dataset = datasets.add_sample(visitor, starter.sample(recipe.sample))
        made, problems = planned(visitor, name, base="starter", dataset=dataset.id, overrides={})
        assert made is not None
        said += [problem.sentence for problem in problems if problem.rule.startswith("demo")]
    assert said == []


BEYOND = {
    "train.batch_size": 40,
    "train.accumulation": 40,
    "train.max_length": 4096,
    "train.threads": 1000,
    "train.max_steps": 100_000,
    "machine.devices": 2,
    "machine.nodes": 2,
    "evaluate.benchmarks": ["mmlu"],
}


def test_all_that_is_beyond_the_limits_is_said_before_the_start_and_refused_at_it(visitor):
    dataset = datasets.add_sample(visitor, starter.sample("new-facts"))
    made, problems = planned(visitor, "lora", base="gpt2", dataset=dataset.id, overrides=BEYOND)
    assert made is not None
    found = {(problem.rule, problem.where) for problem in problems if problem.rule.startswith("demo")}
    assert found == {
        ("demo-limit", "train.batch_size"), ("demo-limit", "train.max_length"), ("demo-limit", "train.threads"),
        ("demo-limit", "machine.devices"), ("demo-limit", "machine.nodes"), ("demo-steps", "train.max_steps"),
        ("demo-model", "base"), ("demo-benchmark", "evaluate.benchmarks"),
    }  # fmt: skip
    with pytest.raises(engine_limits.OverLimit) as refusal:
        lifecycle.start(visitor, made)
    assert {(problem.rule, problem.where) for problem in refusal.value.problems} == found
    assert [path.name for path in visitor.runs_dir.iterdir() if path.is_dir()] == []


def test_many_epochs_are_counted_as_steps_though_no_steps_were_asked_for(visitor):
    dataset = datasets.add_sample(visitor, starter.sample("new-facts"))
    _, problems = planned(visitor, "lora", base="starter", dataset=dataset.id, overrides={"train.epochs": 1000})
    assert "demo-steps" in {problem.rule for problem in problems}


def test_sweeps_and_tasks_to_download_are_refused_for_evaluations_too(visitor):
    swept = msgspec.structs.replace(fake_spec(), kind="sweep")
    assert [problem.rule for problem in admission.problems(swept, visitor)] == ["demo-kind"]
    made, problems = evaluations.build(visitor, "starter", ["mmlu"])
    assert made is None and "demo-benchmark" in {problem.rule for problem in problems}
    assert evaluations.build(visitor, "starter", [starter.BENCHMARK_NAME])[1] == []


def test_runs_that_go_on_or_wait_are_counted_for_a_visitor_and_for_all(visitor, limited):
    limited(live_runs_per_visitor=1, live_runs=2)
    mine, other = FakeRuns(visitor.root), FakeRuns(visitors_workspace().root)
    third = FakeRuns(visitors_workspace().root)
    try:
        run_id = mine.start("waits", click_id="c1")
        assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{32}", run_id)
        assert mine.start("waits", click_id="c1") == run_id  # the second click of a double click is no second run
        with pytest.raises(engine_limits.OverLimit, match="1 of your runs"):
            mine.start("waits")
        other.start("waits")
        with pytest.raises(engine_limits.OverLimit, match="2 runs of all visitors"):
            third.start("waits")
    finally:
        for one in (mine, other, third):
            one.close()


@pytest.mark.page
def test_nobody_overtakes_strangers(visitor):
    device = device_queue.Turn(machine.facts().device, "held-by-a-test", 1)
    assert device.wait(lambda: False)
    mine, other = FakeRuns(visitor.root), FakeRuns(visitors_workspace().root)
    try:
        first, second = other.start("waits"), mine.start("waits")
        lifecycle.move_first(visitor, second)
        assert device_queue.waiting(machine.facts().device) == [first, second]
        page = open_link("runs", visitor=visitor.root.name)
        button(page, "open_workspace").click().run()
        assert f"remove_{second}" in {b.key for b in page.button} and "belong to another home" not in texts(page)
        assert not [b for b in page.button if str(b.key).startswith("front_")]
    finally:
        for one in (mine, other):
            one.close()
        device.close()


def test_a_merge_counts_as_a_run_of_its_visitor_and_no_longer_than_it_lives(visitor, limited):
    limited(live_runs_per_visitor=1)
    made = visitor.run_dir("20260101-000000-" + "a" * 32)
    (made / "adapter").mkdir(parents=True)
    (made / "spec.json").write_bytes(schema.encode(fake_spec()))
    home = FakeRuns(visitor.root)
    try:
        run_id = home.start("waits")
        with pytest.raises(NotExportable, match="1 of your runs"):
            job_runner.start(visitor, made.name, export_job.Job(what="merged"))
        home.wait_for_event(run_id, events.Step)
        (home.folder(run_id) / "go").touch()
        home.wait_for(run_id, "finished")
        home.wait_for_supervisor(run_id)
        with subprocess.Popen(["sleep", "60"]) as work:
            with admission.beside(visitor, made.name) as begun:
                begun(work.pid)
            with pytest.raises(engine_limits.OverLimit, match="1 of your runs"), admission.gate() as admit:
                admit(visitor, fake_spec())
            work.kill()
        with admission.gate() as admit:
            admit(visitor, fake_spec())
    finally:
        home.close()


def test_a_run_whose_time_is_up_is_stopped_and_says_so(visitor, limited):
    limited(minutes=0.005)
    home = FakeRuns(visitor.root)
    try:
        run_id = home.start("waits")
        home.wait_for(run_id, "stopped")
        home.wait_for_supervisor(run_id)
        assert engine_limits.time_was_up(home.folder(run_id)) and home.events(run_id, events.Stopped)
    finally:
        home.close()


@pytest.mark.parametrize("what", ["push", "gguf"])
def test_nothing_is_pushed_or_converted_for_a_visitor(visitor, what):
    made = visitor.run_dir("20260101-000000-" + "a" * 32)
    (made / "model").mkdir(parents=True)
    (made / "spec.json").write_bytes(schema.encode(fake_spec()))
    job = export_job.Job(what=what, repository="me/model", checkout="/opt/llama.cpp")
    with pytest.raises(NotExportable, match="this demo neither"):
        job_runner.run(visitor, made.name, job)
    found = job_runner.problem(visitor, made.name, export_job.Job(what="merged", to="/tmp/elsewhere"))
    assert found is not None and found.rule == "demo-export"
    assert job_runner.problem(visitor, made.name, export_job.Job(what="merged")) is None


def test_without_a_demo_nothing_is_limited(workspace, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(ROWS)
    assert datasets.add(workspace, tmp_path / "rows.jsonl", "rows").report.rows == 40
    assert admission.problems(msgspec.structs.replace(fake_spec(), kind="sweep"), workspace) == []
    assert engine_limits.run_limit_s() == float("inf") and uploads.limit_bytes() == uploads.LIMIT_MIB << 20


# --- pages ------------------------------------------------------------------------------------------------------------
def open_link(name: str, **parameters: str) -> AppTest:
    """Open a page in a new session whose address names all of this from the start, as a link does."""
    app = AppTest.from_file(str(ROOT / "pages" / "_frame.py"), default_timeout=60)
    app.query_params.update(parameters)
    app.run()
    app.switch_page(f"{name}.py")
    app.query_params.update(parameters)
    app.run()
    assert not app.exception, app.exception
    return app


def visitor_of(app: Any) -> str:
    return str(app.session_state["visitor"])


@pytest.mark.page
def test_the_server_itself_checks_no_file_of_a_visitor_however_small(visitor, monkeypatch):
    def page(root: str, source: str) -> None:
        from pathlib import Path

        from engine.workspace import Workspace
        from pages import _data_upload

        _data_upload.problem()
        if Path(source).exists() and not _data_upload.busy():
            _data_upload.store(Workspace(root), Path(source), "rows", remove=True)

    started: list[jobs.Call] = []
    job = visitor.root / "jobs" / "one"
    monkeypatch.setattr(jobs, "carry_out", lambda *_: pytest.fail("a check in the server"))
    monkeypatch.setattr(jobs, "start", lambda call, token=None: started.append(call) or job)
    monkeypatch.setattr(jobs, "result", lambda folder: None)
    source = in_uploads(visitor, ROWS)
    app = AppTest.from_function(page, args=(str(visitor.root), str(source))).run()
    assert not app.exception and [call.source for call in started] == [str(source)]

    def refuse(call: jobs.Call, token: str | None = None) -> Path:
        raise engine_limits.OverLimit(Problem(rule="demo-checks"))

    monkeypatch.setattr(jobs, "start", refuse)
    app = AppTest.from_function(page, args=(str(visitor.root), str(source))).run()
    assert not app.exception and "try again in a minute" in texts(app) and not source.exists()


@pytest.mark.page
def test_two_visitors_see_nothing_of_each_other(limited):
    first = open_page("data")
    first.radio(key="way").set_value("sample").run()
    button(first, "sample_new-facts").click().run()
    assert not first.exception
    here = visitors.workspace_of(visitor_of(first))
    assert here is not None
    dataset = next(one for one in datasets.list_all(here) if one.eval_id)
    draft = drafts.save(here, drafts.Draft(recipe="oft", came_from="A secret plan"))
    second = open_link("train", dataset=dataset.id, draft=draft)
    assert visitor_of(second) != visitor_of(first)
    assert "There is no data yet" in texts(second) and "secret plan" not in texts(second)
    again = open_link("train", visitor=visitor_of(first), dataset=dataset.id, draft=draft)
    assert "secret plan" not in texts(again)
    button(again, "open_workspace").click().run()
    assert "A secret plan" in [one.label for one in again.expander] and "There is no data yet" not in texts(again)
    assert list(default_workspace().datasets_dir.glob("*")) == []  # nothing lies where all would see it


@pytest.mark.page
@pytest.mark.parametrize("guess", ["0" * 32, "../..", "<script>"])
def test_an_address_with_a_guessed_number_is_a_new_visitor(limited, guess):
    app = open_link("data", visitor=guess)
    assert visitor_of(app) != guess and app.query_params["visitor"] in (visitor_of(app), [visitor_of(app)])
    assert not visitors.visitors_dir().exists()
    button(app.radio(key="way").set_value("sample").run(), "sample_new-facts").click().run()
    assert [path.name for path in visitors.visitors_dir().iterdir()] == [visitor_of(app)]


@pytest.mark.page
def test_looking_at_every_page_stores_nothing_and_a_link_to_nothing_shares_nothing(limited):
    first = [open_page(page) for page in PAGES]
    assert len({visitor_of(app) for app in first}) == len(PAGES) and not visitors.visitors_dir().exists()
    assert visitor_of(open_link("data", visitor=visitor_of(first[0]))) != visitor_of(first[0])


@pytest.mark.page
def test_a_full_demo_says_so_on_the_page_when_something_is_to_be_stored(limited):
    limited(visitors=0)
    app = open_page("data").radio(key="way").set_value("sample").run()
    button(app, "sample_new-facts").click().run()
    assert not app.exception and "come back later" in texts(app) and not visitors.visitors_dir().exists()
    app = open_page("advisor")
    button(app, "use_this").click().run()
    assert not app.exception and "come back later" in texts(app) and not visitors.visitors_dir().exists()


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the pages be asked by a browser with this mark from now on; None: it keeps no cookie."""
    return lambda mark: monkeypatch.setattr(_visitor, "_mark", lambda: mark)


def with_data() -> tuple[Workspace, str]:
    """Open the demo and store a sample; returns its workspace and the data's id."""
    app = open_page("data").radio(key="way").set_value("sample").run()
    button(app, "sample_new-facts").click().run()
    workspace = visitors.workspace_of(visitor_of(app))
    assert workspace is not None
    return workspace, next(one.id for one in datasets.list_all(workspace) if one.eval_id)


MINE, YOURS = "m" * 43, "y" * 43


@pytest.mark.page
@pytest.mark.parametrize(("page", "other"), [("data", YOURS), ("runs", None)])
def test_a_link_to_somebody_elses_workspace_asks_before_it_shows_or_stores_anything(limited, browser, page, other):
    browser(MINE)
    workspace, dataset = with_data()
    before = sorted(path.name for path in workspace.root.rglob("*"))
    again = open_link(page, visitor=workspace.root.name, dataset=dataset)
    assert "Open this workspace?" not in texts(again) and visitor_of(again) == workspace.root.name
    assert "New facts" in texts(again)
    browser(other)
    asked = open_link(page, visitor=workspace.root.name, dataset=dataset)
    assert "Open this workspace?" in texts(asked) and "visitor" not in asked.session_state
    assert "New facts" not in texts(asked) and "yours alone" not in texts(asked) and len(asked.button) == 2
    assert ("comes each time" in texts(asked)) == (other is None)
    button(asked, "own_workspace").click().run()
    assert visitor_of(asked) != workspace.root.name and "New facts" not in texts(asked).partition("No data yet")[0]
    assert sorted(path.name for path in workspace.root.rglob("*")) == before
    assert "dataset" not in asked.query_params and len(list(visitors.visitors_dir().iterdir())) == 1


@pytest.mark.page
def test_who_opens_it_is_not_asked_again_and_neither_is_told_that_it_is_theirs_alone(limited, browser):
    browser(MINE)
    workspace, dataset = with_data()
    link = {"visitor": workspace.root.name, "dataset": dataset}
    browser(YOURS)
    asked = open_link("data", **link)
    button(asked, "open_workspace").click().run()
    for mark in (MINE, YOURS):
        browser(mark)
        shown = texts(open_link("data", **link))
        assert "New facts" in shown and "yours alone" not in shown and "Whoever has the address" in shown


@pytest.mark.page
def test_where_no_cookie_is_kept_every_link_asks_and_so_does_ones_own(limited, browser):
    browser(None)
    workspace, dataset = with_data()
    for _ in range(2):
        asked = open_link("data", visitor=workspace.root.name, dataset=dataset)
        assert "comes each time" in texts(asked) and "New facts" not in texts(asked)
        button(asked, "open_workspace").click().run()
        assert "New facts" in texts(asked) and "yours alone" not in texts(asked)


@pytest.mark.page
def test_a_number_whose_workspace_is_gone_is_followed_by_a_new_one(limited, browser):
    browser(MINE)
    app = open_page("data").radio(key="way").set_value("sample").run()
    button(app, "sample_new-facts").click().run()
    old = visitor_of(app)
    os.utime(visitors.visitors_dir() / old / ".arrived", (0, 0))
    assert visitors.sweep() == 1
    app.run()
    assert not app.exception and visitor_of(app) != old and visitors.workspace_of(old) is None


@pytest.mark.page
def test_the_limits_are_on_the_page_before_anybody_meets_them(limited):
    shown = texts(open_page("data"))
    assert "share this page's address with nobody" in shown
    for sentence in engine_limits.sentences():
        assert sentence in shown
    assert "A file on this machine" not in open_page("data").radio(key="way").options
