"""A child that hears neither the stop file nor SIGTERM, and neither does the process it has started."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import msgspec

from engine import events, processes
from tests.fakes import _child


def run(run_dir: Path, log: events.EventLog) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is started from here on inherits it
    grandchild = subprocess.Popen(["sleep", str(_child.LONGEST_S)])
    (run_dir / "grandchild").write_bytes(msgspec.json.encode(processes.identify(grandchild.pid)))
    log.append(events.Saved(step=1, path="checkpoints/checkpoint-1", what="checkpoint"))
    _child.begin(run_dir, log)
    return grandchild.wait()


if __name__ == "__main__":
    _child.play(run)
