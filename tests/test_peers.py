"""Processes that share a run: the line that starts each, and which of them is said to be gone or to have failed first."""

from __future__ import annotations

import shlex
import signal
import socket
from pathlib import Path

import msgspec
import pytest
from accelerate.commands.launch import launch_command_parser

from engine import events, peers, processes, worker
from engine.cli import main
from engine.events import Failed
from engine.runs import failures, store
from engine.spec import counts, schema
from engine.workspace import Workspace
from tests.helpers import fake_spec


def shared(**machine: object) -> schema.RunSpec:
    return msgspec.structs.replace(fake_spec(), machine=schema.Machine(**machine))  # pyright: ignore[reportArgumentType]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "a run"  # a space, which a shell would cut at
    folder.mkdir()
    return folder


# --- how they are started ---
def test_the_line_for_a_machine_says_to_accelerate_what_the_run_asks_for(run_dir: Path) -> None:
    asked = shared(nodes=3, devices=2, address="10.0.0.5", port=29511)
    lines = peers.lines(run_dir, asked)
    assert [line.split()[:2] for line in lines] == [["accelerate", "launch"]] * 2
    for machine, line in enumerate(lines, 1):
        told = launch_command_parser().parse_args(shlex.split(line)[2:])
        assert (told.num_machines, told.machine_rank, told.num_processes) == (3, machine, 6)
        assert told.gpu_ids == "all"  # whatever a file of `accelerate config` names
        assert told.rdzv_conf == f"timeout={peers.ARRIVAL_S}"
        assert (told.main_process_ip, told.main_process_port) == ("10.0.0.5", 29511)
        assert told.module and told.training_script == "engine.train" and told.training_script_args == [str(run_dir)]


def test_one_machine_needs_no_line_and_finds_a_port_by_itself(run_dir: Path) -> None:
    told = launch_command_parser().parse_args(peers.launch_words(run_dir, shared(devices=2)))
    assert (told.num_machines, told.num_processes, told.main_process_port) == (1, 2, 0)
    assert peers.lines(run_dir, shared(devices=2)) == []


@pytest.mark.parametrize("kind", ["evaluate", "probe"])
def test_what_only_asks_or_tries_awaits_no_other_machine(run_dir: Path, kind: str) -> None:
    asked = msgspec.structs.replace(shared(nodes=3), kind=kind)
    assert peers.lines(run_dir, asked) == []
    assert peers.missing(run_dir, asked) == [0]
    assert peers.watch(run_dir, asked) is None  # and a stop is not taken for one of a launcher that waits
    assert peers.watch(run_dir, shared(nodes=3)) is not None


def test_the_address_is_the_one_that_was_given_else_this_machines_own() -> None:
    assert peers.address(shared(address="gpu-1.local")) == "gpu-1.local"
    assert peers.address(shared())


def test_the_rows_of_a_step_are_shared_by_the_processes_of_all_machines() -> None:
    asked = msgspec.structs.replace(shared(nodes=2, devices=2), train=schema.Train(batch_size=4, accumulation=8))
    assert counts.processes(asked) == 4
    assert counts.share_of_step(asked) == (4, 2)


# --- who is gone ---
def test_a_process_that_falls_silent_is_noticed_and_one_that_ended_is_not(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "BEAT_S", 0.01)
    alive, silent, done = (peers.Heart(run_dir, rank, rank) for rank in range(3))
    silent._ended.set()  # as if killed: it beats no more, and says nothing
    silent._thread.join()
    done.end()
    watch, found = peers.Watch(run_dir), []
    while not found:
        before = peers.read(run_dir)[0].beat
        while peers.read(run_dir)[0].beat == before:
            pass
        found = watch.silent(0.3)
    assert [peer.rank for peer in found] == [1]
    said = peers.gone(found)
    assert said.kind == "peer" and f"2 ({socket.gethostname()})" in str(said.message)
    alive.end()


