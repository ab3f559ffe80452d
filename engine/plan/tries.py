"""A first try on few rows of a large file, and then all of them: the guide's "start with 1,000 rows" (its rule N5).

The rows of a try are drawn by the seed of the split (dataset.most_rows), so that they are part of the whole run's, and what
is held out stays the same.
"""

from __future__ import annotations

import msgspec

from engine.plan import bounded_scoring, drafts, plans
from engine.plan.plan import Plan
from engine.runs import store
from engine.spec import RunSpec
from engine.words import t
from engine.workspace import Workspace

ROWS = 1_000
# From here on a mistake in the data costs more than a try: rows that train, and seconds that it likely takes.
MANY_ROWS, LONG_S = 5_000, 1_800.0
_SHORT = (bounded_scoring.BUDGET, bounded_scoring.CHECK_S)


def of(plan: Plan) -> Plan | None:
    """Return the plan of the same run on the first 1,000 rows; None where it has no more, or names its rows itself."""
    if (plan.rows or 0) <= ROWS or plan.spec.dataset.most_rows:
        return None
    overrides = {**plan.overrides, "dataset.most_rows": ROWS}
    return plans.make(
        plan.workspace, plan.spec.recipe.name, base=plan.base, dataset=plan.dataset, overrides=overrides,
        target=plan.target,
    )  # fmt: skip


def comes_first(plan: Plan) -> bool:
    """Whether a try is to be offered before the whole: many rows, a long run, and none like it tried yet."""
    long = plan.time is not None and plan.time.likely_s > LONG_S
    return (plan.rows or 0) > MANY_ROWS and long and not plan.spec.dataset.most_rows and not _tried(plan)


def _tried(plan: Plan) -> bool:
    wanted = (plan.spec.dataset.id, plan.spec.recipe.name, plan.spec.base.ref)
    return any(
        store.load_spec(plan.workspace, run.id).dataset.most_rows
        for run in store.list_all(plan.workspace)
        if run.status == "finished" and (run.dataset, run.recipe, run.base) == wanted
    )


def all_rows(workspace: Workspace, run_id: str) -> drafts.Draft | None:
    """Return the draft of a finished try on all rows; None for a run that was no try."""
    spec: RunSpec = store.load_spec(workspace, run_id)
    if spec.kind != "train" or not spec.dataset.most_rows or store.status(workspace, run_id) != "finished":
        return None
    came_from = t("The same as {name}, on all rows", name=store.name(workspace, run_id))
    made = drafts.of_spec(workspace, spec, came_from=came_from, changes={"dataset.most_rows": 0})
    # a check that was short for the sake of a short training is none that was asked for
    kept = {path: value for path, value in made.overrides.items() if (path, value) != _SHORT}
    return msgspec.structs.replace(made, overrides=kept)
