"""What can be foreseen of forgetting, modestly: a range for the end of a run, from its own evaluations or from finished runs
of the same base and recipe; and how often such ranges were right here.

Forgetting goes on with the learning rate that is still to come. So the range lies between staying as it is and going on as
between the last two evaluations, per share of the rate that is spent (cosine and linear schedules spend most of it early),
and a little beyond both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine import events
from engine.runs import store
from engine.spec import RunSpec
from engine.workspace import Workspace, find_struct, write_atomically

# Nothing is said before this share of the steps, nor from fewer finished runs.
FROM_SHARE, FEWEST_RUNS = 0.1, 5
# Beyond both ends: this share of the rise so far, and so many nats.
WIDER_SHARE, WIDER_NATS = 0.05, 0.01
FILE = "foresight.json"


class Range(msgspec.Struct, frozen=True):
    """Nats of general loss above the base's at the end of a run; `step` after which it was foretold, 0 before the start."""

    low: float
    high: float
    step: int = 0


class Record(msgspec.Struct, frozen=True):
    """What was first foretold of a run, and what came: kept with it when it has gone to its last step."""

    low: float
    high: float
    step: int
    final: float

    @property
    def is_right(self) -> bool:
        return self.low <= self.final <= self.high


def spent(schedule: str, share: float) -> float:
    """Return which share of a run's whole learning rate is spent after a share of its steps, its warm-up left aside."""
    if schedule == "cosine":
        return share + math.sin(math.pi * share) / math.pi
    return share * (2 - share) if schedule == "linear" else share


def foretold(run_spec: RunSpec, found: Sequence[Any]) -> list[Range]:
    """Return the range after each evaluation of a run's events, but for the last step and those before FROM_SHARE."""
    start = next((one for one in found if isinstance(one, events.Watched)), None)
    total = next((one.total_steps for one in reversed(found) if isinstance(one, events.Step)), 0)
    if start is None or not total:
        return []
    rises = {
        one.step: one.metrics["general_loss"] - start.general_loss
        for one in found
        if isinstance(one, events.Eval) and "general_loss" in one.metrics
    }
    ranges, before = [], (0.0, 0.0)
    for step, rise in sorted(rises.items()):
        share = spent(run_spec.train.schedule, step / total)
        slope = (rise - before[1]) / max(1e-9, share - before[0])
        before = (share, rise)
        if FROM_SHARE <= step / total < 1:
            end, wider = rise + slope * (1 - share), WIDER_SHARE * abs(rise) + WIDER_NATS
            ranges.append(Range(min(rise, end) - wider, max(rise, end) + wider, step))
    return ranges


def keep(run_dir: Path, run_spec: RunSpec) -> None:
    """Keep with a run that has gone to its last step what was first foretold of it, and what came."""
    found, _ = events.read(run_dir)
    ranges = foretold(run_spec, found)
    start = next((one for one in found if isinstance(one, events.Watched)), None)
    last = next((one for one in reversed(found) if isinstance(one, events.Eval)), None)
    total = next((one.total_steps for one in reversed(found) if isinstance(one, events.Step)), 0)
    if start is None or last is None or last.step < total or "general_loss" not in last.metrics or not ranges:
        return
    first = ranges[0]
    made = Record(first.low, first.high, first.step, last.metrics["general_loss"] - start.general_loss)
    write_atomically(run_dir / FILE, msgspec.json.encode(made))


def tally(workspace: Workspace) -> tuple[int, int]:
    """Return how often what was foretold in this home was right, and of how many runs."""
    records = [one for run in store.list_all(workspace) if (one := _record(workspace, run.id)) is not None]
    return sum(one.is_right for one in records), len(records)


def before(workspace: Workspace, run_spec: RunSpec) -> Range | None:
    """Return where runs of this base and recipe ended in this home; None while there are fewer than FEWEST_RUNS."""
    ends = [
        record.final
        for run in store.list_all(workspace)
        if (run.base, run.recipe) == (run_spec.base.ref, run_spec.recipe.name)
        and (record := _record(workspace, run.id)) is not None
    ]
    return Range(min(ends), max(ends)) if len(ends) >= FEWEST_RUNS else None


def _record(workspace: Workspace, run_id: str) -> Record | None:
    return find_struct(workspace.run_dir(run_id) / FILE, Record)
