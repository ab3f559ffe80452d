"""Asking a GGUF file what the run was asked that it was made of: a child does it (engine/train/quantised.py)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from engine import events, processes
from engine.quantised.lost import LOST, Lost, folder_of
from engine.runs import environment, store
from engine.words import Problem, later
from engine.workspace import Workspace, write_atomically

LOG = "quantised.log"


def ask(
    workspace: Workspace, run_id: str, file: Path, quantization: str, plain: Path | None = None,
    told: Callable[[float], None] = lambda _: None,
) -> None:  # fmt: skip
    """Ask a run's file, and the model it was made of, what the run was asked. `plain` is the file in 16 bits that it was
    made of, whose answers come first; `told` hears the share that is done.

    The file is whole whatever comes of this: what went wrong is kept and said in its place."""
    run_dir = workspace.run_dir(run_id)
    chosen = environment.environment(run_dir, store.load_spec(workspace, run_id))
    # threads that wait for each other leave their cores to other work
    chosen.setdefault("OMP_WAIT_POLICY", "passive")
    arguments = [str(run_dir), str(file.absolute()), quantization, *([str(plain.absolute())] if plain else [])]
    failed: events.Failed | None = None
    with (run_dir / LOG).open("wb") as log:
        child = processes.start(
            "engine.train.quantised", *arguments, env=chosen, stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert child.stdout is not None
        try:
            for line in child.stdout:
                said = _said(line)
                if "share" in said:
                    told(float(said["share"]))
                if "failed" in said:
                    failed = msgspec.convert(said["failed"], events.Failed)
            code = child.wait()
        except BaseException:
            child.kill()
            raise
    if code != 0:
        _fail(file, quantization, failed)


def _said(line: str) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:  # a library's own words
        return {}
    return said if isinstance(said, dict) else {}


def _fail(file: Path, quantization: str, failed: events.Failed | None) -> None:
    """Keep beside a file why it was not asked: what the child said, or that it ended without a word."""
    message, fix = (failed.message, failed.fix) if failed else Problem(rule="quantised-ended").texts
    now = file.stat()
    lost = Lost(
        quantization=quantization, size_bytes=now.st_size, mtime_ns=now.st_mtime_ns,
        failure=later("{message}; {fix}", message=message, fix=fix) if fix else message,
    )  # fmt: skip
    folder_of(file).mkdir(exist_ok=True)
    write_atomically(folder_of(file) / LOST, msgspec.json.encode(lost))
