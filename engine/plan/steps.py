"""How the optimizer steps of a run follow from its rows, in words."""

from __future__ import annotations

from collections.abc import Sequence

from engine.spec import counts, schema
from engine.words import Text, later


def notes(train: schema.Train, rows: int, mixed: Sequence[int] | None = None) -> list[Text]:
    """Return how many steps `rows` rows of the user's make, and what of that is not as one would think: general rows count,
    an epoch may be shorter than a step, and a warm-up may take the whole run. `mixed`: how many general rows there are in
    each epoch, where that is known."""
    steps, general = counts.optimizer_steps(train, rows, mixed), _each(train, rows, mixed)
    batch = train.batch_size * train.accumulation
    told = {"steps": f"{steps:,}", "rows": f"{rows:,}", "epochs": f"{train.epochs:g}", "batch": f"{batch:,}"}
    found = []
    if train.max_steps:
        found.append(later("{steps} steps, as train.max_steps says.", steps=told["steps"]))
    elif general:
        every = counts.rows_with_replay(train, rows, mixed)
        found.append(
            later("{steps} steps: {rows} rows and {general} general ones, replayed against forgetting, in {epochs} "
                  "epochs are {every} rows, {batch} a step.",
                  general=general if isinstance(general, str) else f"{general:,}", every=f"{every:,}", **told)
        )  # fmt: skip
    else:
        found.append(later("{steps} steps: {rows} rows in {epochs} epochs, {batch} a step.", **told))
    if not general and batch > rows:
        found.append(
            later("A step ends with the epoch at the latest, so each takes {rows} rows, not {batch}.",
                  rows=told["rows"], batch=told["batch"])
        )  # fmt: skip
    warmup = counts.warmup_steps(train.warmup, steps)
    if warmup >= steps:
        share = f"{100 * steps / (warmup + 1):.0f}"
        found.append(
            later("The warm-up takes the whole run: the rate rises to {share} % of what is set, and never falls.",
                  share=share)
        )  # fmt: skip
    return found


def _each(train: schema.Train, rows: int, mixed: Sequence[int] | None) -> int | str:
    """Return how many general rows an epoch has, as "2–3" where not each has as many."""
    if mixed is None:
        return counts.replayed_rows(train, rows)
    low, high = min(mixed, default=0), max(mixed, default=0)
    return high if low == high else f"{low:,}–{high:,}"
