"""From a recipe to a spec with nothing left open: what follows from the base, the data and the objective is filled in."""

from __future__ import annotations

from typing import Any

import msgspec

from engine import starter
from engine.benchmarks import library
from engine.data import Dataset
from engine.models import Base
from engine.plan import judges
from engine.spec import OBJECTIVES, RunSpec, counts, recipes, schema
from engine.words import Problem
from engine.workspace import Workspace


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
        overrides={**_defaults(recipe, base, dataset), **overrides},
    )
    return _with_objective(spec, base, dataset, workspace), wrong


def _defaults(recipe: recipes.Recipe, base: Base, dataset: Dataset | None) -> dict[str, Any]:
    """Return the settings that follow from the base and the data: the benchmarks the base can be asked, the evaluation
    data that belongs to the data set, and rows no longer than the base reads."""
    found: dict[str, Any] = {}
    if base.is_toy:
        found["evaluate.benchmarks"] = [starter.BENCHMARK_NAME]
    else:
        quick = library.sets(toy=False)["quick"]
        found["evaluate.benchmarks"], found["evaluate.limit"] = list(quick.benchmarks), quick.limit
    if dataset is not None and dataset.eval_id:
        found["dataset.eval_id"] = dataset.eval_id
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
