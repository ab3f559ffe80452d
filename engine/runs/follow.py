"""Follow a run: wait for its end, read its log, notice when nothing is heard of it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from engine import events, limits, machine
from engine.runs import device_queue
from engine.runs.store import LIVE, exists, name, status, supervised
from engine.words import t
from engine.workspace import Workspace

# A step may be slow and scoring says nothing for a while, but not for so long: after this silence a run may hang.
SILENT_S, SILENT_TRAINING_S, SILENT_STEPS = 900.0, 60.0, 30


def silent_s(found: list[Any]) -> float | None:
    """Return for how long nothing was heard of a run, when that is so long that it may hang; else None.

    By monotonic seconds, which are the machine's own and do not move when a clock is set.
    """
    if not found:
        return None
    silence_s, most_s = time.monotonic() - found[-1].monotonic_s, SILENT_S
    steps = [event for event in found[-50:] if isinstance(event, events.Step)][-10:]
    if isinstance(found[-1], events.Step) and len(steps) > 2:
        usual_s = (steps[-1].monotonic_s - steps[0].monotonic_s) / (len(steps) - 1)
        most_s = max(SILENT_TRAINING_S, SILENT_STEPS * usual_s)
    return silence_s if silence_s > most_s else None


def turns(workspace: Workspace) -> dict[str, str]:
    """Return in words what each run that waits for its turn waits for, by id; empty where nothing is before it. The queue is
    the machine's: the run before may lie in another home, of which a visitor of a demo hears nothing."""
    return {run: _turn(workspace, found) for run, found in device_queue.standings(machine.facts().device).items()}


def _turn(workspace: Workspace, found: device_queue.Standing) -> str:
    if not found.run:
        return ""
    place = {"n": found.n, "all": found.waiting}
    if exists(workspace, found.run):
        run = name(workspace, found.run)
        return t('Waits for the run "{run}"; number {n} of {all} in line.', run=run, **place)
    if limits.on():
        return t("Waits for another visitor's run; number {n} of {all} in line.", **place)
    if found.home:
        return t("Waits for a run in another folder, {home}; number {n} of {all} in line.", home=found.home, **place)
    return t("Waits for its turn; number {n} of {all} in line.", **place)


def doing(found: list[Any]) -> str:
    """Return in one line what a run is doing, how far that is, and what comes next, from its events; empty before it
    does anything."""
    from engine.estimate import duration

    phase = next((event for event in reversed(found) if isinstance(event, events.Phase)), None)
    if phase is None:
        return ""
    text = _doing(phase)
    step = next((event for event in reversed(found) if isinstance(event, events.Step)), None)
    is_training = phase.phase == "training" and phase.detail not in ("samples", "probe")
    if is_training and step is not None and step.left_s is not None:
        text = t(
            "{phase}: step {step} of {total}, about {left} left",
            phase=text, step=step.step, total=step.total_steps, left=duration.duration_words(step.left_s),
        )  # fmt: skip
    elif phase.total:
        text = t("{phase}: {done} of {total}", phase=text, done=phase.done, total=phase.total)
    if phase.left_s is not None:
        text = t("{phase}, {left} left", phase=text, left=duration.duration_words(phase.left_s))
    if phase.next and phase.next_s is not None:
        about = duration.duration_words(phase.next_s)
        return t("{phase}; then {next}, about {time}", phase=text, next=_next(phase.next), time=about)
    return t("{phase}; then {next}", phase=text, next=_next(phase.next)) if phase.next else text


def _doing(phase: events.Phase) -> str:
    """Return what a phase is, in words."""
    from engine.report import verdicts

    own = phase.what.startswith("new-task")
    what = t("the new task") if own else verdicts.title(phase.what) if phase.what else ""
    match phase.phase, phase.detail:
        case "loading", "":
            return t("Loading libraries")
        case "loading", "rows":
            return t("Reading the rows")
        case "loading", "keep":
            return t("Asking the base about the rows")
        case "loading", "base again":
            return t("Loading the base again")
        case ("replay", _) | ("loading", "replay"):
            return t("Writing general rows")
        case "training", "samples":
            return t("Writing its answers before the training")
        case "training", "probe":
            return t("Trying the longest batch")
        case "evaluating", "base":
            return t("Scoring the base ({what})", what=what) if what else t("Scoring the base")
        case "evaluating", "tuned":
            return t("Scoring the tuned model ({what})", what=what) if what else t("Scoring the tuned model")
        case "evaluating", detail if detail.startswith("way-"):
            part = {"part": f"{100 * float(detail.removeprefix('way-')):g}"}
            return (
                t("Scoring {part} % of the way ({what})", what=what, **part)
                if what
                else t("Scoring {part} % of the way", **part)
            )
        case "evaluating", "check":
            return t("Scoring base and tuned model ({what})", what=what) if what else t("Scoring base and tuned model")
        case "evaluating", "divergence":
            return t("Measuring how far it moved from the base")
    words = {
        "copying": t("Copying it"), "loading": t("Loading the model"), "training": t("Training"), "saving": t("Saving"),
        "evaluating": t("Scoring what it learned and forgot"),
    }  # fmt: skip
    return words.get(phase.phase, phase.phase)


def _next(phase: str) -> str:
    words = {
        "replay": t("writing general rows"), "training": t("training"), "saving": t("saving"), "evaluating": t("scoring"),
    }  # fmt: skip
    return words.get(phase, phase)


def wait(workspace: Workspace, run_id: str, on_event: Any = None, poll_s: float = 0.2) -> str:
    """Wait until a run has ended, handing each new event to `on_event`; return its status."""
    run_dir, offset = workspace.run_dir(run_id), 0
    while True:
        state = status(workspace, run_id)
        new, offset = events.read(run_dir, offset)
        if on_event is not None:
            for event in new:
                on_event(event)
        if state not in LIVE:
            return state
        time.sleep(poll_s)


def wait_for_end(run_dir: Path, timeout_s: float = 10.0) -> None:
    """Wait until the supervisor of a run that has ended is gone too; its last event comes a moment before."""
    end_s = time.monotonic() + timeout_s
    while supervised(run_dir) and time.monotonic() < end_s:
        time.sleep(0.05)


def log_tail(run_dir: Path, lines: int = 40, after: int = 0) -> str:
    """Return the last lines of worker.log, of those after byte `after`."""
    try:
        with (run_dir / "worker.log").open("rb") as file:
            file.seek(max(after, os.fstat(file.fileno()).st_size - 64 * 1024))
            return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
    except OSError:
        return ""
