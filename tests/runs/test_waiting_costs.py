"""Waiting costs nothing: what stands in line, how much it reads and holds, and how soon the next has the device."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from engine import events, in_line, machine, processes, worker
from engine.runs import device_queue, follow, lifecycle, store
from tests.helpers import FakeRuns, kill, wait_until

WAITING = 50


@pytest.fixture(autouse=True)
def own_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEBOOK_MACHINE_DIR", str(tmp_path / "machine"))


@pytest.fixture
def home(tmp_path):
    fakes = FakeRuns(tmp_path / "home")
    yield fakes
    fakes.close()


@pytest.fixture
def device():
    turn = device_queue.Turn(machine.facts().device, "mine", 1, machine.facts().slots)
    assert turn.wait(lambda: False)
    yield turn
    turn.close()


def me() -> in_line.Who:
    found = processes.identify(os.getpid())
    assert found is not None
    return found.pid, found.started, found.boot


class Hours:
    """A clock that goes on only while somebody sleeps, and what was opened and listed meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most_s: float):
        self.now_s, self.read, self.listed, self.looks, self.most_s = 0.0, 0, 0, 0, most_s
        began_s, waiting, tickets = time.time(), in_line._waiting, in_line.tickets
        monkeypatch.setattr(in_line.time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(in_line.time, "time_ns", lambda: int((began_s + 60 + self.now_s) * 1e9))

        def counted_read(path: str) -> object:
            self.read += 1
            return waiting(path)

        def counted_list(folder: str) -> list[str]:
            self.listed += 1
            return tickets(folder)

        monkeypatch.setattr(in_line, "_waiting", counted_read)
        monkeypatch.setattr(in_line, "tickets", counted_list)

    def sleep(self, seconds: float) -> None:
        self.looks += 1
        self.now_s += seconds
        if self.now_s >= self.most_s:
            raise TimeoutError


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="elsewhere supervisors wait by themselves")
def test_who_stands_in_line_looks_a_few_times_a_second_and_reads_next_to_nothing(tmp_path, monkeypatch):
    identity = processes.identify(os.getpid())
    for number in range(WAITING):
        ticket = device_queue.draw("cpu", f"run-{number}", 1_000 + number, identity)
    hours = Hours(monkeypatch, most_s=600)
    place = in_line.Place(str(ticket), me(), str(tmp_path))
    with pytest.raises(TimeoutError):
        in_line.wait(place.is_next, str(tmp_path), hours.sleep)
    assert hours.looks <= 600 * 5
    assert hours.listed <= 600 / in_line.AGAIN_S + 2
    assert hours.read <= 2 * hours.listed  # its own ticket and the one before, not those of all


def test_a_supervisor_that_is_next_reads_the_queue_when_it_changes_and_not_at_each_look(device, monkeypatch):
    read = []
    living = device_queue.living
    monkeypatch.setattr(device_queue, "living", lambda folder: read.append(folder) or living(folder))
    turn = device_queue.Turn(machine.facts().device, "next", 2, machine.facts().slots)
    monkeypatch.setattr(in_line, "SETTLED_NS", 0)
    looks = iter(range(200))
    assert not turn.wait(lambda: next(looks, None) is None, poll_s=0.001)
    turn.close()
    assert len(read) <= 3


def test_who_stands_in_line_imports_the_standard_library_alone():
    code = f"import sys, runpy; runpy.run_path({in_line.__file__!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert not {name for name in done.stdout.split() if name.partition(".")[0] not in {*sys.stdlib_module_names}} - {
        "__main__"
    }


def command_of(identity: processes.Identity) -> str:
    return Path(f"/proc/{identity.pid}/cmdline").read_bytes().decode().replace("\0", " ")


def stands_in_line(identity: processes.Identity | None) -> bool:
    return identity is not None and "in_line.py" in command_of(identity)


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="elsewhere supervisors wait by themselves")
def test_only_the_next_is_a_whole_supervisor_and_the_dead_are_passed_over(home, device):
    first, second, third = (home.start("finishes") for _ in range(3))
    wait_until(lambda: not stands_in_line(home.supervisor(first)), what="the next is a supervisor")
    assert stands_in_line(home.supervisor(second)) and stands_in_line(home.supervisor(third))
    pid = home.supervisor(third).pid
    kill(home.supervisor(first))
    kill(home.supervisor(second))
    wait_until(lambda: not stands_in_line(home.supervisor(third)), what="the third is the next")
    assert home.supervisor(third).pid == pid and home.status(third) == "queued"
    device.close()
    home.wait_for(third, "finished")


def test_a_run_that_stands_in_line_stops_within_a_second(home, device):
    run_ids = [home.start("finishes") for _ in range(3)]
    wait_until(lambda: stands_in_line(home.supervisor(run_ids[2])), what="it waits")
    lifecycle.stop(home.workspace, run_ids[2])
    began_s = time.monotonic()
    home.wait_for(run_ids[2], "stopped")
    assert time.monotonic() - began_s < 5.0  # a second where nothing else goes on
    assert [type(event) for event in home.events(run_ids[2])] == [events.Queued, events.Stopped]


