"""The learning rate of every step: it rises over the warm-up and falls after it.

transformers 5.17 begins a warm-up with a step at rate 0 (optimization.py), which learns nothing: a run of one step ends
as it began. Here the steps of a warm-up of n have 1, 2 ... n parts in n + 1 of the rate, and the next one all of it, as
there. A constant rate has its warm-up too, which transformers leaves out.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from engine.spec import counts


def share(step: int, *, schedule: str, warmup_steps: int, steps: int) -> float:
    """Return the share of the rate that a step has, counted from 0, of a run of so many: above 0 for each of them.

    After the warm-up it falls as in transformers: linear to 0, cosine half a wave to 0, each reached after the last
    step; or it stays (constant).
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    gone = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return 1.0 - gone if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * gone))


def made(optimizer: Any, args: Any, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the schedule of an optimizer over so many steps, from a trainer's arguments."""
    schedule, warmup = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)), args.warmup_steps
    told = partial(share, schedule=schedule, warmup_steps=counts.warmup_steps(warmup, steps), steps=steps)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, told)


class FromTheFirstStep:
    """Goes before a trainer of transformers: its rates are those above."""

    def create_scheduler(self: Any, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the schedule once, as the trainer would."""
        if self.lr_scheduler is None:
            self.lr_scheduler = made(optimizer or self.optimizer, self.args, num_training_steps)
        return self.lr_scheduler
