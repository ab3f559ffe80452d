"""A child that is killed in the middle, as the kernel does when memory runs out."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from engine import events
from tests.fakes import _child


def run(run_dir: Path, log: events.EventLog) -> int:
    _child.begin(run_dir, log)
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


if __name__ == "__main__":
    _child.play(run)
