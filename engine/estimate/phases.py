"""What a run spends its time on, phase by phase: what each is called, and how long each took by the events of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec

from engine import events
from engine.words import t

Phase = Literal[
    "loading", "replay", "probe", "training", "samples", "on the way", "saving", "scoring base", "scoring tuned"
]
ORDER: tuple[Phase, ...] = get_args(Phase)


State = Literal["done", "now", "to come", "ended"]
# As a run goes through them; ORDER is that of an estimate.
ROAD: tuple[Phase, ...] = (
    "loading", "replay", "probe", "training", "saving", "scoring base", "scoring tuned",
)  # fmt: skip


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a run's way. `took_s`: the seconds it has had so far; `left_s`: those to go, of a part to come those it
    is expected to take, None while nothing tells; `done` of `total` are counted in what the part is made of."""

    phase: Phase | Literal["waiting"]
    state: State
    took_s: float = 0.0
    left_s: float | None = None
    done: int = 0
    total: int = 0

    @property
    def name(self) -> str:
        """Return what a person calls it."""
        return t("Waiting") if self.phase == "waiting" else title(self.phase)


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of one phase of a run."""

    phase: Phase
    low_s: float
    likely_s: float
    high_s: float


def title(phase: Phase) -> str:
    """Return what a person calls a phase."""
    return {
        "loading": t("Loading libraries and base"),
        "replay": t("General rows that the base writes"),
        "probe": t("Trying the longest batch"),
        "training": t("Training"),
        "samples": t("Held-out loss and samples on the way"),
        "on the way": t("Scoring on the way"),
        "saving": t("Saving"),
        "scoring base": t("Scoring the base"),
        "scoring tuned": t("Scoring what was made"),
    }[phase]


def took(found: Iterable[Any], until_s: float, step_s: float | None) -> tuple[dict[str, float], float]:
    """Return the seconds of each phase of the newest attempt up to `until_s` (monotonic), and how many of those of loading
    went to libraries. What training took beside its steps of `step_s` each went to held-out losses and samples."""
    seconds: dict[str, float] = {}
    libraries_s, steps, begun, was = 0.0, 0, None, ()
    for event in found:
        if isinstance(event, events.Queued):
            seconds, libraries_s, steps, begun = {}, 0.0, 0, None
        elif isinstance(event, events.Phase):
            _add(seconds, begun, was, event.monotonic_s)
            begun, was = event.monotonic_s, _phases(event)
        elif isinstance(event, events.Started) and begun is not None:
            libraries_s = event.monotonic_s - begun
        elif isinstance(event, events.Step):
            steps = max(steps, event.step)
    _add(seconds, begun, was, until_s)
    if step_s is not None and "training" in seconds:
        stepping_s = min(seconds["training"], steps * step_s)
        seconds["samples"] = seconds["training"] - stepping_s
        seconds["training"] = stepping_s
    return seconds, libraries_s


def _add(seconds: dict[str, float], begun: float | None, phases: tuple[Phase, ...], end_s: float) -> None:
    for phase in phases if begun is not None else ():
        seconds[phase] = seconds.get(phase, 0.0) + (end_s - (begun or 0.0)) / len(phases)


def _phases(event: events.Phase) -> tuple[Phase, ...]:
    """Return which phases an event begins: of a check of base and tuned model in turns both, half each."""
    detail = event.detail
    match event.phase:
        case "replay":
            return ("replay",)
        case "loading":
            return ("replay",) if detail == "replay" else ("loading",)
        case "training":
            return ("probe",) if detail == "probe" else ("training",)
        case "evaluating" if detail == "check":
            return ("scoring base", "scoring tuned")
        case "evaluating":
            return ("scoring base",) if detail == "base" else ("on the way",) if detail.startswith("at-") else (
                "scoring tuned",)  # fmt: skip
        case "saving":
            return ("saving",)
    return ()


def road(found: Sequence[Any], *, live: bool, until_s: float, expected: Mapping[str, float]) -> list[Stage]:
    """Return the way of the newest attempt, part by part: what is behind, what goes on at `until_s` (monotonic), and of a
    run that is `live` what is to come, with the seconds `expected` of each phase. Parts that were nothing are left out."""
    begun = max((number for number, event in enumerate(found) if isinstance(event, events.Queued)), default=-1)
    attempt = found[max(0, begun) :]
    first = next((event for event in attempt if isinstance(event, events.Phase)), None)
    waited_s = ((first.monotonic_s if first is not None else until_s) - attempt[0].monotonic_s) if begun >= 0 else 0.0
    waits = live and first is None
    stages = (
        [Stage(phase="waiting", state="now" if waits else "done", took_s=waited_s)] if waits or waited_s >= 1 else []
    )
    now = next((event for event in reversed(attempt) if isinstance(event, events.Phase)), None)
    current = _phases(now)[-1:] if now is not None else ()
    seconds = took(attempt, until_s, None)[0]
    passed: list[Phase] = [phase for phase in (*ROAD, "on the way") if phase in seconds]
    ahead = ROAD.index(current[0]) if current and current[0] in ROAD else -1
    every: list[Phase] = [*ROAD, *(one for one in passed if one not in ROAD)]
    for phase in every:
        spent_s = seconds.get(phase, 0.0)
        if current == (phase,) and now is not None and live:
            step = next((one for one in reversed(attempt) if isinstance(one, events.Step)), None)
            done, total, left_s = now.done, now.total, now.left_s
            if phase == "training" and step is not None and not now.detail:
                done, total, left_s = step.step, step.total_steps, step.left_s
            if left_s is None and phase in expected:
                left_s = max(0.0, expected[phase] - spent_s) or None
            stages.append(Stage(phase=phase, state="now", took_s=spent_s, left_s=left_s, done=done, total=total))
        elif live and phase in expected and phase in ROAD and ROAD.index(phase) > ahead:
            stages.append(Stage(phase=phase, state="to come", left_s=expected[phase]))
        elif spent_s >= 0.5:
            ended = not live and current == (phase,) and not isinstance(attempt[-1], events.Finished)
            stages.append(Stage(phase=phase, state="ended" if ended else "done", took_s=spent_s))
    return stages
