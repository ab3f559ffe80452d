"""Sweeps: several recipes, settings and seeds on one data set, each run through the queue and scored, ending in the
frontier of gain against retention.

A sweep is a run folder of its own (kind: sweep) with the file sweep.json, which names its points and their runs. Its
supervisor trains nothing: it starts one run after another and waits. A stop stops the run in hand; resuming goes on
with what is not finished, and never runs a finished point again.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import yaml

from engine.check import DatasetError
from engine.data import datasets
from engine.plan import plans
from engine.spec import recipes as spec_recipes
from engine.spec import schema
from engine.spec import settings as spec_settings
from engine.words import Problem, t
from engine.workspace import Workspace, read_regular

READY_DIR = spec_recipes.RECIPES_DIR / "sweeps"
RECIPE = schema.RecipeRef("sweep", "0" * 64)
# A slip of the finger must not fill a disk: 24 runs are the widest sweep of our own.
MOST_RUNS = 200
# So many combinations may come to the same run, such as more rows asked for than there are.
MOST_ALIKE = 5


class Also(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One more configuration: settings, and those that are a multiple of the recipe's own value."""

    recipe: str
    set: dict[str, Any] = {}
    times: dict[str, float] = {}


class Ready(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A ready-made sweep: every recipe with every combination of settings, `also` more, each with so many seeds."""

    title: str
    about: str
    recipes: list[str]
    settings: dict[str, list[Any]] = {}
    also: list[Also] = []
    seeds: Annotated[int, msgspec.Meta(ge=1, le=MOST_RUNS)] = 3


class Trial(msgspec.Struct, kw_only=True):
    """One run of a sweep: a recipe, the settings that differ from its own, a seed, and the run once it was started."""

    recipe: str
    set: dict[str, Any] = {}
    seed: int = 0
    run: str | None = None


class Sweep(msgspec.Struct, kw_only=True):
    """sweep.json: what is to be run on which data and base."""

    title: str
    data: str
    base: str
    trials: list[Trial]


def ready_made() -> dict[str, Ready]:
    """Return the ready-made sweeps by name; adding one is dropping a YAML into recipes/sweeps. Raises spec.RecipeError
    for a file that cannot be used."""
    found = {}
    for path in sorted(READY_DIR.glob("*.yaml")):
        try:
            found[path.stem] = msgspec.convert(yaml.safe_load(read_regular(path)), Ready)
        except (OSError, yaml.YAMLError, msgspec.ValidationError, ValueError, RecursionError) as error:
            raise spec_recipes.RecipeError(f"{path.name}: {error}") from error
    return found


def parse_values(text: str) -> tuple[str, list[Any]] | Problem:
    """Turn "train.replay_share=0,0.05" into its path and values. Lists keep their commas; texts that may hold some, such
    as target modules, are divided by ";"."""
    path, _, values = text.partition("=")
    field = spec_settings.fields().get(path.strip())
    divider = ";" if field is not None and path.strip() == "adapter_args.target_modules" else ","
    found = []
    for value in _divide(values, divider):
        parsed = spec_settings.parse_setting(f"{path}={value}")
        if isinstance(parsed, Problem):
            return parsed
        found.append(parsed[1])
    return path.strip(), found


def _divide(text: str, divider: str) -> list[str]:
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == divider and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _in_order(trials: list[Trial], *, is_bounded: bool) -> list[Trial]:
    """Return the runs by seed, so that a sweep that is stopped early has every configuration as often as possible. They are
    held against each other, so that none is asked only as many questions as it had time for, unless that was said."""
    if is_bounded:
        everything = {"evaluate.budget_s": None}
        trials = [msgspec.structs.replace(trial, set={**everything, **trial.set}) for trial in trials]
    return sorted(trials, key=lambda trial: trial.seed)


def make(
    workspace: Workspace,
    *,
    title: str,
    data: str,
    base: str,
    recipes: Sequence[str],
    settings: Mapping[str, Sequence[Any]] | None = None,
    also: Sequence[Also] = (),
    seeds: int = 1,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Sweep, list[Problem]]:
    """Return the runs of a sweep and everything that keeps one of them from starting, all at once.

    Every recipe is combined with every value of `settings`; `overrides` hold for all. Combinations that come to the
    same run (more rows asked for than there are) are run once.
    """
    problems: list[Problem] = []
    rows = _rows(workspace, data)
    asked = len({*recipes}) * math.prod(len(values) for values in (settings or {}).values()) + len(also)
    if asked * seeds > MOST_RUNS * MOST_ALIKE:  # before any of them is planned
        return Sweep(title=title, data=data, base=base, trials=[]), [_too_large(asked * seeds)]
    combinations = _combined(recipes, settings or {})
    for one in also:
        chosen = dict(one.set)
        together = {**(overrides or {}), **chosen}
        try:
            usual = plans.make(workspace, one.recipe, base=base, dataset=data, overrides=together).spec
        except plans.CannotPlan as error:
            problems.append(error.problem)
            continue
        combinations.append(
            (one.recipe, {**chosen, **{p: schema.value_at(usual, p) * factor for p, factor in one.times.items()}})
        )
    trials: list[Trial] = []
    seen, is_bounded = set(), False
    for recipe, chosen in combinations:
        if rows is not None and _number(chosen.get("dataset.most_rows", 0)) >= rows:
            chosen = {**chosen, "dataset.most_rows": 0}
        together = {**(overrides or {}), **chosen}
        if (key := json.dumps([recipe, together], sort_keys=True, default=str)) in seen:
            continue
        seen.add(key)
        try:
            plan = plans.make(workspace, recipe, base=base, dataset=data, overrides=together)
            found, is_bounded = plan.problems, is_bounded or plan.spec.evaluate.budget_s is not None
            trials += [Trial(recipe=recipe, set=together, seed=seed) for seed in range(seeds)]
        except plans.CannotPlan as error:
            found = (error.problem,)
        problems += [_of_point(label(recipe, chosen), problem) for problem in found]
    trials = _in_order(trials, is_bounded=is_bounded)
    if not combinations or seeds < 1:
        problems.append(Problem(rule="sweep-empty"))
    elif len(trials) > MOST_RUNS:
        problems.append(_too_large(len(trials)))
    unique = list({problem.sentence: problem for problem in problems}.values())
    return Sweep(title=title, data=data, base=base, trials=trials), unique


def _combined(recipes: Sequence[str], settings: Mapping[str, Sequence[Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Return every recipe with every combination of settings."""
    every = [dict(zip(settings, values, strict=True)) for values in itertools.product(*settings.values())]
    return [(recipe, dict(chosen)) for recipe in dict.fromkeys(recipes) for chosen in every]


def _number(value: Any) -> int:
    """Return a number of rows; 0 for what is none, which the plan says."""
    converted = spec_settings.convert_setting("dataset.most_rows", value)
    return converted if isinstance(converted, int) else 0


def _too_large(runs: int) -> Problem:
    return Problem(rule="sweep-large", parameters={"n": min(runs, 10**9), "most": MOST_RUNS})


def _rows(workspace: Workspace, data: str) -> int | None:
    try:
        return datasets.load(workspace, data).report.rows
    except (DatasetError, OSError, ValueError):
        return None


def _of_point(point: str, problem: Problem) -> Problem:
    """What is wrong with every point alike is said once; what belongs to one names it."""
    if problem.rule in ("dataset-none", "dataset-missing", "recipe-unknown", "recipe-broken"):
        return problem
    return Problem(
        rule="sweep-point",
        where=problem.where,
        parameters={"point": point, "problem": problem.message, "remedy": problem.fix},
    )


def label(recipe: str, chosen: Mapping[str, Any]) -> str:
    """Return what a configuration is called: "LoRA, replay 0.05"."""
    known, fields = spec_recipes.recipes().get(recipe), spec_settings.fields()
    told = [
        f"{t(fields[path].title).lower()} {spec_settings.value_words(path, value)}"
        if path in fields
        else f"{path} {value}"
        for path, value in chosen.items()
    ]
    return ", ".join([t(known.title) if known is not None else recipe, *told])
