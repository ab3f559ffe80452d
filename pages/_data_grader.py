"""What tells right answers from wrong ones, named once for a data set: one line, and one fold to choose it in."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from engine import graders
from engine.check import DatasetError
from engine.data import Dataset, datasets
from engine.spec import schema
from engine.words import Problem, t
from engine.workspace import Workspace
from pages import _ui

# Kinds of rows that hold a right answer each.
GRADED = ("prompt-completion", "language-modeling")
NONE = ""


def show(workspace: Workspace, dataset: Dataset) -> None:
    """Say which grader a data set names, and let a person choose another. Nothing for rows without right answers."""
    report = dataset.report
    if not report.trainable or report.type not in GRADED or report.kind == "texts" or not dataset.has_rows:
        return
    try:
        offers = datasets.graders_for(workspace, dataset)
    except DatasetError:
        return  # damaged rows are named where they are shown
    if not offers and dataset.grader is None:
        return
    titles = {preset.id: t(preset.title) for preset in graders.presets()}
    if dataset.grader is not None:
        st.caption(_ui.say("Right answers are told by: {grader}.", grader=_titled(dataset.grader, titles)))
    with st.expander(t("When is an answer right?")):
        _choose(workspace, dataset, offers, titles)


def _titled(ref: schema.GraderRef, titles: dict[str, str]) -> str:
    return titles.get(ref.name, ref.name)


def _choose(
    workspace: Workspace, dataset: Dataset, offers: list[graders.Offer], titles: dict[str, str]
) -> None:  # fmt: skip
    """Offer what fits the rows first, then everything else, each tried on the rows' own answers before it is kept."""
    st.caption(
        t(
            "A grader reads what the model writes to held-out rows, before and after training, and says what share is right."
        )
    )
    fitting = {one.ref.name: one for one in reversed(offers)}
    names = [NONE, *(one.ref.name for one in offers), *titles]
    if dataset.grader is not None:
        names.append(dataset.grader.name)
    names = list(dict.fromkeys(names))
    now = dataset.grader.name if dataset.grader is not None else NONE

    def words(name: str) -> str:
        if name == NONE:
            return t("none: exact words where answers are short, else the loss alone")
        fits = t("fits: {why}", why=fitting[name].why) if name in fitting else ""
        return f"{titles.get(name, name)} · {fits}" if fits else titles.get(name, name)

    name = st.selectbox(t("Grader"), names, names.index(now), format_func=words, key=f"grader_{dataset.id}")
    typed = ""
    if name != NONE:
        _about(name)
        given = dataset.grader.parameters if name == now and dataset.grader is not None else (
            fitting[name].ref.parameters if name in fitting else {}
        )  # fmt: skip
        typed = st.text_area(
            t("Its parameters, as JSON"),
            json.dumps(given, ensure_ascii=False) if given else "{}",
            height=80,
            key=f"grader_parameters_{dataset.id}_{name}",
        )
    left, right = st.columns(2)
    if name != NONE and left.button(t("Try it on the rows"), key="try_grader"):
        _try(workspace, dataset, name, typed)
    if right.button(t("Use it"), type="primary", disabled=name == now == NONE, key="use_grader"):
        _keep(workspace, dataset, name, typed)


def _about(name: str) -> None:
    preset = next((one for one in graders.presets() if one.id == name), None)
    if preset is not None:
        st.caption(_ui.plain(f"{t(preset.about)} {t('Source: {source}', source=t(preset.source))}"))


def _ref(name: str, typed: str) -> schema.GraderRef:
    """Return the grader that was chosen. Raises graders.Refused where its parameters are no JSON object."""
    try:
        told: Any = json.loads(typed or "{}")
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise graders.Refused([Problem(rule="grader-parameters", parameters={"name": name})])
    return schema.GraderRef(name, told)


def _try(workspace: Workspace, dataset: Dataset, name: str, typed: str) -> None:
    try:
        trial = datasets.tried(workspace, dataset, _ref(name, typed))
    except (graders.Refused, DatasetError) as error:
        _refuse(error)
        return
    problem = trial.problem(name)
    if problem is not None:
        st.error(_ui.plain(problem.sentence))
    elif trial.failed:
        st.warning(_ui.say("On the rows: {trial}.", trial=trial.says))
        _ui.bullets(t("line {line}: {reason}", line=line, reason=reason) for line, reason in trial.failed)
    else:
        st.success(_ui.say("On the rows: {trial}.", trial=trial.says))


def _keep(workspace: Workspace, dataset: Dataset, name: str, typed: str) -> None:
    try:
        datasets.grade_by(workspace, dataset.id, None if name == NONE else _ref(name, typed))
    except (graders.Refused, DatasetError) as error:
        _refuse(error)
    else:
        st.rerun()


def _refuse(error: graders.Refused | DatasetError) -> None:
    for problem in error.problems if isinstance(error, graders.Refused) else [error.problem]:
        st.error(_ui.plain(problem.sentence))
