"""What several tests need: waiting for a condition, a small spec, and a home whose runs are fakes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from engine import events, processes
from engine.plan import plans
from engine.runs import follow, lifecycle, store
from engine.spec import RunSpec, schema
from engine.words import Problem
from engine.workspace import Workspace

T = TypeVar("T")
SUPERVISOR = "tests.fakes.supervisor"
PROJECT_DIR = processes.PROJECT_DIR


def examples(count: int) -> int:
    """Return how many examples hypothesis tries: `count` in `make test-all`; a tenth, but at least 25, where every second
    counts."""
    from tests import forked

    return count if forked.fresh else max(25, count // 10)


def wait_until(condition: Callable[[], T], timeout_s: float = 20.0, what: str = "") -> T:
    """Return the first true value of `condition`; fail when there is none in time."""
    end_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end_s, f"not within {timeout_s:g} s: {what or condition}"
        time.sleep(0.02)
    return value


def peak_mib_of(code: str, *arguments: object) -> float:
    """Return the peak memory of a fresh interpreter that runs `code`, in MiB. (Its ru_maxrss would be at least what this
    process has: getrusage(2) keeps it over exec.)"""
    code += "\nprint(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')])"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=PROJECT_DIR)
    return float(done.stdout.splitlines()[-1]) / 1024


def planned(
    workspace: Workspace, recipe: str, *, base: str, dataset: str | None, overrides: dict[str, Any]
) -> tuple[RunSpec, list[Problem]]:
    """Return the spec of a plan, and all its problems."""
    plan = plans.make(workspace, recipe, base=base, dataset=dataset, overrides=overrides)
    return plan.spec, plan.problems


def finished_run(workspace: Workspace, number: int, spec: RunSpec) -> Path:
    """Return the folder of a finished run, of which nothing was asked yet."""
    folder = workspace.run_dir(f"20260101-0000{number:02d}-abcdef")
    folder.mkdir(parents=True)
    (folder / "spec.json").write_bytes(schema.encode(spec))
    log = events.EventLog(folder)
    log.append(events.Finished(step=1))
    log.close()
    return folder


def fake_spec(child: str = "finishes") -> RunSpec:
    """A spec whose recipe names the fake child that the fake supervisor starts."""
    return RunSpec(
        recipe=schema.RecipeRef(child, "0" * 64),
        base=schema.BaseRef("starter"),
        dataset=schema.DatasetRef("d" * 64),
        train=schema.Train(threads=1),
    )


class FakeRuns:
    """A workspace whose runs are supervised for real and trained by fakes of tests/fakes."""

    def __init__(self, root: Path):
        self.workspace = Workspace(root)

    def start(self, child: str = "finishes", **more: Any) -> str:
        return lifecycle.start(self.workspace, fake_spec(child), module=SUPERVISOR, **more)

    def resume(self, run_id: str, child: str | None = None) -> None:
        if child is not None:
            (self.folder(run_id) / "fake").write_text(child)
        lifecycle.resume(self.workspace, run_id, module=SUPERVISOR)

    def folder(self, run_id: str) -> Path:
        return self.workspace.run_dir(run_id)

    def status(self, run_id: str) -> str:
        return store.status(self.workspace, run_id)

    def wait_for(self, run_id: str, *states: str) -> str:
        """Wait until the run has one of these states; any other end is a failure, shown with the log."""

        def reached() -> str:
            state = self.status(run_id)
            ended = state not in store.LIVE and state not in states
            assert not ended, f"{state} instead of {states}\n{follow.log_tail(self.folder(run_id))}"
            return state if state in states else ""

        return wait_until(reached, what=f"{run_id} is {states}")

    def ended(self, child: str, *states: str) -> str:
        """Start a run of `child`, wait for its end and for its supervisor's, and return its id."""
        run_id = self.start(child)
        self.wait_for(run_id, *states)
        self.wait_for_supervisor(run_id)
        return run_id

    def wait_for_supervisor(self, run_id: str) -> None:
        wait_until(lambda: not processes.alive(self.supervisor(run_id)), what="the supervisor has ended")

    def events(self, run_id: str, *types: type) -> list[Any]:
        found, _ = events.read(self.folder(run_id))
        return [event for event in found if not types or isinstance(event, types)]

    def wait_for_event(self, run_id: str, *types: type) -> Any:
        return wait_until(lambda: self.events(run_id, *types), what=f"an event of {types}")[-1]

    def supervisor(self, run_id: str) -> processes.Identity | None:
        return identity_in(self.folder(run_id) / "pid.json")

    def child(self, run_id: str) -> processes.Identity | None:
        return identity_in(self.folder(run_id) / "child")

    def close(self) -> None:
        """End whatever still goes; children die with their supervisor."""
        for process in processes._started:
            process.kill()
            process.wait()
        processes.reap()
        for name in ("pid.json", "child", "grandchild"):
            for path in self.workspace.runs_dir.glob(f"*/{name}"):
                kill(identity_in(path))


def identity_in(path: Path) -> processes.Identity | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=processes.Identity)
    except (OSError, msgspec.MsgspecError):
        return None


def kill(identity: processes.Identity | None) -> None:
    """Send SIGKILL to this very process, if it still lives."""
    if identity is not None and processes.alive(identity):
        with suppress(ProcessLookupError):
            os.kill(identity.pid, signal.SIGKILL)
