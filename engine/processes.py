"""Which process is this? A pid alone is reused; pid, start ticks and boot id together name one process for good."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import msgspec
import psutil

_PROC = Path("/proc")


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`started` is in clock ticks since boot on Linux (a stepped clock does not move it), elsewhere in seconds."""

    pid: int
    started: float
    boot: str


def _boot() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(int(psutil.boot_time()))


def identify(pid: int) -> Identity | None:
    """Return the identity of a living process, or None; a zombie is dead."""
    try:
        if (_PROC / "self/stat").exists():
            # proc(5): the name in field 2 may hold spaces and brackets, so fields are counted from the last ")"
            fields = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
            state, started = fields[0].decode(), float(fields[19])
            return None if state in "ZX" else Identity(pid, started, _boot())
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
