"""The command line, whose runs are supervised by tests.forked.supervisor."""

from __future__ import annotations

import functools
import sys

from engine.cli import main
from engine.runs import lifecycle

if __name__ == "__main__":
    lifecycle.start = functools.partial(lifecycle.start, module="tests.forked.supervisor")
    lifecycle.resume = functools.partial(lifecycle.resume, module="tests.forked.supervisor")
    sys.exit(main())
