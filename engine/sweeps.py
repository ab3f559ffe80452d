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
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from engine import evaluations, events
from engine.check import DatasetError
from engine.data import datasets
from engine.plan import build
from engine.report import frontier, items, statistics
from engine.runs import Run, lifecycle, store
from engine.spec import RunSpec, schema
from engine.spec import recipes as spec_recipes
from engine.spec import settings as spec_settings
from engine.words import RULES, Problem, later, t
from engine.workspace import Workspace, write_atomically

READY_DIR = spec_recipes.RECIPES_DIR / "sweeps"
RECIPE = schema.RecipeRef("sweep", "0" * 64)
# A slip of the finger must not fill a disk: 24 runs are the widest sweep of our own.
MOST_RUNS = 200
POLL_S = 0.3


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
    seeds: int = 3


class Trial(msgspec.Struct, kw_only=True):
    """One run of a sweep: a recipe, the settings that differ from its own, a seed, and the run once it was started."""

    recipe: str
    set: dict[str, Any] = {}
    seed: int = 0
    run: str | None = None


class Plan(msgspec.Struct, kw_only=True):
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
            found[path.stem] = msgspec.convert(yaml.safe_load(path.read_bytes()), Ready)
        except (yaml.YAMLError, msgspec.ValidationError, ValueError, RecursionError) as error:
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


def plan(
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
) -> tuple[Plan, list[Problem]]:
    """Return the runs of a sweep and everything that keeps one of them from starting, all at once.

    Every recipe is combined with every value of `settings`; `overrides` hold for all. Combinations that come to the
    same run (more rows asked for than there are) are run once.
    """
    problems: list[Problem] = []
    combinations: list[tuple[str, dict[str, Any]]] = []
    rows = _rows(workspace, data)
    paths = list(settings or {})
    for recipe in dict.fromkeys(recipes):
        for values in itertools.product(*(settings or {}).values()):
            combinations.append((recipe, dict(zip(paths, values, strict=True))))
    for one in also:
        chosen = dict(one.set)
        made, found = build.build(
            workspace, one.recipe, base_ref=base, dataset_id=data, overrides={**(overrides or {}), **chosen}
        )
        if made is None:
            problems += found
            continue
        combinations.append(
            (one.recipe, {**chosen, **{p: schema.value_at(made, p) * factor for p, factor in one.times.items()}})
        )
    trials: list[Trial] = []
    seen = set()
    for recipe, chosen in combinations:
        if rows is not None and chosen.get("dataset.most_rows", 0) >= rows:
            chosen = {**chosen, "dataset.most_rows": 0}
        together = {**(overrides or {}), **chosen}
        if (key := json.dumps([recipe, together], sort_keys=True, default=str)) in seen:
            continue
        seen.add(key)
        made, found = build.build(workspace, recipe, base_ref=base, dataset_id=data, overrides=together)
        problems += [_of_point(label(recipe, chosen), problem) for problem in found]
        trials += [Trial(recipe=recipe, set=together, seed=seed) for seed in range(seeds)] if made is not None else []
    # by seed first, so that a sweep that is stopped early has every configuration as often as possible
    trials.sort(key=lambda trial: trial.seed)
    if not combinations or seeds < 1:
        problems.append(Problem(rule="sweep-empty"))
    elif len(trials) > MOST_RUNS:
        problems.append(Problem(rule="sweep-large", parameters={"n": len(trials), "most": MOST_RUNS}))
    unique = list({problem.sentence: problem for problem in problems}.values())
    return Plan(title=title, data=data, base=base, trials=trials), unique


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
    """Return what a configuration is called: "lora, replay 0.05"."""
    fields = spec_settings.fields()
    return ", ".join(
        [
            recipe,
            *(f"{fields[path].title.lower() if path in fields else path} {_shown(v)}" for path, v in chosen.items()),
        ]
    )


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def start(workspace: Workspace, made: Plan, *, click_id: str | None = None) -> str:
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


def load(workspace: Workspace, sweep_id: str) -> Plan:
    """Return the plan of a sweep with the runs started so far. Raises OSError or msgspec.MsgspecError."""
    return _read(workspace.run_dir(sweep_id))


def _read(run_dir: Path) -> Plan:
    return msgspec.json.decode((run_dir / "sweep.json").read_bytes(), type=Plan)


def list_all(workspace: Workspace) -> list[Run]:
    """Return all sweeps, newest first."""
    return [run for run in store.list_all(workspace) if run.recipe == RECIPE.name]


