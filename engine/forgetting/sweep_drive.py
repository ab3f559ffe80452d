"""Drive a sweep: start one run after another and wait. A stop stops the run in hand; resuming goes on with the rest."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from engine import events
from engine.forgetting.sweep_plan import RECIPE, Sweep, label
from engine.plan import plans
from engine.runs import Run, lifecycle, store
from engine.spec import RunSpec, schema
from engine.words import Problem, later
from engine.workspace import Workspace, read_struct, write_atomically

POLL_S = 0.3


def start(workspace: Workspace, made: Sweep, *, click_id: str | None = None) -> str:
    """Start a sweep and return its run id. Its runs are started one after another by its supervisor."""
    run_spec = RunSpec(
        kind="sweep",
        recipe=RECIPE,
        base=schema.BaseRef(made.base),
        dataset=schema.DatasetRef(made.data),
        train=schema.Train(threads=1),
    )
    files = {"sweep.json": msgspec.json.format(msgspec.json.encode(made), indent=1)}
    return lifecycle.start(workspace, run_spec, name=made.title, click_id=click_id, files=files)


def load(workspace: Workspace, sweep_id: str) -> Sweep:
    """Return the plan of a sweep with the runs started so far. Raises OSError and ValueError."""
    return _read(workspace.run_dir(sweep_id))


def _read(run_dir: Path) -> Sweep:
    return read_struct(run_dir / "sweep.json", Sweep)


def list_all(workspace: Workspace) -> list[Run]:
    """Return all sweeps, newest first."""
    return [run for run in store.list_all(workspace) if run.recipe == RECIPE.name]


def drive(run_dir: Path) -> None:
    """Run the points of a sweep, one after another, and write its last event. The supervisor's part (worker.py)."""
    workspace, made = Workspace(run_dir.parents[1]), _read(run_dir)
    log = events.EventLog(run_dir)
    log.append(events.Phase(phase="training", detail="sweep"))
    began_s, ended = time.monotonic(), 0
    done = finished(workspace, made)
    log.append(events.Progress(done=done, total=len(made.trials)))
    for index, trial in enumerate(made.trials):
        if (run_dir / "stop").exists():
            break
        name = f"{label(trial.recipe, trial.set)}, seed {trial.seed}"
        if trial.run is not None and status(workspace, trial.run) == "finished":
            continue
        if not _start(workspace, run_dir, made, index, f"{made.title}: {name}", log):
            continue
        state = _wait(workspace, str(trial.run), run_dir)
        ended += 1
        done = finished(workspace, made)
        left = [one for one in made.trials[index + 1 :] if one.run is None or status(workspace, one.run) != "finished"]
        left_s = len(left) * (time.monotonic() - began_s) / ended
        log.append(events.Progress(done=done, total=len(made.trials), left_s=round(left_s, 1), detail=name))
        if state == "failed":
            log.append(events.Log(level="warning", text=later("{name}: the run {id} failed.", name=name, id=trial.run)))
    unfinished = len(made.trials) - finished(workspace, made)
    if (run_dir / "stop").exists() and unfinished:
        log.append(events.Stopped(step=done, resumable=True))
    elif unfinished:
        why = Problem(rule="sweep-unfinished", parameters={"n": unfinished, "total": len(made.trials)})
        message, fix = why.texts
        log.append(events.Failed(kind="sweep", message=message, fix=fix))
    else:
        log.append(events.Finished(step=done))
    log.close()


def _start(workspace: Workspace, run_dir: Path, made: Sweep, index: int, name: str, log: events.EventLog) -> bool:
    """Start or resume the run of a point; False when it cannot be, which is said in the log."""
    trial = made.trials[index]
    if trial.run is not None and store.exists(workspace, trial.run):
        if status(workspace, trial.run) in store.LIVE:
            return True  # it went on while the sweep was gone
        try:
            lifecycle.resume(workspace, trial.run)
            return True
        except lifecycle.CannotResume as error:
            log.append(events.Log(level="warning", text=f"{name}: {error}"))
            return False
    overrides = {**trial.set, "train.seed": trial.seed}
    try:
        plan = plans.make(workspace, trial.recipe, base=made.base, dataset=made.data, overrides=overrides)
        problems = plan.problems
    except plans.CannotPlan as error:
        plan, problems = None, (error.problem,)
    if plan is None or problems:
        text = "; ".join(problem.sentence for problem in problems)
        log.append(events.Log(level="warning", text=f"{name}: {text}"))
        return False
    # Killed between the start and the note of it, the next attempt finds the same run by its click.
    trial.run = lifecycle.start(workspace, plan.spec, name=name, click_id=f"{run_dir.name}-{index}")
    write_atomically(run_dir / "sweep.json", msgspec.json.format(msgspec.json.encode(made), indent=1))
    return True


def status(workspace: Workspace, run_id: str) -> str:
    return store.status(workspace, run_id) if store.exists(workspace, run_id) else "gone"


def finished(workspace: Workspace, made: Sweep) -> int:
    return sum(one.run is not None and status(workspace, one.run) == "finished" for one in made.trials)


def _wait(workspace: Workspace, run_id: str, run_dir: Path) -> str:
    """Wait for a run to end; a stop of the sweep is passed on to it once."""
    asked = False
    while (state := status(workspace, run_id)) in store.LIVE:
        if not asked and (run_dir / "stop").exists():
            lifecycle.stop(workspace, run_id)
            asked = True
        time.sleep(POLL_S)
    return state
