"""Sweeps on the Forgetting page: start one, watch it, stop and resume it, and read what it says."""

from __future__ import annotations

import secrets
from typing import Any

import pandas as pd
import streamlit as st

from engine import limits
from engine.forgetting import claims, sweep_drive, sweep_plan
from engine.models import bases
from engine.plan import plans
from engine.report import files, frontier
from engine.runs import Run, lifecycle, store
from engine.spec import recipes as spec_recipes
from engine.words import Problem, joined, t
from engine.workspace import Workspace
from pages import _failures, _forgetting_ask, _forgetting_frontier, _forgetting_parallel, _ui
from pages import _forgetting_tables as tables

SETTINGS_EXAMPLE = "train.replay_share=0, 0.05\ntrain.learning_rate=0.001, 0.0005"


def show(workspace: Workspace) -> None:
    """Show the sweeps there are, and offer a new one."""
    found = sweep_drive.list_all(workspace)
    made = st.session_state.pop("sweep_started", None)
    if not found:
        st.info(
            t("No sweep yet. A sweep runs several recipes and seeds on your rows and shows the trade between them.")
        )
    if made:  # what was planned is under way: the form has done its work
        st.session_state["new_sweep"] = False
    if st.toggle(t("Start a sweep"), value=not found, key="new_sweep"):
        _new(workspace)
    if not found:
        return
    names = tables.names(found)
    ids = list(names)
    wanted = made or _ui.current("run")
    if made:
        st.session_state["sweep"] = made
    chosen = st.selectbox(
        t("Sweep"), ids, index=ids.index(wanted) if wanted in ids else 0, format_func=lambda i: names[i], key="sweep"
    )
    run = next(one for one in found if one.id == chosen)
    _controls(workspace, run)
    if run.status in store.LIVE:
        _watch(chosen)
    else:
        _result(workspace, chosen)


def _controls(workspace: Workspace, run: Run) -> None:
    if run.status in store.LIVE:
        if st.button(
            t("Stop the sweep"), key="stop_sweep", disabled=run.status == "stopping", icon=":material/stop_circle:"
        ):
            lifecycle.stop(workspace, run.id)
            st.rerun()
    elif run.status in ("stopped", "failed", "interrupted"):
        st.caption(_ui.say("{name} was not finished: {status}.", name=run.name, status=_ui.status_word(run.status)))
        summary = store.summary(workspace, run.id)
        if summary.failure:
            st.warning(_ui.plain(t("{message}; {fix}", message=summary.failure["message"], fix=summary.failure["fix"])))
        if st.button(t("Go on with the sweep"), key="resume_sweep", type="primary"):
            try:
                lifecycle.resume(workspace, run.id)
                st.rerun()
            except (lifecycle.CannotResume, limits.OverLimit) as error:
                st.error(_ui.plain(error))


@_failures.fragment(run_every=3.0)
def _watch(sweep_id: str) -> None:
    workspace = _ui.workspace()
    run = store.describe(workspace, sweep_id)
    if run.status not in store.LIVE:
        st.rerun()
    _forgetting_ask.progress(workspace, run)
    _result(workspace, sweep_id)


def _result(workspace: Workspace, sweep_id: str) -> None:
    """Show what a sweep has shown so far: the frontier, its table, and what the guide claims."""
    try:
        result = claims.result(workspace, sweep_id)
    except (OSError, ValueError) as error:
        st.error(_ui.say("This sweep cannot be read: {reason}", reason=error))
        return
    if not result.configurations:
        st.caption(t("Nothing of it is finished yet."))
        return
    trades = _forgetting_frontier.numbered([one.point for one in result.configurations])
    _forgetting_frontier.trade(trades, "sweep")
    st.caption(_ui.plain(_sentence(result)))
    _forgetting_parallel.show(result.configurations)
    _claims(result)
    with st.expander(t("Its runs")):
        _trials(workspace, sweep_id)
    with st.container(horizontal=True):
        for label, data, ending in (
            (t("Figures (JSON)"), files.as_json(result), "json"),
            (t("Table (Markdown)"), claims.markdown(result), "md"),
        ):
            st.download_button(
                _ui.plain(label), data, file_name=f"{sweep_id}.{ending}", on_click="ignore", key=f"sweep_{ending}"
            )


def _claims(result: claims.Result) -> None:
    """Say what the guide claims about forgetting, and what this sweep says to it; what it cannot test comes in one line."""
    words = {"confirmed": t("confirmed"), "partly confirmed": t("partly confirmed"),
             "not confirmed": t("not confirmed"), "not tested": t("not tested")}  # fmt: skip
    with st.expander(t("What the guide says about forgetting, and what this sweep says to it")):
        for one in result.claims:
            st.markdown(f"- **{_ui.plain(one.claim)}**: {_ui.plain(words[one.verdict])}. {_ui.plain(one.sentence)}")


