"""python -m engine.starter.build [--out DIR]: make the starter again from its seed.

The work is done by a child, because only engine.train may import torch. Without --out the shipped files are replaced.
"""

from __future__ import annotations

import subprocess
import sys


def main(arguments: list[str] | None = None) -> int:
    """Run the builder with the same arguments and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return subprocess.run([sys.executable, "-m", "engine.train.build_starter", *arguments], check=False).returncode  # noqa: S603 - a list, no shell


if __name__ == "__main__":
    sys.exit(main())
