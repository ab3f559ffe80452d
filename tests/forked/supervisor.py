"""The real supervisor, whose child is forked from the parent that has imported everything."""

from __future__ import annotations

import functools
from typing import Any

from engine import processes, worker
from engine.runs import lifecycle
from tests.forked.parent import Child


def start(module: str, *arguments: str, **how: Any) -> Any:
    """Fork engine.train; start anything else, such as the supervisors of a sweep's runs, as ever."""
    if module != "engine.train":
        return usual(module, *arguments, **how)
    return Child(run=arguments[0], env=how["env"], cwd=str(processes.PROJECT_DIR))


usual = processes.start


if __name__ == "__main__":
    for name in ("start", "resume"):  # the runs of a sweep
        setattr(lifecycle, name, functools.partial(getattr(lifecycle, name), module="tests.forked.supervisor"))
    processes.start = start
    worker.main()
