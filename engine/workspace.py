"""Workspace: the folder of one person's datasets, drafts, chains, runs, evaluations and models, and the only maker of paths.

Every id that may have come from a user or a URL is checked by one expression here before any path is built from it.
The queue and the device locks are shared by all workspaces of a machine and lie outside (see machine_dir).
"""

from __future__ import annotations

import json
import os
import re
import secrets
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

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
        return self.drafts_dir / f"{checked(draft_id)}.json"

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
    def drafts_dir(self) -> Path:
        return self.root / "drafts"

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


class Unreadable(ValueError):
    """What a file holds is cut, damaged, or not what it should be."""


# What bytes that are no JSON raise, or no JSON of the type that is wanted: also what is nested too deep, and numbers and
# lists beyond measure. Bytes that are no UTF-8 and msgspec's own are ValueErrors.
MALFORMED = (ValueError, RecursionError, OverflowError, MemoryError)


# More digits than a number of 64 bits has: no figure of ours, and what is reckoned with it overflows.
_LONG = re.compile(rb"\d{20}")


def decoded(data: bytes, kind: type[T] | msgspec.json.Decoder[T]) -> T:
    """Return the value that JSON holds; of many alike, a decoder of their kind is made once. Raises Unreadable, also where
    a number in it is beyond measure."""
    decoder = kind if isinstance(kind, msgspec.json.Decoder) else msgspec.json.Decoder(kind)
    try:
        if _LONG.search(data) and _is_beyond_measure(msgspec.json.decode(data)):
            raise Unreadable("a number in it is beyond measure")
        return decoder.decode(data)
    except MALFORMED as error:
        raise Unreadable(str(error)[:200]) from error


def _is_beyond_measure(node: Any) -> bool:
    if isinstance(node, dict | list):
        return any(map(_is_beyond_measure, node.values() if isinstance(node, dict) else node))
    return isinstance(node, int) and abs(node) >= 1 << 63


def read_struct(path: Path, kind: type[T]) -> T:
    """Return the value a JSON file holds. Raises OSError, and Unreadable where it holds none of its kind."""
    return decoded(path.read_bytes(), kind)


def find_struct(path: Path, kind: type[T]) -> T | None:
    """Return the value a JSON file holds; None where there is no such file, or none that can be read."""
    try:
        return read_struct(path, kind)
    except (OSError, Unreadable):
        return None


def read_lines(path: Path, kind: type[T]) -> list[T]:
    """Return the values of a file that holds one a line; a line that was cut or damaged is passed over."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    found, decoder = [], msgspec.json.Decoder(kind)
    for line in lines:
        with suppress(Unreadable):
            found.append(decoded(line, decoder))
    return found


def read_object(path: Path) -> dict[str, Any]:
    """Return the object a JSON file holds, or an empty one. NaN and Infinity are read too, which Python's writers write."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, *MALFORMED):
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