def _sentence(result: claims.Result) -> str:
    best = [one.point.name for one in result.configurations if one.point.on_frontier]
    told = t("{done} of {total} runs finished.", done=result.finished, total=result.total)
    if not best or frontier.seed_note([one.point for one in result.configurations]):
        return told
    return joined(told, t("On the frontier: {names}.", names="; ".join(best)))


def _trials(workspace: Workspace, sweep_id: str) -> None:
    rows = []
    for trial in sweep_drive.load(workspace, sweep_id).trials:
        known = trial.run is not None and store.exists(workspace, trial.run)
        rows.append(
            {
                t("Run"): sweep_plan.label(trial.recipe, trial.set),
                t("Seed"): trial.seed,
                t("Status"): _ui.status_word(store.status(workspace, str(trial.run))) if known else t("not started"),
                t("Id"): trial.run or "",
            }
        )
    st.dataframe(pd.DataFrame(rows), hide_index=True, alt=t("The runs of this sweep"))


def _new(workspace: Workspace) -> None:
    """Plan a sweep on the current data: ready-made, or recipes, settings and seeds of one's own."""
    dataset = _ui.current_dataset()
    if dataset is None:
        st.info(t("A sweep needs rows. Choose data first."))
        if st.button(t("Go to Data"), key="sweep_needs_data"):
            _ui.go("data")
        return
    base = _ui.current("base") or "starter"
    st.caption(_ui.say("On {data}, base {base}.", data=dataset.name, base=bases.describe(base, workspace).title))
    try:
        ready = sweep_plan.ready_made()
        recipes = spec_recipes.recipes()
    except spec_recipes.RecipeError as error:
        st.error(_ui.plain(error))
        return
    titles = {**{name: t(one.title) for name, one in ready.items()}, "own": t("My own")}
    chosen = st.selectbox(t("Which sweep"), list(titles), format_func=titles.__getitem__, key="sweep_kind")
    problems: list[Problem] = []
    if chosen == "own":
        asked, problems = _own(recipes)
    else:
        asked = ready[chosen]
        st.caption(_ui.plain(t(asked.about)))
    left, right = st.columns(2)
    seeds = int(
        left.number_input(t("Seeds"), 1, 20, asked.seeds, key=f"sweep_seeds_{chosen}",
                          help=t("How often each is run. With one seed nothing can be told from luck."))
    )  # fmt: skip
    name = right.text_input(t("Name"), titles[chosen], key=f"sweep_name_{chosen}", max_chars=80)
    if not asked.recipes:
        st.caption(t("Choose a recipe or more."))
        return
    made, found = sweep_plan.make(
        workspace, title=name or titles[chosen], data=dataset.id, base=base, recipes=asked.recipes,
        settings=dict(asked.settings), also=asked.also, seeds=seeds,
    )  # fmt: skip
    problems += found
    _ui.problem_list(problems)
    n = len(made.trials)
    told = t("{n} runs, one after another.", n=n)
    likely_s = _likely_s(workspace, made)
    if likely_s is not None:
        told = joined(told, t("Together about {time}.", time=_ui.duration(likely_s)))
    st.write(_ui.plain(told))
    if st.button(t("Start the sweep"), type="primary", key="start_sweep", disabled=bool(problems) or not n):
        # The same click twice is one sweep.
        click = st.session_state.setdefault("sweep_click", secrets.token_hex(8))
        try:
            st.session_state["sweep_started"] = sweep_drive.start(workspace, made, click_id=click)
        except limits.OverLimit as refused:
            _ui.problem_list(refused.problems)
            return
        del st.session_state["sweep_click"]
        st.rerun()


def _own(recipes: dict[str, spec_recipes.Recipe]) -> tuple[sweep_plan.Ready, list[Problem]]:
    """Ask for recipes and settings, and return them with what is wrong."""
    problems: list[Problem] = []
    wanted = st.multiselect(
        t("Recipes"), list(recipes), format_func=lambda n: t(recipes[n].title), key="sweep_recipes",
        placeholder=t("Choose one or more"),
    )  # fmt: skip
    text = st.text_area(
        t("Settings, one a line, each with its values"), key="sweep_settings",
        placeholder=SETTINGS_EXAMPLE,
        help=t("All values are combined with all recipes."),
    )  # fmt: skip
    settings: dict[str, list[Any]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        parsed = sweep_plan.parse_values(line)
        if isinstance(parsed, Problem):
            problems.append(parsed)
        else:
            settings[parsed[0]] = parsed[1]
    return sweep_plan.Ready(title="", about="", recipes=wanted, settings=settings, seeds=1), problems


def _likely_s(workspace: Workspace, made: sweep_plan.Sweep) -> float | None:
    """Return how long all runs take by the estimates of each configuration; None when one has none."""
    base = bases.describe(made.base, workspace)
    known: dict[str, float] = {}
    total = 0.0
    for trial in made.trials:
        key = sweep_plan.label(trial.recipe, trial.set)
        if key not in known:
            time = plans.make(workspace, trial.recipe, base=base, dataset=made.data, overrides=trial.set).time
            if time is None:
                return None
            known[key] = time.likely_s
        total += known[key]
    return total
