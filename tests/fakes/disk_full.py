"""A child that finds the disk full: nothing more can be written until the reserve is freed."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from engine import events
from tests.fakes import _child


def run(run_dir: Path, log: events.EventLog) -> int:
    _child.begin(run_dir, log)
    write = os.write

    def write_if_there_is_room(descriptor: int, data: bytes) -> int:
        if (run_dir / "reserve").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    os.write = write_if_there_is_room
    print("No space left on device", file=sys.stderr)
    _child.step(log, 2)
    return 0


if __name__ == "__main__":
    _child.play(run)