def test_a_ticket_that_was_taken_away_is_written_again_by_who_stands_in_line(tmp_path):
    identity = processes.identify(os.getpid())
    device_queue.draw("cpu", "before", 1_000, identity)
    ticket = device_queue.draw("cpu", "mine", 2_000, identity, home=str(tmp_path))
    place = in_line.Place(str(ticket), me(), str(tmp_path))
    assert not place.is_next()
    ticket.unlink()
    wait_until(lambda: not place.is_next() and ticket.exists(), what="it is there again")
    assert msgspec.json.decode(ticket.read_bytes(), type=device_queue.Ticket).home == str(tmp_path)


def test_a_run_says_where_it_stands_and_whom_it_waits_for_in_another_home_too(home, tmp_path, monkeypatch):
    other = FakeRuns(tmp_path / "other")
    going = other.start("waits")
    other.wait_for(going, "running")
    waiting = [home.start("finishes"), other.start("finishes")]
    kind, theirs = machine.facts().device, str(other.workspace.root)
    wait_until(lambda: stands_in_line(other.supervisor(waiting[1])), what="the last waits")
    standings = device_queue.standings(kind)
    assert standings == {run_id: device_queue.Standing(n, 2, going, theirs) for n, run_id in enumerate(waiting, 1)}
    assert (
        theirs in follow.turns(home.workspace)[waiting[0]]
        and "number 1 of 2" in follow.turns(home.workspace)[waiting[0]]
    )
    assert store.name(other.workspace, going) in follow.turns(other.workspace)[waiting[1]]
    monkeypatch.setenv("TUNEBOOK_DEMO", "1")
    told = follow.turns(home.workspace)[waiting[0]]
    assert "another visitor's run" in told and theirs not in told and going not in told
    monkeypatch.delenv("TUNEBOOK_DEMO")
    (other.folder(going) / "go").touch()
    other.wait_for(waiting[1], "finished")
    other.close()


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="elsewhere supervisors wait by themselves")
def test_a_run_keeps_its_place_where_the_queue_is_deleted(home, device):
    _, waiting = home.start("waits"), home.start("finishes")
    wait_until(lambda: stands_in_line(home.supervisor(waiting)), what="it waits")
    folder = device_queue._folder(machine.facts().device)
    folder.rename(folder.with_name("gone"))  # at once: it may be written to meanwhile
    wait_until(lambda: any(waiting in path.name for path in folder.glob("*.json")), what="it stands there again")
    assert home.status(waiting) == "queued"


def test_nobody_stands_in_line_for_a_run_that_is_gone(tmp_path):
    """A start that fails late takes its folder away again, and people delete folders."""
    (tmp_path / "run").mkdir()
    assert not in_line.wait(lambda: False, str(tmp_path / "run"), lambda _: shutil.rmtree(tmp_path / "run"))


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="elsewhere supervisors wait by themselves")
def test_a_run_waits_on_where_the_disk_takes_nothing(tmp_path, monkeypatch):
    before = device_queue.draw("cpu", "before", 1_000, processes.identify(os.getpid()))
    place = in_line.Place(str(before.with_name("00000000000000002000-mine.json")), me(), str(tmp_path))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert not place.is_next()
    assert [path.name for path in before.parent.iterdir()] == [before.name]  # nothing half written
    monkeypatch.setattr(in_line, "AGAIN_S", 0.0)
    assert not place.is_next() and len(list(before.parent.iterdir())) == 2


def test_a_supervisor_makes_no_run_of_a_folder_that_is_gone(home):
    with pytest.raises(OSError, match="spec"):
        worker.carry_out(home.folder("20260101-000000-abcdef"))
    assert not home.folder("20260101-000000-abcdef").exists()


def cpu_s(pids: list[int]) -> float:
    """Return the processor time of processes, which the scheduler counts in nanoseconds; stat(5) samples it at its ticks."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1e9


def pss_mib(pids: list[int]) -> float:
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="measured through /proc")
def test_fifty_waiting_runs_cost_next_to_nothing_and_the_next_has_the_device_at_once(home, device):
    run_ids = [home.start("finishes") for _ in range(WAITING)]
    wait_until(lambda: not stands_in_line(home.supervisor(run_ids[0])), 60, what="the next is a supervisor")
    wait_until(lambda: all(stands_in_line(home.supervisor(run_id)) for run_id in run_ids[1:]), 60, what="all wait")
    pids = [home.supervisor(run_id).pid for run_id in run_ids]
    time.sleep(2 * in_line.LOOK_S)
    before_s, began_s = cpu_s(pids), time.monotonic()
    time.sleep(10)
    share, held = (cpu_s(pids) - before_s) / (time.monotonic() - began_s), pss_mib(pids)
    device.close()
    freed_s = time.monotonic()
    wait_until(lambda: home.events(run_ids[0], events.Phase), what="the next has the device")
    delay_s = home.events(run_ids[0], events.Phase)[0].monotonic_s - freed_s
    print(f"{WAITING} waiting runs: {share:.3f} of a core, {held:.0f} MiB, {delay_s:.2f} s until the next begins")
    assert share < 0.05
    assert held < 12 * WAITING
    assert delay_s < 1.0
