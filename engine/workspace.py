"""Workspace: the folder of one person's datasets, drafts, chains, runs, evaluations and models, and the only maker of paths.

Every id that may have come from a user or a URL is checked by one expression here before any path is built from it.
The queue and the device locks are shared by all workspaces of a machine and lie outside (see machine_dir).
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import stat
import tempfile
import time
from pathlib import Path
from typing import Any, BinaryIO

# Run ids "20261124-201516-0a1b2c", sha256 dataset ids, evaluation keys and draft ids: lower case, digits, inner dashes.
_ID = re.compile(r"[0-9a-z](?:[0-9a-z-]{0,94}[0-9a-z])?", re.ASCII)


class BadId(ValueError):
    """An id that cannot name anything in a workspace."""


def checked(identifier: str) -> str:
    """Return `identifier` when it has the form of an id. Raises BadId for anything else, path tricks included."""
    if not isinstance(identifier, str) or not _ID.fullmatch(identifier):
        raise BadId(f"not an id: {str(identifier)[:60]!r}")
    return identifier


def new_run_id(now_s: float | None = None, random_bytes: int = 3) -> str:
    """Return a run id YYYYMMDD-HHMMSS-<hex>: sorts by time; a hosted demo asks for 16 random bytes."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now_s))
    return f"{stamp}-{secrets.token_hex(random_bytes)}"


class Workspace:
    """All of one person's files under `root`; folders are made when first written to."""

    def __init__(self, root: Path | str):
        self.root = Path(root).expanduser().resolve()

    def dataset_dir(self, dataset_id: str) -> Path:
        return self.root / "datasets" / checked(dataset_id)

    def run_dir(self, run_id: str) -> Path:
        return self.root / "runs" / checked(run_id)

    def eval_dir(self, key: str) -> Path:
        return self.root / "evals" / checked(key)

    def draft_path(self, draft_id: str) -> Path:
        return self.root / "drafts" / f"{checked(draft_id)}.json"

    def deleted_path(self, run_id: str) -> Path:
        """Return the file that keeps, of a deleted run, what its adapter lay on, for those that trained it on."""
        return self.root / "deleted" / f"{checked(run_id)}.json"

    def chain_path(self, chain_id: str) -> Path:
        return self.chains_dir / f"{checked(chain_id)}.json"

    def shape_path(self, key: str) -> Path:
        """Return the file that keeps what was counted on the model of a config.json."""
        return self.root / "shapes" / f"{checked(key)}.json"

    @property
    def chains_dir(self) -> Path:
        """Where chains of runs are written down, one file each."""
        return self.root / "chains"

    @property
    def datasets_dir(self) -> Path:
        return self.root / "datasets"

    @property
    def runs_dir(self) -> Path:
        return self.root / "runs"

    @property
    def models_dir(self) -> Path:
        """Where models read from GGUF files lie, each in a folder of its own."""
        return self.root / "models"

    @property
    def uploads_dir(self) -> Path:
        """Where an upload lies while it is checked; on the same disk, so that it can be moved into place."""
        return self.root / "uploads"


def default_workspace() -> Workspace:
    """The workspace of the command line and of the pages: $TUNEBOOK_HOME, or ~/.tunebook."""
    return Workspace(os.environ.get("TUNEBOOK_HOME") or "~/.tunebook")


def machine_dir() -> Path:
    """The folder of the queue and the device locks, one per user and machine: $TUNEBOOK_MACHINE_DIR,
    or ~/.local/state/tunebook, so that two homes do not train on one device at once."""
    chosen = os.environ.get("TUNEBOOK_MACHINE_DIR")
    return Path(chosen or "~/.local/state/tunebook").expanduser()


def nearest(path: Path) -> Path:
    """Return a path, or the nearest folder above it that is there: on the disk where it would be made."""
    return next(place for place in (path, *path.parents) if place.exists())


def open_regular(path: Path) -> BinaryIO:
    """Open a file to be read. Raises OSError also for what is no regular file, whatever it is called: a pipe would be
    waited at for ever, and a device has no end."""
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return os.fdopen(number, "rb")


def read_regular(path: Path) -> bytes:
    """Return the bytes of a regular file. Raises OSError."""
    with open_regular(path) as file:
        return file.read()


def read_object(path: Path) -> dict[str, Any]:
    """Return the object a JSON file holds, or an empty one."""
    try:
        found = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def append_line(path: Path, data: bytes) -> None:
    """Append one line in one write: two processes that do so at once both stay whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, data + b"\n")
    finally:
        os.close(file)


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside `path`, flush to disk, then rename over it: a reader sees the old or the new file, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
