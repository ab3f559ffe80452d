"""A child that has stopped as asked and takes its time to go: until a file `leave` is there."""

from __future__ import annotations

from pathlib import Path

from engine import events
from engine.runs import store
from tests.fakes import _child


def run(run_dir: Path, log: events.EventLog) -> int:
    _child.begin(run_dir, log)
    log.append(events.Saved(step=1, path="checkpoints/checkpoint-1", what="checkpoint"))
    log.append(events.Stopped(step=1, resumable=True))
    store.write_summary(run_dir)
    _child.wait_for(run_dir / "leave")
    return 3


if __name__ == "__main__":
    _child.play(run)
