"""What a run has made: the folder of its weights, and which of them."""

from __future__ import annotations

from pathlib import Path


def made_by(run_dir: Path) -> Path | None:
    """Return the folder of what a run has made, model/ where every weight moved, else adapter/; None while there is
    neither."""
    return next((run_dir / name for name in ("model", "adapter") if (run_dir / name).is_dir()), None)
