"""The supervisor of one run, `python -m engine.worker RUN_DIR`: torch-free, in a session of its own.

It waits its turn, holds the device lock, starts `engine.train` in a process group of its own, passes a stop on with
growing force, and writes the last event when the child could not. It outlives the browser and the server.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from engine import events, limits, machine, peers, processes
from engine.runs import device_queue, environment, failures, follow, lifecycle, store
from engine.spec import counts, schema
from engine.workspace import Workspace, clear_leftovers, machine_dir, write_atomically

# A polite stop ends after the step in hand and a checkpoint; then SIGTERM, then SIGKILL.
STOP_GRACE_S = 60.0
TERMINATE_GRACE_S = 10.0
# A child that has written its last event has nothing left to do; one that hangs there would hold the device.
EXIT_GRACE_S = 30.0
# How often a child is looked after; its end is seen at once.
POLL_S = 0.25
# How often the other machines of a run are looked after.
LOOK_S = 5.0
# The report of a launcher and the traces of two processes.
LOG_LINES = 400


# Starts or wakes the child of a run with an environment.
Begin = Callable[[Path, dict[str, str]], "subprocess.Popen[bytes]"]


def supervise(run_dir: Path, module: str = "engine.train", begin: Begin | None = None) -> None:
    """Run the child of `run_dir` to its end: `module` in a fresh process, or what `begin` returns. Returns when a terminal
    event is written."""
    run_spec = schema.decode((run_dir / "spec.json").read_bytes())  # first: nothing is written where no run is any more
    write_atomically(run_dir / "pid.json", msgspec.json.encode(processes.identify(os.getpid())))
    if run_spec.kind == "sweep":
        from engine.forgetting import sweep_drive

        sweep_drive.drive(run_dir)  # it trains nothing itself, so it needs no child and no device
        _write_summary(run_dir)
        return
    found, _ = events.read(run_dir)
    queued = [event for event in found if isinstance(event, events.Queued)]
    drawn_ns = lifecycle.drawn_ns(queued[-1]) if queued else time.time_ns()
    facts = machine.facts()
    home = str(run_dir.parents[1])
    turn = device_queue.Turn(facts.device, run_dir.name, drawn_ns, facts.slots, run_spec.machine.devices, home)
    try:
        if not turn.wait((run_dir / "stop").exists):
            _write_last(run_dir, _stopped(found))
            return
        device_queue.wait_for_lent(turn.holds, (run_dir / "stop").exists)
        log = events.EventLog(run_dir)
        log.append(events.Phase(phase="loading"))
        log.close()
        # What earlier attempts wrote says nothing about this one.
        (found, offset), log_start = events.read(run_dir), (run_dir / "worker.log").stat().st_size
        before = len(found)
        kills = failures.memory_kills()
        peers.clear(run_dir)
        settings = environment.environment(run_dir, run_spec, turn.holds)
        child = begin(run_dir, settings) if begin else processes.start(module, str(run_dir), env=settings)
        for folder in (run_dir.parents[1], machine_dir()):  # while the child imports
            clear_leftovers(folder)
        silent = _watch(child, run_dir, offset, peers.watch(run_dir, run_spec))
        found, _ = events.read(run_dir)
        if any(isinstance(event, events.TERMINAL) for event in found[before:]):
            _write_summary(run_dir)
        elif (run_dir / "stop").exists() and child.returncode in (-signal.SIGTERM, -signal.SIGKILL):
            _write_last(run_dir, _stopped(found))
        else:
            tail, more = follow.log_tail(run_dir, LOG_LINES, after=log_start), failures.memory_kills()
            memory = kills is not None and more is not None and more > kills
            # nothing but the kernel kills a child while it tries its longest batch
            memory = memory or (child.returncode == -signal.SIGKILL and _probing(found[before:]))
            failure = failures.from_exit(child.returncode, tail, out_of_memory=memory)
            if silent:
                failure = peers.gone(silent)
            elif counts.processes(run_spec) > 1 and failure.kind in ("peer", "killed"):
                failure = peers.reason(run_dir) or failure
            from engine.plan import plans  # its imports are two thirds of this process's, and few runs need them

            _write_last(run_dir, plans.with_remedy(failure, run_spec, Workspace(run_dir.parents[1])))
    finally:
        turn.close()


def _probing(found: list[Any]) -> bool:
    """Whether the child was trying its longest batch when it ended."""
    phases = [event for event in found if isinstance(event, events.Phase)]
    return bool(phases) and phases[-1].detail == "probe"


def _stopped(found: list[Any]) -> events.Stopped:
    """Return the last event of a run that was stopped with force, or before its turn."""
    step = max((e.step for e in found if isinstance(e, events.Step)), default=0)
    return events.Stopped(
        step=step, resumable=any(isinstance(e, events.Saved) and e.what == "checkpoint" for e in found)
    )


def _say(text: str) -> None:
    """Write a line to the log; on a full disk that fails too, and must not hide what it is about."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _write_summary(run_dir: Path) -> None:
    """Write the summary; it can be rebuilt, so a full disk here must not make a failure of a finished run."""
    try:
        store.write_summary(run_dir)
    except OSError as error:
        _say(f"the summary could not be written: {error}")


