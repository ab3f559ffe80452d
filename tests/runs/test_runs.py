"""Runs: real supervisors and fake children. What a run says of itself is true, whatever was killed and whenever."""

from __future__ import annotations

import datetime
import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine import events, machine, processes
from engine.runs import device_queue, failures, follow, lifecycle, store
from engine.spec import schema
from engine.workspace import BadId, Workspace, disk_bytes
from tests.helpers import PROJECT_DIR, SUPERVISOR, FakeRuns, fake_spec, kill, wait_until

TERMINAL = events.TERMINAL
RUN_ID = "20261124-201516-0a1b2c"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEBOOK_MACHINE_DIR", str(tmp_path / "machine"))
    fakes = FakeRuns(tmp_path / "home")
    yield fakes
    fakes.close()


@pytest.fixture
def device(home):
    """The device, held by this test so that every run waits."""
    turn = device_queue.Turn(machine.facts().device, "held-by-a-test", 1)
    assert turn.wait(lambda: False)
    yield turn
    turn.close()


def write_run(workspace: Workspace, run_id: str, *happened: events.Event) -> Path:
    """Write the folder of a run by hand."""
    folder = workspace.run_dir(run_id)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_bytes(schema.encode(fake_spec()))
    log = events.EventLog(folder)
    for event in happened:
        log.append(event)
    log.close()
    return folder


def files_under(path: Path) -> list[Path]:
    return sorted(path.rglob("*")) if path.exists() else []


# --- start, finish, list, show ----------------------------------------------------------------------------------------
def test_a_finished_run_has_the_files_that_everybody_reads(home):
    run_id = home.ended("finishes", "finished")
    folder = home.folder(run_id)
    written = schema.decode((folder / "spec.json").read_bytes())
    assert written.day == datetime.date.today().isoformat()  # what a template takes for today is fixed at the start
    assert written == msgspec.structs.replace(fake_spec(), day=written.day)
    assert store.load_spec(home.workspace, run_id) == written
    assert home.supervisor(run_id) is not None
    assert msgspec.json.decode((folder / "summary.json").read_bytes(), type=store.Summary).status == "finished"
    assert msgspec.json.decode((folder / "meta.json").read_bytes()) == {"name": "finishes · Starter"}
    assert (folder / "reserve").stat().st_size == events.RESERVE_BYTES
    assert (folder / "worker.log").exists()
    assert not (folder / "stop").exists()
    kinds = [type(event).__name__ for event in home.events(run_id)]
    assert kinds[:4] == ["Queued", "Phase", "Started", "Phase"]
    assert kinds[-1] == "Finished"
    assert not list(folder.glob(".*"))  # nothing half-written is left


def test_the_numbers_of_events_go_on_from_process_to_process(home):
    run_id = home.ended("finishes", "finished")
    assert [event.seq for event in home.events(run_id)] == list(range(1, len(home.events(run_id)) + 1))


def test_a_finished_run_in_the_list_and_in_short(home):
    began_s = time.time()
    run_id = home.ended("finishes", "finished")
    (line,) = store.list_all(home.workspace)
    assert line == store.describe(home.workspace, run_id)
    assert (line.id, line.status, line.progress) == (run_id, "finished", 1.0)
    assert (line.recipe, line.base, line.dataset) == ("finishes", "starter", "d" * 64)
    assert began_s - 1 <= line.created <= time.time()
    short = store.summary(home.workspace, run_id)
    assert (short.step, short.total_steps, short.attempts) == (3, 3, 1)
    assert short.loss == pytest.approx(2 / 3)
    assert short.eval_loss == 0.5
    assert short.ended is not None
    assert short.failure is None


def test_a_run_goes_on_in_a_session_of_its_own(home):
    run_id = home.start("waits")
    home.wait_for_event(run_id, events.Step)
    supervisor, child = home.supervisor(run_id), home.child(run_id)
    assert supervisor is not None
    assert child is not None
    assert os.getsid(supervisor.pid) == supervisor.pid != os.getsid(0)
    assert os.getpgid(child.pid) == child.pid


