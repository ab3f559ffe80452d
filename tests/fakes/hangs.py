"""A child that has written its last event and does not go."""

from __future__ import annotations

from pathlib import Path

from engine import events
from tests.fakes import _child


def run(run_dir: Path, log: events.EventLog) -> int:
    _child.begin(run_dir, log)
    log.append(events.Finished(step=_child.STEPS))
    _child.wait_for(run_dir / "never")
    return 0


if __name__ == "__main__":
    _child.play(run)
