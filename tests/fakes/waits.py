"""A child that trains until it is stopped, politely, or until a file `go` lets it finish."""

from __future__ import annotations

from pathlib import Path

from engine import events
from tests.fakes import _child


def run(run_dir: Path, log: events.EventLog) -> int:
    _child.begin(run_dir, log)
    why = _child.wait_for(run_dir / "go", run_dir / "stop")
    log.append(events.Saved(step=1, path="checkpoints/checkpoint-1", what="checkpoint"))
    if why.name == "stop":
        log.append(events.Stopped(step=1, resumable=True))
        return 3
    _child.step(log, _child.STEPS)
    log.append(events.Finished(step=_child.STEPS))
    return 0


if __name__ == "__main__":
    _child.play(run)
