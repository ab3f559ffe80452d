"""A supervisor that waits for a run, `python -m engine.waiting`: its child has imported everything before anybody clicks.

Taken (engine/spare.py), it is the supervisor of that run like any other, with the run's environment and log. Until
then it goes as soon as nobody wants it: after some minutes, when memory is short, when the code has changed, or when the
server that started it has ended.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from engine import processes, spare, worker
from engine.runs import environment

# How often it looks whether it is still wanted.
LOOK_EVERY_S = 2.0
# Who has renamed the pipe is about to write to it.
TAKEN_S = 10.0


def main(module: str = "engine.train") -> int:
    """Wait, and be the supervisor of the run that comes. Returns the exit status."""
    place = spare.folder()
    if place is None:
        return 0
    lock = FileLock(place / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return 0  # one is enough
    for left in (path for end in ("new", "door", "taken") for path in place.glob(f"*.{end}")):
        left.unlink(missing_ok=True)  # of a spare that was killed
    child: Any = processes.start(
        module, "--spare", stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment.of_any_run()
    )
    try:
        job = _wait(place, child)
    finally:
        lock.release()
    if not job:
        ended = child.poll() is not None
        processes.signal_group(child.pid, signal.SIGKILL)
        return spare.CANNOT if ended else 0
    run_dir = Path(job["run_dir"])
    # what a supervisor that was started for this run would have
    os.environ.clear()
    os.environ.update(job["environment"])
    processes.write_to(run_dir / "worker.log")
    worker.carry_out(run_dir, begin=lambda run_dir, settings: _wake(child, run_dir, settings, module))
    return 0


def _wait(place: Path, child: Any) -> dict[str, Any] | None:
    """Wait until the child is ready, then for a job; None when the spare is to go."""
    door = spare.door_of(place, os.getpid())
    began, ready = spare.stamp(), False
    os.mkfifo(door.with_suffix(".new"), 0o600)
    # open for writing too: else it is at its end whenever nobody writes
    pipe = os.open(door.with_suffix(".new"), os.O_RDWR | os.O_NONBLOCK)
    server, said = sys.stdin.fileno(), child.stdout.fileno()
    try:
        while child.poll() is None and spare.stamp() == began and _there_is_room():
            watched = [server, pipe] if ready else [server, said]
            found, _, _ = select.select(watched, [], [], LOOK_EVERY_S)
            if server in found and not os.read(server, 1):
                break
            if said in found:
                line = child.stdout.readline()
                if not line:
                    child.wait()
                    break
                if line != b"ready\n":  # a library has something to say
                    continue
                ready = True
                os.rename(door.with_suffix(".new"), door)  # whoever sees it may take it
            if pipe in found:
                return _job(pipe)
            if ready and _is_idle(door):
                break
        try:
            door.with_suffix(".new").unlink(missing_ok=True)
            if ready:
                door.unlink()
        except FileNotFoundError:  # it was taken just now
            return _job(pipe) if select.select([pipe], [], [], TAKEN_S)[0] else None
        return None
    finally:
        os.close(pipe)


def _there_is_room() -> bool:
    return psutil.virtual_memory().available >= spare.LEAST_FREE_BYTES


def _is_idle(door: Path) -> bool:
    with suppress(FileNotFoundError):  # somebody takes it
        return time.time() - door.stat().st_mtime > spare.IDLE_S
    return False


def _job(pipe: int) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n") and select.select([pipe], [], [], TAKEN_S)[0]:
        data += os.read(pipe, 1 << 16)
    return json.loads(data or b"{}")


def _wake(child: Any, run_dir: Path, settings: dict[str, str], module: str) -> Any:
    """Give the child its run; where it has died meanwhile, start a fresh one."""
    try:
        child.stdin.write(json.dumps({"run_dir": str(run_dir), "environment": settings}).encode() + b"\n")
        child.stdin.close()
        return child
    except OSError:
        child.wait()
        return processes.start(module, str(run_dir), env=settings)


if __name__ == "__main__":
    sys.exit(main())
