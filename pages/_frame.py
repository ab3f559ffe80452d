"""The frame of every page: language, navigation, and what is being worked on."""

import runpy
from contextlib import suppress

import streamlit as st

from engine.check import DatasetError
from engine.data import datasets
from engine.models import bases
from engine.runs import store
from engine.words import t
from pages import _delete, _failures, _home, _opening, _ui, _visitor

st.set_page_config(page_title="Tunebook", page_icon=str(_ui.PAGES / "icon.png"), layout="wide")


def _first() -> None:
    """The bare address: what this is and what comes next, and below it the first step."""
    _home.card(_ui.workspace())
    runpy.run_path(str(_ui.PAGES / "data.py"), {"below_the_card": True})


def _sidebar() -> None:
    """Keep what is being worked on in sight: the run that is open with what is its own, and what the next run would take."""
    here, dataset, run_id = _ui.workspace(), _ui.current_dataset(), _ui.known_run(_ui.current("run"))
    chosen = {
        t("Data"): dataset.name if dataset else None,
        t("Base"): bases.describe(_ui.current("base") or "starter", here).title,
    }
    run = f"{store.all_names(here)[run_id]} ({_ui.status_word(store.status(here, run_id))})" if run_id else None
    own = _own(run_id) if run_id else {}
    with st.sidebar:
        st.caption(t("You are working on"))
        if own.items() <= chosen.items():
            _lines({**chosen, t("Run"): run})
        else:
            _lines({t("Run"): run, **own})
            st.caption(t("For the next run"))
            _lines(chosen)
        _ui.language_switch()


def _own(run_id: str) -> dict[str, str | None]:
    """The data of a run, where it is still here, and its base."""
    here = _ui.workspace()
    spec, own = store.load_spec(here, run_id), {}
    with suppress(DatasetError, OSError, ValueError):
        own[t("Data")] = datasets.load(here, spec.dataset.id).name
    return {**own, t("Base"): bases.describe(spec.base.pinned, here).title}


def _lines(told: dict[str, str | None]) -> None:
    for label, value in told.items():
        st.markdown(_ui.say("**{name}**: {text}", name=label, text=value or t("none yet")))


_ui.speak()
asked = _visitor.asked()
if asked is None:
    _ui.remember_from_url()
# No icons: a page icon would make the browser fetch a picture for its tab from another host.
page = st.navigation(
    [
        st.Page(_first, title="Tunebook", default=True, visibility="hidden"),
        st.Page(_ui.PAGES / "data.py", title=t("Data"), url_path="data"),
        st.Page(_ui.PAGES / "advisor.py", title=t("Advisor"), url_path="advisor"),
        st.Page(_ui.PAGES / "train.py", title=t("Train"), url_path="train"),
        st.Page(_ui.PAGES / "runs.py", title=t("Runs"), url_path="runs"),
        st.Page(_ui.PAGES / "chat.py", title=t("Chat"), url_path="chat"),
        st.Page(_ui.PAGES / "forgetting.py", title=t("Forgetting"), url_path="forgetting"),
        st.Page(_ui.PAGES / "guide.py", title=t("Guide"), url_path="guide"),
    ],
    position="hidden" if asked else "sidebar",
)
if asked is not None:
    _visitor.ask(asked)
    with st.sidebar:
        _ui.language_switch()
else:
    st.html(_ui.PAGES / "style.css")
    _opening.page(page.url_path, page.title)
    _ui.demo_notice(first=page.url_path in ("", "data"))
    _delete.said()
    _failures.run(page.run)
    with _failures.said():
        _sidebar()