def test_a_run_given_a_name_has_it(home):
    run_id = home.start(name="My run")
    assert store.name(home.workspace, run_id) == "My run"
    home.wait_for(run_id, "finished")


def test_waiting_hands_on_every_event_once(home):
    run_id = home.start("finishes")
    seen: list[events.Event] = []
    assert follow.wait(home.workspace, run_id, seen.append, poll_s=0.02) == "finished"
    assert seen == home.events(run_id)


# --- a double click ---------------------------------------------------------------------------------------------------
def test_a_double_click_starts_one_run(home):
    first = home.start(click_id="0a1b")
    assert home.start(click_id="0a1b") == first
    assert home.start(click_id="0a1c") != first
    assert len(store.list_all(home.workspace)) == 2


def test_two_clicks_at_the_very_same_time_start_one_run(home, monkeypatch):
    """The second click looks while the first is between making its mark and saying which run it started."""
    path_open, marked, looked = Path.open, threading.Event(), threading.Event()

    def slow_open(path: Path, mode: str = "r", *more, **named):
        file = path_open(path, mode, *more, **named)
        if "x" in mode:
            marked.set()
            looked.wait(1.0)
        return file

    monkeypatch.setattr(Path, "open", slow_open)
    ids: list[str] = []
    first = threading.Thread(target=lambda: ids.append(home.start(click_id="0a1b")))
    first.start()
    marked.wait(1.0)
    ids.append(home.start(click_id="0a1b"))
    looked.set()
    first.join()
    assert [store.exists(home.workspace, run_id) for run_id in ids] == [True, True]
    assert len(set(ids)) == 1


