"""How far a run is in what takes time before, between and after its steps, as events: so much done, so long to go, and what
comes next."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from transformers import core_model_loading

from engine import events
from engine.estimate import phases

# So often at most an event is written about the same phase.
EVERY_S = 1.0
# What a run does, in order, and what the lines of its estimate are called (estimate.duration.Time.lines).
ORDER = ("loading", "replay", "training", "saving", "evaluating")
_LINES = {"loading": "loading", "replay": "replay", "samples": "training", "training": "training",
          "on the way": "training", "saving": "saving", "scoring base": "evaluating",
          "scoring tuned": "evaluating"}  # fmt: skip
# A line by itself: the trial of the longest batch comes before the steps, and is part of what lies before them.
_TRIAL = "probe"


class Told:
    """Writes Phase events: one when a phase begins, and, as it goes on, no more than one a second."""

    def __init__(self, log: Any):
        self._log = log
        self._expected_s: dict[str, float] = {}
        self._ahead: list[str] = []
        self._now = events.Phase(phase="loading")
        self._began_s = self._last_s = time.monotonic()
        self._before = 0

    def expect(self, ahead: Sequence[str], lines: Iterable[phases.Line] = ()) -> None:
        """Say which phases of ORDER this run has, and what its estimate says of them."""
        self._ahead = [phase for phase in ORDER if phase in ahead]
        for line in lines:
            phase = line.phase if line.phase == _TRIAL else _LINES.get(line.phase)
            if phase is not None:
                self._expected_s[phase] = self._expected_s.get(phase, 0.0) + line.likely_s

    def begin(self, phase: str, detail: str = "", *, total: int = 0, what: str = "") -> None:
        """A phase begins, of `total` parts where they can be counted."""
        on_the_way = phase == "evaluating" and detail.startswith("at-")
        if phase in self._ahead and not on_the_way:  # what lies before it is over
            del self._ahead[: self._ahead.index(phase) + 1]
        is_before = phase == "training" and detail in ("samples", _TRIAL)
        following = "training" if is_before or on_the_way else next(iter(self._ahead), None)
        next_s = None if following is None or on_the_way else self._expected_s.get(following)
        if next_s is not None and following == "training" and detail != _TRIAL:
            next_s += self._expected_s.get(_TRIAL, 0.0)
        self._enter(
            events.Phase(phase=phase, detail=detail, what=what, total=total, next=following or "", next_s=next_s)
        )

    @contextmanager
    def between(self, phase: str, detail: str) -> Iterator[None]:
        """A phase that comes in the midst of another, which goes on after it."""
        now = self._now
        self._enter(events.Phase(phase=phase, detail=detail, next=now.phase))
        try:
            yield
        finally:
            self._enter(now)

    def _enter(self, phase: events.Phase) -> None:
        self._now = msgspec.structs.replace(phase)  # an event is numbered as it is written
        self._began_s, self._before = time.monotonic(), -1
        self._write()

    def upto(self, done: int, total: int | None = None, left_s: float | None = None, what: str | None = None) -> None:
        """So much of the phase is done. Seconds left that are not given follow from the pace of this phase."""
        now_s = time.monotonic()
        if self._before < 0:
            self._before = done  # what was there already says nothing of the pace
            self._began_s = now_s
        total = self._now.total if total is None else total
        if left_s is None and done > self._before:
            left_s = (total - done) * (now_s - self._began_s) / (done - self._before)
        if now_s - self._last_s >= EVERY_S:
            now = self._now
            self._now = events.Phase(
                phase=now.phase, detail=now.detail, what=now.what if what is None else what, done=done, total=total,
                left_s=None if left_s is None else round(left_s, 1), next=now.next, next_s=now.next_s,
            )  # fmt: skip
            self._write()

    def _write(self) -> None:
        self._last_s = time.monotonic()
        self._log.append(self._now)

    @contextmanager
    def weights(self) -> Iterator[None]:
        """Count the tensors of a model while transformers reads it, in place of its progress bar on a terminal
        (core_model_loading.py of 5.17). A version that counts otherwise is only not counted."""
        bar = getattr(core_model_loading, "tqdm", None)

        def counted(tensors: Any, *_: Any, **__: Any) -> Iterator[Any]:
            total = len(tensors)
            for done, one in enumerate(tensors):
                self.upto(done, total)
                yield one

        if bar is None:
            yield
            return
        core_model_loading.tqdm = counted  # pyright: ignore[reportPrivateImportUsage]
        try:
            yield
        finally:
            core_model_loading.tqdm = bar  # pyright: ignore[reportPrivateImportUsage]
