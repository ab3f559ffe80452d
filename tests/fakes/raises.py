"""A child that ends with a traceback and exit status 1 before it could write why."""

from __future__ import annotations

import sys
from pathlib import Path

from engine import events
from tests.fakes import _child


def main() -> None:
    run_dir = Path(sys.argv[1])
    _child.begin(run_dir, events.EventLog(run_dir))
    raise RuntimeError("the fake has come to grief")


if __name__ == "__main__":
    main()