def test_many_clicks_at_once_start_one_run(home):
    ids: list[str] = []
    barrier = threading.Barrier(8)

    def click() -> None:
        barrier.wait()
        ids.append(home.start(click_id="0a1b"))

    threads = [threading.Thread(target=click) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert len(set(ids)) == 1
    assert len(store.list_all(home.workspace)) == 1


def test_a_click_that_met_a_full_disk_can_be_repeated(home, monkeypatch):
    def full(run_dir: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(events, "make_reserve", full)
        with pytest.raises(OSError, match="No space"):
            home.start(click_id="0a1b")
    assert store.list_all(home.workspace) == []  # nothing half-made is shown
    run_id = home.start(click_id="0a1b")
    assert store.exists(home.workspace, run_id)
    home.wait_for(run_id, "finished")


def test_a_run_whose_supervisor_cannot_be_started_says_so(home, monkeypatch):
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", refused)
        with pytest.raises(OSError, match="temporarily"):
            home.start(click_id="0a1b")
    assert not [line for line in store.list_all(home.workspace) if line.status in store.LIVE]


# --- how a run ends ---------------------------------------------------------------------------------------------------
def last_words(home: FakeRuns, run_id: str) -> Any:
    """Return the one terminal event of a run of one attempt."""
    (last,) = home.events(run_id, *TERMINAL)
    assert home.events(run_id)[-1] == last
    return last


def test_a_killed_child_fails_as_killed(home):
    run_id = home.ended("killed", "failed")
    last = last_words(home, run_id)
    assert last.kind == "killed"
    short = store.summary(home.workspace, run_id)
    assert short.failure == {"kind": "killed", "message": last.message, "fix": last.fix}


def test_a_child_with_a_traceback_fails_with_its_last_line(home):
    run_id = home.ended("raises", "failed")
    last = last_words(home, run_id)
    assert last.kind == "bug"
    assert "the fake has come to grief" in last.message
    assert "Traceback" not in last.message
    assert "Traceback" in follow.log_tail(home.folder(run_id))


def test_a_child_that_ends_silently_fails_with_its_exit_status(home):
    last = last_words(home, home.ended("silent", "failed"))
    assert (last.kind, "exit status 5" in last.message) == ("bug", True)


def test_a_child_on_a_full_disk_fails_as_disk_and_says_it_once(home):
    run_id = home.ended("disk_full", "failed")
    assert last_words(home, run_id).kind == "disk"
    assert not (home.folder(run_id) / "reserve").exists()


def test_a_child_that_cannot_be_imported_fails(home):
    run_id = home.ended("no_such_fake", "failed")
    assert "no_such_fake" in last_words(home, run_id).message


def test_a_summary_that_cannot_be_written_does_not_turn_success_into_failure(home, monkeypatch):
    monkeypatch.setenv("FAKE_FULL_DISK", "1")
    run_id = home.start("finishes")
    home.wait_for_event(run_id, events.Finished)
    home.wait_for_supervisor(run_id)
    assert home.status(run_id) == "finished"
    assert home.events(run_id, events.Failed) == []


@pytest.mark.parametrize("number", [1, 9, 15, 34, 40, 64])
def test_every_signal_has_words(number):
    failed = failures.from_exit(-number, "")
    assert failed.kind == "killed"
    assert failed.message
    assert failed.fix


def test_an_earlier_attempt_in_the_log_does_not_explain_a_later_failure(home):
    run_id = home.ended("disk_full", "failed")
    home.resume(run_id, "raises")
    wait_until(lambda: len(home.events(run_id, events.Failed)) == 2, what="the second attempt has failed")
    failed = home.events(run_id, events.Failed)[-1]
    assert (failed.kind, "come to grief" in failed.message) == ("bug", True)


# --- stop -------------------------------------------------------------------------------------------------------------
def test_a_polite_stop_keeps_a_checkpoint(home):
    run_id = home.start("waits")
    home.wait_for_event(run_id, events.Step)
    assert home.status(run_id) == "running"
    lifecycle.stop(home.workspace, run_id)
    assert home.status(run_id) in ("stopping", "stopped")
    home.wait_for(run_id, "stopped")
    last = last_words(home, run_id)
    assert (last.step, last.resumable) == (1, True)
    lifecycle.stop(home.workspace, run_id)  # again, when it has ended: harmless
    assert home.status(run_id) == "stopped"


def test_a_stop_that_needs_force_ends_the_whole_group(home):
    run_id = home.start("ignores_sigterm")
    home.wait_for_event(run_id, events.Step)
    grandchild = msgspec.json.decode((home.folder(run_id) / "grandchild").read_bytes(), type=processes.Identity)
    assert processes.alive(grandchild)
    lifecycle.stop(home.workspace, run_id)
    home.wait_for(run_id, "stopped")
    assert not processes.alive(home.child(run_id))
    wait_until(lambda: not processes.alive(grandchild), what="the grandchild is gone")
    last = last_words(home, run_id)
    assert (last.step, last.resumable) == (1, True)


def test_a_stop_before_its_turn_starts_nothing(home, device):
    run_id = home.start("finishes")
    wait_until(lambda: run_id in device_queue.standings(machine.facts().device), what="it waits behind this test")
    assert home.status(run_id) == "queued"
    lifecycle.stop(home.workspace, run_id)
    home.wait_for(run_id, "stopped")
    assert [type(event) for event in home.events(run_id)] == [events.Queued, events.Stopped]
    assert home.child(run_id) is None


def test_a_stop_right_after_the_start_is_heard(home):
    run_id = home.start("waits")
    lifecycle.stop(home.workspace, run_id)
    home.wait_for(run_id, "stopped")
    assert isinstance(last_words(home, run_id), events.Stopped)


def test_a_stop_before_the_turn_of_a_resumed_run_keeps_what_it_has(home):
    run_id = home.start("waits")
    home.wait_for_event(run_id, events.Step)
    lifecycle.stop(home.workspace, run_id)
    home.wait_for(run_id, "stopped")
    home.wait_for_supervisor(run_id)
    turn = device_queue.Turn(machine.facts().device, "held-by-a-test", 1)
    assert turn.wait(lambda: False)
    home.resume(run_id)
    lifecycle.stop(home.workspace, run_id)
    wait_until(lambda: len(home.events(run_id, events.Stopped)) == 2, what="it has stopped again")
    turn.close()
    last = home.events(run_id, events.Stopped)[-1]
    assert (last.step, last.resumable) == (1, True)


# --- what is killed from outside --------------------------------------------------------------------------------------
def test_a_run_whose_supervisor_is_killed_is_interrupted(home):
    run_id = home.start("waits")
    home.wait_for_event(run_id, events.Step)
    kill(home.supervisor(run_id))
    wait_until(lambda: home.status(run_id) == "interrupted", 5.0, "the run is interrupted")
    wait_until(lambda: not processes.alive(home.child(run_id)), 5.0, "the child does not train on without the lock")
    assert store.describe(home.workspace, run_id).status == "interrupted"


def test_a_run_whose_supervisor_is_killed_in_the_queue_is_interrupted(home, device):
    run_id = home.start("finishes")
    wait_until(lambda: run_id in device_queue.standings(machine.facts().device), what="it waits")
    kill(home.supervisor(run_id))
    wait_until(lambda: home.status(run_id) == "interrupted", 5.0, "the run is interrupted")


def test_a_run_outlives_the_server_that_started_it(home):
    command = [sys.executable, "-m", "tests.fakes.server", str(home.workspace.root), "waits"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT_DIR) as server:
        assert server.stdout is not None
        run_id = server.stdout.readline().strip()
        home.wait_for_event(run_id, events.Step)
        server.kill()
    assert home.status(run_id) == "running"
    (home.folder(run_id) / "go").touch()
    home.wait_for(run_id, "finished")


def test_a_run_started_by_another_server_can_be_stopped_here(home):
    command = [sys.executable, "-m", "tests.fakes.server", str(home.workspace.root), "waits"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT_DIR) as server:
        assert server.stdout is not None
        run_id = server.stdout.readline().strip()
        home.wait_for_event(run_id, events.Step)
        lifecycle.stop(home.workspace, run_id)
        home.wait_for(run_id, "stopped")
        server.kill()


def test_a_reused_pid_is_not_the_run(home):
    me = processes.identify(os.getpid())
    assert me is not None
    folder = write_run(home.workspace, RUN_ID, events.Queued(device="cpu"), events.Phase(phase="training"))
    (folder / "pid.json").write_bytes(msgspec.json.encode(me))
    assert home.status(RUN_ID) == "running"
    (folder / "pid.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(me, started=me.started - 1)))
    assert home.status(RUN_ID) == "interrupted"
    (folder / "pid.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(me, boot="another")))
    assert home.status(RUN_ID) == "interrupted"


# --- resume -----------------------------------------------------------------------------------------------------------
def test_a_run_that_goes_on_is_not_resumed(home, device):
    run_id = home.start("waits")
    for _ in ("queued", "running"):
        before = (home.folder(run_id) / "events.jsonl").read_bytes()
        with pytest.raises(lifecycle.CannotResume):
            home.resume(run_id)
        assert (home.folder(run_id) / "events.jsonl").read_bytes() == before
        device.close()
        home.wait_for_event(run_id, events.Step)


def test_a_finished_run_is_not_resumed(home):
    run_id = home.ended("finishes", "finished")
    before = (home.folder(run_id) / "events.jsonl").read_bytes()
    with pytest.raises(lifecycle.CannotResume):
        home.resume(run_id)
    assert (home.folder(run_id) / "events.jsonl").read_bytes() == before
    assert home.status(run_id) == "finished"


def stopped(home: FakeRuns) -> str:
    run_id = home.start("waits")
    home.wait_for_event(run_id, events.Step)
    lifecycle.stop(home.workspace, run_id)
    home.wait_for(run_id, "stopped")
    home.wait_for_supervisor(run_id)
    return run_id


def interrupted(home: FakeRuns) -> str:
    run_id = home.start("waits")
    home.wait_for_event(run_id, events.Step)
    kill(home.supervisor(run_id))
    home.wait_for(run_id, "interrupted")
    return run_id


def failed(home: FakeRuns) -> str:
    return home.ended("killed", "failed")


@pytest.mark.parametrize("first", [stopped, failed, interrupted])
def test_a_run_that_ended_early_is_resumed_under_its_id(home, first: Callable[[FakeRuns], str]):
    run_id = first(home)
    assert store.summary(home.workspace, run_id).attempts == 1
    home.resume(run_id, "finishes")
    home.wait_for(run_id, "finished")
    assert [event.attempt for event in home.events(run_id, events.Started)] == [1, 2]
    short = store.summary(home.workspace, run_id)
    assert (short.status, short.attempts, short.failure) == ("finished", 2, None)
    assert len(home.events(run_id, events.Interrupted)) == (first is interrupted)
    assert [event.seq for event in home.events(run_id)] == list(range(1, len(home.events(run_id)) + 1))
    assert len(store.list_all(home.workspace)) == 1


def test_a_resumed_run_has_a_reserve_again(home):
    run_id = home.ended("disk_full", "failed")
    home.resume(run_id, "finishes")
    home.wait_for(run_id, "finished")
    assert (home.folder(run_id) / "reserve").stat().st_size == events.RESERVE_BYTES


def test_two_resumes_at_once_start_one_attempt(home, monkeypatch):
    """Two tabs, or two servers on one home: both have seen that the run ended."""
    run_id = failed(home)
    (home.folder(run_id) / "fake").write_text("waits")
    seen, status = threading.Barrier(2), store.status
    outcomes: list[str] = []

    def status_seen_by_both(workspace: Workspace, asked: str) -> str:
        state = status(workspace, asked)
        with suppress(threading.BrokenBarrierError):
            seen.wait(1.0)
        return state

    def resume() -> None:
        try:
            lifecycle.resume(home.workspace, run_id, module=SUPERVISOR)
            outcomes.append("resumed")
        except lifecycle.CannotResume:
            outcomes.append("refused")

    with monkeypatch.context() as patch:
        patch.setattr(store, "status", status_seen_by_both)
        threads = [threading.Thread(target=resume) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(outcomes) == ["refused", "resumed"]
    assert len(home.events(run_id, events.Queued)) == 2


def test_a_resume_while_the_old_supervisor_still_lives_does_no_harm(home):
    """The child has written its last event, but it and its supervisor have not ended yet."""
    run_id = home.start("lingers")
    home.wait_for_event(run_id, events.Stopped)
    (home.folder(run_id) / "fake").write_text("finishes")

    def resumed() -> bool:
        try:
            home.resume(run_id)
        except lifecycle.CannotResume:
            return False
        return True

    if resumed():
        (home.folder(run_id) / "leave").touch()
    else:
        (home.folder(run_id) / "leave").touch()
        wait_until(resumed, what="the run can be resumed")
    home.wait_for_event(run_id, events.Finished)
    home.wait_for_supervisor(run_id)
    assert home.events(run_id, events.Failed) == []
    assert home.status(run_id) == "finished"


def test_a_resumed_run_is_never_seen_as_interrupted_before_it_starts(home, device, monkeypatch):
    """Another tab looks just before the new supervisor has written who it is."""
    run_id = RUN_ID
    folder = write_run(home.workspace, run_id, events.Queued(device="cpu"), events.Stopped(step=1, resumable=True))
    dead = processes.Identity(2**22 + 1, 1.0, "another")
    (folder / "pid.json").write_bytes(msgspec.json.encode(dead))
    seen: list[str] = []
    popen = subprocess.Popen

    def look_first(*arguments, **named):
        seen.append(store.status(home.workspace, run_id))
        return popen(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", look_first)
        home.resume(run_id)
    assert seen
    assert "interrupted" not in seen


# --- names, summaries, lists ------------------------------------------------------------------------------------------
def test_the_name_of_a_run_is_one_line(home):
    run_id = home.start("finishes", name="a\n# H  " + "x" * 500)
    name = store.name(home.workspace, run_id)
    assert name.startswith("a # H xxx") and len(name) == 120


def test_a_run_can_be_renamed(home):
    write_run(home.workspace, RUN_ID, events.Queued(device="cpu"), events.Finished(step=1))
    store.rename(home.workspace, RUN_ID, "  a\nbetter \t name ")
    assert store.describe(home.workspace, RUN_ID).name == "a better name"
    store.rename(home.workspace, RUN_ID, " \n ")
    assert store.name(home.workspace, RUN_ID) == "a better name"
    store.rename(home.workspace, RUN_ID, "x" * 500)
    assert len(store.name(home.workspace, RUN_ID)) == 120


def test_a_note_stays_with_the_run_whatever_its_name(home):
    write_run(home.workspace, RUN_ID, events.Queued(device="cpu"), events.Finished(step=1))
    assert store.note(home.workspace, RUN_ID) == ""
    store.write_note(home.workspace, RUN_ID, "  the rate was too high\n")
    store.rename(home.workspace, RUN_ID, "another name")
    assert store.note(home.workspace, RUN_ID) == "the rate was too high"
    assert store.name(home.workspace, RUN_ID) == "another name"


def test_a_deleted_run_is_gone_with_all_it_made_and_a_living_one_stays(home):
    run_id = home.start("waits")
    home.wait_for_event(run_id, events.Step)
    assert disk_bytes(home.workspace.run_dir(run_id)) >= events.RESERVE_BYTES
    with pytest.raises(lifecycle.CannotDelete, match="still goes on"):
        lifecycle.delete(home.workspace, run_id)
    assert home.folder(run_id).is_dir()
    lifecycle.stop(home.workspace, run_id)
    home.wait_for(run_id, "stopped")
    home.wait_for_supervisor(run_id)
    lifecycle.delete(home.workspace, run_id)
    assert not home.folder(run_id).exists()
    assert store.list_all(home.workspace) == []
    assert list(home.workspace.runs_dir.glob("*deleted*")) == []


def test_a_run_that_another_one_stands_on_is_not_deleted(home):
    write_run(home.workspace, RUN_ID, events.Queued(device="cpu"), events.Finished(step=1))
    later = RUN_ID.replace("0a1b2c", "0a1b2d")
    folder = write_run(home.workspace, later, events.Queued(device="cpu"), events.Finished(step=1))
    base = schema.BaseRef(f"run:{RUN_ID}")
    (folder / "spec.json").write_bytes(schema.encode(msgspec.structs.replace(fake_spec(), base=base)))
    with pytest.raises(lifecycle.CannotDelete, match="stands on its weights"):
        lifecycle.delete(home.workspace, RUN_ID)
    lifecycle.delete(home.workspace, later)
    lifecycle.delete(home.workspace, RUN_ID)
    assert store.list_all(home.workspace) == []


def test_a_waiting_run_can_be_moved_to_the_front(home, device):
    waiting = [home.start("finishes") for _ in range(3)]
    for run_id in waiting:
        wait_until(lambda run_id=run_id: home.supervisor(run_id) is not None, what="its supervisor is up")
    lifecycle.move_first(home.workspace, waiting[2])
    assert device_queue.waiting(machine.facts().device)[0] == waiting[2]
    device.close()
    for run_id in waiting:
        home.wait_for(run_id, "finished")
    began = {run_id: home.events(run_id, events.Started)[0].monotonic_s for run_id in waiting}
    assert sorted(began, key=began.__getitem__)[0] == waiting[2]


@pytest.mark.parametrize("meta", [b"", b"[]", b'{"nme": "x"}', b"\xff"])
def test_a_run_without_a_readable_name_is_called_by_its_id(home, meta):
    folder = write_run(home.workspace, RUN_ID, events.Queued(device="cpu"), events.Finished(step=1))
    (folder / "meta.json").write_bytes(meta)
    assert store.describe(home.workspace, RUN_ID).name == RUN_ID


def test_renaming_or_stopping_a_run_that_is_not_there_makes_no_folder(home):
    with suppress(OSError):
        store.rename(home.workspace, RUN_ID, "a name")
    with suppress(OSError):
        lifecycle.stop(home.workspace, RUN_ID)
    assert files_under(home.workspace.root) == []


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"id": 3}', b'{"id":"x","status":"running","created":1}'])
def test_a_summary_is_rebuilt_when_it_is_missing_or_no_last_one(home, content):
    happened = [
        events.Queued(device="cpu"),
        events.Started(attempt=1, versions={}, device="cpu", backend="plain", reason=""),
        events.Step(step=5, total_steps=10, epoch=1, loss=1.5),
        events.Failed(kind="oom", message="no memory", fix="less"),
    ]
    folder = write_run(home.workspace, RUN_ID, *happened)
    if content is not None:
        (folder / "summary.json").write_bytes(content)
    short = store.summary(home.workspace, RUN_ID)
    assert (short.status, short.step, short.total_steps, short.loss, short.attempts) == ("failed", 5, 10, 1.5, 1)
    assert short.failure == {"kind": "oom", "message": "no memory", "fix": "less"}
    assert store.describe(home.workspace, RUN_ID).progress == 0.5


def test_a_list_of_200_finished_runs_reads_no_events(home, monkeypatch):
    for number in range(200):
        folder = home.workspace.run_dir(f"20261124-2015{number // 60:02d}-{number:06x}")
        folder.mkdir(parents=True)
        (folder / "spec.json").write_bytes(schema.encode(fake_spec()))
        short = store.Summary(id=folder.name, status="finished", created=float(number), step=3, total_steps=3)
        (folder / "summary.json").write_bytes(msgspec.json.encode(short))
        (folder / "events.jsonl").write_bytes(b"")

    def read(run_dir: Path, offset: int = 0) -> None:
        raise AssertionError(f"the events of {run_dir.name} were read")

    monkeypatch.setattr(events, "read", read)
    found = store.list_all(home.workspace)
    assert len(found) == 200
    assert {line.status for line in found} == {"finished"}
    assert [line.created for line in found] == sorted((line.created for line in found), reverse=True)


def test_who_watches_a_live_run_reads_each_event_once(home, monkeypatch):
    folder = write_run(home.workspace, RUN_ID, events.Queued(device="cpu"))
    monkeypatch.setattr(store, "supervised", lambda run_dir: True)
    log, offsets, whole = events.EventLog(folder), [], events.read
    monkeypatch.setattr(events, "read", lambda run_dir, offset=0: (offsets.append(offset), whole(run_dir, offset))[1])
    for step in range(1, 6):
        log.append(events.Step(step=step, total_steps=5, epoch=1.0, loss=2.0 / step))
        short = store.summary(home.workspace, RUN_ID)
        assert (short.step, short.loss) == (step, 2.0 / step)
        assert short == store.summarise(folder)
    log.append(events.Failed(kind="oom", message="no memory", fix="less"))
    log.close()
    assert store.summary(home.workspace, RUN_ID) == store.summarise(folder)
    watched = [offset for offset in offsets if offset]
    assert watched == sorted(watched) and len(set(watched)) == 5  # each look goes on where the last one ended
    assert offsets.count(0) == 1 + 6  # the first look, and the six that this test took at everything


def test_a_run_that_lies_where_another_one_lay_is_read_from_its_start(home):
    folder = write_run(home.workspace, RUN_ID, *[events.Log(text="x" * 99) for _ in range(9)], events.Finished(step=9))
    assert store.summary(home.workspace, RUN_ID).status == "finished"
    (folder / "events.jsonl").unlink()
    (folder / "summary.json").unlink(missing_ok=True)
    log = events.EventLog(folder)
    log.append(events.Failed(kind="oom", message="no memory", fix="less"))
    log.close()
    assert store.summary(home.workspace, RUN_ID).status == "failed"


def test_runs_of_the_same_second_are_listed_newest_first(home):
    for number, tail in enumerate(("ffffff", "000000", "888888")):
        folder = write_run(home.workspace, f"20261124-201516-{tail}", events.Finished(step=1))
        short = store.Summary(id=folder.name, status="finished", created=1_000.0 + number / 10)
        (folder / "summary.json").write_bytes(msgspec.json.encode(short))
    assert [line.id[-6:] for line in store.list_all(home.workspace)] == ["888888", "000000", "ffffff"]


def test_a_folder_that_is_no_run_does_not_spoil_the_list(home):
    write_run(home.workspace, RUN_ID, events.Queued(device="cpu"), events.Finished(step=1))
    later = home.workspace.run_dir("20271124-201516-0a1b2c")
    later.mkdir()
    (later / "spec.json").write_bytes(b'{"schema": 99}')
    (home.workspace.runs_dir / "20281124-201516-0a1b2c").mkdir()
    strange = home.workspace.runs_dir / "Not A Run"
    strange.mkdir()
    (strange / "spec.json").write_bytes(b"{}")
    assert [line.id for line in store.list_all(home.workspace)] == [RUN_ID]


def test_an_empty_home_has_no_runs(home):
    assert store.list_all(home.workspace) == []
    assert files_under(home.workspace.root) == []


# --- ids --------------------------------------------------------------------------------------------------------------
BAD_IDS = [
    "", ".", "..", "../x", "a/b", "/etc", "a\\b", "a\x00b", "x\n", "-a", "a-", "A", "a.b", " a", "~", "a" * 97,
    "a" * 100_000, "２０２６１１２４", "٣", "ª", "%2e%2e", "run:x",
]  # fmt: skip


@pytest.mark.parametrize("run_id", BAD_IDS, ids=lambda run_id: repr(run_id[:12]))
def test_a_bad_id_never_touches_the_disk(home, run_id, monkeypatch):
    touched: list[object] = []
    watched = ("open", "stat", "mkdir", "touch", "unlink", "read_bytes", "read_text", "write_bytes", "is_file")
    with monkeypatch.context() as patch:
        for function in watched:
            patch.setattr(Path, function, lambda self, *_, **__: touched.append(self))
        assert store.exists(home.workspace, run_id) is False
        for call in (
            lambda: store.status(home.workspace, run_id),
            lambda: store.summary(home.workspace, run_id),
            lambda: lifecycle.stop(home.workspace, run_id),
            lambda: lifecycle.resume(home.workspace, run_id, module=SUPERVISOR),
            lambda: store.rename(home.workspace, run_id, "name"),
            lambda: store.name(home.workspace, run_id),
            lambda: store.describe(home.workspace, run_id),
            lambda: store.load_spec(home.workspace, run_id),
            lambda: follow.wait(home.workspace, run_id),
        ):
            with pytest.raises(BadId):
                call()
    assert touched == []


@pytest.mark.parametrize("click_id", ["../x", "a/b", "", "٣"])
def test_a_bad_click_id_starts_nothing(home, click_id):
    with pytest.raises(BadId):
        home.start(click_id=click_id)
    assert not [path for path in files_under(home.workspace.root) if path.is_file()]


def test_an_id_that_names_no_run_is_looked_up_and_not_found(home):
    assert not store.exists(home.workspace, RUN_ID)
    with pytest.raises(OSError, match="No such file"):
        store.load_spec(home.workspace, RUN_ID)
    assert files_under(home.workspace.root) == []
