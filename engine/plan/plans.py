"""Make plans: of a recipe on a base and a data set, or of a spec that was stored.

make(workspace, recipe, base=..., dataset=..., overrides=...) is what the picker, the advisor, the Train page, the
command line and the start of a run all read their figures from.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from engine.check import DatasetError
from engine.data import Dataset, datasets
from engine.events import Failed
from engine.models import Base, bases
from engine.plan import bounded_scoring, checks, from_recipe, targets
from engine.plan.from_recipe import CONTINUE as CONTINUE
from engine.plan.from_recipe import TAKEN as TAKEN
from engine.plan.plan import Plan
from engine.plan.targets import Target
from engine.spec import OBJECTIVES, RunSpec, recipes
from engine.words import Problem
from engine.workspace import Workspace


class CannotPlan(ValueError):
    """There is no such recipe, or it cannot be read; `problem` says which."""

    def __init__(self, problem: Problem):
        super().__init__(problem.sentence)
        self.problem = problem


def make(
    workspace: Workspace,
    recipe_name: str,
    *,
    base: str | Base,
    dataset: str | Dataset | None,
    overrides: dict[str, Any],
    target: Target | None = None,
    rows_planned: int | None = None,
) -> Plan:
    """Resolve a recipe on a base and a data set, for this machine unless another is named. Raises CannotPlan."""
    try:
        known = recipes.recipes()
    except recipes.RecipeError as error:
        raise CannotPlan(Problem(rule="recipe-broken", where="recipe", parameters={"reason": str(error)})) from error
    if recipe_name not in known:
        names = ", ".join(known)
        told = Problem(rule="recipe-unknown", where="recipe", parameters={"name": recipe_name[:80], "names": names})
        raise CannotPlan(told)
    base = bases.describe(base, workspace) if isinstance(base, str) else base
    found, missing = (dataset, []) if isinstance(dataset, Dataset) else _dataset(workspace, dataset)
    dataset_id = dataset if isinstance(dataset, str) else found.id if found is not None else ""
    spec, wrong = from_recipe.spec_of(known[recipe_name], base, found, dataset_id, overrides, workspace)
    made = Plan(
        workspace,
        spec,
        base,
        found,
        target or targets.this_machine(),
        known[recipe_name],
        rows_planned=rows_planned,
        overrides=overrides,
        wrong=(*wrong, *missing),
        look=checks.problems,
    )
    return made if bounded_scoring.BUDGET in overrides else _in_bounds(made)


def _in_bounds(plan: Plan) -> Plan:
    """Return the plan with scoring in bounded time where everything would take longer than the training. A run that is
    scored on its way, and a task of the harness, were asked for by name: there everything is asked, as of a judge and of
    what obeyed one, which cannot be asked the rest later."""
    spec, objective = plan.spec, OBJECTIVES[plan.spec.objective]
    if plan.base.is_toy or spec.evaluate.along or objective.is_judge or objective.needs_judge:
        return plan
    if bounded_scoring.general(spec, plan.workspace).has_harness or not plan.scoring_outlasts_training:
        return plan
    evaluate = msgspec.structs.replace(spec.evaluate, budget_s=bounded_scoring.CHECK_S)
    return dataclasses.replace(plan, spec=msgspec.structs.replace(spec, evaluate=evaluate))


def offers_to_continue(plan: Plan) -> bool:
    """Whether the adapter of the run that is its base could be trained on, instead of being merged first."""
    earlier = from_recipe.earlier_adapter(plan.base, plan.workspace)
    return earlier is not None and from_recipe.may_continue(plan.spec, earlier)


def on_base(plan: Plan, base: Base) -> Plan:
    """Return the plan of the same recipe, data and changes on another base."""
    return make(
        plan.workspace, plan.spec.recipe.name, base=base, dataset=plan.dataset, overrides=plan.overrides,
        target=plan.target, rows_planned=plan.rows_planned,
    )  # fmt: skip


def of_spec(workspace: Workspace, spec: RunSpec, target: Target | None = None) -> Plan:
    """Return the plan of a spec that was stored, such as a run's."""
    base = bases.describe(spec.base.ref, workspace, spec.base.revision)
    dataset, _ = _dataset(workspace, spec.dataset.id)
    return Plan(workspace, spec, base, dataset, target or targets.this_machine())


def _dataset(workspace: Workspace, dataset_id: str | None) -> tuple[Dataset | None, list[Problem]]:
    if not dataset_id:
        return None, [Problem(rule="dataset-none", where="dataset")]
    try:
        return datasets.load(workspace, dataset_id), []
    except (DatasetError, OSError, ValueError):
        return None, [Problem(rule="dataset-missing", where="dataset", parameters={"id": dataset_id[:80]})]


def with_remedy(failure: Failed, spec: RunSpec, workspace: Workspace) -> Failed:
    """Return the failure of a run that ran out of memory with the settings that would fit in it."""
    trains = spec.kind not in ("adopted", "recover")  # of these nothing can be set otherwise
    change = of_spec(workspace, spec).smaller if failure.kind == "oom" and trains else None
    if change:
        failure.fix = checks.remedy_words(change)
    return failure