def drive(run_dir: Path) -> None:
    """Run the points of a sweep, one after another, and write its last event. The supervisor's part (worker.py)."""
    workspace, made = Workspace(run_dir.parents[1]), _read(run_dir)
    log = events.EventLog(run_dir)
    log.append(events.Phase(phase="training", detail="sweep"))
    began_s, ended = time.monotonic(), 0
    done = _finished(workspace, made)
    log.append(events.Progress(done=done, total=len(made.trials)))
    for index, trial in enumerate(made.trials):
        if (run_dir / "stop").exists():
            break
        name = f"{label(trial.recipe, trial.set)}, seed {trial.seed}"
        if trial.run is not None and _status(workspace, trial.run) == "finished":
            continue
        if not _start(workspace, run_dir, made, index, f"{made.title}: {name}", log):
            continue
        state = _wait(workspace, str(trial.run), run_dir)
        ended += 1
        done = _finished(workspace, made)
        left = [one for one in made.trials[index + 1 :] if one.run is None or _status(workspace, one.run) != "finished"]
        left_s = len(left) * (time.monotonic() - began_s) / ended
        log.append(events.Progress(done=done, total=len(made.trials), left_s=round(left_s, 1), detail=name))
        if state == "failed":
            log.append(events.Log(level="warning", text=later("{name}: the run {id} failed.", name=name, id=trial.run)))
    unfinished = len(made.trials) - _finished(workspace, made)
    if (run_dir / "stop").exists() and unfinished:
        log.append(events.Stopped(step=done, resumable=True))
    elif unfinished:
        told = {"n": unfinished, "total": len(made.trials)}
        message, fix = RULES["sweep-unfinished"]
        log.append(events.Failed(kind="sweep", message=later(message, **told), fix=later(fix)))
    else:
        log.append(events.Finished(step=done))
    log.close()


def _start(workspace: Workspace, run_dir: Path, made: Plan, index: int, name: str, log: events.EventLog) -> bool:
    """Start or resume the run of a point; False when it cannot be, which is said in the log."""
    trial = made.trials[index]
    if trial.run is not None and store.exists(workspace, trial.run):
        if _status(workspace, trial.run) in store.LIVE:
            return True  # it went on while the sweep was gone
        try:
            lifecycle.resume(workspace, trial.run)
            return True
        except lifecycle.CannotResume as error:
            log.append(events.Log(level="warning", text=f"{name}: {error}"))
            return False
    run_spec, problems = build.build(
        workspace,
        trial.recipe,
        base_ref=made.base,
        dataset_id=made.data,
        overrides={**trial.set, "train.seed": trial.seed},
    )
    if run_spec is None or problems:
        text = "; ".join(problem.sentence for problem in problems)
        log.append(events.Log(level="warning", text=f"{name}: {text}"))
        return False
    # Killed between the start and the note of it, the next attempt finds the same run by its click.
    trial.run = lifecycle.start(workspace, run_spec, name=name[:120], click_id=f"{run_dir.name}-{index}")
    write_atomically(run_dir / "sweep.json", msgspec.json.format(msgspec.json.encode(made), indent=1))
    return True


def _status(workspace: Workspace, run_id: str) -> str:
    return store.status(workspace, run_id) if store.exists(workspace, run_id) else "gone"


def _finished(workspace: Workspace, made: Plan) -> int:
    return sum(one.run is not None and _status(workspace, one.run) == "finished" for one in made.trials)


def _wait(workspace: Workspace, run_id: str, run_dir: Path) -> str:
    """Wait for a run to end; a stop of the sweep is passed on to it once."""
    asked = False
    while (state := _status(workspace, run_id)) in store.LIVE:
        if not asked and (run_dir / "stop").exists():
            lifecycle.stop(workspace, run_id)
            asked = True
        time.sleep(POLL_S)
    return state


# --- what came out ----------------------------------------------------------------------------------------------------


class Configuration(msgspec.Struct, kw_only=True):
    """One recipe with its settings: a point over its seeds, and one for each seed that is finished."""

    name: str
    recipe: str
    set: dict[str, Any]
    point: frontier.Point
    seeds: list[frontier.Point]
    spec: RunSpec


class Claim(msgspec.Struct, kw_only=True):
    """What the guide says about forgetting, by its rule, and what this sweep says to it."""

    rule: str
    claim: str
    verdict: Literal["confirmed", "partly confirmed", "not confirmed", "not tested"]
    sentence: str


class Result(msgspec.Struct, kw_only=True):
    """A sweep as far as it has come: its configurations, marked on the frontier, and the guide's claims."""

    id: str
    title: str
    status: str
    finished: int
    total: int
    configurations: list[Configuration]
    claims: list[Claim]