def _watch(
    child: subprocess.Popen[bytes], run_dir: Path, offset: int, others: peers.Watch | None = None
) -> list[peers.Peer]:
    """Wait for the child; once the stop file is there, end its whole group with growing force. A child that does not go
    after its last event is ended too, and one that waits for machines that have fallen silent or failed, which are returned.
    `offset` is where the events of this attempt begin."""
    silent: list[peers.Peer] = []
    looked_s = time.monotonic()
    done_s: float | None = None
    asked_s: float | None = None
    terminated_s: float | None = None
    until_s = time.monotonic() + limits.run_limit_s()
    while child.poll() is None:
        now_s = time.monotonic()
        if done_s is None:
            new, offset = events.read(run_dir, offset)
            if any(isinstance(event, events.TERMINAL) for event in new):
                done_s = now_s
        elif now_s - done_s > EXIT_GRACE_S:
            processes.signal_group(child.pid, signal.SIGKILL)
        if others is not None and done_s is None and now_s - looked_s > LOOK_S and not silent:
            looked_s = now_s
            parted = others.silent(peers.SILENT_S, ended_s=EXIT_GRACE_S)
            if silent := [peer for peer in parted if peer.machine and (peer.failed or not peer.ended)]:
                processes.signal_group(child.pid, signal.SIGKILL)
        if now_s > until_s and not (run_dir / "stop").exists():
            (run_dir / "stop").write_bytes(limits.TIME_IS_UP)
        if asked_s is None and (run_dir / "stop").exists():
            # a launcher that awaits other machines hears of no stop, and nothing has begun
            awaits = others is not None and not peers.read(run_dir)
            asked_s = now_s - STOP_GRACE_S if awaits else now_s
        if asked_s is not None and terminated_s is None and now_s - asked_s > STOP_GRACE_S:
            processes.signal_group(child.pid, signal.SIGTERM)
            terminated_s = now_s
        if terminated_s is not None and now_s - terminated_s > TERMINATE_GRACE_S:
            processes.signal_group(child.pid, signal.SIGKILL)
        processes.wait_for_end(child, POLL_S)
    processes.signal_group(child.pid, signal.SIGKILL)  # whatever the child has left behind
    return silent


def _write_last(run_dir: Path, event: events.Finished | events.Stopped | events.Failed) -> None:
    """Write the terminal event and the summary. A disk that is still full ends in the log at least."""
    try:
        log = events.EventLog(run_dir)
        try:
            log.append(event)
        except events.DiskFull as error:
            _say(f"{error}: {event}")
        log.close()
        _write_summary(run_dir)
    except OSError as error:
        _say(f"the last event could not be written: {error}: {event}")


def carry_out(run_dir: Path, **how: Any) -> None:
    """Supervise a run, and write its last event where that fails. `how` is as for supervise."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        supervise(run_dir, **how)
    except Exception as error:
        _write_last(run_dir, failures.from_exception(error))
        raise


def main() -> None:
    carry_out(Path(sys.argv[1]).resolve())


if __name__ == "__main__":
    main()
