"""Visitors of a hosted demo: a workspace for each, and what becomes of it when its time is over."""

from __future__ import annotations

import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from engine import limits, machine
from engine.runs import device_queue
from engine.words import Problem
from engine.workspace import Workspace, default_workspace

_VISITOR = re.compile(r"[0-9a-f]{32}", re.ASCII)
# Its time of change is when the visitor came; the workspace itself changes with every file.
_ARRIVED = ".arrived"
SWEEP_EVERY_S = 3600.0


def visitors_dir() -> Path:
    return default_workspace().root / "visitors"


def workspace_of(visitor: str) -> Workspace | None:
    """Return the workspace of a visitor who was here, or None. `visitor` may come from anywhere: only a number that was
    drawn here, and whose folder is still there, is one."""
    if not isinstance(visitor, str) or not _VISITOR.fullmatch(visitor):
        return None
    folder = visitors_dir() / visitor
    return Workspace(folder) if (folder / _ARRIVED).is_file() else None


def new_visitor() -> str:
    """Make a workspace for a new visitor and return the number. Raises OverLimit when the demo is full."""
    folder = visitors_dir()
    folder.mkdir(parents=True, exist_ok=True)
    if sum(1 for _ in folder.iterdir()) >= limits.limits().visitors:
        sweep()
        _make_room()
        if sum(1 for _ in folder.iterdir()) >= limits.limits().visitors:
            raise limits.OverLimit(Problem(rule="demo-full"))
    visitor = secrets.token_hex(limits.ID_BYTES)
    (folder / visitor).mkdir(mode=0o700)
    (folder / visitor / _ARRIVED).touch()
    return visitor


def _make_room() -> None:
    """Remove the workspaces in which nothing was ever done, but for those of the last minutes."""
    for folder in visitors_dir().iterdir():
        if {path.name for path in folder.iterdir()} <= {_ARRIVED} and _age_s(folder) > 600:
            shutil.rmtree(folder, ignore_errors=True)


def _age_s(folder: Path) -> float:
    try:
        mark = folder / _ARRIVED
        return time.time() - (mark if mark.is_file() else folder).stat().st_mtime
    except OSError:
        return 0.0  # it is gone


def hours_left(workspace: Workspace) -> float:
    """Return how long a visitor's workspace is still kept."""
    return max(0.0, limits.limits().hours_kept - _age_s(workspace.root) / 3600)


def sweep() -> int:
    """Delete the workspaces whose time is over and return how many. A run that still goes on is stopped first; its
    workspace goes with the next sweep."""
    gone = 0
    for folder in sorted(visitors_dir().glob("*")):
        if not folder.is_dir() or _age_s(folder) <= 3600 * limits.limits().hours_kept:
            continue
        live = set(device_queue.live(machine.facts().device))
        going = [path for path in (folder / "runs").glob("[0-9a-z]*") if path.name in live]
        for run in going:
            (run / "stop").touch()
        if not going:
            # Renamed first, out of every address, so that nothing new is written into what is being deleted.
            grave = folder.with_name(f".gone-{folder.name.removeprefix('.gone-')}")
            if folder != grave:
                folder.rename(grave)
            shutil.rmtree(grave, ignore_errors=True)
            gone += 1
    return gone


def keep_clean() -> Callable[[], None]:
    """Sweep now and every hour, in a thread of its own; return what ends it. The server calls this when it starts."""
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            sweep()
            ended.wait(SWEEP_EVERY_S)

    threading.Thread(target=run, name="demo-sweep", daemon=True).start()
    return ended.set