def result(workspace: Workspace, sweep_id: str) -> Result:
    """Return what a sweep has shown so far. Raises OSError or msgspec.MsgspecError when it is no sweep."""
    made = load(workspace, sweep_id)
    groups: dict[str, list[Trial]] = {}
    for trial in made.trials:
        groups.setdefault(json.dumps([trial.recipe, trial.set], sort_keys=True, default=str), []).append(trial)
    found: list[Configuration] = []
    for trials in groups.values():
        ended = [one.run for one in trials if one.run is not None and _status(workspace, one.run) == "finished"]
        if not ended:
            continue
        points = [frontier.point(run_id, *evaluations.rows(workspace, run_id)) for run_id in ended]
        first = trials[0]
        name = label(first.recipe, first.set)
        found.append(
            Configuration(
                name=name, recipe=first.recipe, set=first.set, point=frontier.over_seeds(name, points), seeds=points,
                spec=store.load_spec(workspace, ended[0]),
            )
        )  # fmt: skip
    marked = frontier.frontier([one.point for one in found])
    found = [msgspec.structs.replace(one, point=point) for one, point in zip(found, marked, strict=True)]
    return Result(
        id=sweep_id,
        title=made.title,
        status=store.status(workspace, sweep_id),
        finished=_finished(workspace, made),
        total=len(made.trials),
        configurations=found,
        claims=claims(found),
    )


def _changes(one: Configuration) -> list[float]:
    return [point.change for point in one.seeds if point.change is not None]


def _points(values: tuple[float, float, float]) -> str:
    """Return a mean and its interval in points of accuracy."""
    mean, low, high = (100 * value for value in values)
    return f"{mean:+.1f}" if math.isinf(low) else f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _is_full(one: Configuration) -> bool:
    return one.spec.adapter == "full" and one.spec.layers == "all"


def claims(found: Sequence[Configuration], tolerance: float = statistics.MARGIN) -> list[Claim]:
    """Hold four sentences of the guide against a sweep, with seeds as the unit: differences between configurations by
    Welch's interval at 95 %. A claim is confirmed when every comparison the sweep allows has its interval on that side,
    partly when one has and none the other way. With one seed nothing can be confirmed."""
    known = [one for one in found if _changes(one)]
    return [_adapters(known, tolerance), _mixing(known), _freezing(known), _low_rate(known)]


def _usual_rate(found: Sequence[Configuration]) -> list[Configuration]:
    """Return the configurations at the highest rate of their recipe: the others are there for the claim about rates."""
    highest: dict[str, float] = {}
    for one in found:
        rate = one.spec.train.learning_rate
        highest[one.recipe] = max(rate, highest.get(one.recipe, rate))
    return [one for one in found if one.spec.train.learning_rate == highest[one.recipe]]


def _pairs_with_full(found: Sequence[Configuration], wanted: Any) -> list[tuple[Configuration, Configuration]]:
    """Return each configuration that is wanted with full fine-tuning at the same replay; without replay where there is
    such a pair, since replay hides what the method itself does."""
    usual = _usual_rate(found)
    pairs = [
        (one, other)
        for one in usual
        for other in usual
        if wanted(one) and _is_full(other) and one.spec.train.replay_share == other.spec.train.replay_share
    ]
    least = min((one.spec.train.replay_share for one, _ in pairs), default=0.0)
    return [pair for pair in pairs if pair[0].spec.train.replay_share == least]


def _verdict(better: list[bool], worse: list[bool]) -> Literal["confirmed", "partly confirmed", "not confirmed"]:
    if all(better):
        return "confirmed"
    return "partly confirmed" if any(better) and not any(worse) else "not confirmed"


def _adapters(found: Sequence[Configuration], tolerance: float) -> Claim:
    claim = t("LoRA and OFT naturally prevent forgetting")
    pairs = _pairs_with_full(found, lambda one: one.spec.adapter in ("lora", "oft"))
    if not pairs:
        return _untested("M1", claim)
    told, prevents, better, worse = [], [], [], []
    for one, full in pairs:
        own, than_full = statistics.t_interval(_changes(one)), statistics.welch(_changes(one), _changes(full))
        prevents.append(own[1] >= -tolerance)
        better.append(than_full[1] > 0)
        worse.append(than_full[2] < 0)
        told.append(
            t("{name} changed by {own} points, {than_full} against full fine-tuning", name=one.name, own=_points(own),
              than_full=_points(than_full))
        )  # fmt: skip
    verdict = _verdict(better, worse)
    if verdict == "confirmed" and not all(prevents):
        verdict = "partly confirmed"
    end = {
        "confirmed": t("none lost more than {points} points", points=f"{100 * tolerance:g}"),
        "partly confirmed": t("less is forgotten, but not nothing, or not by all of them"),
        "not confirmed": t("no difference can be told from the luck of the seed, or it goes the other way"),
    }[verdict]
    return Claim(rule="M1", claim=claim, verdict=verdict, sentence=f"{'; '.join(told)}: {end}.")


