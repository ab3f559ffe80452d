"""Which runs a hosted demo lets in: the limits held against a spec, and one visitor at a time at the gate."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from filelock import FileLock

from engine import limits, machine, processes
from engine.runs import device_queue
from engine.spec import RunSpec, counts
from engine.words import Problem
from engine.workspace import Workspace, machine_dir

# Processes that work beside the queue have tickets here; nobody waits for them.
BESIDE = "beside"


def problems(run_spec: RunSpec, workspace: Workspace) -> list[Problem]:
    """Return everything in a spec that is beyond the limits; nothing where this is no demo."""
    if not limits.on():
        return []
    from engine.benchmarks import shipped
    from engine.check import DatasetError
    from engine.data import datasets, division

    most, train, found = limits.limits(), run_spec.train, []

    def over(path: str, value: int, limit: int) -> None:
        if value > limit:
            found.append(Problem(rule="demo-limit", where=path, parameters={"value": value, "most": limit}))

    if run_spec.kind not in most.kinds:
        found.append(Problem(rule="demo-kind", parameters={"kind": run_spec.kind}))
    for ref in {run_spec.base.ref, run_spec.evaluate.against} - {""}:
        if not limits.allows_base(ref):
            found.append(limits.model_problem())
    for name in run_spec.evaluate.benchmarks:
        if name in shipped.HARNESS:
            found.append(Problem(rule="demo-benchmark", where="evaluate.benchmarks", parameters={"name": name}))
    over("train.batch_size", train.batch_size * train.accumulation, most.batch_rows)
    over("train.max_length", train.max_length, most.row_tokens)
    over("train.threads", train.threads, os.cpu_count() or 1)
    over("machine.devices", run_spec.machine.devices, 1)
    over("machine.nodes", run_spec.machine.nodes, 1)
    if run_spec.kind == "train":
        try:
            dataset = datasets.load(workspace, run_spec.dataset.id)
        except (DatasetError, OSError, ValueError):
            over("train.max_steps", train.max_steps, most.steps)  # that the data is missing is said elsewhere
        else:
            rows, _ = division.split_rows(run_spec, dataset, workspace)
            steps = counts.optimizer_steps(run_spec.train, rows)
            if steps > most.steps:
                found.append(
                    Problem(rule="demo-steps", where="train.max_steps", parameters={"steps": steps, "most": most.steps})
                )
    return found


@contextmanager
def gate() -> Iterator[Callable[[Workspace, RunSpec], None]]:
    """Let one run in at a time and hand out what refuses a run beyond the limits: raises OverLimit. Two visitors who
    click at once must not both be the last one. Where this is no demo, nothing is held and nothing refused."""
    if not limits.on():
        yield lambda workspace, run_spec: None
        return
    with _one_at_a_time():
        yield _admit


def _one_at_a_time() -> FileLock:
    locks = machine_dir() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / "demo.lock")


def _admit(workspace: Workspace, run_spec: RunSpec) -> None:
    found = problems(run_spec, workspace) + _too_many(workspace)
    if found:
        raise limits.OverLimit(*found)
    limits.check_disk(workspace)


def _too_many(workspace: Workspace) -> list[Problem]:
    """Return why no more of a visitor's work may go on or wait: runs, and what goes on beside them."""
    most = limits.limits()
    live = [*device_queue.live(machine.facts().device), *device_queue.live(BESIDE)]
    own = sum((workspace.runs_dir / run_id).is_dir() for run_id in live)
    if own >= most.live_runs_per_visitor:
        return [Problem(rule="demo-own-runs", parameters={"n": own, "most": most.live_runs_per_visitor})]
    return [Problem(rule="demo-queue", parameters={"n": len(live)})] if len(live) >= most.live_runs else []


@contextmanager
def beside(workspace: Workspace, run_id: str) -> Iterator[Callable[[int], None]]:
    """Let a process begin that works on a run beside the queue, such as a merge, counted as a run is. Raises OverLimit, and
    hands out what takes the process's id once it is there. Where this is no demo, nothing is held and nothing refused."""
    if not limits.on():
        yield lambda pid: None
        return

    def begun(pid: int) -> None:
        device_queue.draw(BESIDE, run_id, time.time_ns(), processes.identify(pid))

    with _one_at_a_time():
        if found := _too_many(workspace):
            raise limits.OverLimit(*found)
        yield begun
