"""What takes room in a home: checkpoints, merged models, GGUF files, bases and replay sets, each with its size, what needs
it, and one way to delete it. Nothing outside the home is ever deleted, nor what a link leads to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from engine import limits
from engine.models import cache, made
from engine.runs import Run, lifecycle, needs, store
from engine.words import t
from engine.workspace import Workspace, disk_bytes, scratch


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """Something that takes room. `place` is where it lies in the home, by which it is named, or an id of the hub's cache.
    `kept` says why it cannot be deleted now; `losses`, line by line, what would be lost with it, to be read first."""

    place: str
    kind: str  # checkpoints, merged, gguf, base or replay
    title: str
    size_bytes: int
    kept: str | None = None
    losses: tuple[str, ...] = ()


class CannotDelete(ValueError):
    """It must stay; the text says why."""


class MustBeAsked(CannotDelete):
    """It can be deleted by somebody who has read what is lost by it."""


def kind_word(kind: str) -> str:
    """Return what a kind is called."""
    return {
        "checkpoints": t("checkpoints"),
        "merged": t("merged model"),
        "gguf": t("GGUF file"),
        "base": t("base"),
        "replay": t("replay set"),
    }[kind]


def find(workspace: Workspace) -> list[Taken]:
    """Return what takes room, the largest first."""
    runs = store.list_every(workspace)
    found = [*_of_runs(workspace, runs), *_bases(workspace, runs), *_replay(workspace, runs)]
    if not limits.on():  # the cache is everybody's
        found += _cached()
    return sorted(found, key=lambda one: -one.size_bytes)


def delete(workspace: Workspace, place: str, *, all_the_same: bool = False) -> int:
    """Delete something that `find` names and return how many bytes it took. Raises CannotDelete where it must stay, and
    MustBeAsked where something would be lost that the caller has not said to know: `all_the_same`."""
    with lifecycle.one_at_a_time(workspace):  # no run starts meanwhile
        one = next((one for one in find(workspace) if one.place == place), None)
        if one is None:
            raise CannotDelete(t("{place} is not among what takes room; tunebook room lists it.", place=place[:200]))
        if one.kept is not None:
            raise CannotDelete(one.kept)
        if one.losses and not all_the_same:
            raise MustBeAsked("; ".join(one.losses))
        path = workspace.root / place
        paths = [path]
        if one.kind == "gguf":  # with what was found of it, and its Modelfile
            paths += [beside for beside in path.parent.glob(f"{path.stem}.*") if beside != path]
        gone = [_renamed(path) for path in paths]  # first: what is half deleted must not be taken for whole
    for path in gone:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return one.size_bytes


def _renamed(path: Path) -> Path:
    gone = path.with_name(f"{scratch('old')}{path.name}")
    path.rename(gone)
    return gone


def _taken(
    workspace: Workspace, path: Path, kind: str, title: str, kept: str | None, losses: tuple[str, ...] = ()
) -> Taken:
    place = path.relative_to(workspace.root)
    parts = [workspace.root.joinpath(*place.parts[: n + 1]) for n in range(len(place.parts))]
    if any(part.is_symlink() for part in parts):
        kept = t("It is a link to somewhere else; delete it there.")
    return Taken(
        place=place.as_posix(), kind=kind, title=title, size_bytes=disk_bytes(path), kept=kept,
        losses=() if kept else losses,
    )  # fmt: skip


def _of_runs(workspace: Workspace, runs: list[Run]) -> Iterator[Taken]:
    for run in runs:
        folder = workspace.run_dir(run.id)
        places = [("checkpoints", folder / "checkpoints"), ("merged", folder / "merged")]
        places += [("gguf", path) for path in sorted((folder / "gguf").glob("*.gguf"))]
        there = [(kind, path) for kind, path in places if path.exists()]
        if not there:
            continue
        kept, pinned = run.note or _busy(workspace, run, runs), _pinned(run)
        for kind, path in there:
            title = _named(run) if kind != "gguf" else path.name
            losses = pinned
            if kind == "checkpoints" and run.status != "finished":
                losses = (*pinned, t("the run could not go on from where it was"))
            yield _taken(workspace, path, kind, title, kept, losses)


def _busy(workspace: Workspace, run: Run, runs: list[Run]) -> str | None:
    """Why nothing of a run can be deleted now."""
    if run.status in store.LIVE or store.supervised(workspace.run_dir(run.id)):
        return t("The run still goes on; stop it first.")
    if needs.is_exported(workspace, run.id):
        return t("It is being exported; wait until that has ended.")
    if needs.is_served(workspace, run.id):
        return t("It is being served; stop that first.")
    if needs.is_chatted_with(workspace, run.id):
        return t("A chat has it open; close that first.")
    users = [one for one in runs if one.base == f"run:{run.id}" and one.status in store.LIVE]
    return _named_by(users) if users else None


def _named_by(runs: list[Run]) -> str:
    return t("Runs that wait or go on now need it: {names}", names=", ".join(map(_named, runs[:3])))


def _named(run: Run) -> str:
    return f"{run.name} ({run.id[-6:]})"


def _pinned(run: Run) -> tuple[str, ...]:
    return (t("the run is pinned as {pin}", pin=run.pin),) if run.pin else ()


def _bases(workspace: Workspace, runs: list[Run]) -> Iterator[Taken]:
    below = {run.id: run.base for run in runs}

    def root(ref: str) -> str:
        seen = set[str]()
        while ref.startswith("run:") and ref not in seen:
            seen.add(ref)
            ref = below.get(ref.removeprefix("run:"), ref)
        return ref

    for folder in sorted(workspace.models_dir.glob("[!.]*")):
        users = [run for run in runs if root(run.base) == str(folder)]
        live = [run for run in users if run.status in store.LIVE]
        losses = [_without_base(workspace, run) for run in users[:3]]
        if len(users) > 3:
            losses.append(t("more runs that came from it: {n}", n=len(users) - 3))
        if pins := [run.pin for run in users if run.pin]:
            losses.append(t("pinned runs among them: {names}", names=", ".join(pins)))
        yield _taken(workspace, folder, "base", folder.name, _named_by(live) if live else None, tuple(losses))


def _without_base(workspace: Workspace, run: Run) -> str:
    output = made.made_by(workspace.run_dir(run.id))
    if output is not None and output.name == "model":
        return t("{name} was made from it; it stays whole, and can be asked nothing more beside it", name=_named(run))
    return t("{name} stands on it; it could be neither chatted with, scored nor exported", name=_named(run))


def _replay(workspace: Workspace, runs: list[Run]) -> Iterator[Taken]:
    live = [run for run in runs if run.status in store.LIVE]
    for path in sorted((workspace.root / "evals").glob("*/replay.jsonl")):
        title = t("rows that a base wrote by itself ({key})", key=path.parent.name[:8])
        yield _taken(workspace, path, "replay", title, _named_by(live) if live else None)


def _cached() -> Iterator[Taken]:
    for name in cache.cached():
        told = t("It lies in the hub's cache, outside of Tunebook: hf cache rm model/{name}", name=name)
        yield Taken(place=name, kind="base", title=name, size_bytes=disk_bytes(cache.folder(name)), kept=told)
