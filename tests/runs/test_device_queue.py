"""Turns: one run per device, first come first served, and nobody waits for the dead."""

from __future__ import annotations

import itertools
import os
import queue
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from engine import events, machine, processes
from engine.runs import device_queue
from engine.workspace import BadId, machine_dir
from tests.helpers import PROJECT_DIR, FakeRuns, wait_until


def never() -> bool:
    return False


@pytest.fixture(autouse=True)
def own_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEBOOK_MACHINE_DIR", str(tmp_path / "machine"))


class Holders:
    """Processes of tests.fakes.holder, and what they wrote."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, run_id: str, drawn_ns: int, device: str = "cpu") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.fakes.holder", device, run_id, str(drawn_ns), str(self.folder)]
        process = subprocess.Popen(command, cwd=PROJECT_DIR)
        self.started.append(process)
        return process

    def let_go(self, *run_ids: str) -> None:
        for run_id in run_ids:
            (self.folder / f"go-{run_id}").touch()

    def log(self) -> list[str]:
        with suppress(OSError):
            return (self.folder / "log").read_text().splitlines()
        return []

    def wait_for(self, line: str) -> None:
        wait_until(lambda: line in self.log(), what=line)


@pytest.fixture
def holders(tmp_path):
    found = Holders(tmp_path / "holders")
    yield found
    for process in found.started:
        process.kill()
        process.wait()


def tickets(device: str = "cpu") -> list[Path]:
    return sorted((machine_dir() / "queue" / device).glob("[0-9]*.json"))


def test_first_come_first_served(holders):
    mine = device_queue.Turn("cpu", "mine", 1)
    assert mine.wait(never)
    for run_id, drawn_ns in (("third", 30), ("first", 10), ("second", 20)):
        holders.start(run_id, drawn_ns)
    wait_until(lambda: len(tickets()) == 4, what="everybody waits")
    assert device_queue.live("cpu") == ["mine", "first", "second", "third"]
    holders.let_go("first", "second", "third")
    mine.close()
    holders.wait_for("leave third")
    assert holders.log() == [
        "enter first", "leave first", "enter second", "leave second", "enter third", "leave third",
    ]  # fmt: skip
    wait_until(lambda: not tickets(), what="all tickets are gone")


def test_a_run_moved_to_the_front_is_the_next_and_nobody_loses_the_device(holders):
    mine = device_queue.Turn("cpu", "mine", 1)
    assert mine.wait(never)
    for run_id, drawn_ns in (("first", 10_000), ("second", 20_000), ("third", 30_000)):
        holders.start(run_id, drawn_ns)
    wait_until(lambda: len(tickets()) == 4, what="everybody waits")
    device_queue.move_first("cpu", "third")
    assert device_queue.live("cpu") == ["mine", "third", "first", "second"]
    device_queue.move_first("cpu", "nobody")
    device_queue.move_first("cpu", "mine")
    holders.let_go("first", "second", "third")
    mine.close()
    holders.wait_for("leave second")
    assert [line for line in holders.log() if line.startswith("enter")] == [
        "enter third",
        "enter first",
        "enter second",
    ]
    wait_until(lambda: not tickets(), what="all tickets are gone")


def test_a_run_moved_before_its_supervisor_came_up_stands_once_and_goes_with_it(holders):
    mine = device_queue.Turn("cpu", "mine", 1)
    assert mine.wait(never)
    server = processes.identify(os.getpid())
    for run_id, drawn_ns in (("first", 10_000), ("second", 20_000)):
        device_queue.draw("cpu", run_id, drawn_ns, server)
    device_queue.move_first("cpu", "second")
    supervisor = holders.start("second", 20_000)  # it draws the place that the run was given
    wait_until(lambda: len(tickets()) == 4, what="the moved ticket and the drawn one")
    assert device_queue.waiting("cpu") == ["second", "first"] and device_queue.live("cpu") == [
        "mine",
        "second",
        "first",
    ]
    moved = tickets()[1]
    wait_until(
        lambda: msgspec.json.decode(moved.read_bytes(), type=device_queue.Ticket).pid == supervisor.pid,
        what="the moved ticket stands in the supervisor's name",
    )
    mine.close()
    holders.wait_for("enter second")
    assert device_queue.live("cpu") == ["second", "first"]
    holders.let_go("second")
    wait_until(lambda: device_queue.live("cpu") == ["first"] and len(tickets()) == 1, what="nothing is left of it")


def test_the_device_goes_when_its_holder_is_killed(holders):
    holder = holders.start("holder", 10)
    holders.wait_for("enter holder")
    holders.start("waiter", 20)
    wait_until(lambda: len(tickets()) == 2, what="the waiter has its ticket")
    assert holders.log() == ["enter holder"]
    holder.kill()  # and stays a zombie: nobody waits for it
    holders.wait_for("enter waiter")
    wait_until(lambda: device_queue.live("cpu") == ["waiter"], what="the dead holder's ticket is cleared by who looks")


def test_an_older_ticket_does_not_take_the_device_from_its_holder():
    """A ticket may come late, or from before a clock was set back: the lock holds all the same."""
    holder = device_queue.Turn("cpu", "holder", 20)
    assert holder.wait(never)
    older = device_queue.Turn("cpu", "older", 10)
    looks = iter([False, False, True])
    assert not older.wait(lambda: next(looks), poll_s=0.01)
    holder.close()
    assert older.wait(never)
    older.close()


def test_a_dead_waiter_is_not_waited_for(holders):
    mine = device_queue.Turn("cpu", "mine", 1)
    assert mine.wait(never)
    dead = holders.start("dead", 10)
    holders.start("living", 20)
    wait_until(lambda: len(tickets()) == 3, what="both wait")
    dead.kill()
    mine.close()
    holders.wait_for("enter living")
    wait_until(lambda: device_queue.live("cpu") == ["living"], what="the dead waiter's ticket is cleared by who looks")


def test_a_ticket_of_a_reused_pid_is_cleared(tmp_path):
    turn = device_queue.Turn("cpu", "mine", 20)
    me = processes.identify(os.getpid())
    assert me is not None
    stale = tickets()[0].with_name(f"{10:020d}-earlier.json")
    stale.write_bytes(msgspec.json.encode(msgspec.structs.replace(me, started=me.started - 1)))
    assert turn.wait(never)
    assert not stale.exists()
    turn.close()


@pytest.mark.parametrize("content", [b"", b"garbage", b"{}", b'{"pid": "x"}'])
def test_a_ticket_that_cannot_be_read_stops_nobody(content):
    turn = device_queue.Turn("cpu", "mine", 20)
    tickets()[0].with_name(f"{10:020d}-broken.json").write_bytes(content)
    assert turn.wait(never)
    turn.close()


def test_a_waiter_whose_ticket_was_swept_away_still_gets_its_turn():
    """A cleaner of old files, or a reader that could not see the process, may take a ticket."""
    turn = device_queue.Turn("cpu", "mine", 20)
    for path in tickets():
        path.unlink()
    looks = iter(range(50))
    assert turn.wait(lambda: next(looks, None) is None, poll_s=0.01)
    turn.close()


def test_waiting_ends_when_it_is_given_up():
    first, second = device_queue.Turn("cpu", "first", 10), device_queue.Turn("cpu", "second", 20)
    assert first.wait(never)
    looks = iter([False, False, True])
    assert not second.wait(lambda: next(looks), poll_s=0.01)
    second.close()
    first.close()
    assert not tickets()


def test_devices_do_not_wait_for_each_other():
    one, other = device_queue.Turn("cpu", "one", 10), device_queue.Turn("cuda:0", "other", 20)
    assert one.wait(never)
    assert other.wait(never)
    one.close()
    other.close()


def test_a_run_that_waits_nowhere_stands_nowhere():
    assert device_queue.standings("cpu") == {}


@pytest.mark.parametrize("run_id", ["../../x", "a/b", "", "A", "x\n"])
def test_a_ticket_is_named_by_an_id_alone(run_id):
    with pytest.raises(BadId):
        device_queue.Turn("cpu", run_id, 1)
    assert not list(machine_dir().rglob("*.json"))


@pytest.fixture
def home(tmp_path):
    fakes = FakeRuns(tmp_path / "home")
    yield fakes
    fakes.close()


def began(home: FakeRuns, run_id: str) -> float:
    return next(event.monotonic_s for event in home.events(run_id, events.Phase))


def ended(home: FakeRuns, run_id: str) -> float:
    return home.events(run_id, events.Finished)[-1].monotonic_s


def test_two_runs_on_one_device_never_overlap(home, tmp_path):
    other_home = FakeRuns(tmp_path / "other")  # the queue is the machine's, not the home's
    started = [(here, here.start("finishes")) for here in (home, other_home, home)]
    for here, run_id in started:
        here.wait_for(run_id, "finished")
    spans = sorted((began(here, run_id), ended(here, run_id)) for here, run_id in started)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


def test_a_run_is_not_overtaken_by_one_whose_supervisor_comes_up_sooner(home, tmp_path, monkeypatch):
    """First come is who asked first, not whose process got the processor first."""
    monkeypatch.setenv("FAKE_SLOW_START", str(tmp_path / "come-up"))
    first = home.start("finishes")
    monkeypatch.delenv("FAKE_SLOW_START")
    second = home.start("finishes")
    device = machine.facts().device
    wait_until(lambda: second in device_queue.standings(device) or home.status(second) == "finished")
    (tmp_path / "come-up").touch()
    for run_id in (first, second):
        home.wait_for(run_id, "finished")
    assert ended(home, first) <= began(home, second)


def test_models_that_wait_for_a_question_leave_the_card_to_a_run(workspace, monkeypatch):
    from engine.train import chat

    monkeypatch.setattr(chat, "LOOK_S", 0.01)
    monkeypatch.setattr(machine, "facts", lambda: machine.MachineFacts(2, 8000, (machine.Gpu("a card", 16000, 8.0),)))

    def wanted() -> bool:
        return chat.a_run_wants("cuda:0")

    assert not wanted()
    chat.serve(workspace, queue.Queue(), set(), lambda reply: None, 0.02, lambda: False)  # nobody asked for so long
    turn = device_queue.Turn(machine.facts().device, "a-run", 1, ("cuda:0",))
    assert turn.wait(lambda: False)
    assert wanted() and not chat.a_run_wants("GPU-another")  # a run that has one card leaves the other
    assert not chat.a_run_wants("cpu")  # whose memory they share
    chat.serve(workspace, queue.Queue(), set(), lambda reply: None, 3600.0, wanted)
    turn.close()
    assert not wanted()


def test_a_question_that_comes_while_a_run_has_the_card_is_not_answered_there(workspace):
    from engine.chat import protocol
    from engine.train import chat

    asked: queue.Queue[protocol.Ask] = queue.Queue()
    turns = [protocol.Turn(model=name, messages=[]) for name in ("a", "b")]
    asked.put(protocol.Ask(id="1", turns=turns))
    told: list[protocol.Reply] = []
    chat.serve(workspace, asked, set(), told.append, 3600.0, lambda: True)
    assert [type(reply) for reply in told] == [protocol.Failed, protocol.Failed]
    assert "a run has taken the card" in str(told[0].message)  # pyright: ignore[reportAttributeAccessIssue]
