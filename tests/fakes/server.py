"""A server: starts a run in the home it is given, prints its id and stays."""

from __future__ import annotations

import sys
import time

from engine.runs import lifecycle
from engine.workspace import Workspace
from tests import helpers


def main() -> None:
    home, child = sys.argv[1:]
    print(lifecycle.start(Workspace(home), helpers.fake_spec(child), module=helpers.SUPERVISOR), flush=True)
    time.sleep(60)


if __name__ == "__main__":
    main()
