"""Follow a run: wait for its end, read its log, notice when nothing is heard of it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from engine import events
from engine.runs.store import LIVE, status, supervised
from engine.workspace import Workspace

# A step may be slow and scoring says nothing for a while, but not for so long: after this silence a run may hang.
SILENT_S, SILENT_TRAINING_S, SILENT_STEPS = 900.0, 60.0, 30


def silent_s(found: list[Any]) -> float | None:
    """Return for how long nothing was heard of a run, when that is so long that it may hang; else None.

    By monotonic seconds, which are the machine's own and do not move when a clock is set.
    """
    if not found:
        return None
    silence_s, most_s = time.monotonic() - found[-1].monotonic_s, SILENT_S
    steps = [event for event in found[-50:] if isinstance(event, events.Step)][-10:]
    if isinstance(found[-1], events.Step) and len(steps) > 2:
        usual_s = (steps[-1].monotonic_s - steps[0].monotonic_s) / (len(steps) - 1)
        most_s = max(SILENT_TRAINING_S, SILENT_STEPS * usual_s)
    return silence_s if silence_s > most_s else None


def wait(workspace: Workspace, run_id: str, on_event: Any = None, poll_s: float = 0.2) -> str:
    """Wait until a run has ended, handing each new event to `on_event`; return its status."""
    run_dir, offset = workspace.run_dir(run_id), 0
    while True:
        state = status(workspace, run_id)
        new, offset = events.read(run_dir, offset)
        if on_event is not None:
            for event in new:
                on_event(event)
        if state not in LIVE:
            return state
        time.sleep(poll_s)


def wait_for_end(run_dir: Path, timeout_s: float = 10.0) -> None:
    """Wait until the supervisor of a run that has ended is gone too; its last event comes a moment before."""
    end_s = time.monotonic() + timeout_s
    while supervised(run_dir) and time.monotonic() < end_s:
        time.sleep(0.05)


def log_tail(run_dir: Path, lines: int = 40, after: int = 0) -> str:
    """Return the last lines of worker.log, of those after byte `after`."""
    try:
        with (run_dir / "worker.log").open("rb") as file:
            file.seek(max(after, os.fstat(file.fileno()).st_size - 64 * 1024))
            return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
    except OSError:
        return ""
