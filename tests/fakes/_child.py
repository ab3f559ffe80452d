"""What the fake children share: the frame of the real child around a few canned events, without its libraries."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from engine import events, processes
from engine.train import __main__ as real

STEPS = 3
LONGEST_S = 60.0  # no fake outlives its test by more


def begin(run_dir: Path, log: events.EventLog) -> None:
    """Leave word of who this is, and start as a real child does."""
    (run_dir / "child").write_bytes(msgspec.json.encode(processes.identify(os.getpid())))
    found, _ = events.read(run_dir)
    attempt = 1 + sum(isinstance(event, events.Started) for event in found)
    log.append(events.Started(attempt=attempt, versions={}, device="cpu", backend="plain", reason="a fake"))
    log.append(events.Phase(phase="training"))
    step(log, 1)


def step(log: events.EventLog, number: int) -> None:
    log.append(events.Step(step=number, total_steps=STEPS, epoch=1.0, loss=2.0 / number))


def wait_for(*paths: Path) -> Path:
    """Return the first of these files that is there."""
    end_s = time.monotonic() + LONGEST_S
    while time.monotonic() < end_s:
        for path in paths:
            if path.exists():
                return path
        time.sleep(0.02)
    raise TimeoutError("nobody came")


def play(run: Callable[[Path, events.EventLog], int]) -> None:
    """Be the real child with another `run`: what it does around that is not faked."""
    real.run = run
    sys.stdout.flush()
    os._exit(real.main())
