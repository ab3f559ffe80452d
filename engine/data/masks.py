"""The preview of what is trained: made by a child process, which alone may decide it, and kept for the next look."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from engine import processes
from engine.data import datasets, profile
from engine.models import Base
from engine.words import Problem
from engine.workspace import Workspace, write_atomically

SHOWN_ROWS = 6
SHOWN_TOKENS = 1_500
COUNTED_ROWS = 200
TIMEOUT_S = 120


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One text the model reads for a row: "chosen" and "rejected" for a pair, "good" or "bad", or "" for the only one.
    `pieces` and `trained` are its first tokens; `tokens` counts all, `trained_tokens` those inside the window."""

    name: str
    pieces: tuple[str, ...]
    trained: tuple[bool, ...]
    tokens: int
    trained_tokens: int
    cut: bool


class Row(msgspec.Struct, frozen=True, kw_only=True):
    line: int
    parts: tuple[Part, ...]


class Masks(msgspec.Struct, frozen=True, kw_only=True):
    """Some rows token by token, and counts over the first rows. With a `problem` of severity error and no rows, there
    is nothing to show; `untrained` rows would teach nothing, `refused` ones the template cannot write."""

    rows: tuple[Row, ...] = ()
    counted: int = 0
    untrained: int = 0
    refused: int = 0
    tokens: int = 0
    trained: int = 0
    plain_template: bool = False
    problem: Problem | None = None


def cached(workspace: Workspace, dataset_id: str, base: Base) -> Masks | None:
    """The preview of a data set with a base, when it was made before."""
    try:
        return msgspec.json.decode(_path(workspace, dataset_id, base).read_bytes(), type=Masks)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def make(workspace: Workspace, dataset_id: str, base: Base) -> Masks:
    """Make the preview in a child process and wait for it: a few seconds, most of them for imports."""
    datasets.rows_path(workspace, dataset_id)  # an id that is looked up before it is handed on
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "masks.json"
        command = [
            sys.executable, "-m", "engine.train.preview", str(workspace.root), dataset_id, base.ref, str(out),
        ]  # fmt: skip
        try:
            done = subprocess.run(  # noqa: S603 - a list, no shell
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd=processes.PROJECT_DIR,
                timeout=TIMEOUT_S,
                env={**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1"},
            )
            found = msgspec.json.decode(out.read_bytes(), type=Masks)
        except subprocess.TimeoutExpired:
            return Masks(problem=Problem(rule="preview-failed", parameters={"reason": f"> {TIMEOUT_S} s"}))
        except (OSError, msgspec.MsgspecError):
            last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or [str(done.returncode)]
            return Masks(problem=Problem(rule="preview-failed", parameters={"reason": last[0][:200]}))
    if found.rows:
        write_atomically(_path(workspace, dataset_id, base), msgspec.json.encode(found))
    return found


def _path(workspace: Workspace, dataset_id: str, base: Base) -> Path:
    return workspace.dataset_dir(dataset_id) / f"masks-{profile.key(base)}.json"
