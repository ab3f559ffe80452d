"""What a model has, counted on the model itself by a child (engine/train/outline.py) and kept by its config.json.

find() says what is known at once, start() lets a child count beside a process that waits for it (`python -m
engine.models.counted CONFIG TARGET`), wait() waits too. Only layouts that the arithmetic of
shapes.py does not know are counted. What was counted is kept by the hash of config.json and the version of transformers,
and so is why a model cannot be built or what ended its child, which is tried again after a while: a package may have been
missing, or memory.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import msgspec

from engine import processes
from engine.models import shapes
from engine.words import Problem
from engine.workspace import Workspace, find_struct, read_object, read_regular, write_atomically

# So long a child may take: processor time, of which models of 128 and 256 experts took 9 s, and time by the clock, since
# its imports are slow on a busy machine (68 s with three others on each core). It is ended then, and who waits does not
# wait longer.
MOST_CPU_S = 60
MOST_S = 2 * MOST_CPU_S
# Of memory that is written to; those models took 1.1 GiB.
MEMORY_BYTES = 4 << 30
# After a child that was ended, or could not build the model, none is started again for so long.
AGAIN_S = 600
# Raised when what is counted changes, so that it is counted anew.
VERSION = 2
_POLL_S = 0.1

RULES = ("base-not-built", "base-count-time", "base-count-memory")
_TIME, _MEMORY = "time", "MemoryError"


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What was found for a config.json: its `shape`; or `reason`, why transformers cannot build the model, in its words, or
    what the child was ended for; or neither while a first child is at it. `begun_s`: when the last child was started."""

    shape: shapes.Shape | None = None
    reason: str = ""
    begun_s: float = 0.0

    @property
    def is_known(self) -> bool:
        return self.shape is not None or bool(self.reason)

    @property
    def is_under_way(self) -> bool:
        return not self.is_known and 0 <= time.time() - self.begun_s <= MOST_S

    def problem(self, ref: str) -> Problem:
        """Why the model of a base could not be counted."""
        told = {"ref": ref, "reason": self.reason, "seconds": MOST_CPU_S, "gib": MEMORY_BYTES >> 30}
        rule = RULES[1] if self.reason == _TIME else RULES[2] if self.reason.startswith(_MEMORY) else RULES[0]
        return Problem(rule=rule, where="base", parameters=told)


def find(workspace: Workspace, key: str | None) -> Found | None:
    """Return what is known of the model of a key; None where nothing was counted yet, or need not be."""
    return None if key is None else find_struct(workspace.shape_path(key), Found)


def start(workspace: Workspace, key: str | None, folder: Path) -> None:
    """Let a child count the model in a folder, unless that was done or is under way. Never raises."""
    known = find(workspace, key)
    if key is None or _has_begun(known):
        return
    target = workspace.shape_path(key)
    with suppress(OSError):  # what is not counted stays estimated
        begun = msgspec.structs.replace(known or Found(), begun_s=time.time())
        write_atomically(target, msgspec.json.encode(begun))
        processes.start(
            "engine.models.counted", str(folder / "config.json"), str(target),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip


def _has_begun(found: Found | None) -> bool:
    return found is not None and (found.shape is not None or 0 <= time.time() - found.begun_s <= AGAIN_S)


def wait(workspace: Workspace, key: str | None, folder: Path) -> Found | None:
    """Count the model in a folder and return what was found, after MOST_S at the most."""
    start(workspace, key, folder)
    while (found := find(workspace, key)) is not None and found.is_under_way:
        time.sleep(_POLL_S)
    return found


def key(folder: Path) -> str | None:
    """Return what the model in a folder is kept by; None where its layout is known without counting, or none is there.
    It reads config.json: asked where that is looked at (bases.Base.count_key)."""
    path = folder / "config.json"
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return None
    return _keyed(str(path), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _keyed(path: str, _changed: int, _size: int) -> str | None:
    config = read_object(Path(path))
    if not config or shapes.text_config(config).get("model_type") in (None, *shapes.LAYOUTS):
        return None
    told = f"{VERSION} {_version()} ".encode() + read_regular(Path(path))
    return hashlib.sha256(told).hexdigest()


@lru_cache(maxsize=1)
def _version() -> str:
    try:
        return importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return ""


def main(config: str, target: Path) -> int:
    """Wait for the child that counts, and write in its place what ended it."""
    begun_s = time.time()
    child = processes.start(
        "engine.train.outline", config, str(target), str(MOST_CPU_S), str(MEMORY_BYTES),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        code = child.wait(MOST_S)
    except subprocess.TimeoutExpired:
        child.kill()
        code = -signal.SIGXCPU
    if code:
        reason = _TIME if code == -signal.SIGXCPU else f"signal {-code}" if code < 0 else f"exit status {code}"
        write_atomically(target, msgspec.json.encode(Found(reason=reason, begun_s=begun_s)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
