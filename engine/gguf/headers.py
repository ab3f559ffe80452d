"""The header of a GGUF file: its values and the list of its tensors, read without the numbers.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. The library `gguf`
is an extra, and takes seconds for a vocabulary; pages ask several times a minute.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import mmap
import re
import struct
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from engine.words import Problem
from engine.workspace import open_regular

# What transformers 5.17 reads (integrations/ggml.py) and a test wrote and read again with the same logits.
ARCHITECTURES = ("llama", "qwen2", "qwen3")
STRETCHED = "rope_freqs.weight"
_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# ggml's types of numbers: name, numbers in a block, bytes of a block (ggml.h, ggml-common.h).
_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
_WHOLE = ("F32", "F16", "BF16")
_MOST_DIMENSIONS = 4
_TOLD_APART_BYTES = 1024
_ENDING = re.compile(r"[.-](?:i?q\d\w*|tq\d\w*|mxfp4\w*|[bf]f?\d+)$", re.IGNORECASE)


class Refused(Exception):
    """A file that cannot be taken; `problem` says why."""

    def __init__(self, problem: Problem):
        self.problem = problem
        super().__init__(problem.sentence)


def refused(rule: str, **parameters: str | int) -> Refused:
    """Return what to raise for a file that breaks a rule of sentences.yaml."""
    return Refused(Problem(rule=rule, where="base", parameters=dict(parameters)))


def package_problem() -> Problem | None:
    """Return that the extra package is lacking which transformers reads the weights with, or None."""
    return None if importlib.util.find_spec("gguf") else refused("gguf-package").problem


class Tensor(msgspec.Struct, frozen=True):
    """`shape` has the fastest dimension first, as ggml has it; `kind` is the name of its type, Q4_1 or F32; `offset` counts
    bytes from Header.data_at."""

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a GGUF file says of itself. `key` tells two files apart by their headers, sizes, the beginning of each tensor
    and the last MiB; at `data_at` its numbers begin."""

    path: Path
    key: str
    data_at: int
    values: dict[str, Any]
    tensors: tuple[Tensor, ...]

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", ""))

    @property
    def parameters(self) -> int:
        return sum(tensor.numbers for tensor in self.tensors if tensor.name != STRETCHED)

    @property
    def stretched(self) -> Tensor | None:
        """The factors by which a Llama's positions are stretched."""
        return next((tensor for tensor in self.tensors if tensor.name == STRETCHED), None)

    @property
    def kind(self) -> str:
        """The type that most of the weights are held in."""
        held: Counter[str] = Counter()
        for tensor in self.tensors:
            held[tensor.kind] += tensor.numbers
        return held.most_common(1)[0][0]

    @property
    def rounded_bits(self) -> int | None:
        """The bits most weights were rounded to; None where they are held in 16 or 32."""
        return None if self.kind in _WHOLE else int(re.findall(r"\d+", self.kind)[0])

    @property
    def name(self) -> str:
        """The file's name without its ending and the type of its numbers."""
        return _ENDING.sub("", self.path.stem)

    def problem(self) -> Problem | None:
        """Return why the weights cannot be taken, whatever the tokenizer, or None."""
        name, kind = self.path.name, self.architecture
        if kind not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            return refused("gguf-architecture", file=name, kind=kind[:60], known=known).problem
        # transformers 5.17 reads neither, so the positions would be other ones than the model was trained with
        others = any(t.name.startswith("rope_") and t.name != STRETCHED for t in self.tensors)
        if others or self._scaling not in ("", "none"):
            return refused("gguf-positions", file=name).problem
        return None

    @property
    def _scaling(self) -> str:
        return str(self.values.get(f"{self.architecture}.rope.scaling.type", ""))


def read(path: Path) -> Header:
    """Read a header, arrays too. Raises Refused for what is no whole GGUF file."""
    try:
        found = path.stat()
        return _read(path, found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise refused("gguf-missing", file=str(path)) from error
    except (struct.error, ValueError, LookupError, OverflowError, RecursionError, MemoryError) as error:
        raise refused("gguf-cut", file=path.name) from error


@lru_cache(maxsize=4)
def _read(path: Path, size: int, _: int) -> Header:
    with open_regular(path) as file:
        if file.read(4) != _MAGIC:
            raise refused("gguf-not-one", file=path.name)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            reader = _Reader(data)
            version, tensors, values = reader.take("IQQ")
            if version not in (2, 3):
                raise refused("gguf-version", file=path.name, version=version)
            told = {reader.text(): reader.value(*reader.take("I")) for _ in range(values)}
            if told.get("split.count", 1) > 1:
                raise refused("gguf-split", file=path.name)
            held, end = [], 0
            for _ in range(tensors):
                tensor, after = _tensor(reader, path)
                held.append(tensor)
                end = max(end, after)
            aligned = int(told.get("general.alignment", 32))
            data_at = reader.at + (-reader.at) % aligned
            if not held or data_at + end > size:
                raise refused("gguf-cut", file=path.name)
            whole = hashlib.sha256(data[: reader.at] + data[-(1 << 20) :] + str(size).encode())
            for tensor in held:  # one that was tuned differs from its base in few of them, and nowhere else
                begin = data_at + tensor.offset
                whole.update(data[begin : begin + _TOLD_APART_BYTES])
            key = whole.hexdigest()[:12]
    return Header(path=path, key=key, data_at=data_at, values=told, tensors=tuple(held))


def _tensor(reader: _Reader, path: Path) -> tuple[Tensor, int]:
    """Return the next tensor of the list, and where its numbers end after the header."""
    name, (dimensions,) = reader.text(), reader.take("I")
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError(dimensions)
    shape = reader.take(f"{dimensions}Q")
    kind, offset = reader.take("IQ")
    if kind not in _TYPES:
        raise refused("gguf-type", file=path.name, kind=kind)
    called, block, size = _TYPES[kind]
    return Tensor(name, shape, called, offset), offset + math.prod(shape) // block * size


class _Reader:
    """Takes one value after another from the bytes of a header; what runs over their end raises struct.error."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, len(_MAGIC)

    def take(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return found

    def text(self) -> str:
        (length,) = self.take("Q")
        if self.at + length > len(self.data):
            raise ValueError(length)
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.take(_NUMBERS[kind])[0]
        of, length = self.take("IQ")
        if length > len(self.data):  # each entry takes a byte at least
            raise ValueError(length)
        if of in _NUMBERS:
            return list(self.take(f"{length}{_NUMBERS[of]}"))
        return [self.value(of) for _ in range(length)]
