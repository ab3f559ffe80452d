"""How the steps of a run are counted and said, and a patience that fits them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import starter
from engine.data import datasets
from engine.plan import steps
from engine.spec import counts, schema
from engine.workspace import Workspace
from tests.helpers import planned


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "home")


def refused(workspace: Workspace, data: str, **overrides: Any) -> list[str]:
    settings = {path.replace("__", "."): value for path, value in overrides.items()}
    return [one.rule for one in planned(workspace, "lora", base="starter", dataset=data, overrides=settings)[1]]


def noted(**settings: Any) -> list[str]:
    return [str(note) for note in steps.notes(schema.Train(**settings), 240)]


def test_general_rows_count_among_the_steps_and_are_said_to():
    (text,) = noted(epochs=10, batch_size=16, accumulation=1, replay_share=0.1)
    assert text.startswith("167 steps: 240 rows and 27 general ones") and "2,670 rows, 16 a step" in text
    (text,) = noted(epochs=10, batch_size=16, accumulation=1)
    assert text == "150 steps: 240 rows in 10 epochs, 16 a step."


def test_few_rows_that_a_share_gives_no_general_row_are_trained_on_epoch_by_epoch():
    found = steps.notes(schema.Train(epochs=10, batch_size=16, accumulation=1, replay_share=0.1), 3)
    assert str(found[0]) == "10 steps: 3 rows in 10 epochs, 16 a step." and "3 rows, not 16" in str(found[1])


def test_a_step_larger_than_an_epoch_and_a_warm_up_longer_than_the_run_are_said():
    text = noted(epochs=2, batch_size=64, accumulation=8, warmup=0)[1]
    assert text.startswith("A step ends with the epoch") and "240 rows, not 512" in text
    text = noted(max_steps=9, warmup=29)[1]
    assert text.startswith("The warm-up takes the whole run: the rate rises to 30 %")
    assert len(noted(max_steps=30, warmup=29)) == 1


@given(st.integers(1, 300), st.integers(1, 100))
def test_the_held_out_loss_is_measured_as_often_as_is_counted(total, wanted):
    every = -(-total // wanted)  # common.arguments; the Trainer adds the last step where it is none of these
    assert counts.evaluations(schema.Train(evaluations=wanted), total) == len({*range(every, total + 1, every), total})


def test_a_patience_that_can_never_act_is_refused_with_one_that_can(workspace):
    mine = datasets.add_sample(workspace, starter.sample("new-facts")).id
    settings = {"train__max_steps": 18}
    for patience, evaluations, wanted in ((3, 5, []), (4, 5, ["patience-idle"]), (1, 2, ["patience-idle"])):
        more = {"train__early_stopping": patience, "train__evaluations": evaluations}
        assert refused(workspace, mine, **settings, **more) == wanted
    told = {"train.early_stopping": 4, "train.evaluations": 5, "train.max_steps": 18}
    _, (problem,) = planned(workspace, "lora", base="starter", dataset=mine, overrides=told)
    assert "set train.early_stopping to 3 or less" in problem.sentence
    assert "train.evaluations to 6 or more" in problem.sentence
