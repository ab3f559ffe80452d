"""The chat's child, forked from the parent that has imported everything: it takes over this process's pipes."""

from __future__ import annotations

import os
import sys

from tests.forked.parent import Child

CODE = "from engine.train.chat import main; main()"

if __name__ == "__main__":
    child = Child((1, 2, 0), code=CODE, arguments=sys.argv[1:], env=dict(os.environ), cwd=os.getcwd())
    sys.exit(child.wait())
