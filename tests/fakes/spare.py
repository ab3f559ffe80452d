"""A spare whose child imports nothing and then is the fake that the run's recipe is called after."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

from engine import events, spare, waiting
from engine.spec import schema
from engine.train import waiting as child
from tests.fakes import _child


def run(run_dir: Path, log: events.EventLog) -> int:
    (run_dir / "waited").touch()
    name = schema.decode((run_dir / "spec.json").read_bytes()).recipe.name
    return import_module(f"tests.fakes.{name}").run(run_dir, log)


def imports() -> None:
    if os.environ.get("FAKE_TOUCHES"):
        child._touched_a_card = lambda: True
    if path := os.environ.get("FAKE_SLOW_START"):
        _child.wait_for(Path(path))


if __name__ == "__main__":
    child.imports, child.MODULE = imports, "tests.fakes.finishes"
    if sys.argv[1:]:
        _child.play(run)
    else:
        waiting.LOOK_EVERY_S, spare.LEAST_FREE_BYTES = 0.05, 0
        sys.exit(waiting.main("tests.fakes.spare"))
