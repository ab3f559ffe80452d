"""Asking a run and its base more on the Forgetting page: benchmarks, one's own questions, and how far it is."""

from __future__ import annotations

from typing import NamedTuple

import streamlit as st

from engine import events, limits
from engine.benchmarks import library, own
from engine.forgetting import evaluations
from engine.models import Base, bases
from engine.runs import Run, ScoredRun, lifecycle, store
from engine.spec import RunSpec
from engine.words import t
from engine.workspace import Workspace
from pages import _data_upload, _failures, _ui
from pages import _forgetting_tables as tables

OWN_FORMS = """{"question": "2 + 2?", "choices": ["3", "4"], "answer": 1}
{"question": "Translate: good morning", "reference": "bonjour"}
{"question": "Describe the sea in five words", "grader": {"name": "length", "parameters": {"least": 5, "most": 5}}}
{"text": "A passage: how surprising is it?"}"""


FOLD = "ask_fold"


class _Asked(NamedTuple):
    names: list[str]
    limit: int
    shots: int
    template: str


def show(scored: ScoredRun, titled: dict[str, str]) -> None:
    """Ask a run and its base further benchmarks, with the time it takes said beforehand."""
    workspace, ref = scored.workspace, f"run:{scored.run_id}"
    if any(_is_going_on(run) for run in scored.evaluations):
        st.header(t("Being asked"))
        _watch(scored.run_id)
    for run in scored.evaluations:
        if run.status in ("stopped", "interrupted", "failed"):
            _halted(workspace, run)
    if scored.left_to_ask and not any(_is_going_on(run) for run in scored.evaluations):
        _rest(scored)
    _ui.fold(t("Ask it more benchmarks"), FOLD, lambda: _more(workspace, ref, titled))


def _more(workspace: Workspace, ref: str, titled: dict[str, str]) -> None:
    base = bases.describe(ref, workspace)
    if base.problems:
        _ui.problem_list(base.problems)
        return
    asked = _choose(workspace, base, titled)
    made, problems = evaluations.build(
        workspace, ref, asked.names, limit=asked.limit, shots=asked.shots, template=asked.template
    )
    if asked.names:
        _ui.problem_list(problems)
    if st.button(t("Ask them"), key="ask_more", disabled=made is None):
        assert made is not None
        start(workspace, made)
    _own(workspace)


def start(workspace: Workspace, made: RunSpec) -> None:
    """Start an evaluation and draw the page anew; what a demo does not allow is said."""
    try:
        evaluations.start(workspace, made)
    except limits.OverLimit as refused:
        _ui.problem_list(refused.problems)
    else:
        st.rerun()


def _rest(scored: ScoredRun) -> None:
    """Offer to ask the questions that a check in bounded time has left."""
    left, right = st.columns([4, 1])
    left.write(_ui.say("{n} questions are left: its check asked as many as fitted its time.", n=scored.left_to_ask))
    if right.button(t("Ask everything"), key="ask_everything"):
        try:
            made, problems = evaluations.everything(scored.workspace, scored.run_id)
            if made is None:
                _ui.problem_list(problems)
                return
            evaluations.start(scored.workspace, made)
            st.rerun()
        except limits.OverLimit as refused:
            _ui.problem_list(refused.problems)


def _is_going_on(run: Run) -> bool:
    return run.recipe == evaluations.RECIPE.name and run.status in store.LIVE


def _halted(workspace: Workspace, run: Run) -> None:
    """An evaluation that was not finished, and the button to go on."""
    left, right = st.columns([4, 1])
    left.warning(_ui.say("{name} was not finished: {status}.", name=run.name, status=_ui.status_word(run.status)))
    if right.button(t("Go on"), key=f"resume_asking_{run.id}"):
        try:
            lifecycle.resume(workspace, run.id)
            st.rerun()
        except (lifecycle.CannotResume, limits.OverLimit) as error:
            left.error(_ui.plain(error))


