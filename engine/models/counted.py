"""What a model has, counted on the model itself by a child (engine/train/outline.py) and kept by its config.json.

find() says what is known at once, start() lets a child count, wait() waits for it. Only layouts that the arithmetic of
shapes.py does not know are counted. What was counted is kept by the hash of config.json and the version of transformers,
and so is why a model cannot be built, which is tried again after a while: a package may have been missing, or memory.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import subprocess
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import msgspec

from engine import processes
from engine.models import shapes
from engine.workspace import Workspace, find_struct, read_object, write_atomically

# So long a child may take, most of it for its imports on a busy machine; it ends itself then, and who waits does not wait
# longer.
MOST_S = 120
# After a child that was ended, or could not build the model, none is started again for so long.
AGAIN_S = 600
# Raised when what is counted changes, so that it is counted anew.
VERSION = 2
_POLL_S = 0.1


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What was found for a config.json: its `shape`; or `reason`, why transformers cannot build the model, in its words; or
    neither while a first child is at it. `begun_s`: when the last child was started."""

    shape: shapes.Shape | None = None
    reason: str = ""
    begun_s: float = 0.0

    @property
    def is_known(self) -> bool:
        return self.shape is not None or bool(self.reason)

    @property
    def is_under_way(self) -> bool:
        return not self.is_known and 0 <= time.time() - self.begun_s <= MOST_S


def find(workspace: Workspace, folder: Path) -> Found | None:
    """Return what is known of the model in a folder; None where nothing was counted yet, or need not be."""
    key = _key(folder)
    return _read(workspace, key) if key is not None else None


def start(workspace: Workspace, folder: Path) -> None:
    """Let a child count the model in a folder, unless that was done or is under way. Never raises."""
    key = _key(folder)
    known = _read(workspace, key) if key is not None else None
    if key is None or _has_begun(known):
        return
    target = workspace.shape_path(key)
    with suppress(OSError):  # what is not counted stays estimated
        begun = Found(reason=known.reason if known is not None else "", begun_s=time.time())
        write_atomically(target, msgspec.json.encode(begun))
        processes.start(
            "engine.train.outline", str(folder / "config.json"), str(target), str(MOST_S),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip


def _has_begun(found: Found | None) -> bool:
    return found is not None and (found.shape is not None or 0 <= time.time() - found.begun_s <= AGAIN_S)


def wait(workspace: Workspace, folder: Path) -> Found | None:
    """Count the model in a folder and return what was found, after MOST_S at the most."""
    start(workspace, folder)
    while (found := find(workspace, folder)) is not None and found.is_under_way:
        time.sleep(_POLL_S)
    return found


def _read(workspace: Workspace, key: str) -> Found | None:
    return find_struct(workspace.shape_path(key), Found)


def _key(folder: Path) -> str | None:
    """Return what the model in a folder is kept by; None where its layout is known without counting, or none is there."""
    path = folder / "config.json"
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return None
    return _keyed(str(path), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _keyed(path: str, _changed: int, _size: int) -> str | None:
    config = read_object(Path(path))
    if shapes.text_config(config).get("model_type") in (None, *shapes.LAYOUTS):
        return None
    told = f"{VERSION} {_version()} ".encode() + Path(path).read_bytes()
    return hashlib.sha256(told).hexdigest()


@lru_cache(maxsize=1)
def _version() -> str:
    try:
        return importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return ""
