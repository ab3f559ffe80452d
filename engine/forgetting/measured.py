"""What a remedy against forgetting did where it was tried: on pairs of runs in this home, else on the starter."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import yaml

from engine.models import bases
from engine.report import items, verdicts
from engine.runs import store
from engine.spec import RunSpec, ranges
from engine.words import t
from engine.workspace import Workspace

# Of the runs on the same rows and base, the newest so many are looked at.
MOST_RUNS = 60
# Settings that say nothing about what a run learns and forgets.
_IDLE = {"threads", "evaluations", "report_to", "gradient_checkpointing", "padding_free"}


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """What a remedy changed, in points of general accuracy, and where that was seen, as a sentence; `here`: in this
    home."""

    points: float
    sentence: str
    here: bool = False


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row of remedies.yaml."""

    remedy: str
    adapter: str
    share: float
    before: float
    after: float
    seeds: int


@lru_cache(maxsize=1)
def table() -> tuple[_Row, ...]:
    """Return what was measured on the starter (README.md)."""
    return tuple(msgspec.convert(yaml.safe_load(Path(__file__).with_name("remedies.yaml").read_bytes()), list[_Row]))


def effects(run_spec: RunSpec, workspace: Workspace | None) -> dict[str, Effect]:
    """Return what each remedy did, by its name: in runs of this home on the same rows and base, which differ in nothing
    else; else on the starter. A remedy that nobody has measured is left out."""
    found = {}
    if run_spec.objective == "sft":
        rows = sorted(table(), key=lambda row: row.share)
        for row in rows:
            if (
                row.adapter == run_spec.adapter
                and row.share <= run_spec.train.replay_share
                and run_spec.layers == "all"
            ):
                found[row.remedy] = _on_the_starter(row)
    return {**found, **(_here(run_spec, workspace) if workspace is not None else {})}


def _on_the_starter(row: _Row) -> Effect:
    words = {"before": f"{row.before:+.1f}", "after": f"{row.after:+.1f}", "n": row.seeds}
    text = t("Measured on the starter, 1 seed (README): {before} → {after} points.", **words)
    if row.seeds > 1:
        text = t("Measured on the starter, {n} seeds (README): {before} → {after} points.", **words)
    return Effect(points=row.after - row.before, sentence=text)


# --- in this home ------------------------------------------------------------------------------------------------


def _here(run_spec: RunSpec, workspace: Workspace) -> dict[str, Effect]:
    changes = _runs(run_spec, workspace)
    found = {}
    for name, (differ, is_step) in _STEPS.items():
        pairs = [
            100 * (after - before)
            for one, before in changes
            for other, after in changes
            if one.adapter == run_spec.adapter and one.quantize == run_spec.quantize and one.layers == run_spec.layers
            if is_step(one, other) and without(one, differ) == without(other, differ)
            if name not in ("replay", "kl") or (one.train.replay_share > 0) == (run_spec.train.replay_share > 0)
        ]
        if pairs:
            mean = statistics.fmean(pairs)
            words = {"n": len(pairs), "points": f"{mean:+.1f}"}
            text = t("Measured here on one pair of runs: {points} points.", **words)
            if len(pairs) > 1:
                text = t("Measured here on {n} pairs of runs: {points} points.", **words)
            found[name] = Effect(points=mean, sentence=text, here=True)
    return found


def _runs(run_spec: RunSpec, workspace: Workspace) -> list[tuple[RunSpec, float]]:
    """Return the finished trainings on the same rows and base, each with its change in general accuracy. One with a
    setting outside of what is known to work is left out: what became of it says nothing of a usual run."""
    parameters = bases.describe(run_spec.base.ref, workspace, run_spec.base.revision).parameters
    alike = [
        run for run in store.list_all(workspace)
        if run.status == "finished" and (run.dataset, run.base) == (run_spec.dataset.id, run_spec.base.ref)
    ]  # fmt: skip
    found = []
    for run in alike[:MOST_RUNS]:
        spec, folder = store.load_spec(workspace, run.id), workspace.run_dir(run.id)
        if spec.kind != "train" or spec.objective != run_spec.objective or not ranges.is_usual(spec, parameters):
            continue
        stamp = tuple((path.name, path.stat().st_mtime_ns) for path in sorted((folder / "items").glob("*.jsonl")))
        change = _general_change(str(folder), stamp)
        if change is not None:
            found.append((spec, change))
    return found


@lru_cache(maxsize=512)  # a page asks at every click
def _general_change(folder: str, _stamp: tuple[tuple[str, int], ...]) -> float | None:
    """Return the mean change of accuracy over the general benchmarks; None where none was asked."""
    try:
        asked = items.joined(Path(folder))
    except (OSError, ValueError):
        return None
    changes = []
    for name, one in asked.items():
        base, tuned = (
            [bool(item.correct) for item in side if item.correct is not None] for side in (one.base, one.tuned)
        )
        if verdicts.is_general(name) and base and len(base) == len(tuned):
            changes.append(statistics.fmean(tuned) - statistics.fmean(base))
    return statistics.fmean(changes) if changes else None


def without(spec: RunSpec, differ: tuple[str, ...]) -> Any:
    """Return a spec as plain data without the settings that a remedy changes, and without those that do not matter."""
    told = msgspec.to_builtins(spec)
    if (
        "recipe" in differ
    ):  # another recipe has other settings throughout: the same rows, questions and general rows count
        train = {key: told["train"][key] for key in ("seed", "replay_share", "replay_data", "max_steps", "max_length")}
        return {"train": train, **{key: told[key] for key in ("objective", "quantize", "base", "dataset", "evaluate")}}
    del told["recipe"], told["day"], told["machine"]
    for key in _IDLE:
        told["train"].pop(key, None)
    for path in differ:
        group, _, key = path.partition(".")
        told[group].pop(key, None)
    return told


_Step = Callable[[RunSpec, RunSpec], bool]
# By remedy: the settings in which a pair differs, and whether one is the other with that remedy.
_STEPS: dict[str, tuple[tuple[str, ...], _Step]] = {
    "replay": (("train.replay_share",), lambda one, other: other.train.replay_share > one.train.replay_share),
    "kl": (
        ("objective_args.keep", "train.replay_share"),
        lambda one, other: (
            (one.objective_args.keep, other.objective_args.keep) == ("plain", "kl") and not other.train.replay_share
        ),
    ),
    "rate": (("train.learning_rate",), lambda one, other: other.train.learning_rate < one.train.learning_rate),
    "rank": (
        ("adapter_args.rank", "adapter_args.alpha"),
        lambda one, other: other.adapter_args.rank < one.adapter_args.rank,
    ),
    "beta": (
        ("objective_args.beta",),
        lambda one, other: (other.objective_args.beta or 0) > (one.objective_args.beta or 0),
    ),
    "oft": (("recipe",), lambda one, other: other.adapter == "oft" and one.adapter != "oft"),
    "freeze": (
        ("recipe",),
        lambda one, other: one.layers == "all" and str(other.layers).startswith("bottom_frozen"),
    ),
}
