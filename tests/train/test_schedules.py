"""The rate of every step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler

from engine.spec import counts
from engine.train import schedules

SCHEDULES = ("cosine", "linear", "constant")


def shares(schedule: str, warmup: float, steps: int) -> list[float]:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=2.0)
    args = SimpleNamespace(lr_scheduler_type=schedule, warmup_steps=warmup)
    made = schedules.made(optimizer, args, steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"] / 2.0)
        optimizer.step()
        made.step()
    return found


@given(st.sampled_from(SCHEDULES), st.one_of(st.floats(0, 0.99), st.integers(1, 50)), st.integers(1, 40))
def test_every_step_of_every_schedule_has_a_rate_above_0(schedule, warmup, steps):
    found = shares(schedule, warmup, steps)
    assert all(0 < share <= 1 for share in found)
    rising = min(steps, counts.warmup_steps(warmup, steps))
    assert found[:rising] == sorted(set(found[:rising]))  # up, and never the same twice
    assert found[rising:] == sorted(found[rising:], reverse=True)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_after_the_warm_up_the_rate_is_that_of_transformers(schedule):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, optimizer=optimizer, num_warmup_steps=5, num_training_steps=30)
    wanted = []
    for _ in range(30):
        wanted.append(optimizer.param_groups[0]["lr"] / 2.0)
        optimizer.step()
        theirs.step()
    found = shares(schedule, 5, 30)
    assert wanted[0] == 0 and found[:5] == pytest.approx([n / 6 for n in range(1, 6)])
    assert found[5:] == pytest.approx(wanted[5:])


def test_a_resumed_schedule_goes_on_where_it_was():
    def begun(steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        made = schedules.made(optimizer, SimpleNamespace(lr_scheduler_type="cosine", warmup_steps=0.2), 20)
        for _ in range(steps):
            optimizer.step()
            made.step()
        return optimizer, made

    (optimizer, made), (other, again) = begun(7), begun(0)
    again.load_state_dict(made.state_dict())
    other.load_state_dict(optimizer.state_dict())
    for _ in range(3):
        for one, its in ((optimizer, made), (other, again)):
            one.step()
            its.step()
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