def test_what_another_process_failed_of_is_the_reason_of_all(run_dir: Path) -> None:
    gone = failures.from_exception(RuntimeError("[gloo/transport/tcp/pair.cc:544] Connection closed by peer"))
    reason = failures.from_exception(MemoryError())
    hearts = [peers.Heart(run_dir, rank, rank // 2) for rank in range(4)]
    hearts[1].end(gone)  # it only noticed
    hearts[3].end(reason)
    told = peers.reason(run_dir)
    assert told is not None and told.kind == "oom"
    assert str(told.message).startswith("on machine 2 (") and str(reason.message) in str(told.message)
    assert told.fix == reason.fix
    for heart in (hearts[0], hearts[2]):
        heart.end()


def test_where_nobody_tells_more_the_reason_stays(run_dir: Path) -> None:
    assert peers.reason(run_dir) is None
    heart = peers.Heart(run_dir, 1, 0)
    heart.end(Failed(kind="killed", message="m", fix="f"))
    assert peers.reason(run_dir, within_s=0.0) is None
    peers.clear(run_dir)
    assert peers.read(run_dir) == {}


def test_the_supervisor_ends_a_child_that_waits_for_a_silent_machine(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hearts = [peers.Heart(run_dir, rank, rank) for rank in range(2)]
    hearts[1]._ended.set()  # as if switched off
    monkeypatch.setattr(worker, "LOOK_S", 0.1)
    monkeypatch.setattr(peers, "SILENT_S", 2.5)  # longer than a beat
    events.EventLog(run_dir).close()
    child = processes.start("http.server", "0")  # waits, as over NCCL
    assert [peer.machine for peer in worker._watch(child, run_dir, 0, peers.Watch(run_dir))] == [1]
    assert child.poll() is not None
    hearts[0].end()


def test_the_supervisor_ends_a_child_that_waits_for_a_machine_that_has_failed(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hearts = [peers.Heart(run_dir, rank, rank) for rank in range(3)]
    hearts[1].end(failures.from_exception(MemoryError()))  # it told so, and never came to where they meet
    hearts[2].end()  # it has done its part
    monkeypatch.setattr(worker, "LOOK_S", 0.1)
    monkeypatch.setattr(worker, "EXIT_GRACE_S", 0.2)
    events.EventLog(run_dir).close()
    child = processes.start("http.server", "0")  # waits, as at init_process_group
    parted = worker._watch(child, run_dir, 0, peers.Watch(run_dir))
    assert [peer.machine for peer in parted] == [1]
    assert child.poll() is not None
    said = peers.gone(parted)
    assert said.kind == "oom" and str(said.message).startswith("on machine 2 (")
    hearts[0].end()


def test_a_launcher_that_awaits_other_machines_is_ended_as_soon_as_a_stop_is_asked(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events.EventLog(run_dir).close()
    (run_dir / "stop").touch()
    child = processes.start("http.server", "0")  # waits, as for the others to meet
    assert worker._watch(child, run_dir, 0, peers.Watch(run_dir)) == []
    assert child.returncode == -signal.SIGTERM


# --- the page, and the command line ---
def begun(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, asked: schema.RunSpec) -> str:
    monkeypatch.setenv("TUNEBOOK_HOME", str(workspace.root))
    run_id = "20260101-000000-abcdef"
    folder = workspace.run_dir(run_id)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_bytes(schema.encode(asked))
    monkeypatch.setattr(store, "supervised", lambda run_dir: True)
    log = events.EventLog(folder)
    log.append(events.Phase(phase="loading"))
    log.close()
    return run_id


def test_show_says_what_to_start_on_the_machines_that_have_not_come(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = shared(nodes=3, address="10.0.0.5")
    run_id = begun(workspace, monkeypatch, asked)
    folder = workspace.run_dir(run_id)
    hearts = [peers.Heart(folder, rank, rank) for rank in range(2)]
    with pytest.raises(SystemExit) as ended:
        main(["show", run_id])
    assert ended.value.code == 0
    said = [line for line in capfd.readouterr().err.splitlines() if "accelerate" in line]
    assert said == [f"machine 3: {peers.lines(folder, asked)[1]}"]
    for heart in hearts:
        heart.end()


@pytest.mark.page
def test_the_page_of_a_run_says_what_to_start_on_the_machines_that_have_not_come(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.apps import open_page, texts

    asked = shared(nodes=3, address="10.0.0.5")
    run_id = begun(workspace, monkeypatch, asked)
    folder = workspace.run_dir(run_id)
    hearts = [peers.Heart(folder, rank, rank) for rank in range(2)]
    app = open_page("runs", run=run_id)
    assert "Other machines are awaited" in texts(app)
    assert [one.value for one in app.code if "accelerate" in one.value] == [peers.lines(folder, asked)[1]]
    hearts.append(peers.Heart(folder, 2, 2))
    assert "Other machines are awaited" not in texts(open_page("runs", run=run_id))
    for heart in hearts:
        heart.end()
