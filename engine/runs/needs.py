"""What needs a run: runs that stand on it, are judged by it or compared with it, sweeps, chains and an open chat; and what
each would lose without it. Read from files alone, those of a later version too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from engine import processes
from engine.models import made
from engine.runs import store
from engine.words import t
from engine.workspace import Workspace, find_struct, read_object, write_atomically

How = Literal["base", "judge", "evaluation", "compared", "way", "sweep", "chain", "chat", "other"]


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who needs a run. `id` and `name` are of the run, sweep or chain that does; `going` when it waits or goes on
    now; `stands_alone` when it holds all its weights itself."""

    id: str
    name: str
    how: How
    status: str = ""
    going: bool = False
    stands_alone: bool = False

    @property
    def sentence(self) -> str:
        """Who it is, and what it loses."""
        return (
            t("{name} ({id}): {loses}", name=self.name, id=self.id, loses=self._loses()) if self.id else self._loses()
        )

    def _loses(self) -> str:
        if self.going:
            return t("it waits or goes on now, and would fail")
        match self.how:
            case "base" if self.status == "finished" and self.stands_alone:
                return t("was made from it; its weights stay whole, and it can be asked nothing more beside its base")
            case "base" if self.status == "finished":
                return t("stands on its weights; it could be neither chatted with, scored, exported nor gone on from")
            case "base" | "judge" | "way" if self.status != "finished":
                return t("has not finished, and could not go on")
            case "way":
                return t("scored the way back from it, which could be neither shown nor gone on with")
            case "judge":
                return t("was trained by its judgement; it could not be repeated")
            case "evaluation":
                return t("asked it more questions; its figures would stand in no report")
            case "compared":
                return t("is compared with it; it could not be asked again")
            case "sweep":
                return t("the sweep would lose one of its points")
            case "chain":
                return t("the chain would lose a stage, and what comes after it")
            case "chat":
                return t("it is loaded in Chat now")
        return t("names it in its settings")


def of(workspace: Workspace, run_id: str) -> list[Need]:
    """Return all who need a run, those that stand on what stands on it among them; what waits or goes on first."""
    files = [(path.parent, read_object(path)) for path in sorted(workspace.runs_dir.glob("*/spec.json"))]
    found: dict[tuple[str, str], Need] = {}
    wanted = [run_id]
    while wanted:
        ref = f"run:{wanted.pop()}"
        for folder, told in files:
            for need in _named(workspace, folder, told, ref):
                if (need.id, need.how) not in found and need.id != run_id:
                    found[need.id, need.how] = need
                    if need.how == "base" and not need.stands_alone:
                        wanted.append(need.id)
    direct = [*_sweeps(workspace, run_id), *_chains(workspace, run_id), *_chat(workspace, run_id)]
    return sorted([*found.values(), *direct], key=lambda one: not one.going)


def _named(workspace: Workspace, folder: Path, told: dict[str, Any], ref: str) -> Iterator[Need]:
    """Yield how the spec of a run names `ref`."""
    back = _at(told, "recover", "run") == ref.removeprefix("run:")
    if not back and ref not in _words(told):
        return
    run_id = folder.name
    try:
        status, name = store.status(workspace, run_id), store.name(workspace, run_id)
    except ValueError:  # a folder that is no run
        return
    going = status in store.LIVE  # a supervisor that lingers after the end needs nothing

    def need(how: How) -> Need:
        output = made.made_by(folder)
        # One that trained the adapter on has the whole adapter itself, and what it lies on is kept (made.keep_below).
        whole = output is not None and (output.name == "model" or bool(_at(told, "adapter_args", "continue")))
        return Need(id=run_id, name=name, how=how, status=status, going=going, stands_alone=whole)

    roles: list[tuple[How, Any]] = [
        ("evaluation" if told.get("kind") == "evaluate" else "base", _at(told, "base", "ref")),
        ("judge", _at(told, "objective_args", "reward_model")),
        ("compared", _at(told, "evaluate", "against")),
    ]
    is_scan = bool(_at(told, "recover")) and _at(told, "recover", "at") is None
    found: list[How] = [how for how, value in roles if value == ref]
    is_named = back or bool(found)
    if is_scan and status == "finished":  # without weights of its own, it is lost with the run that it goes back from
        found.clear()
    if back and (status != "finished" or is_scan):  # a point that was kept stands by itself
        found.append("way")
    yield from map(need, found if is_named else ["other"])


def _at(told: Any, *path: str) -> Any:
    for part in path:
        told = told.get(part) if isinstance(told, dict) else None
    return told


def _words(node: Any) -> list[str]:
    """Return every text in a tree of JSON, however deep it is."""
    found, ahead = [], [node]
    while ahead:
        one = ahead.pop()
        if isinstance(one, dict | list):
            ahead += one.values() if isinstance(one, dict) else one
        elif isinstance(one, str):
            found.append(one)
    return found


def _sweeps(workspace: Workspace, run_id: str) -> Iterator[Need]:
    for path in sorted(workspace.runs_dir.glob("*/sweep.json")):
        if run_id in _words(read_object(path)):
            sweep = path.parent
            going = store.supervised(sweep)
            yield Need(id=sweep.name, name=store.name(workspace, sweep.name), how="sweep", going=going)


def _chains(workspace: Workspace, run_id: str) -> Iterator[Need]:
    for path in sorted(workspace.chains_dir.glob("*.json")):
        told = read_object(path)
        if run_id in _words(told.get("runs")):
            yield Need(id=path.stem, name=str(told.get("name") or path.stem), how="chain")


# --- what is exported or served, and an open chat ---

EXPORTED, SERVED = "export.json", "serve.json"


class _Exported(msgspec.Struct, kw_only=True):
    """export.json of a run: the process that makes something of it (engine/export), and what it ended with."""

    process: processes.Identity
    made: Any = None
    failure: Any = None


def is_exported(workspace: Workspace, run_id: str) -> bool:
    """Whether a process makes something of a run now."""
    told = find_struct(workspace.run_dir(run_id) / EXPORTED, _Exported)
    return told is not None and told.made is None and told.failure is None and processes.alive(told.process)


class _Served(msgspec.Struct, kw_only=True):
    """serve.json of a run: its id, and the process that serves it (engine/serve)."""

    run: str
    process: processes.Identity


def is_served(workspace: Workspace, run_id: str) -> bool:
    """Whether other programs can ask a run now."""
    told = find_struct(workspace.run_dir(run_id) / SERVED, _Served)
    return told is not None and told.run == run_id and processes.alive(told.process)


class _Open(msgspec.Struct, kw_only=True):
    """chat/open.json: the process that holds models, and which."""

    process: processes.Identity
    models: list[str]


def _open_chat(workspace: Workspace) -> Path:
    return workspace.root / "chat" / "open.json"


def hold(workspace: Workspace, process: processes.Identity | None, models: list[str]) -> None:
    """Write down which models a chat has loaded, for whoever would delete one of them, in this process or another."""
    if process is None:
        return
    with suppress(OSError):  # on a full disk one can still chat
        write_atomically(_open_chat(workspace), msgspec.json.encode(_Open(process=process, models=models)))


def is_chatted_with(workspace: Workspace, run_id: str) -> bool:
    """Whether a chat holds a run's model now."""
    told = find_struct(_open_chat(workspace), _Open)
    return told is not None and f"run:{run_id}" in told.models and processes.alive(told.process)


def _chat(workspace: Workspace, run_id: str) -> Iterator[Need]:
    if is_chatted_with(workspace, run_id):
        yield Need(id="", name="", how="chat")
