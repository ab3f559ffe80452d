"""What one run has, as far as it has come: what it was told, what is loaded for it, and who listens."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine import events
from engine.estimate import machine_choices
from engine.models import Base
from engine.spec import OBJECTIVES, RunSpec, objectives
from engine.train.callback import StopRequest
from engine.train.rows import Rows
from engine.train.told import Told
from engine.workspace import Workspace


@dataclass
class Run:
    """`device` is cpu, cuda or mps; `chosen` what the machine decided. `model`, `tokenizer` and `base` are there once the
    base is loaded, `rows` once the objective has prepared them; an objective that stands on another run keeps that in
    `judge`. `told` says how far it is."""

    spec: RunSpec
    workspace: Workspace
    run_dir: Path
    log: events.EventLog
    stop: StopRequest
    device: str
    chosen: machine_choices.Chosen
    attempt: int = 1
    model: Any = None
    tokenizer: Any = None
    base: Base = field(default=None)  # pyright: ignore[reportAssignmentType] - set when it is loaded
    rows: Rows = field(default=None)  # pyright: ignore[reportAssignmentType] - set when they are prepared
    judge: Any = None
    told: Told = field(init=False)

    def __post_init__(self) -> None:
        self.told = Told(self.log)

    @property
    def objective(self) -> objectives.Objective:
        """What follows from the objective outside of its own code."""
        return OBJECTIVES[self.spec.objective]

    @property
    def only_probes(self) -> bool:
        """Whether the longest batch is to be tried and nothing else."""
        return self.spec.kind == "probe"

    @property
    def beta(self) -> float:
        """How closely the model is held to its reference."""
        return self.spec.objective_args.beta or self.objective.usual_beta or 0.0

    @property
    def length(self) -> int:
        """The most tokens of a row."""
        return self.spec.train.max_length
