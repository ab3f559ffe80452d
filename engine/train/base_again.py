"""The base of a run once more, after the run was trained: what it was before, for whoever asks or measures it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from engine.train import adapters, allocator, load
from engine.train.run import Run


class BaseAgain:
    """Lends the base of a trained run. Under an adapter the base is still there, with the adapter off, which
    changes no weight of it, or under the earlier run's adapter that was trained on. Where its own weights moved
    it is loaded once more, beside the tuned model and in the place of the optimizer's state, when it is first asked for;
    where a card has no room for both, one waits in the machine's memory while the other is used."""

    def __init__(self, run: Run, tuned: Any, trainer: Any = None):
        self._run, self._tuned, self._trainer = run, tuned, trainer
        self._beside: Any = None
        self._takes_turns = False

    @contextmanager
    def lent(self) -> Iterator[Any]:
        """The base, for as long as this is entered. The tuned model may not be used meanwhile."""
        if hasattr(self._tuned, "disable_adapter"):
            before = self._run.base.folder if self._run.spec.adapter_args.continues else None
            with adapters.as_at_start(self._tuned, before) as base:
                yield base
            return
        if self._beside is None:
            self._beside = self._loaded()
        device = self._tuned.device
        if self._takes_turns:
            self._move(self._tuned, "cpu")
            self._move(self._beside, device)
        try:
            yield self._beside
        finally:
            if self._takes_turns:
                self._move(self._beside, "cpu")
                self._move(self._tuned, device)

    def _loaded(self) -> Any:
        if self._trainer is not None:
            for holder in (self._trainer, self._trainer.callback_handler):  # which keeps both too (trainer.py of 5.17)
                holder.optimizer = holder.lr_scheduler = None
            self._trainer.accelerator.free_memory()
        self._tuned.zero_grad(set_to_none=True)
        allocator.give_back()
        device = self._tuned.device
        try:
            return self._load()
        except torch.OutOfMemoryError:
            self._takes_turns = True
        allocator.give_back()
        self._move(self._tuned, "cpu")
        try:
            made = self._load()
            self._move(made, "cpu")
        finally:
            self._move(self._tuned, device)
        return made

    def _load(self) -> Any:
        run, chosen = self._run, self._run.chosen._replace(backend="plain")
        if run.chosen.backend == "unsloth" and run.device == "cuda":
            # as the tuned one, which is past its trainer in the fp32 that Unsloth holds it in (load.py, _rounded_to)
            chosen = chosen._replace(precision="fp32")
        with run.told.between("loading", "base again"), run.told.weights():
            made = load.load(run.spec, run.workspace, chosen).model
        if run.objective.is_judge:  # with the head that it had, which is drawn from the seed
            from engine.train.objectives import reward  # few runs need what it imports

            made = reward.judge(made, run.tokenizer, run.spec.train.seed)
        return made.eval()

    @staticmethod
    def _move(model: Any, device: Any) -> None:
        model.to(device)
        allocator.give_back()
