"""What a run is and how it stands, told from its folder. Owns the layout of runs/<id>/, which everything reads:

spec.json      what was asked for, fully resolved          meta.json     the name a person gave it
events.jsonl   what happened                               summary.json  the same in short, rebuilt when missing
pid.json       which process supervises it                 stop          asks it to stop
worker.log     output of supervisor and child              reserve       freed when the disk is full
checkpoints/   to resume from                              adapter/ or model/   what was made
items/         every scored question, before and after     serve.json    who serves it now (engine/serve)
brief.json     what it gained and lost, in short (scored.py)
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from engine import events, processes
from engine.models import made
from engine.runs import names
from engine.spec import RunSpec, schema, settings, versions
from engine.words import Problem, Text, t
from engine.workspace import BadId, Workspace, find_struct, many_lines, one_line, read_object, write_atomically

LIVE = ("queued", "running", "stopping")
# How a run is listed that this version cannot read: what a later version made, and what is cut or damaged.
LATER, BROKEN = "later", "broken"

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
    moved: bool = True  # False when a training ended without a change of any weight
    attempts: int = 0
    failure: dict[str, str | Text] | None = None
    measured: dict[str, float | None] | None = None  # the figures of events.Measured


class Pin(msgspec.Struct, frozen=True):
    """What a run is pinned as: a name that a person gave, and the how-manieth of that name it is."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"


class _Pinned(msgspec.Struct):
    """What meta.json says of it."""

    pin: Pin | None = None


