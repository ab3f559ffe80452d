"""What a run optimises: one file an objective, each with the five functions of `Objective`, found by its name.

To add one: a file here, an entry in engine/spec/objectives.py, a recipe in recipes/. common.py has what trainers share.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from engine.train.callback import EventCallback
    from engine.train.run import Run
    from engine.train.scoring.scores import Question


class Objective(Protocol):
    """One objective. A reading aid: each is a module, and shares code by calling it."""

    def prepare(self, run: Run) -> None:
        """Read, split and encode the rows into run.rows, and make of run.model what is trained. Raises RunRefused."""
        ...

    def config(self, run: Run, shared: dict[str, Any]) -> Any:
        """Return TRL's arguments, from those that all trainers share."""
        ...

    def trainer(self, run: Run, args: Any, model: Any, callback: EventCallback) -> Any:
        """Return TRL's trainer of run.rows on the model as it is adapted, listened to by our events alone. Its
        train(resume_from_checkpoint=...) hears a stop, goes on from a checkpoint and writes whole ones."""
        ...

    def samples(self, run: Run, model: Any) -> list[tuple[str, str]]:
        """Return for three fixed prompts what the model makes of them now, to be watched as it learns."""
        ...

    def questions(self, run: Run) -> list[Question]:
        """Return what is asked before and after about the run's own rows; general benchmarks are added to them."""
        ...


def of(name: str) -> Objective:
    """Return the objective of that name."""
    return cast(Objective, importlib.import_module(f"{__name__}.{name}"))
