"""What finished runs took on this machine, kept as a file of the workspace, so that the next estimate stands on it.

`measurements.jsonl` has a line for each finished run: its shape and settings, its peak of memory, the seconds of a step.
Nothing else is learned: an estimate is the formula times what the formula missed by, and says how many runs it stands on.
"""

from __future__ import annotations

import math
import statistics
from functools import lru_cache
from pathlib import Path

import msgspec

from engine import machine
from engine.estimate import memory as estimate_memory
from engine.estimate.memory import Calibration
from engine.models import shapes
from engine.workspace import Workspace, append_line, read_lines

# A run says nothing about one more than so many times as large or small: the C library, the kernel's pages and the
# overhead of a step do not grow with the model.
MOST_TIMES_LARGER = 8.0
# A formula is never believed to be more than twice too high: small runs are lost in what libraries take.
LEAST_FACTOR = 0.5
# Only the newest runs of a kind count: libraries change.
MOST_RUNS = 5


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done: optimizer steps, rows a step, tokens a row, rows held out, evaluations and, with `along`, scored
    points on the way.

    `trained` rows of the user's, of which some are scored; `replay_rows` that the base writes first, within
    `replay_budget_s`; `benchmarks` that are asked with `general_tokens` in all, `limit` questions each, within
    `scoring_budget_s` for base and tuned model together. `base`: its reference.
    """

    steps: int
    rows_per_step: int
    row_tokens: float
    held_out: int = 0
    evaluations: int = 5
    along: int = 0
    threads: int = 1
    dataset: str = ""
    base: str = ""
    trained: int = 0
    replay_rows: int = 0
    replay_budget_s: float | None = None
    benchmarks: tuple[str, ...] = ()
    limit: int = 0
    general_tokens: float = 0.0
    scoring_budget_s: float | None = None


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """What one finished run took. `setup.max_length` is its longest row, `row_tokens` the mean of all, `step_s` the
    seconds of an optimizer step without evaluations, `whole_s` those from its turn to its end, `base_s` those of scoring
    the base (0 where these scores were there already). `took`: seconds by phase (phases.took), of a run in one piece, with
    `libraries_s` of those of loading, and `job` what it did; earlier versions kept none. Bytes as in events.Measured, which
    say less than a run may take where its longest batch was not `tried`."""

    run: str
    machine: str
    device: str
    dataset: str
    shape: shapes.Shape
    setup: estimate_memory.Setup
    threads: int
    rows_per_step: int
    row_tokens: float
    steps: int
    peak_bytes: int
    baseline_bytes: int
    step_s: float | None = None
    whole_s: float | None = None
    base_s: float = 0.0
    tried: bool = True
    job: Job | None = None
    took: dict[str, float] = {}
    libraries_s: float = 0.0


@lru_cache(maxsize=1)
def machine_name() -> str:
    """Return what tells this machine from another: its first card, or its processor and number of cores."""
    facts = machine.facts()
    if facts.gpus:
        return f"{facts.gpus[0].name}, {facts.gpus[0].memory_mib} MiB"
    name = "processor"
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {facts.cores} cores"


def _path(workspace: Workspace) -> Path:
    return workspace.root / "measurements.jsonl"


def record(workspace: Workspace, found: Measurement) -> None:
    """Append one run."""
    append_line(_path(workspace), msgspec.json.encode(found))


def read(workspace: Workspace) -> list[Measurement]:
    """Return the runs of this machine, the newest first. A line that cannot be read is passed over."""
    try:
        stat = _path(workspace).stat()
    except OSError:
        return []
    return list(_read(str(_path(workspace)), stat.st_mtime_ns, stat.st_size, machine_name()))


@lru_cache(maxsize=4)
def _read(path: str, _changed: int, _size: int, here: str) -> tuple[Measurement, ...]:
    found = []
    for one in read_lines(Path(path), Measurement):
        numbers = (one.peak_bytes, one.row_tokens, one.steps, one.rows_per_step, one.step_s or 1.0, one.whole_s or 1.0)
        if one.machine == here and all(math.isfinite(number) and number > 0 for number in numbers):
            found.append(one)
    return tuple(reversed(found))


def same_kind(one: estimate_memory.Setup, other: estimate_memory.Setup) -> bool:
    """Whether two runs train the same way, by the same code and in the same formats; size, rows and tokens aside."""

    def kind(of: estimate_memory.Setup) -> tuple[object, ...]:
        return (
            of.objective,
            of.adapter,
            of.quantize,
            of.gradient_checkpointing,
            of.weights,
            of.optimizer,
            of.value_model,
            of.keep,
        )

    return kind(one) == kind(other) and same_arithmetic(one, other)


def same_arithmetic(one: estimate_memory.Setup, other: estimate_memory.Setup) -> bool:
    """Whether two runs compute by the same code and in the same format, whatever they train."""
    return (one.backend, one.precision, one.half) == (other.backend, other.precision, other.half)


def memory(
    known: list[Measurement], shape: shapes.Shape | None, setup: estimate_memory.Setup, *, device: str
) -> Calibration | None:
    """Return how the estimate of a run is corrected by what finished ones took, or None when none is near enough."""
    if shape is None:
        return None
    here = [one for one in known if one.device == device]
    own = estimate_memory.estimate(shape, setup, device=device)
    ratios = []
    for one in here:
        theirs = estimate_memory.estimate(one.shape, one.setup, device=device)
        if not own.parts or not theirs.parts or not same_kind(one.setup, setup):
            continue
        apart = max(own.moving_bytes, theirs.moving_bytes) / max(1, min(own.moving_bytes, theirs.moving_bytes))
        if apart <= MOST_TIMES_LARGER and one.peak_bytes > one.baseline_bytes and one.tried:
            later = estimate_memory.LATER_BYTES if device == "cpu" else 0
            ratios.append(max(LEAST_FACTOR, (one.peak_bytes - one.baseline_bytes - later) / theirs.moving_bytes))
    baselines = [one.baseline_bytes for one in here[:MOST_RUNS] if one.baseline_bytes]
    if not ratios and not baselines:
        return None
    return Calibration(
        factor=statistics.median(ratios[:MOST_RUNS]) if ratios else 1.0,
        baseline_bytes=round(statistics.median(baselines)) if baselines else None,
        runs=len(ratios[:MOST_RUNS]),
    )
