"""What a base makes of every row of the chosen data, said on the Data and Train pages before a run starts.

Few rows are read while the page waits, many by a job that is watched, so the page stays alive.
"""

from __future__ import annotations

import streamlit as st

from engine.check import DatasetError
from engine.data import Dataset, jobs, readiness
from engine.models import Base
from engine.plan import Plan, plans
from engine.render import NoTokenizer
from engine.words import language, t
from engine.workspace import Workspace
from pages import _jobs, _ui

# The recipe whose longest row counts while none is chosen, by the type of the data.
RECIPES = {"preference": "dpo", "unpaired-preference": "kto", "prompt-only": "ppo"}
_JOB = "readiness_job"


def usual_recipe(dataset: Dataset | None) -> str:
    """Return the recipe that most take for such rows."""
    return RECIPES.get((dataset.report.type if dataset is not None else None) or "", "lora")


def usual_plan(workspace: Workspace, dataset: Dataset, base: Base) -> Plan:
    """The plan of a usual recipe for the data, with its defaults."""
    return plans.make(workspace, usual_recipe(dataset), base=base, dataset=dataset, overrides={})


def show(plan: Plan, *, only_what_is_wrong: bool = False) -> None:
    """Say which rows the base refuses, which are cut, and what its chat template leaves out. With `only_what_is_wrong` a
    page that names what keeps the run from starting itself is told no more than what else is not as it should be."""
    dataset, base = plan.dataset, plan.base
    if dataset is None or not dataset.trainable or not dataset.has_rows:
        return
    if plan.evaluation_notes:
        st.warning("\n".join(f"- {_ui.plain(one)}" for one in plan.evaluation_notes))
    try:
        with st.spinner(t("Reading every row as the base does ...")):
            found = readiness.of(plan.workspace, dataset, base)
    except (NoTokenizer, DatasetError) as error:
        st.caption(
            _ui.say(
                "Which rows {base} cannot read is not known: {reason}", base=base.title, reason=error.problem.sentence
            )
        )
        return
    if found is None:
        _count(plan, dataset, base)
        return
    window = plan.window
    stops = found.stops(window)
    told = [str(one) for one in found.warnings(window)]
    if only_what_is_wrong and not told:
        return
    with st.container(border=True, key=f"readiness_{dataset.id}"):
        st.markdown(
            _ui.say("**With {base}**, rows of at most {length} tokens:", base=base.title, length=f"{window.length:,}")
        )
        if stops is not None and not only_what_is_wrong:
            st.error(_ui.plain(stops.sentence))
        if told:
            st.warning("\n".join(f"- {_ui.plain(one)}" for one in told))
        elif stops is None:
            n = f"{found.tally.rows:,}"
            st.markdown(_ui.say("All {n} rows can be read, and nothing of what they teach is cut.", n=n))
        for note in found.notes:
            st.caption(_ui.plain(str(note)))


def _count(plan: Plan, dataset: Dataset, base: Base) -> None:
    """Count in a process of its own, and follow it."""
    call = jobs.Call(workspace=str(plan.workspace.root), dataset=dataset.id, base=base.ref, language=language())
    if not _jobs.begin(_JOB, f"{dataset.id} {base.ref}", call):
        return
    st.info(
        _ui.say(
            "Which rows {base} refuses or cuts is not known yet: every row is being read. A run can be started meanwhile; "
            "it leaves such rows out and names them.",
            base=base.title,
        )
    )
    _jobs.watch(_JOB, _reading, "readiness_again")


def _reading(percent: int) -> str:
    return t("Reading every row as the base does: {percent} %", percent=percent)
