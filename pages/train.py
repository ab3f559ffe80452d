"""Train: what, on which base, with which data, how much may it forget; what will happen, and start. All else folds."""

from __future__ import annotations

from typing import Any

import streamlit as st

from engine import limits
from engine.data import Dataset, datasets
from engine.plan import Plan, drafts, plans
from engine.runs import lifecycle
from engine.spec import recipes as spec_recipes
from engine.spec import schema, settings
from engine.words import t
from pages import (
    _base,
    _damaged,
    _data_bring,
    _problems,
    _ready,
    _train_chain,
    _train_more,
    _train_plan,
    _train_recipes,
    _train_settings,
    _train_start,
    _ui,
)  # fmt: skip

_ui.heading(t("Train"))

workspace = _ui.workspace()


def _open_draft() -> drafts.Draft | None:
    """Take over the draft that the URL names, once."""
    draft_id = st.query_params.get("draft")
    if not draft_id:
        return None
    draft = drafts.load(workspace, draft_id)
    if draft is None:
        st.warning(t("The draft this link names is not here, or cannot be read. The page starts from the defaults."))
        return None
    if st.session_state.get("opened_draft") != draft_id:
        st.session_state["opened_draft"] = draft_id
        _train_settings.forget_changes()
        st.session_state["chosen_recipe"] = draft.recipe
        st.session_state["overrides"] = dict(draft.overrides)
        only_named = st.session_state.get("clicked_draft") != draft_id
        _ui.choose("base", draft.base, only_named=only_named)
        if draft.dataset:
            _ui.choose("dataset", draft.dataset, only_named=only_named)
        st.session_state["recipe_chosen_for"] = _ui.current("dataset")
    return draft


def _settle(plain: Plan, recipe_name: str) -> dict[str, Any]:
    """Return what the person changed. With another base or recipe, fields show its own defaults; what was changed by hand
    stays changed, and is said."""
    overrides: dict[str, Any] = st.session_state.setdefault("overrides", {})
    base, asked = plain.base, plain.spec.evaluate
    # a hub model's size is known only after a look at it; what is asked, and for how long, hangs on the data too
    context = (recipe_name, base.ref, base.parameters, tuple(asked.benchmarks), asked.limit, asked.budget_s)
    if st.session_state.get("settings_context") not in (None, context):
        _train_settings.new_form()
        kept = [p for p in overrides if schema.value_at(plain.spec, p) != overrides[p]]
        if kept:
            names = ", ".join(t(settings.fields()[p].title) for p in kept)
            st.info(
                _ui.say("The defaults now fit this base and recipe. Your own changes were kept: {names}.", names=names)
            )
    st.session_state["settings_context"] = context
    return overrides


def _ask_data() -> Dataset | None:
    """Which rows to learn from, or the way to some."""
    stored = {one.id: one for one in datasets.list_all(workspace)}
    found = _ui.current_dataset()
    if not stored:
        _ui.empty(t("There is no data yet. Bring a file, or take a sample."), "data", t("Go to Data"))
        return found
    ids = list(stored)
    chosen_id = st.selectbox(
        t("Rows to learn from"),
        ids,
        index=ids.index(found.id) if found is not None and found.id in ids else None,
        format_func=lambda i: f"{stored[i].name} · {_data_bring.rows_words(stored[i].report.rows)}",
        placeholder=t("Choose data"),
    )
    if chosen_id and (found is None or chosen_id != found.id):
        _ui.choose("dataset", chosen_id)
        found = stored[chosen_id]
    if found is not None and found.eval_id:
        st.caption(t("Scored before and after with the questions that belong to this data."))
    return found


draft = _open_draft()
opened = st.session_state.get("opened_draft", "")  # part of the keys of what a draft chooses: its widgets start anew
_damaged.show(workspace, "draft", "chain", "model")

if st.query_params.get("chain"):
    _train_chain.show(workspace, st.query_params["chain"])
    raise _ui.PageEnds

try:
    recipes = spec_recipes.recipes()
except spec_recipes.RecipeError as error:
    st.error(_ui.say("A recipe cannot be read: {reason}. Correct the file or take it away.", reason=error))
    raise _ui.PageEnds from None

answer = st.container()  # filled when the plan is made
if draft is not None and (draft.reasons or draft.came_from):
    with st.expander(_ui.plain(t("From the advisor") if draft.came_from == "advisor" else draft.came_from)):
        _ui.bullets(draft.reasons)

# --- what, on which base, with which data, how much may it forget ------------------------------------------------
left, middle, right = st.columns(3)
with left:
    base = _base.select(workspace, opened)
    about_base = st.container()
with middle:
    dataset = _ask_data()
with right:
    recipe_name = _train_recipes.chosen(recipes, dataset)
    _train_recipes.select(recipes, recipe_name, workspace, dataset, base)

# Everything changeable is planned once without the changes (to mark them) and once with them.
plain = plans.make(workspace, recipe_name, base=base, dataset=dataset, overrides={})
overrides = _settle(plain, recipe_name)
_train_settings.ask(plain, overrides)
about_rows = st.container()

# --- what folds --------------------------------------------------------------------------------------------------
in_detail = st.container()
fields = _train_settings.show(plain, overrides)
plan = plans.make(workspace, recipe_name, base=base, dataset=dataset, overrides=overrides) if overrides else plain
with answer:
    _train_plan.answer(plan)
with about_rows:
    _ready.show(plan, only_what_is_wrong=True)
with in_detail:
    _train_plan.show(plan)
with about_base:
    _base.state(workspace, base)
_base.others(workspace, base, plan)
problems = [*plan.problems, *(one for one in _base.problems(base) if one not in plan.problems)]
for one in problems:
    if one.where in fields:
        fields[one.where].markdown(f":red[**{_ui.plain(_problems.in_titles(one))}**]")
# beside what a demo refuses stands the way on
name = _train_more.show(plan, overrides, opened=limits.on() and bool(problems))
_train_start.bar(plan, problems, overrides, name, at_base=_base.of_hub(base))
lifecycle.prepare()  # whoever opens this page starts a run soon; its libraries take seconds to load
