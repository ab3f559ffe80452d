"""Processes of ours: how each is started and bounded, and which one a pid is.

A pid alone is reused; pid, start ticks and boot id together name one process for good.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil

from engine import in_line

# Where app.py, engine and recipes lie; every process of ours is started there.
PROJECT_DIR = Path(__file__).resolve().parents[1]
PIPE = subprocess.PIPE
_STARTED_BY_US = "TUNEBOOK_CHILD"
# Whether this process was started by another one of ours: it may take its time, and take what it reads down with it.
IS_CHILD = _STARTED_BY_US in os.environ
_HAS_PROC = os.path.exists("/proc/self/stat")
_started: list[subprocess.Popen[Any]] = []  # kept so that what has ended is reaped and leaves no zombie


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`started` is in clock ticks since boot on Linux (a stepped clock does not move it), elsewhere in seconds."""

    pid: int
    started: float
    boot: str


def _boot() -> str:
    try:
        return in_line.boot()
    except OSError:
        return str(int(psutil.boot_time()))


def identify(pid: int) -> Identity | None:
    """Return the identity of a living process, or None; a zombie is dead."""
    try:
        if _HAS_PROC:
            ticks = in_line.started(pid)
            return None if ticks is None else Identity(pid, ticks, _boot())
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return Identity(pid, process.create_time(), _boot())
    except (OSError, psutil.Error, IndexError, ValueError):
        return None


def alive(identity: Identity | None) -> bool:
    """Say whether this very process still lives."""
    return identity is not None and identify(identity.pid) == identity


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to the process group that `pid` leads; a group that is gone is no error."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def start(module: str, *arguments: str, **how: Any) -> subprocess.Popen[Any]:
    """Start `python -m module arguments` in a session of its own, a list and never a shell, and return the process.

    `how` is as for subprocess.Popen; nothing is on its input unless that says so. Raises OSError.
    """
    return _start(["-m", module, *arguments], how)


def line_up(ticket: Path, run_dir: Path, module: str, **how: Any) -> subprocess.Popen[Any]:
    """Start a process that waits with a ticket until its run is the next, and then is `python -m module RUN_DIR`, under the
    same pid. As start otherwise."""
    return _start(["-I", "-S", in_line.__file__, str(ticket), str(run_dir), module], how)


def _start(arguments: list[str], how: dict[str, Any]) -> subprocess.Popen[Any]:
    reap()
    settings: dict[str, Any] = {"stdin": subprocess.DEVNULL, "cwd": PROJECT_DIR, "start_new_session": True, **how}
    settings["env"] = {**(settings.get("env") or os.environ), _STARTED_BY_US: "1"}
    process = subprocess.Popen([sys.executable, *arguments], **settings)  # noqa: S603 - a list, no shell
    _started.append(process)
    return process


def die_with_parent() -> None:
    """Ask Linux to end this process when its supervisor dies, since the device lock goes with the supervisor
    (prctl(2), PR_SET_PDEATHSIG = 1). Elsewhere the supervisor's end is seen by the reader alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        supervisor = os.environ.get("TUNEBOOK_SUPERVISOR")
        if supervisor is not None and os.getppid() != int(supervisor):
            os.kill(os.getpid(), signal.SIGKILL)  # it died before we could ask


def wait_for_end(process: subprocess.Popen[Any], most_s: float) -> None:
    """Return when a process has ended, or after so many seconds; elsewhere than on Linux after a moment, to look again."""
    try:
        ended = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # not on Linux, or it is gone
        time.sleep(min(most_s, 0.05))
        return
    try:
        select.select([ended], [], [], most_s)
    finally:
        os.close(ended)


def end(identity: Identity | None, most_s: float) -> None:
    """Ask a process of ours to end, and return when it has; after so many seconds it and its group are killed."""
    if identity is None or not alive(identity):
        return
    with suppress(ProcessLookupError):
        os.kill(identity.pid, signal.SIGTERM)
    end_s = time.monotonic() + most_s
    while alive(identity) and time.monotonic() < end_s:
        time.sleep(0.05)
        reap()
    if alive(identity):
        signal_group(identity.pid, signal.SIGKILL)


def reap() -> None:
    """Collect what this process has started and what has ended since."""
    _started[:] = [process for process in _started if process.poll() is None]


def bound(*, cpu_s: float | None = None, memory_bytes: int | None = None) -> None:
    """Let the kernel end this process after so much more processor time (SIGXCPU), and give it no more memory than that
    (a MemoryError, or its end). Asked again, both begin anew.

    Memory is what is written to, not the address space: a file that is mapped, and what libraries set aside for their
    threads, cost nothing. Windows has no such limits, and macOS does not hold the one on memory.
    """
    with suppress(ImportError, ValueError, OSError):
        import resource

        for kind, most in (
            (resource.RLIMIT_CPU, None if cpu_s is None else round(time.process_time() + cpu_s + 0.5)),
            (resource.RLIMIT_DATA, memory_bytes),
            (resource.RLIMIT_CORE, 0),  # what ended so is not written to the disk
        ):
            if most is not None:
                hard = resource.getrlimit(kind)[1]
                resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def write_to(log: Path) -> None:
    """Send what this process says to the end of a file from now on, with nothing on its input. Raises OSError."""
    said = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in ((0, nothing), (1, said), (2, said)):
        os.dup2(file, number)
    os.close(said)
    os.close(nothing)
