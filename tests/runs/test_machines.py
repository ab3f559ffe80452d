"""A run that several machines share: two on one machine, which meet over gloo as two would over a network."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine import events, peers, processes, worker
from engine.events import Failed
from engine.runs import lifecycle, store
from engine.spec import schema
from tests.helpers import PROJECT_DIR, FakeRuns, wait_until
from tests.runs.test_survival import STEPS, RealRuns

ENDS_S = 900.0  # four programs import torch on two cores


class Machines(RealRuns):
    """Real runs whose second machine is this one too: what its line starts."""

    ends_s = ENDS_S

    def __init__(self, root: Path):
        super().__init__(root)
        self.second: list[subprocess.Popen[Any]] = []

    def module_of_runs(self) -> str:
        return "engine.worker"  # a launcher takes the place of the child anyhow

    def start_shared(self, **changes: Any) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return self.start(
            **{"machine.nodes": 2, "machine.address": "127.0.0.1", "machine.port": port, "train.threads": 1, **changes}
        )

    def join(self, run_id: str) -> None:
        """Type the line that the run's page shows for the second machine."""
        run_dir = self.folder(run_id)
        (line,) = peers.lines(run_dir, schema.decode((run_dir / "spec.json").read_bytes()))
        program, *words = shlex.split(line)
        program = str(Path(sys.executable).with_name(program))
        with (run_dir.parent / "second.log").open("ab") as log:
            how: Any = {
                "cwd": PROJECT_DIR,
                "env": {**os.environ, "PYTHONPATH": str(PROJECT_DIR)},
                "start_new_session": True,
            }
            self.second.append(subprocess.Popen([program, *words], stdout=log, stderr=log, **how))

    def close(self) -> None:
        for one in self.second:
            if one.poll() is None:
                for process in psutil.Process(one.pid).children(recursive=True):
                    process.kill()
            processes.signal_group(one.pid, signal.SIGKILL)
            one.wait()


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path / "home")
    yield made
    made.close()
    FakeRuns(tmp_path / "home").close()


@pytest.mark.train
@pytest.mark.slow
def test_two_machines_learn_what_one_would_have_and_make_one_report(shared: Machines) -> None:
    full = {"dataset.eval_share": 1 / 3}  # 16 rows: no batch is cut short, which two processes would fill up
    one = shared.start(**full)
    assert shared.ended(one) == "finished"
    two = shared.start_shared(**full)
    shared.join(two)
    assert shared.ended(two) == "finished"
    losses = [[(e.step, e.loss) for e in shared.events(run_id, events.Step)] for run_id in (one, two)]
    assert [step for step, _ in losses[1]] == list(range(1, STEPS + 1))  # told once, by the first machine
    assert losses[1] == [(step, pytest.approx(loss, rel=1e-3)) for step, loss in losses[0]]
    held = [[e.loss for e in shared.events(run_id, events.Eval)] for run_id in (one, two)]
    assert held[1] == pytest.approx(held[0], rel=1e-3)
    assert {peer.machine for peer in peers.read(shared.folder(two)).values()} == {0, 1}
    assert (shared.folder(two) / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.train
@pytest.mark.slow
def test_a_run_over_two_machines_stops_after_a_step_and_goes_on(shared: Machines) -> None:
    run_id = shared.start_shared(**{"train.max_steps": 4000})
    shared.join(run_id)
    wait_until(lambda: shared.events(run_id, events.Step), ENDS_S, "it trains")
    lifecycle.stop(shared.workspace, run_id)
    assert shared.ended(run_id) == "stopped"
    left = shared.events(run_id, events.Stopped)[0].step
    wait_until(lambda: not store.supervised(shared.folder(run_id)), ENDS_S, "the launchers have ended")
    lifecycle.resume(shared.workspace, run_id, module=shared.module)
    shared.join(run_id)
    wait_until(lambda: shared.events(run_id, events.Step)[-1].step > left, ENDS_S, "it goes on")
    lifecycle.stop(shared.workspace, run_id)
    assert shared.ended(run_id) == "stopped"


@pytest.mark.train
@pytest.mark.slow
def test_a_machine_that_is_gone_is_named(shared: Machines) -> None:
    run_id = shared.start_shared(**{"train.max_steps": 4000})
    shared.join(run_id)
    wait_until(lambda: shared.events(run_id, events.Step), ENDS_S, "it trains")
    (second,) = (one for one in shared.second if one.poll() is None)
    for process in psutil.Process(second.pid).children(recursive=True):
        process.kill()  # each has a group of its own
    second.kill()
    assert shared.ended(run_id) == "failed"
    (said,) = shared.events(run_id, Failed)
    assert said.kind == "peer" and f"2 ({socket.gethostname()})" in str(said.message), said


@pytest.mark.train
@pytest.mark.slow
def test_a_run_whose_second_machine_does_not_come_can_be_stopped(shared: Machines) -> None:
    run_id = shared.start_shared()
    port = store.load_spec(shared.workspace, run_id).machine.port
    wait_until(lambda: _listens(port), ENDS_S, "the first machine waits")
    assert 1 in peers.missing(shared.folder(run_id), shared.spec(**{"machine.nodes": 2}))
    began_s = time.monotonic()
    lifecycle.stop(shared.workspace, run_id)
    assert shared.ended(run_id) == "stopped"
    assert time.monotonic() - began_s < worker.STOP_GRACE_S  # at once, and not when patience with a child ends


def _listens(port: int) -> bool:
    with socket.socket() as way:
        return way.connect_ex(("127.0.0.1", port)) == 0
