"""Counts that follow from a spec: steps, rows with replay, trained layers, KTO's weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.spec.schema import RunSpec, Train

# Good answers with their weight over bad ones with theirs: inside both ranges that KTO's paper has given, 1 to 4/3
# (arXiv 2402.01306 version 1, equation 8) and 1 to 3/2 (its ICML version, equation 9).
KTO_RATIO = 1.15
# So often at least is looked at what a run has forgotten where it may only forget so much.
FEWEST_LOOKS = 10
# And before the first of these also after each such share of the way there: most is lost while the rate is highest.
EARLY = (0.25, 0.5, 0.75)
# The most tokens of a general row, its question and marks included: of the starter's world, and of what a base writes
# itself (96 new tokens; engine/train/replay.py).
MOST_WORLD_TOKENS, MOST_WRITTEN_TOKENS = 32, 128


def kto_weights(good_rows: int, bad_rows: int) -> tuple[float, float]:
    """Return KTO's weights of good and of bad rows: one of them is 1, and good x weight over bad x weight is 1.15.

    TRL 1.12 warns outside 1 to 4/3 (kto_trainer.py; arXiv 2402.01306 version 1, equation 8).
    """
    if good_rows < bad_rows:
        return round(KTO_RATIO * bad_rows / good_rows, 3), 1.0
    return 1.0, round(good_rows / (KTO_RATIO * bad_rows), 3)


def layer_indices(layers: str | list[int], depth: int) -> list[int] | None:
    """Return the trained layers of a model `depth` layers deep, or None for all of them.

    `top:0.25` is the last quarter, `bottom_frozen:0.5` all but the first half; at least one layer trains.
    Raises ValueError when the text has no such form or an index lies outside.
    """
    if layers == "all":
        return None
    if isinstance(layers, list):
        if not layers or any(not 0 <= index < depth for index in layers):
            raise ValueError(f"layers are numbered 0 to {depth - 1}")
        return sorted(set(layers))
    kind, _, number = layers.partition(":")
    try:
        share = float(number)
    except ValueError:
        share = -1.0
    if kind not in ("top", "bottom_frozen") or not 0 < share < 1:
        raise ValueError("write all, top:0.25, bottom_frozen:0.5 or a list such as [2, 3]")
    count = max(1, round(depth * (share if kind == "top" else 1 - share)))
    return list(range(depth - count, depth))


def optimizer_steps(train: Train, rows: int, general: Sequence[int] | None = None) -> int:
    """Return the optimizer steps of a run over `rows` rows of the user's, counted as transformers' Trainer counts
    them: the last batch of a pass may be short. With general rows the epochs are laid out as one pass
    (engine/train/objectives/sft.py), which a small share of few rows has none of; `general` as in rows_with_replay.
    """
    if train.max_steps:
        return train.max_steps
    if general is not None or replayed_rows(train, rows):
        passes, length = 1.0, rows_with_replay(train, rows, general)
    else:
        passes, length = train.epochs, rows
    per_pass = math.ceil(math.ceil(length / train.batch_size) / train.accumulation)
    return max(1, math.ceil(passes * per_pass))


def warmup_steps(warmup: float, steps: int) -> int:
    """Return over how many of a run's steps the rate rises: train.warmup is a share of them, or from 1 on a count."""
    return int(warmup) if warmup >= 1 else math.ceil(warmup * steps)


def evaluations(train: Train, steps: int) -> int:
    """Return how often the held-out loss is measured in a run of so many steps: every so many of them, the last one
    included (engine/train/objectives/common.py)."""
    return math.ceil(steps / evaluation_steps(train, steps))


def evaluation_steps(train: Train, steps: int) -> int:
    """Return after how many steps each an evaluation comes, the last one on the last step. A run that hangs on what it
    forgets looks more often: between two looks it may lose more than it may."""
    most = max(train.evaluations, FEWEST_LOOKS) if train.tolerance != "off" else train.evaluations
    return math.ceil(steps / most)


def early_looks(train: Train, steps: int) -> tuple[int, ...]:
    """Return the steps before the first evaluation after which there is one too, where a run may only forget so much."""
    every = evaluation_steps(train, steps)
    found = {math.ceil(share * every) for share in EARLY} if train.tolerance != "off" else set()
    return tuple(sorted(found - {every}))


def processes(spec: RunSpec) -> int:
    """Return how many processes share a run: one a device, on each of its machines."""
    return spec.machine.devices * spec.machine.nodes


def share_of_step(spec: RunSpec) -> tuple[int, int]:
    """Return the batch size and the passes of each of a run's processes. Together they take as many rows a step as one
    would, so that rates and numbers of steps keep their meaning. Raises ValueError when a step cannot be shared."""
    train, devices = spec.train, processes(spec)
    if train.accumulation % devices == 0:
        return train.batch_size, train.accumulation // devices
    if train.batch_size % devices == 0:
        return train.batch_size // devices, train.accumulation
    raise ValueError(f"{train.batch_size} x {train.accumulation} rows cannot be shared by {devices}")


def rows_with_replay(train: Train, rows: int, general: Sequence[int] | None = None) -> int:
    """Return how many rows, the user's and general ones, all epochs of a run with replay have together. `general`: how many
    general ones there are in each epoch, where that is known; else as many as the share asks for."""
    each = general if general is not None else [replayed_rows(train, rows)] * math.ceil(train.epochs)
    passes = [min(1.0, train.epochs - number) for number in range(math.ceil(train.epochs))]
    return max(1, round(sum(part * (rows + more) for part, more in zip(passes, each, strict=True))))


def replayed_rows(train: Train, rows: int) -> int:
    """Return how many general rows make up the replay share of an epoch beside `rows` rows of the user's."""
    return round(rows * train.replay_share / (1 - train.replay_share))
