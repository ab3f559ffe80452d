"""What a run is called: by its data, its recipe and its base, so that a person knows it again; no two runs alike."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from engine.check import DatasetError
from engine.data import datasets
from engine.models import bases
from engine.spec import RunSpec, recipes
from engine.words import t
from engine.workspace import Workspace, one_line, read_object

# A chain of runs that go on from each other is never so long; a damaged one may be a ring.
MOST_BELOW = 20
# Endings of files, which say nothing of what is in them.
ENDINGS = (".gz", ".jsonl", ".json", ".csv", ".parquet", ".txt", ".md")


class Parts(NamedTuple):
    """What a run was made of, each as a person calls it; empty where there is none or it is gone."""

    data: str
    recipe: str
    base: str


def parts(workspace: Workspace, *, dataset: str, recipe: str, base: str) -> Parts:
    """Return what the data set, the recipe and the base of a run are called."""
    known, own = recipes.recipes().get(recipe), {"evaluate": t("Scores alone"), "sweep": t("Sweep")}
    title = t(known.title) if known is not None else own.get(recipe, recipe)
    return Parts(data_title(workspace, dataset), title, base_title(workspace, base))


def data_title(workspace: Workspace, dataset_id: str) -> str:
    """Return what a data set is called, without the ending of its file; empty where there is none or it is gone."""
    name = ""
    with suppress(DatasetError, OSError, ValueError):
        name = datasets.load(workspace, dataset_id).name if dataset_id else ""
    for ending in ENDINGS:
        name = name.removesuffix(ending) or name
    return name


def base_title(workspace: Workspace, ref: str) -> str:
    """Return the model a base is, by its own name: of a run the model below it, of a hub's owner/name the name."""
    for _ in range(MOST_BELOW):
        if not ref.startswith("run:"):
            break
        with suppress(ValueError):
            told = read_object(workspace.run_dir(ref.removeprefix("run:")) / "spec.json").get("base")
            if isinstance(told, dict) and isinstance(told.get("ref"), str):
                ref = told["ref"]
                continue
        return ""
    if ref == "starter":
        return t("Starter")
    return bases.short(ref, workspace).rpartition("/")[2]


def usual(workspace: Workspace, spec: RunSpec) -> str:
    """Return what a run is called that nobody gave a name: "New facts · LoRA · SmolLM2-135M-Instruct"."""
    found = parts(workspace, dataset=spec.dataset.id, recipe=spec.recipe.name, base=spec.base.ref)
    return " · ".join(part for part in (found.data[:50], found.recipe, found.base[:50]) if part)


def shown(workspace: Workspace, stored: str, run_id: str) -> str:
    """Return a stored name as it is shown: that of an earlier version, which had no data in it and the folder of the base,
    as the run would be called now."""
    if " on " not in stored and not stored.startswith(_EVALUATE):
        return stored
    told = read_object(workspace.run_dir(run_id) / "spec.json")
    node = [told.get(part) for part in ("recipe", "base", "dataset")]
    recipe, base, data = (one.get(key) if isinstance(one, dict) else None for one, key in zip(node, _KEYS, strict=True))
    if not (isinstance(recipe, str) and isinstance(base, str) and isinstance(data, str)):
        return stored
    below = base.rstrip("/").rpartition("/")[2]
    if recipe == "evaluate" and stored.startswith(_EVALUATE):
        if base.startswith("run:"):
            return scores_of(_of_run(workspace, base.removeprefix("run:")) or stored.removeprefix(_EVALUATE))
        return scores_of(base_title(workspace, base)) if stored == one_line(_EVALUATE + below) else stored
    earlier = one_line(f"{recipe} on {below}")
    if not stored.startswith(earlier):
        return stored
    now = " · ".join(part for part in parts(workspace, dataset=data, recipe=recipe, base=base) if part)
    rest = stored.removeprefix(earlier)
    return one_line(t("Way back from {name}", name=now) if rest == ", the way back" else now + rest)


_EVALUATE = "evaluate "
_KEYS = ("name", "ref", "id")


def _of_run(workspace: Workspace, run_id: str) -> str:
    with suppress(ValueError):
        name = read_object(workspace.run_dir(run_id) / "meta.json").get("name")
        return shown(workspace, one_line(name), run_id) if isinstance(name, str) else ""
    return ""


def scores_of(name: str) -> str:
    """Return what an evaluation of a run or a base of this name is called."""
    return one_line(t("Scores of {name}", name=name))


def numbered(told: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return by run what it is called in lists, of runs with their names, oldest first: of those that are called alike, as
    earlier versions named them, each later one with a number."""
    found, taken = dict[str, str](), set[str]()
    for run_id, name in told:
        found[run_id] = apart(name, taken)
        taken.add(found[run_id])
    return found


def apart(name: str, taken: set[str]) -> str:
    """Return a name that is not `taken`: itself, or with the next number."""
    found, number = name, 2
    while found in taken:
        found, number = f"{name} {number}", number + 1
    return found
