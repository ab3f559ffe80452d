"""`streamlit run app.py`, whose runs are supervised by tests.forked.supervisor."""

from __future__ import annotations

import functools
import sys

from streamlit.web import cli

from engine.runs import lifecycle

if __name__ == "__main__":
    lifecycle.start = functools.partial(lifecycle.start, module="tests.forked.supervisor")
    lifecycle.resume = functools.partial(lifecycle.resume, module="tests.forked.supervisor")
    sys.argv[0] = "streamlit"
    sys.exit(cli.main())
