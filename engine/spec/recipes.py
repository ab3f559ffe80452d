"""Recipes: one YAML each in recipes/, with defaults that name their source. resolve() makes a spec of one."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml

from engine import processes
from engine.spec.schema import Adapter, Objective, Quantize, RunSpec
from engine.spec.settings import convert_setting, fields
from engine.words import Problem
from engine.workspace import read_regular

RECIPES_DIR = processes.PROJECT_DIR / "recipes"


class Known(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From where to where a setting is known to work for bases of a size, and who says so."""

    low: float
    high: float
    source: str


class Default(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A recipe's value for one path, where it comes from, what the guide says when that differs, and what was measured with
    Tunebook (docs/measured/)."""

    value: Any
    source: str
    guide: str | None = None  # the guide's own value, with the id of its rule
    measured: str | None = None
    range: Known | None = None  # where it differs from that of the guide's rules (ranges.py)


class Size(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Other defaults for bases of a size: rates for a toy must not travel to a real model, nor back."""

    title: str
    set: dict[str, Default]
    at_least_parameters: Annotated[float, msgspec.Meta(ge=0, le=1e15)] = 0
    below_parameters: Annotated[float, msgspec.Meta(gt=0, le=1e15)] = 1e15


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One YAML of recipes/: when to use it, defaults with sources, the guide's rules it stands on."""

    title: str
    when: str
    trade: str
    objective: Objective
    adapter: Adapter
    data_types: list[str]
    sample: str
    basic: Annotated[list[str], msgspec.Meta(max_length=6)]
    defaults: dict[str, Default]
    guide_rules: list[str]
    quantize: Quantize = "none"
    needs: str | None = None  # the recipe whose finished run this one stands on, such as a reward model
    sizes: list[Size] = []
    adapters: dict[Adapter, dict[str, Default]] = {}  # other defaults with an adapter that is not the recipe's own
    name: str = ""
    sha256: str = ""

    def default(self, path: str, parameters: float | None, adapter: str | None = None) -> Default | None:
        """Return the default of `path` for a base of so many parameters (None: unknown, the general default) and an
        adapter (None: the recipe's own). A toy's rates, measured, hold for every adapter."""
        if parameters is not None:
            for size in self.sizes:
                if size.at_least_parameters <= parameters < size.below_parameters and path in size.set:
                    return size.set[path]
        if adapter is not None and adapter != self.adapter:
            for name, group in self.adapters.items():
                if name == adapter and path in group:
                    return group[path]
        return self.defaults.get(path)


class RecipeError(ValueError):
    """A recipe file that cannot be used; the text names the file and what is wrong."""


def load_recipe(path: Path) -> Recipe:
    """Read one recipe file. Raises RecipeError for what is no file, bad YAML, unknown fields, unknown or ill-typed paths."""
    try:
        data = read_regular(path)
    except OSError as error:
        raise RecipeError(f"{path.name}: {error.strerror or error}") from error
    return _recipe(path.name, data)


# the same safe loader, in C where PyYAML was built with it: ten times faster
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@lru_cache(maxsize=256)  # pages ask for all recipes several times a click; a changed file is other content
def _recipe(file: str, data: bytes) -> Recipe:
    path = Path(file)
    try:
        recipe = msgspec.convert(yaml.load(data, _Loader), Recipe)  # noqa: S506 - a safe loader
        groups = [recipe.defaults, *(size.set for size in recipe.sizes), *recipe.adapters.values()]
        paths = {*recipe.basic, *(path for group in groups for path in group)}
        unknown = sorted(paths - set(fields()))
        if unknown:
            raise RecipeError(f"{path.name}: not a setting: {', '.join(unknown)}")
        for group in groups:
            for name, default in group.items():
                msgspec.convert(default.value, fields()[name].type)
    except RecipeError:
        raise
    except (yaml.YAMLError, msgspec.ValidationError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path.name}: {error}") from error
    return msgspec.structs.replace(recipe, name=path.stem, sha256=hashlib.sha256(data).hexdigest())


def recipes() -> dict[str, Recipe]:
    """Return all recipes of the folder by name; adding one is dropping a file there."""
    with os.scandir(RECIPES_DIR) as found:
        stamps = [(one.path, one.stat().st_mtime_ns, one.stat().st_size) for one in found if one.name.endswith(".yaml")]
    return dict(_all_recipes(tuple(sorted(stamps))))


@lru_cache(maxsize=4)  # one piece of advice asks some hundred times; a changed file has another stamp
def _all_recipes(stamps: tuple[tuple[str, int, int], ...]) -> dict[str, Recipe]:
    return {Path(name).stem: load_recipe(Path(name)) for name, *_ in stamps}


def resolve(
    recipe: Recipe,
    *,
    base: str,
    revision: str | None,
    parameters: float | None,
    dataset_id: str,
    overrides: dict[str, Any],
) -> tuple[RunSpec, list[Problem]]:
    """Return the spec of a recipe on a base and a data set, with overrides by dotted path, and all settings that
    are wrong (these keep their default). `parameters` chooses the defaults of the base's size."""
    problems: list[Problem] = []
    tree: dict[str, Any] = {
        "recipe": {"name": recipe.name, "sha256": recipe.sha256},
        "objective": recipe.objective,
        "adapter": recipe.adapter,
        "quantize": recipe.quantize,
        "base": {"ref": base, "revision": revision},
        "dataset": {"id": dataset_id},
    }

    def put(path: str, value: Any) -> None:
        *parents, leaf = path.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = value

    adapter = overrides.get("adapter")
    for path in fields():
        default = recipe.default(path, parameters, adapter if isinstance(adapter, str) else None)
        if default is not None:
            put(path, default.value)
    for path, value in overrides.items():
        if path not in fields():
            problems.append(Problem(rule="setting-unknown", where=str(path)[:80]))
            continue
        converted = convert_setting(path, value)
        if isinstance(converted, Problem):
            problems.append(converted)
        else:
            put(path, converted)
    train = tree.setdefault("train", {})
    if not train.get("threads"):
        train["threads"] = os.cpu_count() or 1
    return msgspec.convert(tree, RunSpec), problems
