"""A child that finishes."""

from __future__ import annotations

from pathlib import Path

from engine import events
from tests.fakes import _child


def run(run_dir: Path, log: events.EventLog) -> int:
    _child.begin(run_dir, log)
    for number in range(2, _child.STEPS + 1):
        _child.step(log, number)
    log.append(events.Eval(step=_child.STEPS, loss=0.5))
    log.append(events.Saved(step=_child.STEPS, path="adapter", what="adapter"))
    log.append(events.Finished(step=_child.STEPS))
    return 0


if __name__ == "__main__":
    _child.play(run)
