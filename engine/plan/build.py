"""From a recipe, a base and a data set to a spec, with everything that keeps it from starting."""

from __future__ import annotations

from typing import Any

import msgspec

from engine import starter
from engine.benchmarks import library
from engine.check import DatasetError
from engine.data import Dataset, datasets
from engine.models import Base, bases
from engine.plan import judges
from engine.plan.checks import problems
from engine.runs import admission
from engine.spec import RunSpec, objectives, recipes, schema
from engine.spec import counts as spec_counts
from engine.words import Problem
from engine.workspace import Workspace


def defaults_for(base: Base, dataset: Dataset | None) -> dict[str, Any]:
    """Return the settings that follow from the base and the data: the benchmark the base can be asked, and the
    evaluation data that belongs to the data set."""
    found: dict[str, Any] = {}
    if base.is_toy:
        found["evaluate.benchmarks"] = [starter.BENCHMARK_NAME]
    else:
        quick = library.sets(toy=False)["quick"]
        found["evaluate.benchmarks"], found["evaluate.limit"] = list(quick.benchmarks), quick.limit
    if dataset is not None and dataset.eval_id:
        found["dataset.eval_id"] = dataset.eval_id
    if base.window_tokens:
        found["train.max_length"] = base.window_tokens
    return found


def build(
    workspace: Workspace,
    recipe_name: str,
    *,
    base_ref: str,
    dataset_id: str | None,
    overrides: dict[str, Any],
) -> tuple[RunSpec | None, list[Problem]]:
    """Resolve a recipe on a base and a data set and return the spec with everything that keeps it from starting.

    The spec is None only when there is no such recipe. Both the command line and the Train page come through here.
    """
    try:
        recipe = recipes.recipes().get(recipe_name)
    except recipes.RecipeError as error:
        return None, [Problem(rule="recipe-broken", where="recipe", parameters={"reason": str(error)})]
    if recipe is None:
        names = ", ".join(recipes.recipes())
        problem = Problem(rule="recipe-unknown", where="recipe", parameters={"name": recipe_name[:80], "names": names})
        return None, [problem]
    base = bases.describe(base_ref, workspace)
    dataset, found = _dataset(workspace, dataset_id)
    settings = defaults_for(base, dataset)
    if "train.max_length" in settings:
        default = recipe.default("train.max_length", base.parameters)
        usual = schema.Train().max_length if default is None else default.value
        settings["train.max_length"] = min(usual, settings["train.max_length"])
    run_spec, wrong = recipes.resolve(
        recipe,
        base=base.spec_ref,
        revision=base.revision if base.kind == "hub" else None,
        parameters=base.parameters,
        dataset_id=dataset_id or "",
        overrides={**settings, **overrides},
    )
    run_spec = resolve_objective(run_spec, dataset, base, workspace)
    found += base.problems
    found += (one for one in admission.problems(run_spec, workspace) if one not in found)
    return run_spec, [*wrong, *found, *problems(run_spec, recipe, base, dataset, workspace)]


def resolve_objective(run_spec: RunSpec, dataset: Dataset | None, base: Base, workspace: Workspace) -> RunSpec:
    """Fill in what follows from the objective: beta, KTO's weights from the counts of good and bad rows, PPO's reward
    model, and no questions for a reward model, which writes no answers."""
    args, evaluate = run_spec.objective_args, run_spec.evaluate
    if run_spec.objective in ("dpo", "kto") and args.beta is None:
        args = msgspec.structs.replace(args, beta=objectives.USUAL_BETA)
    if run_spec.objective == "ppo":
        beta = objectives.USUAL_PPO_BETA if args.beta is None else args.beta
        judge = args.reward_model or judges.newest(workspace, base, args.least_reward_accuracy)
        args = msgspec.structs.replace(args, beta=beta, reward_model=judge)
    counts = (dataset.report.label_counts if dataset is not None else None) or {}
    if run_spec.objective == "kto" and args.weights is None and counts.get("true") and counts.get("false"):
        args = msgspec.structs.replace(args, weights=list(spec_counts.kto_weights(counts["true"], counts["false"])))
    if run_spec.objective == "reward":
        evaluate = msgspec.structs.replace(evaluate, benchmarks=[])
    return msgspec.structs.replace(run_spec, objective_args=args, evaluate=evaluate)


def _dataset(workspace: Workspace, dataset_id: str | None) -> tuple[Dataset | None, list[Problem]]:
    if not dataset_id:
        return None, [Problem(rule="dataset-none", where="dataset")]
    try:
        return datasets.load(workspace, dataset_id), []
    except (DatasetError, OSError, ValueError):
        return None, [Problem(rule="dataset-missing", where="dataset", parameters={"id": dataset_id[:80]})]
