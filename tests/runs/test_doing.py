"""What a run is doing, in one line: how far that is, how long it takes, and what comes next."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine import events
from engine.runs import follow

STEP = events.Step(step=3, total_steps=12, epoch=0.2, loss=1.0, left_s=90.0)


@pytest.mark.parametrize(
    ("phase", "says"),
    [
        ({"phase": "loading"}, "Loading libraries"),
        ({"phase": "loading", "detail": "model", "done": 90, "total": 272, "next": "replay", "next_s": 20.0},
         "Loading the model: 90 of 272; then writing general rows, about 20 s"),
        ({"phase": "replay", "done": 8, "total": 16, "left_s": 12.0, "next": "training", "next_s": 200.0},
         "Writing general rows: 8 of 16, 12 s left; then training, about 3 min"),
        ({"phase": "training", "detail": "probe", "next": "training"}, "Trying the longest batch; then training"),
        ({"phase": "training", "next": "saving"}, "Training: step 3 of 12, about 90 s left; then saving"),
        ({"phase": "evaluating", "detail": "check", "what": "blimp", "done": 210, "total": 400, "left_s": 61.4},
         "Scoring base and tuned model (Grammar (BLiMP)): 210 of 400, 61 s left"),
        ({"phase": "evaluating", "detail": "base", "what": "new-task-loss", "done": 1, "total": 2},
         "Scoring the base (the new task): 1 of 2"),
        ({"phase": "evaluating", "detail": "at-40"}, "Scoring what it learned and forgot"),
        # as runs of an earlier version have it
        ({"phase": "loading", "detail": "replay"}, "Writing general rows"),
    ],
)  # fmt: skip
def test_one_line_says_it(phase: dict[str, Any], says: str) -> None:
    assert follow.doing([STEP, events.Phase(**phase)]).replace("\u00a0", " ") == says


def test_nothing_is_said_before_anything_is_done() -> None:
    assert follow.doing([]) == follow.doing([events.Queued(device="cpu")]) == ""


def test_a_phase_of_an_earlier_version_reads_as_before() -> None:
    old = b'{"event":"phase","seq":2,"time":1.0,"monotonic_s":1.0,"phase":"evaluating","detail":"base"}'
    found = msgspec.json.decode(old, type=events.Phase)
    assert (found.done, found.total, found.left_s, found.next) == (0, 0, None, "")
