"""What a run has made: the folder of its weights, which of them, and what they lie on."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from engine.workspace import Workspace, read_object, read_struct, write_atomically


def made_by(run_dir: Path) -> Path | None:
    """Return the folder of what a run has made, model/ where every weight moved, else adapter/; None while there is
    neither."""
    return next((run_dir / name for name in ("model", "adapter") if (run_dir / name).is_dir()), None)


class _Below(msgspec.Struct):
    """What weights lie on: in deleted/, and in a spec beside more."""

    ref: str
    revision: str | None = None


def under(workspace: Workspace, run_id: str) -> tuple[str, str | None]:
    """Return what a run's weights lie on, as ref and commit: its base, or, where it trained the adapter of an earlier run
    on, what that adapter lies on, which is kept of a run that was deleted. Raises OSError or ValueError where a run of the
    line is gone otherwise, or cannot be read."""
    seen: set[str] = set()
    while run_id not in seen:
        seen.add(run_id)
        kept = workspace.deleted_path(run_id)
        if kept.is_file():
            below = read_struct(kept, _Below)
            return below.ref, below.revision
        told = read_struct(workspace.run_dir(run_id) / "spec.json", dict[str, Any])
        below = msgspec.convert(told.get("base"), _Below)
        if not _continues(told):
            return below.ref, below.revision
        run_id = below.ref.removeprefix("run:")
    raise ValueError(f"the runs before {run_id} form a ring")


def keep_below(workspace: Workspace, run_id: str) -> None:
    """Write down what the adapter of a run lies on where another run trained it on: asked before the run is deleted, since
    that run's weights lie on the same."""
    ref = f"run:{run_id}"
    specs = [read_object(path) for path in workspace.runs_dir.glob("*/spec.json")]
    if not any(_continues(told) and told["base"].get("ref") == ref for told in specs):
        return
    with suppress(OSError, ValueError):
        below, revision = under(workspace, run_id)
        data = json.dumps({"ref": below, "revision": revision}).encode()
        write_atomically(workspace.deleted_path(run_id), data)


def _continues(told: dict[str, Any]) -> bool:
    """Whether a run, by its spec, trained the adapter of an earlier one on."""
    args = told.get("adapter_args")
    return isinstance(args, dict) and bool(args.get("continue")) and isinstance(told.get("base"), dict)