class Run(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of the list of runs. `progress` is the share of steps done, 0 to 1; `note` says what keeps this version from
    reading it, and `pin` what it is pinned as."""

    id: str
    name: str
    status: str
    recipe: str
    base: str
    dataset: str
    created: float
    progress: float
    note: str = ""
    pin: str = ""


class UnreadableSpec(ValueError):
    """This version cannot read the spec of a run; `problem` says why."""

    def __init__(self, problem: Problem):
        super().__init__(problem.sentence)
        self.problem = problem


def load_spec(workspace: Workspace, run_id: str) -> RunSpec:
    """Return a run's spec. Raises OSError when there is no such run, UnreadableSpec when it is of a later version, or cut
    or damaged."""
    data = (workspace.run_dir(run_id) / "spec.json").read_bytes()
    try:
        return schema.decode(data)
    except ValueError as error:
        told = versions.problem(data)
        if told is None:
            raise
        raise UnreadableSpec(told) from error


def unreadable(workspace: Workspace, run_id: str) -> Problem | None:
    """Return why this version cannot read a run that is there: it is of a later version, or cut or damaged; None where it
    can. A run whose end is told by an event that only a later version knows is of that version."""
    try:
        load_spec(workspace, run_id)
    except UnreadableSpec as error:
        return error.problem
    except OSError as error:
        return _no_spec(error)
    return _strange_end() if summary(workspace, run_id).status == LATER else None


def _no_spec(error: OSError) -> Problem:
    return Problem(rule="run-broken", where="spec.json", parameters={"reason": error.strerror or type(error).__name__})


def _strange_end() -> Problem:
    return Problem(rule="run-later", where="spec.json", parameters={"names": "events.jsonl"})


def over_its_base(workspace: Workspace, run_spec: RunSpec) -> RunSpec:
    """Return a spec with the base that its adapter lies on: another one than it started from, where it trained the adapter
    of an earlier run on. Where that run is gone it stays the base, and describing it says so."""
    if not run_spec.adapter_args.continues:
        return run_spec
    ref, revision = run_spec.base.ref, run_spec.base.revision
    with suppress(OSError, ValueError):
        ref, revision = made.under(workspace, ref.removeprefix("run:"))
    args = msgspec.structs.replace(run_spec.adapter_args, continues=False)
    return msgspec.structs.replace(run_spec, base=schema.BaseRef(ref, revision), adapter_args=args)


def exists(workspace: Workspace, run_id: str) -> bool:
    """Whether such a run is there; False for anything that is no id."""
    try:
        return _is_run(workspace.run_dir(run_id))
    except BadId:
        return False


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run, one whose spec is gone or damaged too."""
    return any(os.path.lexists(folder / name) for name in ("spec.json", "events.jsonl"))


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
            short.moved = event.moved if isinstance(event, events.Finished) else True
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
    found = find_struct(run_dir / "summary.json", Summary)
    if found is None or not _is_whole(found):
        found = _followed_summary(run_dir)
    if found.status in ("queued", "running"):
        if not supervised(run_dir):
            found = _followed_summary(run_dir)  # it may have ended between the two looks
            if found.status in ("queued", "running"):
                found.status = LATER if events.later_kinds(run_dir) else "interrupted"
        elif (run_dir / "stop").exists():
            found.status = "stopping"
    return found


def _is_whole(short: Summary) -> bool:
    """Whether a stored summary says all that it must: not so where it was written while the run went on."""
    whole = short.measured is None or short.measured.keys() >= set(_MEASURED)
    told = short.failure is None or short.failure.keys() >= {"kind", "message", "fix"}
    return short.status in ("finished", "stopped", "failed") and whole and told


def status(workspace: Workspace, run_id: str) -> str:
    """queued, running, stopping, finished, stopped, failed or interrupted; later, where a later version ended it."""
    return summary(workspace, run_id).status


def _created(run_dir: Path) -> float:
    try:
        return time.mktime(time.strptime(run_dir.name[:15], "%Y%m%d-%H%M%S"))
    except ValueError:
        return 0.0


def supervised(run_dir: Path) -> bool:
    processes.reap()
    return processes.alive(find_struct(run_dir / "pid.json", processes.Identity))


def _meta(workspace: Workspace, run_id: str) -> dict[str, Any]:
    return find_struct(workspace.run_dir(run_id) / "meta.json", dict[str, Any]) or {}


def name(workspace: Workspace, run_id: str) -> str:
    """Return what a run is called; one that an earlier version named as it would be named now."""
    return names.shown(workspace, one_line(str(_meta(workspace, run_id).get("name", run_id))) or run_id, run_id)


def all_names(workspace: Workspace) -> dict[str, str]:
    """Return by run what it is called in lists, where no two are called alike."""
    ids = [path.name for path in sorted(workspace.runs_dir.glob("[0-9a-z]*")) if exists(workspace, path.name)]
    return names.numbered((run_id, name(workspace, run_id)) for run_id in ids)


def made_of(workspace: Workspace, run: Run) -> names.Parts:
    """Return what the data, the recipe and the base of a run are called."""
    return names.parts(workspace, dataset=run.dataset, recipe=run.recipe, base=run.base)


def rename(workspace: Workspace, run_id: str, new_name: str) -> None:
    """Give a run another name; an empty one is ignored."""
    run_dir, cleaned = workspace.run_dir(run_id), one_line(new_name)
    if cleaned and run_dir.is_dir():
        write_atomically(run_dir / "meta.json", msgspec.json.encode({**_meta(workspace, run_id), "name": cleaned}))


def pin(workspace: Workspace, run_id: str) -> Pin | None:
    """Return what a run is pinned as; None where it is not."""
    found = find_struct(workspace.run_dir(run_id) / "meta.json", _Pinned)
    named = found.pin if found is not None else None
    if named is None or named.version < 1 or not (cleaned := one_line(named.name)):
        return None
    return Pin(cleaned, named.version)


def write_pin(workspace: Workspace, run_id: str, wanted: Pin | None) -> None:
    """Keep with a run what it is pinned as, or that it is not."""
    meta = {name: value for name, value in _meta(workspace, run_id).items() if name != "pin"}
    if wanted is not None:
        meta["pin"] = msgspec.to_builtins(wanted)
    write_atomically(workspace.run_dir(run_id) / "meta.json", msgspec.json.encode(meta))


def note(workspace: Workspace, run_id: str) -> str:
    """Return what a person has written down about a run; empty when nothing."""
    return str(_meta(workspace, run_id).get("note", ""))


def write_note(workspace: Workspace, run_id: str, text: str) -> None:
    """Keep a person's note with the run, up to 10,000 characters."""
    run_dir = workspace.run_dir(run_id)
    if run_dir.is_dir():
        meta = {**_meta(workspace, run_id), "note": many_lines(text, 10_000)}
        write_atomically(run_dir / "meta.json", msgspec.json.encode(meta))


def differences(workspace: Workspace, run_ids: list[str]) -> list[tuple[str, list[Any]]]:
    """Return the settings in which these runs differ, as dotted paths with each run's value."""
    return differing([load_spec(workspace, run_id) for run_id in run_ids])


def differing(specs: Sequence[RunSpec]) -> list[tuple[str, list[Any]]]:
    """Return the settings in which specs differ, as dotted paths with the value of each."""
    found: list[tuple[str, list[Any]]] = []
    for path in ("recipe.name", "base.ref", "dataset.id", *settings.fields()):
        values = [schema.value_at(one, path) for one in specs]
        if any(value != values[0] for value in values):
            found.append((path, values))
    return found


@lru_cache(maxsize=4096)
def _trained(root: str, run_id: str) -> RunSpec | None:
    """Return what a training was asked for, which never changes; None for what is no training."""
    spec = load_spec(Workspace(root), run_id)
    return spec if spec.kind == "train" else None


@lru_cache(maxsize=4096)
def _otherwise(root: str, before: str, run_id: str) -> tuple[tuple[str, Any], ...]:
    return tuple((path, values[1]) for path, values in differences(Workspace(root), [before, run_id]))


def set_otherwise(workspace: Workspace, runs: list[Run]) -> dict[str, tuple[tuple[str, Any], ...]]:
    """Return by run what it has set otherwise, as dotted paths and values, than the run before it that is called alike: of
    the same data, recipe and base. `runs` are all there are, newest first."""
    found, before, root = {}, dict[tuple[str, str, str], str](), str(workspace.root)
    for run in reversed(runs):
        if run.note or _trained(root, run.id) is None:
            continue
        kind = (run.dataset, run.recipe, run.base)
        if kind in before:
            found[run.id] = _otherwise(root, before[kind], run.id)
        before[kind] = run.id
    return found


def value_words(workspace: Workspace, path: str, value: Any) -> str:
    """Return a setting's value in words, as settings.value_words does; data, a base, a recipe and a run by their names."""
    if not isinstance(value, str) or not value:
        return settings.value_words(path, value)
    if path == "recipe.name":
        return names.parts(workspace, dataset="", recipe=value, base="").recipe
    if path == "base.ref" and not value.startswith("run:"):
        return names.base_title(workspace, value) or t("gone")
    if path in ("dataset.id", *settings.NAMES_DATA):
        return names.data_title(workspace, value) or t("gone")
    if path in ("base.ref", "objective_args.reward_model") and exists(workspace, value.removeprefix("run:")):
        return name(workspace, value.removeprefix("run:"))
    return settings.value_words(path, value)


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
        pin=str(pin(workspace, run_id) or ""),
    )


