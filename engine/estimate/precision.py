"""Whether a processor computes faster in bf16, by what a run's child measured here (engine/train/precision.py).

Instructions for bf16 (AMX, AVX512-BF16) say only that a trial is worth its two seconds: how much they gain hangs on the
width of the layers, the threads and the machine. What was found is kept in the workspace, a line for each of these, so
that it is paid once; plan and page read it, torch-free.
"""

from __future__ import annotations

import importlib.metadata
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from engine.estimate import measured
from engine.models import shapes
from engine.spec import OBJECTIVES, RunSpec
from engine.words import Text, later
from engine.workspace import Workspace, append_line, read_lines

# Instructions that multiply bf16, as Linux names them (/proc/cpuinfo).
INSTRUCTIONS = ("amx_bf16", "avx512_bf16")
# Rounding is only worth it where it gains so much.
WORTH = 1.1
# In narrower layers the calls take longer than the numbers: the starter's, of 128, are not tried.
LEAST_WIDTH = 256


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """The seconds that a layer of some width took forward and backward in both formats."""

    machine: str
    torch: str
    hidden: int
    intermediate: int
    threads: int
    fp32_s: float
    bf16_s: float

    @property
    def factor(self) -> float:
        """How many times as fast bf16 is."""
        return self.fp32_s / self.bf16_s


class Known(NamedTuple):
    """What is known of a run's number format before it starts. `factor`: how many times as fast bf16 was in the trial;
    None: there was none. `to_try`: the child makes one at the start."""

    bf16: bool
    why: Text
    factor: float | None = None
    to_try: bool = False


@lru_cache(maxsize=1)
def instructions() -> tuple[str, ...]:
    """Return which of INSTRUCTIONS this processor has."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ()
    words = next((line.split() for line in lines if line.startswith("flags")), [])
    return tuple(name for name in INSTRUCTIONS if name in words)


def on_processor(workspace: Workspace, run_spec: RunSpec, shape: shapes.Shape | None) -> Known:
    """Return what a run that leaves its format open computes in on this processor."""
    if not instructions():
        return Known(False, later("this processor has no instructions for bf16"))
    if run_spec.base_form.startswith(("4bit", "8bit")):
        return Known(False, later("a base in few bits is computed in 32 on a processor"))
    if OBJECTIVES[run_spec.objective].writes_answers:
        return Known(False, later("answers are held against their own probabilities, which 16 bits would blur"))
    if shape is None:
        return Known(False, later("nothing is known of the base's layers"))
    if shape.hidden < LEAST_WIDTH:
        return Known(False, later("layers as narrow as {width} gain nothing from 16 bits", width=shape.hidden))
    found = find(workspace, shape, run_spec.train.threads)
    if found is None:
        return Known(
            False, later("whether bf16 is faster here is tried at the start, in about two seconds"), to_try=True
        )
    times = f"{found.factor:.1f}"
    if found.factor < WORTH:
        why = later("in a trial of this base's layers here bf16 had {times} times the speed of fp32", times=times)
        return Known(False, why, found.factor)
    why = later(
        "in a trial of this base's layers here it was {times} times as fast; weights that train stay in fp32",
        times=times,
    )
    return Known(True, why, found.factor)


def find(workspace: Workspace, shape: shapes.Shape, threads: int) -> Trial | None:
    """Return the last trial of such layers on this machine, with as many threads and this version of torch."""
    wanted = key(shape, threads)
    for one in reversed(read_lines(_path(workspace), Trial)):
        told = (one.machine, one.torch, one.hidden, one.intermediate, one.threads)
        if told == wanted and min(one.fp32_s, one.bf16_s) > 0:
            return one
    return None


def key(shape: shapes.Shape, threads: int) -> tuple[str, str, int, int, int]:
    """Return what a trial holds for: machine, torch, width, width of the feed-forward part, threads."""
    return measured.machine_name(), _torch_version(), shape.hidden, shape.intermediate, threads


def record(workspace: Workspace, trial: Trial) -> None:
    """Append a trial."""
    append_line(_path(workspace), msgspec.json.encode(trial))


@lru_cache(maxsize=1)
def _torch_version() -> str:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _path(workspace: Workspace) -> Path:
    return workspace.root / "precision.jsonl"
