"""Start, stop, resume and delete runs. A double click starts one; of two servers on one home one goes first."""

from __future__ import annotations

import datetime
import os
import shutil
import time
from pathlib import Path

import msgspec
from filelock import FileLock

from engine import events, limits, machine, processes, spare
from engine.models import made
from engine.runs import admission, device_queue, names, needs, store
from engine.runs.checkpoints import broken_checkpoint, last_checkpoint
from engine.runs.store import LIVE, exists, load_spec, status, supervised
from engine.spec import RunSpec, schema
from engine.words import Problem, later, t
from engine.workspace import Workspace, checked, new_run_id, one_line, write_atomically


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

    Without a `name` it is called by its data, recipe and base; a name that another run has gets the next number.
    `click_id` makes a double click start one run: the second call returns the first one's id. `files` are written
    beside the spec before anything starts: the plan of a sweep.
    `module` is the supervisor to run; tests put a fake one there. Raises OSError when the folder cannot be written,
    limits.OverLimit when the run is beyond the limits of a hosted demo, and ValueError for a spec beyond those of its
    settings, which settings.problems names.
    """
    click = workspace.runs_dir / f".click-{checked(click_id)}" if click_id is not None else None
    with one_at_a_time(workspace), admission.gate() as admit:
        if click is not None and click.exists():
            earlier = click.read_text()
            if exists(workspace, earlier):
                return earlier
        admit(workspace, run_spec)
        if run_spec.day is None:
            run_spec = msgspec.structs.replace(run_spec, day=datetime.date.today().isoformat())
        written = schema.encode(run_spec)
        schema.decode(written)  # what cannot be read again is not begun
        run_id = new_run_id(random_bytes=limits.run_id_bytes())
        called = one_line(name or "") or one_line(names.usual(workspace, run_spec)) or run_id
        called = names.apart(called, set(store.all_names(workspace).values()))
        run_dir = workspace.run_dir(run_id)
        run_dir.mkdir(exist_ok=False)
        try:
            write_atomically(run_dir / "spec.json", written)
            write_atomically(run_dir / "meta.json", msgspec.json.encode({"name": called}))
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


def prepare() -> bool:
    """Start a process that waits for the next run, imported, unless one waits or none makes sense; return whether it was.
    Beside a run it makes none: the next waits for that anyhow, and its memory may be needed."""
    return not device_queue.live(machine.facts().device) and spare.prepare()


def _forget_old_clicks(workspace: Workspace) -> None:
    """A click counts for the seconds of a double click; its file need not stay for ever."""
    for path in workspace.runs_dir.glob(".click-*"):
        if time.time() - path.stat().st_mtime > 3600:
            path.unlink(missing_ok=True)


def one_at_a_time(workspace: Workspace) -> FileLock:
    """Of two clicks, or two servers on one home, one starts or resumes first, and the other sees what it did. Raises
    limits.OverLimit where a demo has no room for one more visitor."""
    limits.settle(workspace)
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
    me, home = processes.identify(os.getpid()), str(run_dir.parents[1])
    ticket = device_queue.draw(queued.device, run_dir.name, drawn_ns(queued), me, home=home)
    identity = None
    try:
        identity = _spawn(run_dir, module, ticket)
    finally:
        _answer_for(run_dir, identity)
        if identity is None:
            ticket.unlink(missing_ok=True)
        else:
            device_queue.hand_over(
                ticket, identity
            )  # if it has ended by now, the next reader of the queue clears it away


def drawn_ns(queued: events.Queued) -> int:
    """The time on the ticket of a run."""
    return int(queued.time * 1e9)


def _answer_for(run_dir: Path, identity: processes.Identity | None) -> None:
    if identity is None:
        (run_dir / "pid.json").unlink(missing_ok=True)
    else:
        write_atomically(run_dir / "pid.json", msgspec.json.encode(identity))


def _spawn(run_dir: Path, module: str, ticket: Path | None = None) -> processes.Identity | None:
    """Start the supervisor: one that stands in line with a ticket, or, of a sweep, at once. A sweep has no child: the spare
    is for its first run."""
    if ticket is not None and module == "engine.worker" and (waited := spare.take(run_dir)) is not None:
        return waited
    with (run_dir / "worker.log").open("ab") as log:
        how = {"stdout": log, "stderr": log}
        if ticket is None:
            process = processes.start(module, str(run_dir), **how)
        else:
            process = processes.line_up(ticket, run_dir, module, **how)
    return processes.identify(process.pid)


def stop(workspace: Workspace, run_id: str) -> None:
    """Ask a run to stop; it saves a checkpoint first. Harmless when it has ended or was asked before."""
    (workspace.run_dir(run_id) / "stop").touch()


class CannotResume(ValueError):
    """The run cannot go on; the text says why."""


def resume(workspace: Workspace, run_id: str, *, module: str = "engine.worker") -> None:
    """Start the next attempt of a run that was stopped, interrupted or failed, from its last checkpoint if there is one."""
    run_dir = workspace.run_dir(run_id)
    with one_at_a_time(workspace), admission.gate() as admit:
        if (strange := store.unreadable(workspace, run_id)) is not None:
            raise CannotResume(strange.sentence)
        state = status(workspace, run_id)
        if state in LIVE:
            raise CannotResume(t("The run is {state}; wait until it has ended.", state=state))
        if state == "finished":
            raise CannotResume(t("The run has finished; duplicate it to run it again."))
        if last_checkpoint(run_dir) is None and (broken := broken_checkpoint(run_dir)) is not None:
            raise CannotResume(Problem(rule="checkpoint-broken", parameters={"checkpoint": broken}).sentence)
        # The last event is written a moment before the processes end; two supervisors must not share a folder.
        end_s = time.monotonic() + 2
        while supervised(run_dir):
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


class CannotDelete(ValueError):
    """The run must stay; the text says why."""


class MustBeAsked(CannotDelete):
    """The run can be deleted by somebody who has read what is lost by it; `losses` says that, line by line."""

    def __init__(self, losses: list[str]):
        super().__init__(t("It is needed by others: {losses}", losses="; ".join(losses)))
        self.losses = losses


def losses(workspace: Workspace, run_id: str) -> list[str]:
    """Return what would be lost with a run beside itself, line by line. Raises CannotDelete where it must stay."""
    if status(workspace, run_id) in LIVE or supervised(workspace.run_dir(run_id)):
        raise CannotDelete(t("The run still goes on; stop it first."))
    if needs.is_exported(workspace, run_id):
        raise CannotDelete(t("It is being exported; wait until that has ended."))
    if needs.is_served(workspace, run_id):
        raise CannotDelete(t("It is served to other programs; end that first: tunebook serve --stop {id}", id=run_id))
    found = needs.of(workspace, run_id)
    if going := [one.sentence for one in found if one.going]:
        raise CannotDelete(t("Runs that wait or go on now need it; stop them first: {names}", names="; ".join(going)))
    strange, pinned = store.unreadable(workspace, run_id), store.pin(workspace, run_id)
    own = [] if pinned is None else [t("the run is pinned as {pin}", pin=str(pinned))]
    return [*own, *([strange.message] if strange is not None else []), *(one.sentence for one in found)]


def delete(workspace: Workspace, run_id: str, *, all_the_same: bool = False) -> None:
    """Delete a run and all it made. Raises CannotDelete while it goes on, or while what waits or goes on needs it; and
    MustBeAsked where others need it or a later version made it, unless that is known: `all_the_same`."""
    run_dir = workspace.run_dir(run_id)
    with one_at_a_time(workspace):
        if (found := losses(workspace, run_id)) and not all_the_same:
            raise MustBeAsked(found)
        # Renamed first: a folder that is half deleted must not be taken for a run.
        made.keep_below(workspace, run_id)
        gone = run_dir.with_name(f".deleted-{run_dir.name}")
        shutil.rmtree(gone, ignore_errors=True)
        run_dir.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def pin(workspace: Workspace, run_id: str, name: str) -> store.Pin | None:
    """Pin a run under a name, as the next version of it, and return that; one that bears the name already stays as it is.
    An empty name takes the pin away."""
    wanted = one_line(name)
    with one_at_a_time(workspace):
        now = store.pin(workspace, run_id)
        if now is not None and now.name == wanted:
            return now
        others = [store.pin(workspace, run.id) for run in store.list_every(workspace) if run.id != run_id]
        versions = [other.version for other in others if other is not None and other.name == wanted]
        made = store.Pin(wanted, 1 + max(versions, default=0)) if wanted else None
        store.write_pin(workspace, run_id, made)
    return made


def move_first(workspace: Workspace, run_id: str) -> None:
    """Let a waiting run be the next on its device. Harmless when it has started or ended, and in a hosted demo, where the
    others that wait are strangers."""
    if limits.on():
        return
    run_dir = workspace.run_dir(run_id)
    found, _ = events.read(run_dir)
    queued = next((event for event in reversed(found) if isinstance(event, events.Queued)), None)
    if queued is not None and status(workspace, run_id) == "queued":
        device_queue.move_first(queued.device, run_id)


def remove_waiting(workspace: Workspace, run_id: str) -> None:
    """Take a run out of the queue. Harmless when it has started: that is what stop is for."""
    if status(workspace, run_id) == "queued":
        stop(workspace, run_id)
