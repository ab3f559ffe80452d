"""The loss on held-out rows: summed over all of them and divided once, whatever batch a row is in.

transformers 5.17 and TRL 1.12 take the mean of the batches' means, so that a batch of short answers counts as much as
one of long ones, and the same rows in another order give another loss. The report counts as here (report/paired.py).
"""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset, concatenate_datasets

from engine.render.encode import IGNORED


class BySum:
    """Goes before a trainer of TRL: rows that are learned token by token count by their trained tokens, others (pairs,
    marked answers) one by one. What the trainer measures beside the loss is weighed alike."""

    watched: Any = None  # the run's Watch: general text, read at the same steps
    _counts: list[float] | None = None  # of each batch of this evaluation
    _sum = 0.0

    def evaluation_loop(self: Any, *args: Any, metric_key_prefix: str = "eval", **settings: Any) -> Any:
        """Evaluate as the trainer does, and put the loss right."""
        self._counts, self._sum = [], 0.0
        try:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **settings)  # pyright: ignore[reportAttributeAccessIssue]
            total, count = self._sum, sum(self._counts)
            if self.args.world_size > 1:
                told = torch.tensor([total, count], dtype=torch.float64, device=self.args.device)
                total, count = self.accelerator.reduce(told, "sum").tolist()
            if count:
                output.metrics[f"{metric_key_prefix}_loss"] = total / count
            if self.watched is not None:
                held_out = output.metrics.get(f"{metric_key_prefix}_loss")
                output.metrics.update(self.watched.read(held_out))
            for name, values in self._metrics["eval"].items():
                if len(values) == len(self._counts) and any(self._counts):
                    weighed = sum(value * n for value, n in zip(values, self._counts, strict=True))
                    self._metrics["eval"][name] = [weighed / sum(self._counts)]
        finally:
            self._counts = None
        return output

    def prediction_step(self: Any, model: Any, inputs: Any, *args: Any, **settings: Any) -> Any:
        """Add a batch to the sums."""
        labels = inputs.get("labels")
        count = int((labels[..., 1:] != IGNORED).sum()) if labels is not None else _rows(inputs)
        found = super().prediction_step(model, inputs, *args, **settings)  # pyright: ignore[reportAttributeAccessIssue]
        if self._counts is not None:
            self._counts.append(count)
            if count:  # of no tokens there is no mean
                self._sum += float(found[0]) * count
        return found

    def _get_num_items_in_batch(self: Any, batch_samples: list[Any], device: Any) -> Any:
        """In an evaluation every process takes the mean over its own batch, which `prediction_step` weighs."""
        if self._counts is not None:
            return None
        return super()._get_num_items_in_batch(batch_samples, device)  # pyright: ignore[reportAttributeAccessIssue]


def _rows(inputs: Any) -> int:
    """How many sequences a batch has: of pairs both sides, in every batch alike."""
    return len(inputs["input_ids"])


def filled(rows: Dataset, at_once: int) -> Dataset:
    """Return rows with others behind them of which no token counts, up to a multiple of `at_once`, the rows that all
    processes take at once: accelerate would show some of them twice instead."""
    missing = -len(rows) % at_once
    empty = {"input_ids": [[0, 0]] * missing, "labels": [[IGNORED, IGNORED]] * missing}
    return concatenate_datasets([rows, Dataset.from_dict(empty, features=rows.features)]) if missing else rows