def list_all(workspace: Workspace) -> list[Run]:
    """Return all runs that this version can read, newest first."""
    return [run for run in list_every(workspace) if run.status not in (LATER, BROKEN)]


def list_every(workspace: Workspace) -> list[Run]:
    """Return all runs, newest first, with those of a later version and those whose spec is cut or damaged; of those called
    alike each later one with a number. A folder that is no run is passed over."""
    found = []
    for path in workspace.runs_dir.glob("[0-9a-z]*"):
        if exists(workspace, path.name):
            found.append(line(workspace, path.name))
    found.sort(key=lambda run: (run.created, run.id))
    numbered = names.numbered((run.id, run.name) for run in found)
    for run in found:
        run.name = numbered[run.id]
    return found[::-1]


def line(workspace: Workspace, run_id: str) -> Run:
    """Return the list line of a run, one that this version cannot read too."""
    try:
        run = describe(workspace, run_id)
    except UnreadableSpec as error:
        return _told(workspace, run_id, error.problem)
    except OSError as error:
        return _told(workspace, run_id, _no_spec(error))
    return _told(workspace, run_id, _strange_end()) if run.status == LATER else run


def _told(workspace: Workspace, run_id: str, problem: Problem) -> Run:
    """Return the line of a run that this version cannot read: what its files say in words that have not changed."""
    told = read_object(workspace.run_dir(run_id) / "spec.json")

    def word(*path: str) -> str:
        node: Any = told
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        return node if isinstance(node, str) else ""

    short = summary(workspace, run_id)
    done = 1.0 if short.status == "finished" else short.step / short.total_steps if short.total_steps else 0.0
    return Run(
        id=run_id, name=name(workspace, run_id), status=LATER if problem.rule == "run-later" else BROKEN,
        recipe=word("recipe", "name"), base=word("base", "ref"), dataset=word("dataset", "id"), created=short.created,
        progress=min(1.0, done), note=problem.message,
    )  # fmt: skip


def nothing_trained(workspace: Workspace, run_id: str) -> bool:
    """Whether a training was stopped before its first step: there is nothing to report, to chat with, or to export."""
    short = summary(workspace, run_id)
    if short.status not in ("stopped", "interrupted") or short.step or made.made_by(workspace.run_dir(run_id)):
        return False
    return load_spec(workspace, run_id).kind == "train"
