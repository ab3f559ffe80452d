"""The real supervisor, whose child is forked from the parent that has imported everything."""

from __future__ import annotations

import functools
import subprocess
from types import SimpleNamespace
from typing import Any

from engine import runs, worker
from tests.forked.parent import Child


def start(arguments: list[str], *, env: dict[str, str], cwd: Any, **_: Any) -> Child:
    """Take the place of `subprocess.Popen([python, "-m", "engine.train", RUN_DIR], ...)`."""
    assert arguments[1:3] == ["-m", "engine.train"]
    return Child(run=arguments[3], env=env, cwd=str(cwd))


if __name__ == "__main__":
    for name in ("start", "resume"):  # the runs of a sweep
        setattr(runs, name, functools.partial(getattr(runs, name), module="tests.forked.supervisor"))
    worker.subprocess = SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL)
    worker.main()
