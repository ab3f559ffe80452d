"""From a recipe to a spec with nothing left open: what follows from the base, the data and the objective is filled in."""

from __future__ import annotations

from typing import Any

import msgspec

from engine import starter
from engine.benchmarks import library
from engine.data import Dataset, profile
from engine.models import Base
from engine.plan import grading, judges
from engine.runs import store
from engine.spec import OBJECTIVES, RunSpec, counts, recipes, schema, settings
from engine.words import Problem
from engine.workspace import Workspace

CONTINUE = "adapter_args.continue"
# So long a base may write general rows before the first step: what somebody waits for, and on two cores still a dozen
# rows of a model of 135 million parameters. The starter's come from its world and take no time.
REPLAY_S = 20.0
# What an adapter that is trained on has already, so that a run cannot choose it.
TAKEN = (
    "adapter", "quantize", "layers", "adapter_args.rank", "adapter_args.alpha", "adapter_args.dropout",
    "adapter_args.block_size", "adapter_args.target_modules",
)  # fmt: skip


def spec_of(
    recipe: recipes.Recipe,
    base: Base,
    dataset: Dataset | None,
    dataset_id: str,
    overrides: dict[str, Any],
    workspace: Workspace,
) -> tuple[RunSpec, list[Problem]]:
    """Return the spec of a recipe on a base and a data set, and the settings that are wrong: these keep their default."""
    spec, wrong = recipes.resolve(
        recipe,
        base=base.spec_ref,
        revision=base.revision if base.kind == "hub" else None,
        parameters=base.parameters,
        dataset_id=dataset_id,
        overrides={**_defaults(recipe, base, dataset, workspace), **overrides},
    )
    spec = _as_stored(_with_earlier_adapter(spec, base, overrides, workspace), base)
    return _with_objective(spec, base, dataset, workspace), wrong


def _as_stored(spec: RunSpec, base: Base) -> RunSpec:
    """A base that is stored in 4 or 8 bits is held in them, also where nobody asked for it."""
    trains_adapter = spec.adapter != "full" and not OBJECTIVES[spec.objective].is_judge
    if base.stored is None or not base.stored.is_trainable or spec.quantize != "none" or not trains_adapter:
        return spec
    return msgspec.convert({**msgspec.to_builtins(spec), "quantize": base.stored.setting}, RunSpec)


def earlier_adapter(base: Base, workspace: Workspace) -> RunSpec | None:
    """Return the spec of the run whose adapter a base is, where that can be trained on; else None."""
    if base.kind != "run" or base.problems or base.folder is None or base.folder.name != "adapter":
        return None
    try:
        earlier = store.load_spec(workspace, base.ref.removeprefix("run:"))
    except (OSError, ValueError):
        return None
    return None if OBJECTIVES[earlier.objective].is_judge or earlier.adapter == "full" else earlier


def may_continue(spec: RunSpec, earlier: RunSpec) -> bool:
    """Whether a run can train the adapter of an earlier one on without anything else being changed in it."""
    same = spec.adapter == earlier.adapter and not contradicted(spec, {}, earlier)
    return same and not OBJECTIVES[spec.objective].is_judge


def contradicted(spec: RunSpec, overrides: dict[str, Any], earlier: RunSpec) -> list[str]:
    """Return the settings in which a recipe is another way than an earlier run's: its kind of adapter, and the bits it asks
    for. One that asks for none takes the run's. Preferences ask for no kind: they follow whatever adapter there is."""
    if OBJECTIVES[spec.objective].has_reference:
        return []
    other = {"adapter": spec.adapter != earlier.adapter, "quantize": spec.quantize not in ("none", earlier.quantize)}
    return [path for path, differs in other.items() if differs and path not in overrides]


def changed(overrides: dict[str, Any], earlier: RunSpec) -> list[str]:
    """Return the settings that were chosen otherwise than an earlier run's adapter has them."""
    return [
        path for path in TAKEN
        if path in overrides and settings.convert_setting(path, overrides[path]) != schema.value_at(earlier, path)
    ]  # fmt: skip


def _with_earlier_adapter(
    spec: RunSpec, base: Base, overrides: dict[str, Any], workspace: Workspace
) -> RunSpec:  # fmt: skip
    """Take what an adapter that is trained on decides from the run that made it. Left open, one that was trained on a base
    in fewer bits is trained on: merging it wants the base in 16 bits, for which the card may have no room."""
    earlier = earlier_adapter(base, workspace)
    if earlier is None:
        return spec
    wanted = spec.adapter_args.continues
    if CONTINUE not in overrides and earlier.quantize != "none" and may_continue(spec, earlier):
        wanted = not changed(overrides, earlier)
    if not wanted or spec.adapter == "full" or contradicted(spec, overrides, earlier):
        return spec
    return msgspec.structs.replace(
        spec, adapter=earlier.adapter, quantize=earlier.quantize, layers=earlier.layers,
        adapter_args=msgspec.structs.replace(earlier.adapter_args, continues=True),
    )  # fmt: skip


def _defaults(
    recipe: recipes.Recipe, base: Base, dataset: Dataset | None, workspace: Workspace
) -> dict[str, Any]:  # fmt: skip
    """Return the settings that follow from the base and the data: the benchmarks the base can be asked, those in the
    language of the data among them, the evaluation data that belongs to the data set, and rows no longer than the base
    reads."""
    found: dict[str, Any] = {}
    if base.is_toy:
        found["evaluate.benchmarks"] = [starter.BENCHMARK_NAME]
    else:
        language = None if dataset is None else profile.language(workspace, dataset)
        quick = library.sets(toy=False, language=language)["quick"]
        found["evaluate.benchmarks"], found["evaluate.limit"] = list(quick.benchmarks), quick.limit
        found["train.replay_budget_s"] = REPLAY_S
    if dataset is not None and dataset.eval_id:
        found["dataset.eval_id"] = dataset.eval_id
    found |= grading.default(recipe.objective, dataset)
    if base.window_tokens:
        default = recipe.default("train.max_length", base.parameters)
        usual = schema.Train().max_length if default is None else default.value
        found["train.max_length"] = min(usual, base.window_tokens)
    return found


def _with_objective(spec: RunSpec, base: Base, dataset: Dataset | None, workspace: Workspace) -> RunSpec:
    """Fill in what follows from the objective: beta, the weights of good and bad rows from their counts, the judge, and
    no questions for a model that writes no answers."""
    objective, args, evaluate = OBJECTIVES[spec.objective], spec.objective_args, spec.evaluate
    if objective.usual_beta is not None and args.beta is None:
        args = msgspec.structs.replace(args, beta=objective.usual_beta)
    if objective.needs_judge and args.reward_model is None:
        judge = judges.own(workspace, base, dataset, args.least_reward_accuracy)
        args = msgspec.structs.replace(args, reward_model=judge)
    labels = (dataset.report.label_counts if dataset is not None else None) or {}
    if objective.weighs_labels and args.weights is None and labels.get("true") and labels.get("false"):
        args = msgspec.structs.replace(args, weights=list(counts.kto_weights(labels["true"], labels["false"])))
    if objective.is_judge:
        evaluate = msgspec.structs.replace(evaluate, benchmarks=[])
    return msgspec.structs.replace(spec, objective_args=args, evaluate=evaluate)
