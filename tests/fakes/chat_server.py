"""`streamlit run app.py`, whose chat child says back what it is asked."""

from __future__ import annotations

import sys

from streamlit.web import cli

from engine.chat import child

if __name__ == "__main__":
    child.MODULE = "tests.fakes.chats"
    sys.argv[0] = "streamlit"
    sys.exit(cli.main())
