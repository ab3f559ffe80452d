"""Processes of ours: how each is started, and which one a pid is.

A pid alone is reused; pid, start ticks and boot id together name one process for good.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil

from engine import in_line

# Where app.py, engine and recipes lie; every process of ours is started there.
PROJECT_DIR = Path(__file__).resolve().parents[1]
PIPE = subprocess.PIPE
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
    process = subprocess.Popen([sys.executable, *arguments], **settings)  # noqa: S603 - a list, no shell
    _started.append(process)
    return process


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


def reap() -> None:
    """Collect what this process has started and what has ended since."""
    _started[:] = [process for process in _started if process.poll() is None]


def write_to(log: Path) -> None:
    """Send what this process says to the end of a file from now on, with nothing on its input. Raises OSError."""
    said = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in ((0, nothing), (1, said), (2, said)):
        os.dup2(file, number)
    os.close(said)
    os.close(nothing)
