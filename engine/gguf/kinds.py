"""The kinds of GGUF files that are made of a run, and where each lies."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Kind(NamedTuple):
    """What people call it, its number in llama.h (enum llama_ftype), and what share of the size in 16 bits it takes at
    most."""

    title: str
    number: int
    most_share: float


# What is nearest to the run first.
KINDS = {"f16": Kind("F16", 1, 1.0), "q8_0": Kind("Q8_0", 7, 0.55), "q4_k_m": Kind("Q4_K_M", 15, 0.5)}


def file_of(run_dir: Path, kind: str) -> Path:
    """Return where a run's file of a kind lies once it is made."""
    return run_dir / "gguf" / f"{run_dir.name}-{kind}.gguf"
