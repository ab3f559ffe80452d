"""The command line, whose runs are supervised by tests.forked.supervisor."""

from __future__ import annotations

import functools
import sys

from engine import cli, runs

if __name__ == "__main__":
    runs.start = functools.partial(runs.start, module="tests.forked.supervisor")
    runs.resume = functools.partial(runs.resume, module="tests.forked.supervisor")
    sys.exit(cli.main())
