"""Safetensors files by their headers alone: whether they are whole, and how many numbers they hold."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from engine.models.refs import PART

_HEADER_LIMIT_BYTES = 100 * 2**20


def shards(folder: Path) -> set[str]:
    """Return the files that the index of a model in several files names; none where there is no index."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_bytes())
        return set(index["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()


def is_whole(path: Path) -> bool:
    """Return whether a safetensors file is there to its last byte."""
    return count_parameters(path) is not None


def count_parameters(path: Path) -> int | None:
    """Count the numbers in a safetensors file from its header (8 bytes of length, then JSON); None when it is cut."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _HEADER_LIMIT_BYTES:
                return None
            header = json.loads(file.read(length))
        total, end = 0, 0
        for name, tensor in header.items():
            if name != "__metadata__":
                size = 1
                for dimension in tensor["shape"]:
                    if not isinstance(dimension, int) or dimension < 0:
                        return None
                    size *= dimension
                total += size
                end = max(end, tensor["data_offsets"][1])
        return total if path.stat().st_size == 8 + length + end else None
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, RecursionError):
        return None


def has_all_weights(folder: Path) -> bool:
    """Whether a cached snapshot has every weights file its index or their names speak of."""
    here = {path.name for path in folder.glob("*.safetensors") if path.exists()}
    counted = [int(found[2]) for name in here if (found := PART.search(name))]
    if counted and len([name for name in here if PART.search(name)]) < max(counted):
        return False
    return bool(here) and shards(folder) <= here
