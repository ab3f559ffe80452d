"""How long scoring took on this machine, and so how long it will take."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgspec

from engine.benchmarks.library import docs, find
from engine.workspace import Workspace, append_line, read_lines

# How scoring reads, and characters are counted: what was measured otherwise says nothing about today.
VERSION = 2
# A token that an answer may have takes as long as so many characters that are read: SmolLM2 135M on one core in bf16 read
# one in 0.37 ms (BLiMP), and wrote 33 to 44 answers at once at 8.5 to 10.4 ms for each token they might have had.
WRITTEN_CHARACTERS = 26
# Under this name stands how long the rows of a new task took, asked without worked examples and after some.
AFTER_EXAMPLES = "rows-after-examples"


class Speed(msgspec.Struct, kw_only=True):
    """One measurement: so many seconds for so many questions of a benchmark, by a base on a device."""

    device: str
    base: str
    benchmark: str
    items: int
    seconds: float
    parameters: int | None = None
    characters: int = 0
    version: int = 1


def _speeds_path(workspace: Workspace) -> Path:
    return workspace.root / "evals" / "speeds.jsonl"


def note_speed(workspace: Workspace, speed: Speed) -> None:
    """Keep a measurement, for the estimates of later runs."""
    append_line(_speeds_path(workspace), msgspec.json.encode(msgspec.structs.replace(speed, version=VERSION)))


def speeds(workspace: Workspace) -> list[Speed]:
    """Return all measurements, oldest first."""
    return read_lines(_speeds_path(workspace), Speed)


def characters(asked: list[dict[str, Any]]) -> int:
    """Return how many characters a model reads for these questions: what the choices of one begin with, its question and
    the first words of theirs, is read once. What it writes for a grader is counted as what could be read meanwhile."""
    total = 0
    for doc in asked:
        question = doc.get("question") or doc.get("text") or ""
        texts = [*(doc.get("choices") or []), *(f"{one} {doc['continuation']}" for one in doc.get("contexts") or [])]
        texts = sorted(texts or [doc.get("reference") or ""])
        total += WRITTEN_CHARACTERS * doc.get("most_tokens", 0)
        total += len(question) + sum(map(len, texts)) - sum(_alike(*pair) for pair in itertools.pairwise(texts))
    return total


def _alike(one: str, other: str) -> int:
    """Return with how many equal characters two texts begin."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def seconds(
    workspace: Workspace, device: str, base: str, parameters: int | None, names: list[str], limit: int = 0
) -> float | None:
    """Return the estimated seconds of scoring one model on benchmarks, from what was measured on this device: the same
    base and benchmark by questions; else the same base, or one of another size in proportion, by characters. None when
    nothing was measured that says anything."""
    measured = _of_device(workspace, device)
    total = 0.0
    for name in names:
        one = find(name, workspace)
        if one is None:
            return None
        n = min(one.size, limit) if limit else one.size
        same = next((s for s in measured if s.base == base and s.benchmark == name and s.items), None)
        if same is not None:
            total += same.seconds * n / same.items
            continue
        read, pace_s = characters(docs(one, limit)), _pace_s(measured, base, parameters)
        if pace_s is None or not read:
            return None
        total += pace_s * read
    return total


def of_rows(
    workspace: Workspace, device: str, base: str, parameters: int | None, name: str, rows: int, read: int
) -> float | None:
    """Return the estimated seconds of asking so many rows, which were measured before under that name, else by the `read`
    characters of them as in seconds(); 0 characters: they say nothing, since answers are written."""
    measured = _of_device(workspace, device)
    same = next((s for s in measured if s.base == base and s.benchmark == name and s.items), None)
    if same is not None:
        return same.seconds * rows / same.items
    pace_s = _pace_s(measured, base, parameters)
    return None if pace_s is None or not read else pace_s * read


def _of_device(workspace: Workspace, device: str) -> list[Speed]:
    """Return what was measured on a device by today's way of scoring, newest first."""
    return [s for s in speeds(workspace) if s.device == device and s.seconds > 0 and s.version == VERSION][::-1]


def _pace_s(measured: list[Speed], base: str, parameters: int | None) -> float | None:
    """Return the seconds a character takes: of the same base, else of one of another size in proportion."""
    near, scale = next((s for s in measured if s.base == base and s.characters), None), 1.0
    if near is None and parameters:
        near = next((s for s in measured if s.parameters and s.characters), None)
        scale = parameters / near.parameters if near is not None and near.parameters else 1.0
    return None if near is None else near.seconds / near.characters * scale
