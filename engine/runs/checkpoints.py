"""The checkpoints of a run: which is the last that can be gone on from."""

from __future__ import annotations

import zipfile
from pathlib import Path

from engine.models import weights as models_weights


def _checkpoints(run_dir: Path) -> list[Path]:
    """Return the checkpoints of a run, the last first."""
    numbered = [
        (path.name.partition("checkpoint-")[2], path) for path in (run_dir / "checkpoints").glob("checkpoint-*")
    ]
    return [path for _, path in sorted(((int(n), p) for n, p in numbered if n.isdecimal()), reverse=True)]


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was written, by its name."""
    return int(checkpoint.name.rpartition("-")[2])


def last_step(run_dir: Path) -> int:
    """Return the step from which a run would go on: of its last whole checkpoint, or 0."""
    whole = last_checkpoint(run_dir)
    return step_of(whole) if whole is not None else 0


def is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint can be gone on from: weights to their last byte, optimizer and counters. A crash or a
    full disk may have cut the last one short."""
    weights = list(checkpoint.glob("*.safetensors"))
    # optimizer.pt is a zip, whose table of contents is written last; PPO's is a safetensors file
    optimizer = zipfile.is_zipfile(checkpoint / "optimizer.pt") or (checkpoint / "optimizer.safetensors").is_file()
    told = (checkpoint / "trainer_state.json").is_file()
    return told and optimizer and bool(weights) and all(map(models_weights.is_whole, weights))


def last_checkpoint(run_dir: Path) -> Path | None:
    """Return the last whole checkpoint of a run, or None."""
    return next((path for path in _checkpoints(run_dir) if is_whole(path)), None)


def broken_checkpoint(run_dir: Path) -> str | None:
    """Return the name of the last checkpoint that is cut short, or None."""
    return next((path.name for path in _checkpoints(run_dir) if not is_whole(path)), None)
