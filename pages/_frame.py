"""The frame of every page: language, navigation, and what is being worked on."""

import runpy

import streamlit as st

from engine.words import t
from pages import _delete, _failures, _home, _opening, _ui, _visitor

st.set_page_config(page_title="Tunebook", page_icon=str(_ui.PAGES / "icon.png"), layout="wide")


def _first() -> None:
    """The bare address: what this is and what comes next, and below it the first step."""
    _home.card(_ui.workspace())
    runpy.run_path(str(_ui.PAGES / "data.py"), {"below_the_card": True})


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
        _ui.sidebar()
