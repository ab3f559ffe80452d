"""Runs: start, stop, resume, status, list. Owns the layout of runs/<id>/, which every page and the command line read.

spec.json      what was asked for, fully resolved          meta.json     the name a person gave it
events.jsonl   what happened                               summary.json  the same in short, rebuilt when missing
pid.json       which process supervises it                 stop          asks it to stop
worker.log     output of supervisor and child              reserve       freed when the disk is full
checkpoints/   to resume from                              adapter/ or model/   what was made
items/         every scored question, before and after
"""

from __future__ import annotations

import os
import shutil
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock

from engine import bases, demo, events, machine, processes, turns
from engine.spec import RunSpec, schema, settings
from engine.words import Problem, Text, later, t
from engine.workspace import Workspace, checked, new_run_id, write_atomically

LIVE = ("queued", "running", "stopping")


_MEASURED = ("peak_bytes", "baseline_bytes", "step_s", "longest_tokens", "estimated_bytes")


class Summary(msgspec.Struct, kw_only=True):
    """A run in short. `status` is the last lifecycle event; whether its process lives is asked when it is read."""

    id: str
    status: str
    created: float
    ended: float | None = None
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    eval_loss: float | None = None
    phase: str = ""
    attempts: int = 0
    failure: dict[str, str | Text] | None = None
    measured: dict[str, float | None] | None = None  # the figures of events.Measured


class Run(msgspec.Struct, kw_only=True):
    """One line of the list of runs. `progress` is the share of steps done, 0 to 1."""

    id: str
    name: str
    status: str
    recipe: str
    base: str
    dataset: str
    created: float
    progress: float


def start(
    workspace: Workspace,
    run_spec: RunSpec,
    *,
    name: str | None = None,
    click_id: str | None = None,
    module: str = "engine.worker",
    files: dict[str, bytes] | None = None,
) -> str:
    """Write the run folder, start its supervisor in a session of its own and return the run's id.

    `click_id` makes a double click start one run: the second call returns the first one's id. `files` are written
    beside the spec before anything starts: the plan of a sweep.
    `module` is the supervisor to run; tests put a fake one there. Raises OSError when the folder cannot be written, and
    demo.Refused when the run is beyond the limits of a hosted demo.
    """
    click = workspace.runs_dir / f".click-{checked(click_id)}" if click_id is not None else None
    with _one_at_a_time(workspace), demo.gate() as admit:
        if click is not None and click.exists():
            earlier = click.read_text()
            if exists(workspace, earlier):
                return earlier
        admit(workspace, run_spec)
        run_id = new_run_id(random_bytes=demo.run_id_bytes())
        run_dir = workspace.run_dir(run_id)
        run_dir.mkdir(exist_ok=False)
        try:
            write_atomically(run_dir / "spec.json", schema.encode(run_spec))
            write_atomically(run_dir / "meta.json", msgspec.json.encode({"name": name or _default_name(run_spec)}))
            for file, content in (files or {}).items():
                write_atomically(run_dir / file, content)
            events.make_reserve(run_dir)
            _queue(run_dir, module, waits=run_spec.kind != "sweep")
            if click is not None:
                _forget_old_clicks(workspace)
                write_atomically(click, run_id.encode())
        except BaseException:
            (run_dir / "stop").touch()
            shutil.rmtree(run_dir, ignore_errors=True)
            raise
    return run_id


def _forget_old_clicks(workspace: Workspace) -> None:
    """A click counts for the seconds of a double click; its file need not stay for ever."""
    for path in workspace.runs_dir.glob(".click-*"):
        if time.time() - path.stat().st_mtime > 3600:
            path.unlink(missing_ok=True)


def _one_at_a_time(workspace: Workspace) -> FileLock:
    """Of two clicks, or two servers on one home, one starts or resumes first, and the other sees what it did."""
    workspace.runs_dir.mkdir(parents=True, exist_ok=True)
    return FileLock(workspace.runs_dir / ".lock")


def _queue(run_dir: Path, module: str, *before: events.Event, waits: bool = True) -> None:
    """Write that the run waits, and start its supervisor. Until that is up, this process answers for the run. A sweep
    waits for no device: its runs do."""
    queued = events.Queued(device=machine.facts().device)
    _answer_for(run_dir, processes.identify(os.getpid()))
    log = events.EventLog(run_dir)
    for event in (*before, queued):
        log.append(event)
    log.close()
    if not waits:
        identity = None
        try:
            identity = _spawn(run_dir, module)
        finally:
            _answer_for(run_dir, identity)
        return
    place = (queued.device, run_dir.name, drawn_ns(queued))
    ticket = turns.draw(*place, processes.identify(os.getpid()))
    identity = None
    try:
        identity = _spawn(run_dir, module)
    finally:
        _answer_for(run_dir, identity)
        if identity is None:
            ticket.unlink(missing_ok=True)
        else:
            turns.hand_over(ticket, identity)  # if it has ended by now, the next reader of the queue clears it away


