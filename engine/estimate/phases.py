"""What a run spends its time on, phase by phase: what each is called, and how long each took by the events of a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import msgspec

from engine import events
from engine.words import t

Phase = Literal[
    "loading", "replay", "probe", "training", "samples", "on the way", "saving", "scoring base", "scoring tuned"
]
ORDER: tuple[Phase, ...] = get_args(Phase)


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
