"""The card of the first screen: what Tunebook does, where this person is on the way, the one next step, recent runs."""

from __future__ import annotations

from contextlib import suppress

import streamlit as st

from engine import starter
from engine.advise import for_data, handoff
from engine.check import DatasetError
from engine.data import Dataset, datasets
from engine.forgetting import summary
from engine.models import bases
from engine.plan import drafts
from engine.runs import Run, scored, store
from engine.words import language, t
from engine.workspace import Workspace
from pages import _failures, _run_list, _ui

# What stands before a step that is done, and before the next one.
_MARKS = {"done": ":material/check:", "here": ":material/arrow_forward:"}
SAMPLE, BASE = "new-facts", "starter"
RECENT = 3
# Where somebody is: what comes next is the first of these that is not done.
DATA, ADVISOR, TRAINING, REPORT = range(4)


def card(workspace: Workspace) -> None:
    """Show the card."""
    with st.container(border=True, key="home"):
        _ui.heading("Tunebook", t("Teach a language model your own rows, and see what it gained and what it forgot."))
        every = store.list_all(workspace)
        runs = [run for run in every if _makes_a_model(workspace, run)]
        chosen = _ui.current_dataset()
        is_new = chosen is not None and all(run.dataset != chosen.id for run in runs)
        dataset = chosen if is_new or runs else next(iter(datasets.list_all(workspace)), None)
        here = _where(dataset, [] if is_new else runs)
        _way(here)
        _next(workspace, here, dataset, runs)
        _recent(workspace, [run for run in runs if run.status not in store.LIVE][:RECENT], every)


def _makes_a_model(workspace: Workspace, run: Run) -> bool:
    """Whether a run is one to be reported of: it does not only ask, or score the way back from another one."""
    spec = store.load_spec(workspace, run.id)
    return spec.kind != "evaluate" and (spec.recover is None or spec.recover.at is not None)


def _where(dataset: Dataset | None, runs: list[Run]) -> int:
    """Return the first step of the way that is not done."""
    if runs:
        return TRAINING if runs[0].status != "finished" else REPORT
    return ADVISOR if dataset is not None and dataset.trainable else DATA


def _way(here: int) -> None:
    """The picture: four steps, each a way to its page, and the one that is next."""
    steps = [
        ("data", t("Data"), t("Every bad row is named, with its line.")),
        ("advisor", t("Advisor"), t("Which recipe fits your rows and your machine, and why.")),
        ("train", t("Train"), t("It goes on by itself; close the page if you like.")),
        ("forgetting", t("Forgetting"), t("What it gained, what it forgot, and the way back.")),
    ]
    with st.container(key="steps"):
        for number, (page, title, text) in enumerate(steps):
            state = "done" if number < here else "here" if number == here else "next"
            with st.container(key=f"step_{state}_{number}", gap=None):
                st.page_link(
                    _ui.PAGES / f"{page}.py", label=f"**{_ui.plain(f'{number + 1}. {title}')}**", icon=_MARKS.get(state),
                    query_params=_ui.link_parameters(),
                )  # fmt: skip
                st.caption(_ui.plain(text))


def _next(workspace: Workspace, here: int, dataset: Dataset | None, runs: list[Run]) -> None:
    """The one next step as the button that shines, and the sample beside it."""
    with st.container(horizontal=True, vertical_alignment="center"):
        if here in (TRAINING, REPORT):
            label = t("See what the last run gained and forgot") if here == REPORT else t("Look at the last run")
            if _shining(label):
                _open(runs[0], "forgetting" if here == REPORT else "runs")
        elif dataset is not None:
            is_ready = here == ADVISOR
            words = {"name": dataset.name}
            if _shining(t("Ask what suits {name}", **words) if is_ready else t("Mend {name}", **words)):
                _ui.choose("dataset", dataset.id)
                _ui.go("advisor" if is_ready else "data")
        if st.button(
            t("Try it with a sample"),
            type="primary" if dataset is None and not runs else "secondary",
            icon=":material/science:",
            key="try_it",
            help=t(
                "Facts that no model knows, and the small model that comes with Tunebook: all on this machine. Train "
                "says how long it takes before it starts."
            ),
        ):
            _try_it(workspace)
        if dataset is None and not runs:
            st.caption(t("Or bring your own rows below."))


def _shining(label: str) -> bool:
    return st.button(_ui.plain(label), type="primary", icon=":material/arrow_forward:", key="home_next")


def _try_it(workspace: Workspace) -> None:
    """Take the sample to Train with what the Advisor says of it."""
    with _failures.said():
        dataset = datasets.add_sample(workspace, starter.sample(SAMPLE))
        _ui.choose("dataset", dataset.id)
        _ui.choose("base", BASE)
        case, advice = for_data.for_data(workspace, base=bases.describe(BASE, workspace), data=dataset, said={})
        made = handoff.draft(advice, case, dataset=dataset.id)
        if made is None:
            _ui.go("train")
        else:
            _ui.go("train", draft=drafts.save(workspace, made))


def _open(run: Run, page: str) -> None:
    _ui.choose("run", run.id)
    _ui.go(page)


def _recent(workspace: Workspace, runs: list[Run], every: list[Run]) -> None:
    """The last runs, each with the first sentence of its report; its name leads there. `every` are all runs there are."""
    if not runs:
        return
    st.markdown(f"**{_ui.plain(t('Recent runs'))}**")
    otherwise = _run_list.otherwise(workspace, every)
    for run in runs:
        asked = tuple(one.id for one in every if one.base == f"run:{run.id}" and one.status == "finished")
        told = _headline(str(workspace.root), run.id, asked, language()) if run.status == "finished" else ""
        with st.container(horizontal=True, vertical_alignment="center"):
            if st.button(_ui.plain(run.name), type="tertiary", key=f"recent_{run.id}"):
                _open(run, "forgetting" if told else "runs")
            unasked = t("Finished. What it gained and lost was not asked yet.")
            said = told or (unasked if run.status == "finished" else _ui.status_word(run.status))
            more = otherwise.get(run.id, "")
            st.caption(_ui.plain(f"{said} · {more}" if more else said), width="stretch")


@st.cache_data(max_entries=200, show_spinner=False)
def _headline(root: str, run_id: str, asked: tuple[str, ...], language: str) -> str:
    """The headline of a finished run's report, or nothing where it has none. It changes with what was `asked` later."""
    with suppress(OSError, ValueError, RecursionError, DatasetError):
        found = scored.of(Workspace(root), run_id)
        if found.rows:
            return summary.of(found, ways=[]).headline
    return ""