def drawn_ns(queued: events.Queued) -> int:
    """The time on the ticket of a run."""
    return int(queued.time * 1e9)


def _answer_for(run_dir: Path, identity: processes.Identity | None) -> None:
    if identity is None:
        (run_dir / "pid.json").unlink(missing_ok=True)
    else:
        write_atomically(run_dir / "pid.json", msgspec.json.encode(identity))


def _default_name(run_spec: RunSpec) -> str:
    base = run_spec.base.ref.rstrip("/").rpartition("/")[2]
    return f"{run_spec.recipe.name} on {base}"


def _spawn(run_dir: Path, module: str) -> processes.Identity | None:
    with (run_dir / "worker.log").open("ab") as log:
        process = processes.start(module, str(run_dir), stdout=log, stderr=log)
    return processes.identify(process.pid)


def stop(workspace: Workspace, run_id: str) -> None:
    """Ask a run to stop; it saves a checkpoint first. Harmless when it has ended or was asked before."""
    (workspace.run_dir(run_id) / "stop").touch()


class CannotResume(ValueError):
    """The run cannot go on; the text says why."""


def resume(workspace: Workspace, run_id: str, *, module: str = "engine.worker") -> None:
    """Start the next attempt of a run that was stopped, interrupted or failed, from its last checkpoint if there is one."""
    run_dir = workspace.run_dir(run_id)
    with _one_at_a_time(workspace), demo.gate() as admit:
        state = status(workspace, run_id)
        if state in LIVE:
            raise CannotResume(t("The run is {state}; wait until it has ended.", state=state))
        if state == "finished":
            raise CannotResume(t("The run has finished; duplicate it to run it again."))
        if last_checkpoint(run_dir) is None and (broken := broken_checkpoint(run_dir)) is not None:
            raise CannotResume(Problem(rule="checkpoint-broken", parameters={"checkpoint": broken}).sentence)
        # The last event is written a moment before the processes end; two supervisors must not share a folder.
        end_s = time.monotonic() + 2
        while _supervised(run_dir):
            if time.monotonic() > end_s:
                raise CannotResume(t("The run is just ending; try again in a moment."))
            time.sleep(0.05)
        admit(workspace, load_spec(workspace, run_id))
        (run_dir / "stop").unlink(missing_ok=True)
        (run_dir / "summary.json").unlink(missing_ok=True)
        if not (run_dir / "reserve").exists():
            events.make_reserve(run_dir)
        gone = events.Interrupted(reason=later("the processes of the earlier attempt were gone"))
        waits = load_spec(workspace, run_id).kind != "sweep"
        _queue(run_dir, module, *([gone] if state == "interrupted" else []), waits=waits)


def _checkpoints(run_dir: Path) -> list[Path]:
    """Return the checkpoints of a run, the last first."""
    numbered = [
        (path.name.partition("checkpoint-")[2], path) for path in (run_dir / "checkpoints").glob("checkpoint-*")
    ]
    return [path for _, path in sorted(((int(n), p) for n, p in numbered if n.isdecimal()), reverse=True)]


def _is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint can be gone on from: weights to their last byte, optimizer and counters. A crash or a
    full disk may have cut the last one short."""
    weights = list(checkpoint.glob("*.safetensors"))
    # optimizer.pt is a zip, whose table of contents is written last; PPO's is a safetensors file
    optimizer = zipfile.is_zipfile(checkpoint / "optimizer.pt") or (checkpoint / "optimizer.safetensors").is_file()
    told = (checkpoint / "trainer_state.json").is_file()
    return told and optimizer and bool(weights) and all(map(bases.is_whole, weights))


def last_checkpoint(run_dir: Path) -> Path | None:
    """Return the last whole checkpoint of a run, or None."""
    return next((path for path in _checkpoints(run_dir) if _is_whole(path)), None)


def broken_checkpoint(run_dir: Path) -> str | None:
    """Return the name of the last checkpoint that is cut short, or None."""
    return next((path.name for path in _checkpoints(run_dir) if not _is_whole(path)), None)


def load_spec(workspace: Workspace, run_id: str) -> RunSpec:
    """Return a run's spec. Raises OSError when there is no such run, msgspec.ValidationError when it is of a later
    version."""
    return schema.decode((workspace.run_dir(run_id) / "spec.json").read_bytes())


def exists(workspace: Workspace, run_id: str) -> bool:
    """Whether such a run is there; False for anything that is no id."""
    try:
        return (workspace.run_dir(run_id) / "spec.json").is_file()
    except ValueError:
        return False


def summarise(run_dir: Path) -> Summary:
    """Rebuild a run's summary from all its events."""
    return _go_on(_nothing_yet(run_dir), run_dir, 0)[1]


