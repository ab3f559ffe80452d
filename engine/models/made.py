"""What a run has made: the folder of its weights, which of them, and what they lie on."""

from __future__ import annotations

import json
from pathlib import Path

from engine.workspace import Workspace


def made_by(run_dir: Path) -> Path | None:
    """Return the folder of what a run has made, model/ where every weight moved, else adapter/; None while there is
    neither."""
    return next((run_dir / name for name in ("model", "adapter") if (run_dir / name).is_dir()), None)


def under(workspace: Workspace, run_id: str) -> tuple[str, str | None]:
    """Return what a run's weights lie on, as ref and commit: its base, or, where it trained the adapter of an earlier run
    on, what that adapter lies on. Raises OSError, ValueError, KeyError or TypeError where a run of the line is gone."""
    seen: set[str] = set()
    while run_id not in seen:
        seen.add(run_id)
        told = json.loads((workspace.run_dir(run_id) / "spec.json").read_bytes())
        base = told["base"]
        args = told.get("adapter_args")
        if not (isinstance(args, dict) and args.get("continue")):
            return base["ref"], base.get("revision")
        run_id = base["ref"].removeprefix("run:")
    raise ValueError(f"the runs before {run_id} form a ring")
