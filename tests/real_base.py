"""The real base that `make real` puts into the home of whoever runs the tests; tests that want it are skipped without."""

from __future__ import annotations

from functools import cache

import pytest

from engine.models import Base, bases, shortlist
from engine.workspace import default_workspace

REAL_HOME = default_workspace()  # before a test has one of its own


@cache
def smollm2() -> Base:
    """SmolLM2 135M, rounded from 4 bits, where `make real` has put it."""
    for folder in shortlist.folders(REAL_HOME):
        base = bases.describe(folder, REAL_HOME)
        if base.title.startswith("SmolLM2 135M (") and base.rounded_bits == 4:
            return base
    pytest.skip(f"`make real` has not been run for {REAL_HOME.root}")
