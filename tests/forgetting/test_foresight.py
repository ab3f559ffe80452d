"""What is foreseen of forgetting: a range from a run's own evaluations, one from earlier runs, and how often they held."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from engine import events
from engine.forgetting import foresight
from engine.runs import store
from engine.spec import RunSpec, schema
from engine.workspace import Workspace, write_atomically
from tests.helpers import fake_spec


def spec(schedule: str = "cosine") -> RunSpec:
    made = fake_spec()
    return msgspec.structs.replace(made, train=msgspec.structs.replace(made.train, schedule=schedule))


def course(*rises: float, steps: int = 100) -> list[Any]:
    """The events of a run whose evaluations, evenly spread, found such rises above a base of 2 nats."""
    found: list[Any] = [events.Watched(step=0, general_loss=2.0, texts=8)]
    for number, rise in enumerate(rises, 1):
        step = steps * number // len(rises)
        found.append(events.Step(step=step, total_steps=steps, epoch=1.0, loss=1.0))
        found.append(events.Eval(step=step, loss=1.0, metrics={"general_loss": 2.0 + rise}))
    return found


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_share_of_the_rate_that_is_spent_is_the_area_under_its_schedule(schedule):
    rate = {
        "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
        "linear": lambda x: 1 - x,
        "constant": lambda x: 1.0,
    }[schedule]
    area = [sum(rate((n + 0.5) / 1000) for n in range(upto)) for upto in (300, 1000)]
    assert foresight.spent(schedule, 0.3) == pytest.approx(area[0] / area[1], abs=1e-3)
    assert foresight.spent(schedule, 1.0) == pytest.approx(1.0)


def test_a_run_that_forgets_evenly_and_one_that_is_done_forgetting_both_end_within_their_ranges():
    even = [foresight.spent("cosine", n / 10) for n in range(1, 11)]
    for rises in (even, [0.8, 1.0, 1.0, 1.0, 1.0]):
        for one in foresight.foretold(spec(), course(*rises)):
            assert one.low <= rises[-1] <= one.high


def test_a_run_that_is_coming_back_is_foretold_to_come_back():
    first, *later = foresight.foretold(spec(), course(0.5, 0.4, 0.35, 0.32, 0.3))
    assert first.low > 0.3  # nothing spoke of that yet
    assert all(one.low <= 0.3 <= one.high for one in later)


def test_nothing_is_foretold_in_the_first_tenth_nor_at_the_end_nor_without_general_text():
    ranges = foresight.foretold(spec(), course(*[0.1] * 20))
    assert [one.step for one in ranges] == list(range(10, 100, 5))
    assert foresight.foretold(spec(), course(*[0.1] * 20)[1:]) == []
    assert foresight.foretold(spec(), []) == []


def finished(workspace: Workspace, number: int, rises: tuple[float, ...], **more: Any) -> None:
    """A run that has gone to its end, with its events and what it kept of them."""
    run_dir = workspace.run_dir(f"20260101-00000{number}-aaaaaa")
    run_dir.mkdir(parents=True)
    write_atomically(run_dir / "spec.json", schema.encode(msgspec.structs.replace(spec(), **more)))
    log = events.EventLog(run_dir)
    for event in [*course(*rises), events.Finished(step=100)]:
        log.append(event)
    log.close()
    foresight.keep(run_dir, store.load_spec(workspace, run_dir.name))


def test_a_range_before_the_start_wants_five_finished_runs_of_this_base_and_recipe(workspace):
    for number in range(4):
        finished(workspace, number, (0.1, 0.2 + 0.1 * number))
    finished(workspace, 4, (0.1, 9.0), base=schema.BaseRef("other"))
    finished(workspace, 5, (0.1, 9.0), recipe=schema.RecipeRef("other", "0" * 64))
    assert foresight.before(workspace, spec()) is None
    finished(workspace, 6, (0.1, 0.7))
    found = foresight.before(workspace, spec())
    assert found is not None and (found.low, found.high) == (pytest.approx(0.2), pytest.approx(0.7))


def test_the_first_range_of_each_run_is_counted_right_or_wrong(workspace):
    finished(workspace, 0, (0.5, 0.5))  # foretold at half of it
    finished(workspace, 1, (0.1, 5.0))  # nothing spoke of that
    assert foresight.tally(workspace) == (1, 2)
    workspace.run_dir("20260101-000001-aaaaaa").joinpath(foresight.FILE).write_text("{")
    assert foresight.tally(workspace) == (1, 1)


def test_a_run_that_ended_early_counts_for_nothing(workspace):
    run_dir = workspace.run_dir("20260101-000000-aaaaaa")
    run_dir.mkdir(parents=True)
    log = events.EventLog(run_dir)
    for event in course(0.5, 0.6, 0.7)[:-2]:
        log.append(event)
    log.close()
    foresight.keep(run_dir, spec())
    assert not (run_dir / foresight.FILE).exists()
