"""Visitors of a hosted demo: a workspace for each, which browsers may enter it, and what becomes of it when its time is
over.

A number is drawn for each session, and its workspace is made when something is stored (limits.settle). The number stands
in the page's address, so whoever has the address can come: a browser is known by a mark, a secret cookie of ours of which
the workspace keeps a hash (engine/guard.py sets it). One that is not known is asked first (pages/_visitor.py).
"""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from engine import limits, machine
from engine.limits import ARRIVED, visitors_dir
from engine.runs import device_queue
from engine.workspace import Workspace, append_line

_VISITOR = re.compile(r"[0-9a-f]{32}", re.ASCII)
# Hashes of the marks that may enter without a question, one a line, and LINK for each time somebody came by a link.
_BROWSERS = ".browsers"
LINK = "link"
MOST_BROWSERS = 100
SWEEP_EVERY_S = 600.0
# A workspace in which nothing is stored after so long gives its place to others.
EMPTY_S = 600.0


def draw() -> str:
    """Return a number for a new visitor. Nothing is on the disk yet."""
    return secrets.token_hex(limits.ID_BYTES)


def place(visitor: str) -> Workspace:
    """Return the workspace of a number that was drawn here, whether or not anything is in it yet. Never for a number
    that came from elsewhere."""
    return Workspace(visitors_dir() / visitor)


def workspace_of(visitor: object) -> Workspace | None:
    """Return the workspace of a visitor who has stored something, or None. `visitor` may come from anywhere: only a number
    that was drawn here, and whose folder is still there, is one."""
    if not isinstance(visitor, str) or not _VISITOR.fullmatch(visitor):
        return None
    found = place(visitor)
    return found if (found.root / ARRIVED).is_file() else None


def _browsers(workspace: Workspace) -> list[str]:
    try:
        return (workspace.root / _BROWSERS).read_text("ascii").split()
    except OSError:
        return []


def _hash(mark: str) -> str:
    return hashlib.sha256(mark.encode()).hexdigest()


def knows(workspace: Workspace, mark: str | None) -> bool:
    """Whether a browser with this mark has been in a workspace."""
    return mark is not None and _hash(mark) in _browsers(workspace)


def remember(workspace: Workspace, mark: str | None, *, came_by_link: bool = False) -> None:
    """Let the browser with this mark enter a workspace that is there without a question from now on, and note that
    somebody came by a link."""
    known = _browsers(workspace)
    new = [LINK] if came_by_link else []
    new += [] if mark is None or _hash(mark) in known else [_hash(mark)]
    if new and len(known) < MOST_BROWSERS and workspace_of(workspace.root.name) is not None:
        append_line(workspace.root / _BROWSERS, "\n".join(new).encode())


def is_shared(workspace: Workspace) -> bool:
    """Whether somebody has come to a workspace by a link, who may be another person."""
    return LINK in _browsers(workspace)


def _age_s(folder: Path) -> float:
    try:
        mark = folder / ARRIVED
        return time.time() - (mark if mark.is_file() else folder).stat().st_mtime
    except OSError:
        return 0.0  # it is not there yet, or gone


def hours_left(workspace: Workspace) -> float:
    """Return how long a visitor's workspace is still kept."""
    return max(0.0, limits.limits().hours_kept - _age_s(workspace.root) / 3600)


def _is_over(folder: Path) -> bool:
    age_s = _age_s(folder)
    if age_s <= EMPTY_S:
        return False
    beside = (ARRIVED, _BROWSERS)
    return age_s > 3600 * limits.limits().hours_kept or not any(
        path.is_file() and path.name not in beside for path in folder.rglob("*")
    )


def sweep() -> int:
    """Delete the workspaces whose time is over, or in which nothing is, and return how many. A run that still goes on is
    stopped first; its workspace goes with the next sweep."""
    gone = 0
    for folder in sorted(visitors_dir().glob("*")):
        with suppress(OSError):  # of one that somebody writes into just now; the others go on
            gone += folder.is_dir() and _is_over(folder) and _delete(folder)
    return gone


def _delete(folder: Path) -> bool:
    """Delete a workspace, or stop what still goes on in it; return whether it was deleted."""
    live = set(device_queue.live(machine.facts().device))
    going = [path for path in (folder / "runs").glob("[0-9a-z]*") if path.name in live]
    for run in going:
        (run / "stop").touch()
    if going:
        return False
    # Renamed first, out of every address, so that nothing new is written into what is being deleted. What could not be
    # deleted then may be there still, from before somebody wrote under the same number again.
    grave = folder.with_name(f".gone-{folder.name.removeprefix('.gone-')}")
    if folder != grave:
        shutil.rmtree(grave, ignore_errors=True)
        folder.rename(grave)
    shutil.rmtree(grave, ignore_errors=True)
    return True


def keep_clean() -> Callable[[], None]:
    """Sweep now and every ten minutes, in a thread of its own; return what ends it. The server calls this when it starts."""
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            sweep()
            ended.wait(SWEEP_EVERY_S)

    threading.Thread(target=run, name="demo-sweep", daemon=True).start()
    return ended.set
