"""Safetensors files by their headers alone: whether they are whole, and how many numbers they hold."""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

from engine.models.refs import PART
from engine.workspace import open_regular, read_object

_HEADER_LIMIT_BYTES = 100 * 2**20
INDEX = "model.safetensors.index.json"


def shards(folder: Path) -> set[str]:
    """Return the files that the index of a model in several files names; none where there is no index."""
    named = read_object(folder / INDEX).get("weight_map")
    files = named.values() if isinstance(named, dict) else ()
    return {name for name in files if isinstance(name, str)}


def _is_beside(name: str) -> bool:
    """Whether a file that an index names lies beside it and is called as one of safetensors: transformers 5.17 would read
    any other as well, from anywhere, and as a pickle."""
    return name == Path(name).name and name.endswith(".safetensors")


def is_whole(path: Path) -> bool:
    """Return whether a safetensors file is there to its last byte."""
    return count_parameters(path) is not None


def count_parameters(path: Path) -> int | None:
    """Count the numbers in a safetensors file from its header; None when it is cut. What bitsandbytes packs two to a byte
    is counted unpacked, and the constants beside it are none of the model's."""
    try:
        header, end = _header(path)
        packed = {name.removesuffix(".absmax") for name in header if name.endswith(".absmax")}
        total = 0
        for name, tensor in header.items():
            size = math.prod(_shape(tensor))
            if not _is_constant(name, header):
                total += 2 * size if name in packed and tensor["dtype"] == "U8" else size
        return total if path.stat().st_size == end else None
    except _NO_HEADER:
        return None


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a safetensors file, by its name; none of a damaged one."""
    try:
        return {name: _shape(tensor) for name, tensor in _header(path)[0].items()}
    except _NO_HEADER:
        return {}


_NO_HEADER = (OSError, ValueError, struct.error, LookupError, TypeError, AttributeError, RecursionError)
# What bitsandbytes writes beside a weight it has rounded (bitsandbytes/functional.py, QuantState.as_dict; nn/modules.py).
_CONSTANTS = re.compile(r"(.+)(?:\.(?:nested_)?(?:absmax|quant_map)|\.quant_state\.bitsandbytes__\w+)")


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The tensors of a safetensors file (8 bytes of length, then JSON) and how many bytes the file must have."""
    with open_regular(path) as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _HEADER_LIMIT_BYTES:
            raise ValueError
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)


def _shape(tensor: dict[str, Any]) -> tuple[int, ...]:
    if not all(isinstance(one, int) and one >= 0 for one in tensor["shape"]):
        raise ValueError
    return tuple(tensor["shape"])


def _is_constant(name: str, header: dict[str, Any]) -> bool:
    found = _CONSTANTS.fullmatch(name)
    eight = name.rpartition(".")
    return bool(found and found[1] in header) or (
        eight[2] in ("SCB", "weight_format") and f"{eight[0]}.weight" in header
    )


class Files(NamedTuple):
    """The weights of a model that are read, each tensor once. `missing`: those that are named and not there. `index`:
    whether there is an index that names them. `misnamed`: they are called otherwise than transformers looks for."""

    present: tuple[Path, ...]
    missing: frozenset[str] = frozenset()
    index: bool = False
    misnamed: bool = False


def files(folder: Path) -> Files:
    """Find the weights in a folder as transformers does: model.safetensors, else the parts that its index names
    (modeling_utils.py, _get_resolved_checkpoint_files). An adapter's are none, and of what else lies there, such as
    Mistral's consolidated.safetensors, each tensor is held twice."""
    one, index = folder / "model.safetensors", (folder / INDEX).is_file()
    if one.is_file():
        return Files((one,), index=index)
    named = shards(folder)
    if named:
        here = tuple(sorted(folder / name for name in named if _is_beside(name) and (folder / name).is_file()))
        return Files(here, frozenset(named - {path.name for path in here}), index=True)
    others = sorted(path for path in folder.glob("*.safetensors") if path.is_file() and not _is_no_model(path.name))
    parts = tuple(path for path in others if re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", path.name))
    if parts:
        return Files(parts, frozenset({INDEX}), index=False)
    return Files(tuple(others), index=index, misnamed=bool(others))


def _is_no_model(name: str) -> bool:
    return name.startswith(("adapter", "optimizer", "scheduler", "rng_state"))


def has_all_weights(folder: Path) -> bool:
    """Whether a cached snapshot has every weights file its index or their names speak of."""
    here = {path.name for path in folder.glob("*.safetensors") if path.exists()}
    counted = [int(found[2]) for name in here if (found := PART.search(name))]
    if counted and len([name for name in here if PART.search(name)]) < max(counted):
        return False
    return bool(here) and shards(folder) <= here
