"""The list of runs where a table has no room: a line for the name and one for what it came to; a touch opens the run."""

from __future__ import annotations

from collections.abc import Container, Sequence

import streamlit as st
from streamlit.components.v2 import component

from engine.words import t
from pages import _failures, _run_list

# So many are listed at first: a screen is narrow, and a touch shows the others.
FIRST = 15
_KEY, _OPENED = "runs_on_a_phone", "opened_on_a_phone"

# Every text is set as text, never as HTML: names are a person's.
_list = component(
    "tunebook_runs",
    html="<ul></ul><button type='button' class='more' hidden></button>",
    css="""
ul { list-style: none; margin: 0; padding: 0; display: grid; gap: .4rem; }
button { font: inherit; color: var(--st-text-color); background: transparent; text-align: left; width: 100%;
  padding: .55rem .75rem; border: 1px solid var(--st-border-color); border-radius: .5rem; cursor: pointer; }
button:focus-visible { outline: 3px solid var(--st-primary-color); outline-offset: 2px; }
.more { text-align: center; margin-top: .4rem; }
.more[hidden] { display: none; }
b, span { display: block; overflow-wrap: anywhere; }
b { font-weight: 600; }
span { font-size: .9rem; }
""",
    js="""
export default function ({ parentElement, data, setTriggerValue }) {
  const list = parentElement.querySelector("ul"), more = parentElement.querySelector(".more");
  const open = (id) => () => setTriggerValue("open", id);
  const draw = () => {
    const count = list.dataset.all ? data.rows.length : data.first;
    list.setAttribute("aria-label", data.label);
    const shown = data.rows.slice(0, count);
    shown.forEach((row, number) => {
      let button = list.children[number]?.firstChild;
      if (!button) {
        const item = document.createElement("li");
        button = document.createElement("button");
        button.type = "button";
        item.append(button);
        list.append(item);
      }
      button.onclick = open(row.id);
      const told = JSON.stringify(row);
      if (button.dataset.told === told) return;
      button.dataset.told = told;
      const name = document.createElement("b");
      name.textContent = row.name;
      button.replaceChildren(name, ...row.lines.map((line) => {
        const text = document.createElement("span");
        text.textContent = line;
        return text;
      }));
    });
    while (list.children.length > shown.length) list.lastChild.remove();
    more.hidden = shown.length === data.rows.length;
    more.textContent = data.more;
  };
  more.onclick = () => {
    list.dataset.all = "yes";
    draw();
    list.children[data.first]?.firstChild.focus();
  };
  draw();
}
""",
)


def show(rows: Sequence[tuple[str, str, list[str]]], label: str) -> None:
    """Show runs, each with its id, its name and the lines below it. look() opens the one that is touched."""
    told = [{"id": run_id, "name": name, "lines": lines} for run_id, name, lines in rows]
    with st.container(key="narrow_runs"):
        _list(
            data={"rows": told, "first": FIRST, "label": label, "more": t("Show all {n}", n=len(told))},
            key=_KEY,
            on_open_change=_keep,
        )


@_failures.kept
def _keep() -> None:
    st.session_state[_OPENED] = st.session_state[_KEY].open


def look(ids: Container[str]) -> None:
    """Open the run that was touched, where it is one of these: before anything else, so that no touch is lost."""
    opened = st.session_state.pop(_OPENED, None)
    if opened in ids:
        _run_list.look(str(opened))
