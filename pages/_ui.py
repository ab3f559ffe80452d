"""Shared parts of the pages: the workspace, what is being worked on, and words that are shown as they are."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from engine import limits, visitors
from engine.check import DatasetError
from engine.data import Dataset, datasets, jobs
from engine.models import Base, bases
from engine.runs import store
from engine.words import Problem, language, language_of, languages, set_language, t
from engine.workspace import Workspace, default_workspace
from pages import _visitor

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler
    from plotly.graph_objects import Figure

PAGES = Path(__file__).parent
# A wash that reads on light and on dark alike.
HIGHLIGHT = "background-color: rgba(250, 176, 5, 0.25)"
# What is being worked on. Lives in the session, and in the URL so that a refresh, a second tab or a link finds it again.
CURRENT = ("dataset", "base", "run")

STATUS_ICONS = {
    "queued": ":material/hourglass_empty:",
    "running": ":material/play_circle:",
    "stopping": ":material/stop_circle:",
    "finished": ":material/check_circle:",
    "stopped": ":material/stop_circle:",
    "failed": ":material/error:",
    "interrupted": ":material/warning:",
    "later": ":material/update:",
    "broken": ":material/broken_image:",
}


class PageEnds(Exception):
    """A page has nothing more to show. Its frame goes on with the sidebar, which st.stop would leave out."""


def status_word(status: str) -> str:
    """Return a run's status in the reader's language."""
    words = {
        "queued": t("queued"),
        "running": t("running"),
        "stopping": t("stopping"),
        "finished": t("finished"),
        "stopped": t("stopped"),
        "failed": t("failed"),
        "interrupted": t("interrupted"),
        "later": t("of a later version"),
        "broken": t("cannot be read"),
    }
    return words.get(status, status)


def verdict_words() -> dict[str, str]:
    """Return what each verdict on a rule of the guide is called."""
    return {
        "agree": t("the sources agree"),
        "incomplete": t("right in direction, incomplete"),
        "disputed": t("disputed"),
        "unproven": t("unproven"),
        "wrong": t("wrong"),
        "outdated": t("outdated"),
        "vendor claim": t("a vendor's claim"),
        "contradiction": t("the guide contradicts itself"),
    }


# How ids of the hub are written.
ID_EXAMPLE = "owner/name"
# What a browser keeps of the language it was shown last; nothing but the code of a language is taken from it.
LANGUAGE_COOKIE = "tunebook_language"
# What each language calls itself: a switch that can be found by somebody who cannot read the page.
LANGUAGE_NAMES = {"en": "English", "zh": "中文"}


def speak() -> None:
    """Let this run of the page speak the visitor's language: what the URL says, what was chosen before, on this visit or
    an earlier one of this browser, or what the browser asks for. It stays in the URL, so that a link finds it again."""
    usual = language_of(st.context.locale) or "en"
    before = st.session_state.get("language") or language_of(st.context.cookies.get(LANGUAGE_COOKIE))
    code = language_of(st.query_params.get("lang")) or before or usual
    st.session_state["language"] = code
    set_language(code)
    if code != usual:
        st.query_params["lang"] = code


def _switch_language() -> None:
    """Take over the choice before the page runs, so that all of it changes at once.

    The browser knows what is chosen in a list by its words. These are about to change, so every choice is written down
    as the value it stands for; else the page would meet words that are in no list, or take them for a name typed in.
    """
    chosen = {str(key): value for key, value in st.session_state.items() if isinstance(value, str)}
    st.session_state.update(chosen)
    st.session_state["language"] = chosen["language_switch"]
    st.query_params["lang"] = chosen["language_switch"]


def language_switch() -> None:
    """Offer the languages, each by its own name."""
    codes = list(languages())
    st.session_state["language_switch"] = st.session_state["language"]
    st.radio(
        t("Language"),
        codes,
        format_func=lambda code: plain(LANGUAGE_NAMES.get(code, code)),
        horizontal=True,
        key="language_switch",
        on_change=_switch_language,
    )


def workspace() -> Workspace:
    """The workspace of this visitor: in a hosted demo their own, else the one there is."""
    return _visitor.workspace() if limits.on() else default_workspace()


def demo_notice(first: bool) -> None:
    """Say, on every page of a hosted demo, what is allowed before anybody meets a limit, and for how long things are
    kept; on the `first` page also what this is."""
    if not limits.on():
        return
    hours = f"{visitors.hours_left(workspace()):.0f}"
    if visitors.is_shared(workspace()):
        st.warning(
            t(
                "This workspace was opened by a link, by you or somebody else. Whoever has the address of this page sees "
                "and can change all that is in it."
            )
        )
    elif first:
        st.info(
            t(
                "A public demo on a small machine. What you bring and make is yours alone, as long as you share this "
                "page's address with nobody. Bring nothing confidential."
            )
        )
    with st.expander(t("What this demo allows; everything is deleted in {hours} hours", hours=hours)):
        bullets(limits.sentences())
        st.caption(
            t(
                'On your own machine none of these limits exists: "Take this along" on Train makes one file of your data '
                "and settings, and your own Tunebook, or one on a rented card, opens it on Data."
            )
        )


# What Markdown reads as a mark, and between which characters Streamlit finds addresses, icons and arrows in what was read.
_MARK = re.compile(r"[\\`*_{}\[\]()#+\-.!|<>~$:&^=]")
_WITHIN = re.compile(r"(?<=:)(?=\S)|(?<=\S)(?=@)|(?<=www)(?=\.)|(?<=[-<>~])(?=[->=])", re.IGNORECASE)
_NOTHING = ":color[]"  # an empty span: a directive without content and without a colour


def plain(text: object) -> str:
    """Return Markdown that shows a text from a person, a file, a model or a hub as it is, in one line.

    Marks are escaped. Addresses, `:icons:` and arrows are found in the text that is left, where no escape is seen, so
    each of them is parted by a span without content; what is shown and copied has no character more.
    """
    line = " ".join(limits.unnamed(text).expandtabs(4).splitlines())
    escaped = _NOTHING.join(_MARK.sub(r"\\\g<0>", part) for part in _WITHIN.split(line))
    return re.sub(" (?= )", "&nbsp;", escaped)  # else an indentation begins a block of code, and is lost otherwise


def lines(text: str) -> str:
    """Return Markdown that shows a text as it is, line by line."""
    return "  \n".join(plain(line) for line in text.split("\n"))


def cells(table: pd.DataFrame, mark: str | None = None) -> pd.DataFrame | Styler:
    """Return a table for st.table, which reads every cell and name as Markdown, that shows them as they are. Rows whose
    first cell begins with the mark are highlighted."""
    shown = table.map(plain).rename(columns=plain, index=plain)
    if mark is None:
        return shown
    return shown.style.apply(lambda row: [HIGHLIGHT if row.iloc[0].startswith(mark) else ""] * len(row), axis=1)


def figure(drawn: Figure) -> dict[str, Any]:
    """Return a figure for st.plotly_chart, which reads texts as HTML, that shows them as they are; of a template for
    what is said beside the mouse, the line break and the end of its name stay."""

    def shown(value: Any, template: bool = False) -> Any:
        if isinstance(value, str):
            escaped = html.escape(value, quote=False)
            return re.sub("&lt;(br|extra|/extra)&gt;", r"<\1>", escaped) if template else escaped
        if isinstance(value, dict):
            return {name: shown(one, name == "hovertemplate") for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [shown(one, template) for one in value]
        return value

    return shown(drawn.to_plotly_json())


def say(text: str, /, **parameters: object) -> str:
    """Return t(text) for Markdown, with every parameter escaped."""
    return t(text, **{name: plain(value) for name, value in parameters.items()})


def unbroken(text: str) -> str:
    """Return a short heading that a narrow column keeps in one line: Chinese may break between any two characters."""
    return "\u2060".join(text) if len(text) <= 3 and not text.isascii() else text


def current(name: str) -> str | None:
    """Return the id of the dataset, base or run that is being worked on."""
    value = st.session_state.get(f"current_{name}")
    return str(value) if value else None


def _is_path(value: str) -> bool:
    """A folder or file of this machine may be a base, but an address never names one."""
    value = value.strip()
    odd = value.startswith(("/", ".", "~", "gguf:")) or value.lower().endswith(".gguf") or "\\" in value
    return odd or bases.is_folder(Path(value))


def known_run(run_id: str | None) -> str | None:
    """Return the id of a run that is here and that this version can read, else None."""
    if not run_id or not store.exists(workspace(), run_id):
        return None
    try:
        store.load_spec(workspace(), run_id)
    except (OSError, ValueError, RecursionError):
        return None
    return run_id


def only_named(*names: str) -> bool:
    """Whether one of these was named by the address, perhaps of somebody's link, and nobody has chosen it here: nothing
    outside is asked about it and no process started for it before a click."""
    return any(st.session_state.get(f"only_named_{name}") for name in names)


# What was chosen with a click since the server started, by home: a page that is loaded again names it once more.
_chosen: set[tuple[Path, str, str | None]] = set()


def choose(name: str, value: str | None, *, only_named: bool = False) -> None:
    """Remember what is being worked on, here and in the URL. `only_named`: this session has not clicked on it, as where an
    address names it. In a demo that makes no difference: it asks the hub nothing, and the workspace was entered."""
    if limits.on():
        only_named = False
    elif only_named:
        only_named = value != "starter" and (workspace().root, name, value) not in _chosen
    else:
        _chosen.add((workspace().root, name, value))
    st.session_state[f"current_{name}"], st.session_state[f"only_named_{name}"] = value, only_named
    if value and not _is_path(value):
        st.query_params[name] = value
    elif name in st.query_params:
        del st.query_params[name]


def remember_from_url() -> None:
    """Take over what the URL names; it is only ever an id that is looked up. What it does not name, as after a click in
    the sidebar, is put back from the session, so that a refresh or a link still finds it."""
    for name in CURRENT:
        value, kept = st.query_params.get(name), current(name)
        if value and not _is_path(value):
            if value != kept:
                choose(name, value, only_named=True)
        elif kept and not value and not _is_path(kept):
            st.query_params[name] = kept
    run_id = known_run(current("run"))
    first, st.session_state["brought_by"] = st.session_state.get("brought_by") != run_id, run_id
    if run_id and first and not current("dataset"):
        # A link to a run alone brings its data and base along; once, so that data which was deleted is not followed by it.
        run_spec = store.load_spec(workspace(), run_id)
        for name, value in (("dataset", run_spec.dataset.id), ("base", run_spec.base.pinned)):
            st.session_state[f"current_{name}"] = value
            st.session_state[f"only_named_{name}"] = only_named("run")


def current_dataset() -> Dataset | None:
    """Return the dataset being worked on, or None when there is none or it is gone."""
    dataset_id = current("dataset")
    if not dataset_id:
        return None
    try:
        return datasets.load(workspace(), dataset_id)
    except (DatasetError, OSError, ValueError):
        return None


def link_parameters() -> dict[str, str]:
    """Return the query parameters that take what is being worked on, and the language, along to another page."""
    working_on = {name: value for name in CURRENT if (value := current(name)) and not _is_path(value)}
    if limits.on() and "visitor" in st.session_state:
        working_on["visitor"] = st.session_state["visitor"]
    return {**working_on, "lang": st.session_state["language"]} if "lang" in st.query_params else working_on


def heading(title: str, text: str = "") -> None:
    """The page's one heading, and what it is for where that is not plain; below the first page's card a section of it."""
    (st.header if st.session_state.get("has_heading") else st.title)(plain(title), anchor=False)
    st.session_state["has_heading"] = True
    if text:
        st.write(plain(text))


def next_step(page: str, label: str, *, reason: str | None = None, is_first: bool = True, **parameters: str) -> None:
    """Show the one button that leads on; with a reason it is disabled and says why. Where the page has a button of its own
    for what is to be done first, this one does not shine beside it."""
    st.divider()
    clicked = st.button(
        plain(label), type="primary" if is_first else "secondary", icon=":material/arrow_forward:", disabled=bool(reason),
        key="next_step",
    )  # fmt: skip
    if reason:
        st.caption(plain(reason))
    if clicked:
        go(page, **parameters)


def go(page: str, **parameters: str) -> None:
    """Open another page, after a click, and take what is being worked on along."""
    st.session_state["clicked_draft"] = parameters.get("draft")
    st.switch_page(PAGES / f"{page}.py", query_params={**link_parameters(), **parameters})


def empty(text: str, page: str, label: str) -> None:
    """Say what is missing and offer the way there, instead of an empty page."""
    st.info(plain(text))
    if st.button(plain(label), type="primary", icon=":material/arrow_back:", key="empty_state"):
        go(page)


def toy_note(base: Base) -> None:
    """Say what the starter is for, wherever it is used."""
    if base.is_toy:
        st.caption(
            t(
                "Toy model: shows the mechanics, not quality. A model this small wants up to 10 times the learning rate "
                "of a real one."
            )
        )


def rounding_note(base: Base) -> None:
    """Say of a rounded base what its scores must be read with."""
    if base.rounding_note is not None:
        st.caption(plain(base.rounding_note))


def bullets(texts: Iterable[str]) -> None:
    """Show texts as a list, as they are."""
    shown = "\n".join(f"- {plain(text)}" for text in texts)
    if shown:
        st.markdown(shown)


def fold(title: str, key: str, show: Callable[[], None], *, icon: str | None = None, opened: bool = False) -> None:
    """A part that is made once a person opens it: folded it costs neither the server nor the browser anything. A true
    `st.session_state[key]`, set before, opens it."""
    place = st.expander(plain(title), icon=icon, key=key, expanded=opened, on_change="rerun")
    if place.open:
        with place:
            show()


def problem_list(problems: Iterable[Problem]) -> None:
    """Show every problem: where, what and what to do."""
    bullets(problem.sentence for problem in problems)


def ago(time_s: float) -> str:
    """Return how long ago a moment was, in words."""
    passed_s = max(0, time.time() - time_s)
    if passed_s < 90:
        return t("just now")
    if passed_s < 5400:
        return t("{n} minutes ago", n=round(passed_s / 60))
    if passed_s < 129600:
        return t("{n} hours ago", n=round(passed_s / 3600))
    return t("{n} days ago", n=round(passed_s / 86400))


def duration(seconds: float) -> str:
    """Return a length of time in words."""
    if seconds < 90:
        return t("{n} s", n=round(seconds))
    if seconds < 5400:
        return t("{n} min", n=round(seconds / 60))
    return t("{n} h", n=round(seconds / 3600, 1))


def job_bar(now: jobs.JobProgress, text: str, stop_words: str, *, key: str) -> bool:
    """Show how far a job is, with the time left, and a button beside it; return whether that was pressed."""
    left, right = st.columns([6, 1], vertical_alignment="center")
    left.progress(now.share, text=plain(with_time_left(text, now)))
    return right.button(plain(stop_words), key=key)


def with_time_left(text: str, now: jobs.JobProgress) -> str:
    """A text about a job, and how long it still takes where that is known."""
    if now.left_s is None:
        return text
    return text + ", " + t("about {time} left", time=duration(max(1, now.left_s)))


def spoken(make: Callable[[], bytes]) -> Callable[[], bytes]:
    """Return what makes a file for a download button, which calls it in a thread of its own, in the reader's language."""
    code = language()

    def made() -> bytes:
        set_language(code)
        return make()

    return made


def show_value(value: Any) -> str:
    """Return a setting's value as a person writes it."""
    if isinstance(value, bool):
        return t("yes") if value else t("no")
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
