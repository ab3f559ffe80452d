"""The Train page's part on what will happen: rows, steps, time and memory of the run, all from its Plan."""

from __future__ import annotations

import streamlit as st

from engine.estimate import duration, machine_choices, memory, phases
from engine.forgetting import foresight
from engine.plan import Plan, drafts, tries
from engine.spec import OBJECTIVES
from engine.words import t
from pages import _data_bring, _memory, _problems, _ui


def answer(plan: Plan) -> None:
    """Say in one sentence what will happen."""
    if plan.dataset is None or not plan.dataset.report.trainable or plan.rows is None:
        st.markdown(t("Choose data, and this says how many steps it takes, how long that is, and whether it fits."))
        return
    told = {
        "recipe": _recipe_title(plan), "base": plan.base.title, "data": plan.dataset.name,
        "rows": _data_bring.rows_words(plan.rows), "fits": memory.room_words()[plan.room],
        "steps": t("1 step") if plan.steps == 1 else t("{n} steps", n=f"{plan.steps:,}"),
    }  # fmt: skip
    if plan.time is None:
        said = _ui.say(
            "{recipe} teaches {base} **{rows}** of {data} in **{steps}**. How long that takes is not known. "
            "Memory: **{fits}**.", **told,
        )  # fmt: skip
    else:
        told["time"] = duration.between_words(plan.time.low_s, plan.time.high_s)
        told["basis"] = plan.time.stands_on
        said = _ui.say(
            "{recipe} teaches {base} **{rows}** of {data} in **{steps}**. It takes "
            "**{time}** with start and scoring ({basis}). Memory: **{fits}**.", **told,
        )  # fmt: skip
    st.markdown(said)


def _recipe_title(plan: Plan) -> str:
    return t(plan.recipe.title) if plan.recipe is not None else plan.spec.recipe.name


def show(plan: Plan) -> None:
    """Say what will happen in detail, folded."""
    title = t("In detail: rows, time, memory, forgetting")
    _ui.fold(title, "plan_fold", lambda: _in_detail(plan), icon=":material/query_stats:")


def _in_detail(plan: Plan) -> None:
    if plan.dataset is not None and plan.dataset.report.trainable:
        _steps(plan)
    _weights(plan)
    _forgetting(plan)
    _memory.show(plan)


def _forgetting(plan: Plan) -> None:
    """Where runs of this base and recipe have ended, where there are enough of them."""
    if not OBJECTIVES[plan.spec.objective].is_scored_on_its_way:
        return
    earlier = foresight.before(plan.workspace, plan.spec)
    if earlier is None:
        st.caption(
            _ui.say(
                "How much it will forget is not known yet: {n} whole runs of this base and recipe would tell.",
                n=foresight.FEWEST_RUNS,
            )
        )
    else:
        st.caption(
            _ui.say(
                "Earlier runs of this base and recipe ended with general text {low} to {high} nats per token from the "
                "base's.",
                low=f"{earlier.low:+.2f}", high=f"{earlier.high:+.2f}",
            )
        )  # fmt: skip


def _steps(plan: Plan) -> None:
    a, b, c, d = st.columns(4)
    a.metric(t("Rows to train on"), f"{plan.rows:,}")
    b.metric(t("Effective batch"), _ui.plain(plan.rows_per_step))
    c.metric(t("Steps"), f"{plan.steps:,}")
    d.metric(t("Device"), _ui.plain(machine_choices.device_words()[plan.target.device.name]))
    for note in plan.step_notes:
        st.caption(_ui.plain(_problems.titled(str(note))))
    unknown = t("It cannot be estimated: the architecture of this base is not known.")
    st.markdown(_ui.say("**{name}**: {text}", name=t("Time"), text=plan.time.sentence if plan.time else unknown))
    if plan.time is not None:
        with st.expander(t("Time, phase by phase")):
            _ui.bullets(
                t("{name}: {text}", name=phases.title(one.phase), text=duration.between_words(one.low_s, one.high_s))
                for one in plan.time.lines
            )
    if (
        (plan.rows or 0) > tries.ROWS
        and not tries.comes_first(plan)
        and st.button(
            t("Try on {n} rows first", n=f"{tries.ROWS:,}"),
            icon=":material/science:",
            key="try_first",
            help=t(
                "A short run shows mistakes in the data as well as a long one. You get this form again, with fewer rows."
            ),
        )
    ):
        _ui.go("train", draft=drafts.save(plan.workspace, _first_try(plan)))


def _first_try(plan: Plan) -> drafts.Draft:
    total = plan.dataset.good_rows if plan.dataset is not None else 0
    return drafts.Draft(
        recipe=plan.spec.recipe.name,
        base=plan.base.ref,
        dataset=plan.spec.dataset.id,
        overrides={**plan.overrides, "dataset.most_rows": tries.ROWS},
        reasons=[
            t(
                "A first try on {n} of {total} rows, spread over all of them; then take all.",
                n=f"{tries.ROWS:,}",
                total=f"{total:,}",
            )
        ],
        rules=["N5", "O9"],
        came_from=t("A first try"),
    )


def _weights(plan: Plan) -> None:
    weights = plan.spec.objective_args.weights
    if not OBJECTIVES[plan.spec.objective].weighs_labels or not weights or len(weights) != 2:
        return
    counts = (plan.dataset.report.label_counts if plan.dataset is not None else None) or {}
    good, bad = weights
    st.caption(
        _ui.say(
            "Weights: {good} for each of the {n_good} answers marked good, {bad} for each of the {n_bad} marked bad. "
            "Unless you set them, "
            "they follow from these counts, so that both kinds weigh about alike (arXiv 2402.01306).",
            good=f"{good:g}",
            bad=f"{bad:g}",
            n_good=counts.get("true", 0),
            n_bad=counts.get("false", 0),
        )
    )
