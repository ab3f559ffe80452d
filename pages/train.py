"""Train: choose base, recipe and settings, see what will happen, start."""

from __future__ import annotations

import hashlib
import io
import secrets
import time
from typing import Any

import streamlit as st

from engine import limits
from engine.data import datasets
from engine.plan import Plan, drafts, plans, take_along, tries
from engine.runs import lifecycle, store
from engine.spec import RunSpec, schema, settings
from engine.spec import recipes as spec_recipes
from engine.words import t
from pages import _base, _damaged, _ready, _train_chain, _train_plan, _train_settings, _ui

_ui.heading(t("Train"), t("Choose a base and a recipe. The defaults are good; change what you understand, and start."))

workspace = _ui.workspace()

# The second click of a double click comes with the same specification a moment later and must not start a second run.
DOUBLE_CLICK_S = 5.0


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


def _start(plan: Plan) -> None:
    """The name and the button; before a long run on a large file the first button is a try on few rows."""
    name = st.text_input(t("Name of the run"), placeholder=t("optional"), key="run_name").strip()
    tried = tries.of(plan) if not problems and tries.comes_first(plan) else None
    if tried is None:
        if st.button(t("Start"), type="primary", icon=":material/play_arrow:", disabled=bool(problems), key="start"):
            _started(plan.spec, name)
        return
    minutes = max(1, round(tried.time.likely_s / 60)) if tried.time is not None else "?"
    label = t("Try {n} rows first (about {minutes} minutes), then all", n=f"{tries.ROWS:,}", minutes=minutes)
    with st.container(horizontal=True):
        if st.button(_ui.plain(label), type="primary", icon=":material/science:", key="try_first"):
            _started(tried.spec, name)
        if st.button(t("Start with all rows"), icon=":material/play_arrow:", key="start"):
            _started(plan.spec, name)
    st.caption(t("A short run shows mistakes in the data as well as a long one. Its page leads on to all rows."))


def _started(run_spec: RunSpec, name: str) -> None:
    """Start a run, once for the two clicks of a double click, and follow it."""
    click = hashlib.sha256(schema.encode(run_spec) + name.encode()).hexdigest()[:16]
    started = st.session_state.get("started", {})
    if time.monotonic() - started.get(click, (0.0, ""))[0] > DOUBLE_CLICK_S:
        started.pop(click, None)
    token, run_id = st.session_state.setdefault("click_token", secrets.token_hex(8)), started.get(click, (0, ""))[1]
    try:
        run_id = run_id or lifecycle.start(workspace, run_spec, name=name or None, click_id=f"{click}-{token}")
    except limits.OverLimit as refused:
        st.error(t("This run cannot start yet:"))
        _ui.problem_list(refused.problems)
    else:
        st.session_state["started"] = {**started, click: (time.monotonic(), run_id)}
        st.session_state["click_token"] = secrets.token_hex(8)
        _ui.choose("run", run_id)
        _ui.go("runs")


def _take_along() -> None:
    """One file of what is chosen here and of the rows, for another Tunebook. It is made when it is asked for."""
    if dataset is not None and dataset.size_bytes is None:
        st.caption(t("The file that was brought is gone, so it cannot be taken along."))
        return
    if dataset is not None and take_along.is_too_large(workspace, dataset):
        st.caption(t("The data is too large to be taken along through a browser."))
        return
    chosen = drafts.Draft(
        recipe=recipe_name, base=base.ref, dataset=dataset.id if dataset is not None else None,
        overrides=dict(overrides), came_from=t("Taken along from another Tunebook"),
    )  # fmt: skip

    def file() -> bytes:
        out = io.BytesIO()
        take_along.pack(workspace, chosen, out)
        return out.getvalue()

    # A page that is shown anew by the click drops, now and then, the answer that says where the file lies (streamlit 1.67,
    # runtime/app_session.py: a new run of the script empties what is yet to be sent), and the button stays grey.
    st.download_button(
        t("Take this along"), file, f"tunebook-{recipe_name}.zip", "application/zip", key="take_along",
        icon=":material/luggage:", on_click="ignore",
    )  # fmt: skip
    about = t('Data and settings as one file: another Tunebook opens it on Data, or with "tunebook open".')
    st.caption(_ui.plain(about))


