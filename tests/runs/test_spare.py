"""The spare: a process that waits for the next run. Real supervisors and pipes, fake children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from engine import events, machine, processes, spare
from engine.runs import device_queue, lifecycle
from engine.train import waiting
from tests.helpers import PROJECT_DIR, FakeRuns, fake_spec, wait_until

SPARE = "tests.fakes.spare"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEBOOK_SPARE", "1")
    monkeypatch.setattr(spare, "LEAST_FREE_BYTES", 0)
    monkeypatch.setattr(spare, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(spare, "_last", None)
    fakes = FakeRuns(tmp_path / "home")
    yield fakes
    fakes.close()
    for pid in pids():  # one that was started by another process
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def place() -> Path:
    found = spare.folder()
    assert found is not None
    return found


def doors() -> list[Path]:
    return list(place().glob("*.door"))


def pids() -> list[int]:
    return [int(door.stem.rpartition("-")[2]) for door in doors()]


def waits() -> psutil.Process:
    """Start a spare, wait until it may be taken, and return it."""
    assert spare.prepare(SPARE)
    (pid,) = wait_until(pids, what="the spare waits")
    return psutil.Process(pid)


def gone(*found: psutil.Process) -> bool:
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in found)


def start(home: FakeRuns, child: str = "finishes") -> str:
    return lifecycle.start(home.workspace, fake_spec(child))


def test_a_run_takes_the_spare_and_reads_as_any_other(home, monkeypatch):
    one = waits()
    (child,) = one.children()
    run_id = start(home)
    home.wait_for(run_id, "finished")
    supervisor = home.supervisor(run_id)
    assert supervisor is not None and (supervisor.pid, home.child(run_id).pid) == (one.pid, child.pid)
    assert (home.folder(run_id) / "waited").exists()
    kinds = [type(event).__name__ for event in home.events(run_id)]
    assert kinds[:4] == ["Queued", "Phase", "Started", "Phase"] and kinds[-1] == "Finished"
    assert [event.seq for event in home.events(run_id)] == list(range(1, len(kinds) + 1))
    assert (home.folder(run_id) / "worker.log").exists() and doors() == []
    wait_until(lambda: gone(one, child))


def test_what_a_child_can_no_longer_be_told_gets_a_fresh_process(home, monkeypatch):
    (child,) = waits().children()
    monkeypatch.setenv("FAKE_TOLD", "a variable that a library may have read when it was imported")
    run_id = start(home)
    home.wait_for(run_id, "finished")
    assert home.child(run_id).pid == child.pid  # the same process under another program: its supervisor still sees it
    assert not (home.folder(run_id) / "waited").exists()


def test_two_runs_that_start_at_once_take_the_spare_once(home):
    one, found = waits(), []
    folders = [home.workspace.root / name for name in "abcdefgh"]
    for folder in folders:
        folder.mkdir(parents=True)
    barrier = threading.Barrier(len(folders))

    def take(folder: Path) -> None:
        barrier.wait()
        found.append(spare.take(folder))

    threads = [threading.Thread(target=take, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = [identity for identity in found if identity is not None]
    assert [identity.pid for identity in taken] == [one.pid]


def test_there_is_one_spare_whoever_asks(home, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_SLOW_START", str(tmp_path / "go"))
    assert spare.prepare(SPARE)
    wait_until(lambda: list(place().glob("*.new")))
    assert not spare.prepare(SPARE)  # one is coming up
    (tmp_path / "go").touch()
    (pid,) = wait_until(pids)
    assert not spare.prepare(SPARE) and pids() == [pid]


def test_a_spare_goes_when_nobody_comes_and_stays_while_the_page_is_used(home):
    one = waits()
    (door,) = doors()
    child = one.children()
    hours_ago = time.time() - 3600
    os.utime(door, (hours_ago, hours_ago))
    wait_until(lambda: gone(one, *child))
    assert doors() == []


def test_a_spare_of_earlier_code_is_sent_away_and_never_used(home, monkeypatch):
    one = waits()
    monkeypatch.setattr(spare, "stamp", lambda: "later")
    assert spare.take(home.workspace.root) is None
    wait_until(lambda: gone(one))


def test_a_spare_that_was_killed_is_not_given_a_run(home):
    one = waits()
    (child,) = one.children()
    one.kill()
    wait_until(lambda: gone(one, child))  # children die with their supervisor
    assert len(doors()) == 1
    assert spare.take(home.workspace.root) is None and doors() == []


def test_a_spare_goes_with_its_server_and_a_run_that_took_it_stays(home):
    code = (
        "import os, sys, time\nfrom engine import spare\nspare.LEAST_FREE_BYTES = 0\n"
        f"print(spare.prepare('{SPARE}'), flush=True)\ntime.sleep(60)"
    )

    def server() -> tuple[subprocess.Popen[bytes], psutil.Process]:
        one = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT_DIR)
        (pid,) = wait_until(pids)
        return one, psutil.Process(pid)

    first, waiting_one = server()
    first.kill()
    first.wait()
    wait_until(lambda: gone(waiting_one))
    second, taken = server()
    run_id = start(home, "waits")
    home.wait_for_event(run_id, events.Step)
    second.kill()
    second.wait()
    (home.folder(run_id) / "go").touch()
    home.wait_for(run_id, "finished")
    supervisor = home.supervisor(run_id)
    assert supervisor is not None and supervisor.pid == taken.pid


@pytest.mark.parametrize(("name", "value"), [("TUNEBOOK_DEMO", "1"), ("TUNEBOOK_SPARE", "0"), ("memory", "")])
def test_there_is_no_spare_where_it_makes_no_sense(home, monkeypatch, name, value):
    assert spare.wanted()
    if name == "memory":
        monkeypatch.setattr(spare, "LEAST_FREE_BYTES", 2**60)
    else:
        monkeypatch.setenv(name, value)
    assert not spare.wanted() and not spare.prepare(SPARE)


def test_where_importing_touches_a_card_no_second_spare_is_tried(home, monkeypatch):
    """Which cards it sees would be settled before anybody says which it may have."""
    monkeypatch.setenv("FAKE_TOUCHES", "1")
    assert spare.prepare(SPARE)
    wait_until(lambda: spare._last.poll() == spare.CANNOT)
    assert not spare.prepare(SPARE) and doors() == []


def test_there_is_no_spare_beside_a_run(home, monkeypatch):
    asked = []
    monkeypatch.setattr(spare, "prepare", lambda: asked.append(True) or True)
    turn = device_queue.Turn(machine.facts().device, "held-by-a-test", 1)
    assert not lifecycle.prepare() and not asked
    turn.close()
    assert lifecycle.prepare() and asked


def test_no_other_user_can_reach_a_spare(home):
    waits()
    (door,), inside = doors(), place()
    assert inside.stat().st_mode & 0o077 == 0 and door.stat().st_mode & 0o077 == 0
    inside.chmod(0o755)
    assert spare.folder() is None and spare.take(home.workspace.root) is None
    inside.chmod(0o700)


def test_the_allocator_is_set_late_where_it_can_be(monkeypatch):
    told = []
    monkeypatch.setattr(waiting, "_mallopt", lambda *given: told.append(given) or True)
    before = {"PATH": "/bin", "OMP_NUM_THREADS": "1"}
    assert waiting.settled_late(before, {**before, "OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "1"})
    assert told == []
    assert waiting.settled_late(before, {**before, "MALLOC_MMAP_THRESHOLD_": "1048576"}) is (sys.platform == "linux")
    assert told == [(-3, 1048576)]
    for now in (
        {**before, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
        {**before, "MALLOC_MMAP_THRESHOLD_": "much"},
        {"OMP_NUM_THREADS": "1"},
    ):
        assert not waiting.settled_late(before, now)
    assert not waiting.settled_late({**before, "MALLOC_MMAP_THRESHOLD_": "1048576"}, before)  # it cannot be taken back


def test_glibc_takes_the_setting():
    assert waiting._mallopt(-3, 2**20) == (processes.sys.platform == "linux")
