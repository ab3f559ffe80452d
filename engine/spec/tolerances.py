"""How much a run may forget, in nats of general loss: what the words of the dial stand for, and what follows from one.

The words are the nats that went with so many points lost (tolerances.yaml, which says where that was measured).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import msgspec
import yaml

from engine.spec import schema

HERE = Path(__file__).resolve().with_suffix(".yaml")


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A word of the dial: `points` of general knowledge lost went with so many nats; with an 80 % range over the runs where
    that was measured."""

    points: float
    nats: float
    low: float | None = None
    high: float | None = None


@lru_cache(maxsize=1)
def _table() -> dict[str, dict[str, Measured]]:
    return msgspec.convert(yaml.safe_load(HERE.read_bytes()), dict[str, dict[str, Measured]])


def words(*, toy: bool) -> dict[str, Measured]:
    """Return what each word of the dial but "off" stands for, for a toy or for any other base: they have other scales."""
    return _table()["toy" if toy else "real"]


def nats(train: schema.Train, *, toy: bool) -> float | None:
    """Return by how many nats per token general text may get worse in a run; None where that is not bounded."""
    asked = train.tolerance
    if asked == "off":
        return None
    return words(toy=toy)[asked].nats if isinstance(asked, str) else asked


def chooses(train: schema.Train) -> bool:
    """Whether a run's evaluations decide which of its weights are kept, or when it ends."""
    return train.keep_best or train.early_stopping > 0 or train.tolerance != "off"