def _nothing_yet(run_dir: Path) -> Summary:
    return Summary(id=run_dir.name, status="queued", created=_created(run_dir))


def _go_on(known: Summary, run_dir: Path, offset: int) -> tuple[int, Summary]:
    """Return a summary brought up to date with the events after byte `offset`, and the offset to go on from."""
    short = msgspec.structs.replace(known)  # a copy, for two threads may be here at once
    found, after = events.read(run_dir, offset)
    if found and not offset:
        short.created = found[0].time
    for event in found:
        _take_in(short, event)
    return after, short


def _take_in(short: Summary, event: Any) -> None:
    match event:
        case events.Queued():
            short.status, short.ended, short.failure = "queued", None, None
        case events.Started():
            short.status, short.attempts = "running", event.attempt
        case events.Phase():
            short.status, short.phase = "running", event.phase
        case events.Step():
            short.step, short.total_steps = event.step, event.total_steps
            short.loss = event.loss if event.loss is not None else short.loss
        case events.Eval():
            short.eval_loss = event.loss
        case events.Measured():
            told = msgspec.to_builtins(event)
            short.measured = {name: told[name] for name in _MEASURED}
        case events.Progress():
            short.step, short.total_steps = event.done, event.total
        case events.Finished() | events.Stopped() | events.Failed() | events.Interrupted():
            short.status = type(event).__name__.lower()
            short.ended = event.time
            if isinstance(event, events.Failed):
                short.failure = {"kind": event.kind, "message": event.message, "fix": event.fix}


# How far the events of runs without a summary were read, and what they came to: events are only ever appended, and
# whoever watches a run asks every second.
_followed: dict[Path, tuple[int, Summary]] = {}
MOST_FOLLOWED = 1000


def _followed_summary(run_dir: Path) -> Summary:
    """Return what summarise() does, reading only the events that are new since this process last asked."""
    offset, known = _followed.get(run_dir, (0, _nothing_yet(run_dir)))
    if events.size(run_dir) < offset:  # another file: the run was deleted, and one of its name is here
        offset, known = 0, _nothing_yet(run_dir)
    offset, short = _go_on(known, run_dir, offset)
    if len(_followed) >= MOST_FOLLOWED:
        _followed.clear()
    _followed[run_dir] = (offset, short)
    return msgspec.structs.replace(short)


def write_summary(run_dir: Path) -> None:
    """Write summary.json beside and rename it, so that a list of many runs opens at once."""
    write_atomically(run_dir / "summary.json", msgspec.json.encode(summarise(run_dir)))


def summary(workspace: Workspace, run_id: str) -> Summary:
    """Return a run's summary with its true status: an unfinished run whose supervisor is gone is interrupted."""
    run_dir = workspace.run_dir(run_id)
    try:
        found = msgspec.json.decode((run_dir / "summary.json").read_bytes(), type=Summary)
        if found.status not in ("finished", "stopped", "failed"):
            raise ValueError("written while the run went on")
    except (OSError, ValueError, RecursionError):
        found = _followed_summary(run_dir)
    if found.status in ("queued", "running"):
        if not _supervised(run_dir):
            found = _followed_summary(run_dir)  # it may have ended between the two looks
            if found.status in ("queued", "running"):
                found.status = "interrupted"
        elif (run_dir / "stop").exists():
            found.status = "stopping"
    return found


def status(workspace: Workspace, run_id: str) -> str:
    """queued, running, stopping, finished, stopped, failed or interrupted."""
    return summary(workspace, run_id).status


def _created(run_dir: Path) -> float:
    try:
        return time.mktime(time.strptime(run_dir.name[:15], "%Y%m%d-%H%M%S"))
    except ValueError:
        return 0.0


def _supervised(run_dir: Path) -> bool:
    processes.reap()
    try:
        identity = msgspec.json.decode((run_dir / "pid.json").read_bytes(), type=processes.Identity)
    except (OSError, msgspec.MsgspecError, RecursionError):
        return False
    return processes.alive(identity)


