"""The real supervisor with a fake child: the module tests.fakes.<name> that the run's recipe is called after.

A file `fake` in the run's folder names another child for the next attempt. The variable FAKE_FULL_DISK stands for a disk
that is full just when the supervisor writes the summary, FAKE_SLOW_START for a machine so busy that the supervisor comes up
only when the file it names is there.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
from pathlib import Path

from engine import worker
from engine.runs import store
from engine.spec import schema
from tests import helpers


def _disk_is_full(run_dir: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(run_dir / "summary.json"))


def main() -> None:
    run_dir = Path(sys.argv[1])
    if name := os.environ.get("FAKE_SLOW_START"):
        helpers.wait_until(Path(name).exists, 60)
    chosen = run_dir / "fake"
    child = chosen.read_text() if chosen.exists() else schema.decode((run_dir / "spec.json").read_bytes()).recipe.name
    if child == "ignores_sigterm":
        worker.STOP_GRACE_S = worker.TERMINATE_GRACE_S = 0.2
    if child == "hangs":
        worker.EXIT_GRACE_S = 0.3
    if os.environ.get("FAKE_FULL_DISK"):
        store.write_summary = _disk_is_full
    worker.supervise = functools.partial(worker.supervise, module=f"tests.fakes.{child}")
    worker.main()


if __name__ == "__main__":
    main()
