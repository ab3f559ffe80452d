"""A spare supervisor, whose child has imported its libraries and waits, so that the next run starts without that wait.

`prepare` starts one (engine/waiting.py) where none waits; `take` gives it a run. It waits at a named pipe in a folder that
its user alone may enter. Who renames the pipe has it: of two that start a run at once one gets the spare, and the other a
fresh process. A pipe that nobody reads any more cannot be opened, so a dead spare is never given anything.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import sys
import sysconfig
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from engine import limits, machine, processes
from engine.estimate import machine_choices
from engine.workspace import machine_dir

# A spare that waits holds this much; it is not started, and goes, where it would leave less than the second figure free.
HELD_BYTES, LEAST_FREE_BYTES = 2**30, 2 * 2**30
# How long one waits after the page was last used.
IDLE_S = 300.0
# A page asks at every click.
_LOOK_EVERY_S = 2.0
_looked_s = -_LOOK_EVERY_S
# What a spare ends with that cannot wait here, as where importing asks the driver for its cards.
CANNOT = 1
_last: Any = None


def folder() -> Path | None:
    """Return the folder of the spare, made where it is missing; None where others may enter it, or it cannot be made."""
    path = machine_dir() / "spare"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError:
        return None
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
    return path if private else None


def stamp() -> str:
    """Return what tells the code of now, and what is installed, from that of a spare which was started earlier."""
    engine = processes.PROJECT_DIR / "engine"
    seen = [sys.executable, os.stat(sysconfig.get_path("purelib")).st_mtime_ns]
    for path in sorted(engine.rglob("*.py")):
        with suppress(OSError):
            found = path.stat()
            seen += [str(path), found.st_mtime_ns, found.st_size]
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]


def prepare(module: str = "engine.waiting") -> bool:
    """Start a spare where there is none and one makes sense; return whether it was. One that waits already waits on."""
    global _looked_s, _last
    if time.monotonic() - _looked_s < _LOOK_EVERY_S or (_last is not None and _last.poll() == CANNOT):
        return False
    _looked_s = time.monotonic()
    place = folder() if wanted() else None
    if place is None:
        return False
    now = stamp()
    for door in place.glob("*.door"):
        if door.name.startswith(now):
            with suppress(OSError):
                os.utime(door)
                return False
        _give(door, {})
    try:
        FileLock(place / "lock").acquire(timeout=0).lock.release()
    except (Timeout, OSError):  # one is just coming up, or the disk takes no lock
        return False
    with suppress(OSError), (place / "log").open("wb") as log:
        # the pipe on its input is closed when this server ends, and with that the spare knows
        _last = processes.start(module, stdin=processes.PIPE, stdout=log, stderr=log)
        return True
    return False


def wanted() -> bool:
    """Whether a spare makes sense here and now. Not in a demo, where one home is not another's; not where Unsloth
    would have to be imported first; not where memory is short."""
    if os.environ.get("TUNEBOOK_SPARE") == "0" or limits.on() or not hasattr(os, "mkfifo"):
        return False
    facts = machine.facts()
    if facts.gpus and machine_choices.installed("unsloth"):
        return False
    return psutil.virtual_memory().available >= HELD_BYTES + LEAST_FREE_BYTES


def take(run_dir: Path) -> processes.Identity | None:
    """Give the spare that waits a run, and this process's environment; return who supervises the run then. None where no
    spare of this code waits: start a fresh process."""
    place = folder() if hasattr(os, "mkfifo") and not limits.on() else None
    if place is None:
        return None
    now = stamp()
    for door in sorted(place.glob("*.door")):
        fresh = door.name.startswith(now)
        identity = _give(door, {"run_dir": str(run_dir), "environment": dict(os.environ)} if fresh else {})
        if fresh and identity is not None:
            return identity
    return None


def door_of(place: Path, pid: int) -> Path:
    """Return the path of the pipe that a spare waits at."""
    return place / f"{stamp()}-{pid}.door"


def _give(door: Path, job: dict[str, object]) -> processes.Identity | None:
    """Take a spare for oneself and give it a job, or none, which sends it away. Returns who it is, or None where somebody
    else was faster or nobody is there."""
    taken = door.with_suffix(".taken")
    try:
        door.rename(taken)
    except OSError:
        return None
    try:
        identity = processes.identify(int(door.stem.rpartition("-")[2]))
        pipe = os.open(taken, os.O_WRONLY | os.O_NONBLOCK)  # ENXIO: nobody reads
        os.set_blocking(pipe, True)
        with os.fdopen(pipe, "wb") as file:
            file.write(json.dumps(job).encode() + b"\n")
        return identity
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENXIO, errno.EPIPE, errno.ENOENT):
            raise
        return None
    finally:
        taken.unlink(missing_ok=True)