draft = _open_draft()
opened = st.session_state.get("opened_draft", "")  # part of the keys of what a draft chooses: its widgets start anew
if draft is not None and (draft.reasons or draft.came_from):
    with st.container(border=True):
        st.markdown(f"**{_ui.plain(t('From the advisor') if draft.came_from == 'advisor' else draft.came_from)}**")
        _ui.bullets(draft.reasons)
        if draft.rules:
            st.caption(_ui.say("Rules of the guide: {rules}", rules=", ".join(draft.rules)))

_damaged.show(workspace, "draft", "chain", "model")

if st.query_params.get("chain"):
    _train_chain.show(workspace, st.query_params["chain"])
    raise _ui.PageEnds
if st.button(t("In stages: SFT, then preferences"), icon=":material/linear_scale:", key="open_chain"):
    st.query_params["chain"] = _train_chain.opened(workspace)
    st.rerun()

try:
    recipes = spec_recipes.recipes()
except spec_recipes.RecipeError as error:
    st.error(_ui.say("A recipe cannot be read: {reason}. Correct the file or take it away.", reason=error))
    raise _ui.PageEnds from None


# --- base -------------------------------------------------------------------------------------------------------
left, right = st.columns(2)
with left:
    st.subheader(t("Base"))
    base = _base.select(workspace, opened)

with right:
    st.subheader(t("Recipe"))
    # The choice is kept beside the widget and is its default: a browser whose answer comes before the widget's value has
    # reached it would else fall back to the first recipe of the list.
    remembered = st.session_state.get("chosen_recipe", "lora")
    recipe_name = st.selectbox(
        t("How to train"),
        list(recipes),
        index=list(recipes).index(remembered) if remembered in recipes else 0,
        format_func=lambda name: t(recipes[name].title),
        key=f"recipe~{opened}",
    )
    st.session_state["chosen_recipe"] = recipe_name
    recipe = recipes[recipe_name]
    st.caption(_ui.plain(t(recipe.when)))
    st.caption(_ui.plain(t(recipe.trade)))

about_base = st.container()  # filled when the plan is made

# --- data -------------------------------------------------------------------------------------------------------
st.subheader(t("Data"))
stored = {one.id: one for one in datasets.list_all(workspace)}
dataset = _ui.current_dataset()
if not stored:
    _ui.empty(t("There is no data yet. Bring a file, or take a sample."), "data", t("Go to Data"))
else:
    ids = list(stored)
    chosen_id = st.selectbox(
        t("Rows to learn from"),
        ids,
        index=ids.index(dataset.id) if dataset is not None and dataset.id in ids else None,
        format_func=lambda i: f"{stored[i].name} · {t('{n} rows', n=stored[i].report.rows)}",
        placeholder=t("Choose data"),
    )
    if chosen_id and (dataset is None or chosen_id != dataset.id):
        _ui.choose("dataset", chosen_id)
        dataset = stored[chosen_id]
    if dataset is not None and dataset.eval_id:
        st.caption(t("Scored before and after with the questions that belong to this data."))

# --- settings ---------------------------------------------------------------------------------------------------
# Everything changeable is planned once without the changes (to mark them) and once with them.
plain = plans.make(workspace, recipe_name, base=base, dataset=dataset, overrides={})
overrides = _settle(plain, recipe_name)
_train_settings.show(recipe, plain, overrides)

# --- what will happen, and start --------------------------------------------------------------------------------
plan = plans.make(workspace, recipe_name, base=base, dataset=dataset, overrides=overrides) if overrides else plain
with about_base:
    _base.panel(workspace, base, plan)
problems = [*plan.problems, *(one for one in _base.problems(base) if one not in plan.problems)]
_train_plan.show(plan)
_ready.show(plan, problems_below=True)
with st.expander(t("What each device can do")):
    _base.devices()
with st.expander(t("The whole specification (spec.json)")):
    st.code(schema.encode(plan.spec).decode(), language="json")
if problems:
    st.error(t("This run cannot start yet:"))
    _ui.problem_list(problems)
if limits.on():  # beside what a demo refuses stands the way on
    _take_along()
waiting = sum(run.status in store.LIVE for run in store.list_all(workspace)[:50])
if waiting:
    st.info(_ui.say("Runs going on or waiting: {n}. This one waits its turn.", n=waiting))
_start(plan)
if not limits.on():
    _take_along()
lifecycle.prepare()  # whoever opens this page starts a run soon; its libraries take seconds to load