def _meta(workspace: Workspace, run_id: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode((workspace.run_dir(run_id) / "meta.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError, RecursionError):
        return {}


def name(workspace: Workspace, run_id: str) -> str:
    return str(_meta(workspace, run_id).get("name", run_id))


def rename(workspace: Workspace, run_id: str, new_name: str) -> None:
    """Give a run another name; an empty one is ignored."""
    run_dir, cleaned = workspace.run_dir(run_id), " ".join(new_name.split())[:120]
    if cleaned and run_dir.is_dir():
        write_atomically(run_dir / "meta.json", msgspec.json.encode({**_meta(workspace, run_id), "name": cleaned}))


def note(workspace: Workspace, run_id: str) -> str:
    """Return what a person has written down about a run; empty when nothing."""
    return str(_meta(workspace, run_id).get("note", ""))


def write_note(workspace: Workspace, run_id: str, text: str) -> None:
    """Keep a person's note with the run, up to 10,000 characters."""
    run_dir = workspace.run_dir(run_id)
    if run_dir.is_dir():
        meta = {**_meta(workspace, run_id), "note": text.strip()[:10_000]}
        write_atomically(run_dir / "meta.json", msgspec.json.encode(meta))


def disk_bytes(workspace: Workspace, run_id: str) -> int:
    """Return how much the run's folder takes on disk."""
    total = 0
    for folder, _, names in os.walk(workspace.run_dir(run_id)):
        for name in names:
            with suppress(OSError):  # a checkpoint may be renamed while we look
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


class CannotDelete(ValueError):
    """The run must stay; the text says why."""


def delete(workspace: Workspace, run_id: str) -> None:
    """Delete a run and all it made. Raises CannotDelete while it goes on, or while another run stands on it."""
    run_dir = workspace.run_dir(run_id)
    with _one_at_a_time(workspace):
        if status(workspace, run_id) in LIVE or _supervised(run_dir):
            raise CannotDelete(t("The run still goes on; stop it first."))
        standing = [name(workspace, run.id) for run in list_all(workspace) if run.base == f"run:{run_id}"]
        if standing:
            raise CannotDelete(t("These runs stand on it; delete them first: {names}", names=", ".join(standing)))
        # Renamed first: a folder that is half deleted must not be taken for a run.
        gone = run_dir.with_name(f".deleted-{run_dir.name}")
        shutil.rmtree(gone, ignore_errors=True)
        run_dir.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def move_first(workspace: Workspace, run_id: str) -> None:
    """Let a waiting run be the next on its device. Harmless when it has started or ended, and in a hosted demo, where the
    others that wait are strangers."""
    if demo.on():
        return
    run_dir = workspace.run_dir(run_id)
    found, _ = events.read(run_dir)
    queued = next((event for event in reversed(found) if isinstance(event, events.Queued)), None)
    if queued is not None and status(workspace, run_id) == "queued":
        turns.move_first(queued.device, run_id)


def remove_waiting(workspace: Workspace, run_id: str) -> None:
    """Take a run out of the queue. Harmless when it has started: that is what stop is for."""
    if status(workspace, run_id) == "queued":
        stop(workspace, run_id)


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


def differences(workspace: Workspace, run_ids: list[str]) -> list[tuple[str, list[Any]]]:
    """Return the settings in which these runs differ, as dotted paths with each run's value."""
    specs = [load_spec(workspace, run_id) for run_id in run_ids]
    found: list[tuple[str, list[Any]]] = []
    for path in ("recipe.name", "base.ref", "dataset.id", *settings.fields()):
        values = [schema.value_at(one, path) for one in specs]
        if any(value != values[0] for value in values):
            found.append((path, values))
    return found


def describe(workspace: Workspace, run_id: str) -> Run:
    """Return the list line of one run."""
    short = summary(workspace, run_id)
    run_spec = load_spec(workspace, run_id)
    done = 1.0 if short.status == "finished" else short.step / short.total_steps if short.total_steps else 0.0
    return Run(
        id=run_id,
        name=name(workspace, run_id),
        status=short.status,
        recipe=run_spec.recipe.name,
        base=run_spec.base.ref,
        dataset=run_spec.dataset.id,
        created=short.created,
        progress=min(1.0, done),
    )


def list_all(workspace: Workspace) -> list[Run]:
    """Return all runs, newest first. A folder that is no run, or of a later version, is passed over."""
    found = []
    for path in workspace.runs_dir.glob("*/spec.json"):
        try:
            found.append(describe(workspace, path.parent.name))
        except (OSError, ValueError, msgspec.MsgspecError, RecursionError):
            continue
    return sorted(found, key=lambda run: (run.created, run.id), reverse=True)


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
    while _supervised(run_dir) and time.monotonic() < end_s:
        time.sleep(0.05)


def log_tail(run_dir: Path, lines: int = 40, after: int = 0) -> str:
    """Return the last lines of worker.log, of those after byte `after`."""
    try:
        with (run_dir / "worker.log").open("rb") as file:
            file.seek(max(after, os.fstat(file.fileno()).st_size - 64 * 1024))
            return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
    except OSError:
        return ""