def _choose(workspace: Workspace, base: Base, titled: dict[str, str]) -> _Asked:
    """Let a person pick a set of benchmarks, or single ones and how they are asked."""
    sets = evaluations.sets(workspace, base.ref)
    words = {"quick": t("quick"), "standard": t("standard"), "full": t("full"), "own": t("choose")}

    def label(name: str) -> str:
        if name == "own":
            return words[name]
        return f"{words[name]}, {_minutes(workspace, base.ref, sets[name].benchmarks, sets[name].limit)}"

    chosen = st.radio(
        t("Which"),
        [*sets, "own"],
        format_func=lambda name: _ui.plain(label(name)),
        horizontal=True,
        key=f"ask_set_{base.ref[4:]}",
    )
    if chosen != "own":
        one = sets[chosen]
        st.caption(", ".join(_ui.plain(tables.name(name, titled)) for name in one.benchmarks))
        return _Asked(list(one.benchmarks), one.limit, 0, "auto")
    known = {one.name: one for one in library.available(workspace)}
    names = st.multiselect(
        t("Benchmarks"), list(known), key=f"ask_names_{base.ref[4:]}", placeholder=t("Choose one or more"),
        format_func=lambda n: t("{title} ({n} questions)", title=known[n].title, n=known[n].size),
    )  # fmt: skip
    columns = st.columns(3)
    limit = int(columns[0].number_input(t("Most questions each; 0 is all"), 0, 100_000, 0, key="ask_limit"))
    shots = int(columns[1].number_input(t("Examples before each question"), 0, 50, 0, key="ask_shots"))
    templates = {"auto": t("as usual"), "chat": t("chat template"), "none": t("none")}
    template = columns[2].selectbox(
        t("Template"), list(templates), format_func=templates.__getitem__, key="ask_template"
    )
    if names:
        st.caption(_ui.say("It takes {time}.", time=_minutes(workspace, base.ref, names, limit)))
    return _Asked(names, limit, shots, template)


def progress(workspace: Workspace, run: Run) -> None:
    """Show how far an evaluation or sweep is."""
    found, _ = events.read(workspace.run_dir(run.id))
    told = next((event for event in reversed(found) if isinstance(event, events.Progress)), None)
    if told is None or not told.total:
        st.progress(0.0, _ui.say("{name}: {status}", name=run.name, status=_ui.status_word(run.status)))
        return
    left = t("about {time} left", time=_ui.duration(told.left_s)) if told.left_s is not None else ""
    text = _ui.say("{name}: {done} of {total}", name=run.name, done=told.done, total=told.total)
    st.progress(min(1.0, told.done / told.total), f"{text} {_ui.plain(left)}")


@_failures.fragment(run_every=2.0)
def _watch(run_id: str) -> None:
    workspace = _ui.workspace()
    asking = [run for run in store.list_all(workspace) if run.base == f"run:{run_id}" and _is_going_on(run)]
    if not asking:
        st.rerun()
    for run in asking:
        progress(workspace, run)
        if st.button(t("Stop"), key=f"stop_asking_{run.id}", disabled=run.status == "stopping"):
            lifecycle.stop(workspace, run.id)
            st.rerun()


def _minutes(workspace: Workspace, ref: str, names: list[str], limit: int) -> str:
    seconds = evaluations.seconds(workspace, ref, names, limit)
    if seconds is None:
        return t("time not known yet")
    return t("about {time}", time=_ui.duration(max(1.0, seconds)))


def _own(workspace: Workspace) -> None:
    """Take a person's own questions; what is wrong with a file is named line by line."""
    st.markdown(f"**{t('Your own questions')}**")
    st.caption(t("JSON Lines, one question a line, all in one of these forms:"))
    st.code(OWN_FORMS, language="json", wrap_lines=True)
    found = _data_upload.received(workspace, "own_questions", t("A file of questions"), limit_bytes=own.MOST_BYTES)
    if not found:
        return
    source, name = found[0]
    try:
        data = limits.read_questions(source, own.MOST_BYTES)
        made, problems = evaluations.add_questions(workspace, data, name.rpartition(".")[0] or name)
    except limits.OverLimit as refused:
        made, problems = None, list(refused.problems)
    finally:
        source.unlink(missing_ok=True)
    if made is not None:
        st.success(_ui.say("{name} is kept: {n} questions. Pick it under “choose”.", name=made.title, n=made.size))
    else:
        st.error(t("{n} problems. Nothing was kept; mend the file and upload it again.", n=len(problems)))
    _ui.problem_list(problems[:50])
    if len(problems) > 50:
        st.caption(_ui.say("and {n} more", n=len(problems) - 50))