def _mixing(found: Sequence[Configuration]) -> Claim:
    claim = t("Mixing in general data prevents forgetting")
    told, better, worse = [], [], []
    usual = _usual_rate(found)
    for one in usual:
        for other in usual:
            same = one.recipe == other.recipe and one.spec.train.replay_share > other.spec.train.replay_share == 0
            if same:
                change = statistics.welch(_changes(one), _changes(other))
                better.append(change[1] > 0)
                worse.append(change[2] < 0)
                told.append(
                    t("{recipe}: {share} % of general rows kept {change} points more", recipe=one.recipe,
                      share=f"{100 * one.spec.train.replay_share:g}", change=_points(change))
                )  # fmt: skip
    if not told:
        return _untested("M4", claim)
    return Claim(rule="M4", claim=claim, verdict=_verdict(better, worse), sentence="; ".join(told) + ".")


def _freezing(found: Sequence[Configuration]) -> Claim:
    claim = t("Freezing the lower layers keeps general knowledge")
    frozen = [
        (one, full)
        for one, full in _pairs_with_full(found, lambda one: str(one.spec.layers).startswith("bottom_frozen"))
        if one.spec.adapter == "full"
    ]
    return _against_full("M2", claim, frozen)


def _low_rate(found: Sequence[Configuration]) -> Claim:
    claim = t("A low learning rate prevents forgetting")
    full = [one for one in found if _is_full(one)]
    pairs = [
        (low, high)
        for low in full
        for high in full
        if low.spec.train.learning_rate < high.spec.train.learning_rate
        and low.spec.train.replay_share == high.spec.train.replay_share
    ]
    return _against_full("M3", claim, pairs)


def _against_full(rule: str, claim: str, pairs: list[tuple[Configuration, Configuration]]) -> Claim:
    if not pairs:
        return _untested(rule, claim)
    told, better, worse = [], [], []
    for one, full in pairs:
        change = statistics.welch(_changes(one), _changes(full))
        better.append(change[1] > 0)
        worse.append(change[2] < 0)
        told.append(
            t("{name} kept {change} points more than {full}, with {gain} against {other} gained", name=one.name,
              change=_points(change), full=full.name, gain=_gain(one.point), other=_gain(full.point))
        )  # fmt: skip
    return Claim(rule=rule, claim=claim, verdict=_verdict(better, worse), sentence="; ".join(told) + ".")


def _untested(rule: str, claim: str) -> Claim:
    return Claim(rule=rule, claim=claim, verdict="not tested", sentence=t("This sweep holds nothing to compare."))


def _is_share(point: frontier.Point) -> bool:
    return point.measure not in (items.GAP, "new-task-loss", None)


def _gain(point: frontier.Point) -> str:
    if point.gain is None or point.gain_low is None or point.gain_high is None:
        return "–"
    if not _is_share(point):
        return f"{point.gain:+.2f}" + (
            "" if math.isinf(point.gain_low) else f" [{point.gain_low:+.2f}, {point.gain_high:+.2f}]"
        )
    return _points((point.gain, point.gain_low, point.gain_high))


def markdown(found: Result) -> str:
    """Return a sweep as a Markdown table, the best kept first, and the guide's claims below it."""
    lines = [
        f"| {t('configuration')} | {t('seeds')} | {t('gained, points')} | {t('general, points')} | "
        f"{t('kept, %')} | {t('frontier')} |",
        "|---|---|---|---|---|---|",
    ]
    order = sorted(
        found.configurations, key=lambda one: -(one.point.retention if one.point.retention is not None else -9)
    )
    for one in order:
        point, change, kept = one.point, "–", "–"
        if point.change is not None and point.change_low is not None and point.change_high is not None:
            change = _points((point.change, point.change_low, point.change_high))
        if point.retention is not None:
            kept = f"{100 * point.retention:.1f}"
        mark = t("yes") if point.on_frontier else ""
        lines.append(f"| {one.name} | {len(one.seeds)} | {_gain(point)} | {change} | {kept} | {mark} |")
    lines.append("")
    lines += [f"- {one.claim} ({one.rule}): **{_verdict_words(one.verdict)}**. {one.sentence}" for one in found.claims]
    return "\n".join(lines)


def _verdict_words(verdict: str) -> str:
    return {
        "confirmed": t("confirmed"),
        "partly confirmed": t("partly confirmed"),
        "not confirmed": t("not confirmed"),
        "not tested": t("not tested"),
    }[verdict]
