"""Trainings forked from a parent that has imported everything once: the imports are half the time of a short training.

The same command line, the same supervisor and the same child as ever; only the way the child comes to life differs.
`make test-all` starts a fresh process for each instead (`--fresh-children`).
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

from tests.helpers import PROJECT_DIR, wait_until

fresh = False  # set from the command line of pytest


def module(name: str) -> str:
    """Return the module to start for `cli`, `supervisor` or `chat`: ours, or the product's own when children are to be
    fresh."""
    if fresh:
        return {"cli": "engine.cli", "supervisor": "engine.worker", "chat": "engine.train.chat"}[name]
    _start_parent()
    return f"tests.forked.{name}"


@functools.cache
def _start_parent() -> None:
    """Start the parent of all test processes where none has yet, and wait until it listens. It ends with the session."""
    session, owner = os.environ.get("PYTEST_XDIST_TESTRUNUID", ""), os.getpid()
    if session:  # whose processes are children of one, which outlives them
        owner = os.getppid()
    folder = Path(tempfile.gettempdir()) / f"tunebook-parent-{os.getuid()}-{session or owner}"
    with FileLock(f"{folder}.lock"):
        if not (folder / "socket").exists():
            _start_in(folder, owner)
    os.environ["TUNEBOOK_TEST_PARENT"] = str(folder / "socket")


def _start_in(folder: Path, owner: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    log = (folder / "log").open("wb")
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.forked.parent", str(folder / "socket"), str(owner)],
        cwd=PROJECT_DIR,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_DATASETS_CACHE": str(folder / "cache"),
            "TOKENIZERS_PARALLELISM": "false",
            "DISABLE_MULTIPROC": "1",
            "TQDM_DISABLE": "1",
            "OMP_NUM_THREADS": "1",
        },
    )
    wait_until(
        lambda: (folder / "socket").exists() or parent.poll() is not None, 180, "the parent of trainings listens"
    )
    assert parent.poll() is None, (folder / "log").read_text()


def run_python(code: str, *arguments: Path | str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, with the network off, and return what it printed."""
    words, env = [str(a) for a in arguments], {**os.environ, "HF_HUB_OFFLINE": "1"}
    if fresh:
        return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=cwd, env=env)
    from tests.forked.parent import Child

    _start_parent()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = Child((out.fileno(), err.fileno()), code=code, arguments=words, cwd=str(cwd), env=env)
        status = child.wait()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(code, status, out.read(), err.read())
