"""Some rows of a data set as the base reads them, token by token: what is trained, and what of a row is left out."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import streamlit as st
from streamlit.components.v2 import component

from engine.check import DatasetError
from engine.data import Dataset, readiness
from engine.models import bases
from engine.render import NoTokenizer, outcome, preview, skipped
from engine.runs import store
from engine.words import joined, t
from engine.workspace import Unreadable, Workspace
from pages import _data_profile, _ready, _ui

_CSS = """
.row { margin: 0 0 1rem; color: var(--st-text-color); font-family: var(--st-font); }
.head, .foot { margin: 0 0 .3rem; font-size: .9rem; }
.foot { margin: .3rem 0 0; }
.text { padding: .6rem .8rem; border: 1px solid var(--st-border-color); border-radius: var(--st-base-radius);
  font: .9rem/1.7 var(--st-code-font, monospace); white-space: pre-wrap; overflow-wrap: anywhere;
  max-height: 22rem; overflow-y: auto; }
.text span { border-radius: 3px; box-shadow: inset -1px 0 0 var(--st-border-color); }
.text span.trained { background: color-mix(in srgb, var(--st-green-color) 30%, transparent);
  border-bottom: 2px solid var(--st-green-color); }
.text span.back { background: color-mix(in srgb, var(--st-orange-color) 25%, transparent);
  border-bottom: 2px dashed var(--st-orange-color); }
.text span.out { background: color-mix(in srgb, var(--st-violet-color) 25%, transparent);
  border-bottom: 2px dotted var(--st-violet-color); }
.text span.cut { text-decoration: line-through; opacity: .6; }
.text span.mark { font-weight: 700; outline: 1px solid var(--st-border-color); outline-offset: -1px; }
"""

# The tokens come from a file: they are set as text, never as HTML.
_JS = """
export default function ({ parentElement, data }) {
  parentElement.querySelectorAll(".row").forEach(old => old.remove());
  const kinds = ["", "trained", "back", "cut", "out"];
  for (const part of data.parts) {
    const row = document.createElement("div"), head = document.createElement("p"), text = document.createElement("div");
    row.className = "row"; head.className = "head"; text.className = "text";
    head.textContent = part.head;
    text.tabIndex = 0;
    text.setAttribute("role", "group");
    text.setAttribute("aria-label", part.head);
    part.pieces.forEach((piece, index) => {
      const span = document.createElement("span");
      span.textContent = piece;
      span.className = kinds[part.kinds[index]] + (part.marks[index] ? " mark" : "");
      text.append(span);
    });
    if (part.more) text.append(part.more);
    row.append(head, text);
    if (part.foot) {
      const foot = document.createElement("p");
      foot.className = "foot";
      foot.textContent = part.foot;
      row.append(foot);
    }
    parentElement.append(row);
  }
}
"""

# So many of the newest runs that left tokens out are looked at.
MOST_RUNS = 20

_tokens = component("tunebook_tokens", css=_CSS, js=_JS)


def show(workspace: Workspace, dataset: Dataset) -> None:
    """Some rows as the base reads them, with the tokens that are trained in colour."""
    if dataset.report.type in ("prompt-only", "stepwise"):
        st.info(t("These rows have no answer to learn from, so no token of them is trained."))
        return
    run_id = _learned_by(workspace, dataset)
    if run_id is None:
        base = _data_profile.base_of(workspace)
        length = _ready.usual_plan(workspace, dataset, base).window.length
    else:  # as that run read them
        spec = store.load_spec(workspace, run_id)
        base, length = bases.describe(spec.base.ref, workspace, spec.base.revision), spec.train.max_length
    try:
        with st.spinner(t("Reading some rows as the base does ...")):
            found = readiness.preview(workspace, dataset.id, base, length)
        if run_id is not None:
            keys = {part.key for row in found.rows for part in row.parts}
            found = preview.as_learned(found, skipped.places(workspace.run_dir(run_id), keys))
    except (OSError, Unreadable):
        st.error(t("What this run left out cannot be read."))
        return
    except (NoTokenizer, DatasetError) as error:
        st.error(_ui.plain(error.problem.sentence))
        return
    _counts(found, length)
    if run_id is not None:
        _left_out(workspace, run_id)
    parts = [_part(row, part) for row in found.rows for part in row.parts]
    if parts:
        _tokens(key=f"tokens_{dataset.id}", data={"parts": parts})


def _learned_by(workspace: Workspace, dataset: Dataset) -> str | None:
    """Return the run by which the rows are shown as it learned them: of those that left out what surprised their base."""
    runs: dict[str, str] = {}
    for path in sorted(workspace.root.glob(f"runs/*/{skipped.NAME}"), reverse=True)[:MOST_RUNS]:
        run_id = path.parent.name
        with suppress(OSError, ValueError, store.UnreadableSpec):
            if store.exists(workspace, run_id) and store.load_spec(workspace, run_id).dataset.id == dataset.id:
                runs[run_id] = store.name(workspace, run_id) or run_id
    if not runs:
        return None
    return st.selectbox(
        t("Shown as learned by"), [None, *runs],
        format_func=lambda one: runs[one] if one else t("any run that leaves nothing out"),
        key=f"learned_by_{dataset.id}",
    )  # fmt: skip


def _left_out(workspace: Workspace, run_id: str) -> None:
    about = skipped.about(workspace.run_dir(run_id))
    if about is None:
        return
    text = t(
        "{share} % of the answer tokens are left out ({n} of {total}): the base finds them surprising (perplexity above "
        "{threshold}).", share=f"{100 * about.share:.0f}", n=f"{about.skipped:,}", total=f"{about.tokens:,}",
        threshold=f"{about.threshold:g}",
    )  # fmt: skip
    st.write(_ui.plain(joined(text, t("They are violet with a dotted line."))))


def _counts(found: preview.Preview, length: int) -> None:
    """What the first rows come to, and what the looks of a token mean."""
    tally = found.tally
    for refusal in tally.refused[: readiness.REASONS]:
        st.error(
            _ui.say(
                "Left out: {n} of {total} rows, lines {lines}: {reason}; {do}.",
                n=refusal.rows,
                total=tally.rows,
                reason=refusal.problem.texts[0],
                do=refusal.problem.texts[1],
                lines=outcome.named(refusal.lines, refusal.rows),
            )
        )
    if not found.rows:
        return
    st.write(
        _ui.say(
            "In the first {rows} rows {trained} of {tokens} tokens are trained ({share} %). They are green and underlined.",
            rows=tally.rows,
            trained=f"{found.trained:,}",
            tokens=f"{found.tokens:,}",
            share=f"{100 * found.trained / max(1, found.tokens):.0f}",
        )
    )
    kinds = {kind for row in found.rows for part in row.parts for kind in part.kinds}
    told = [t("Marks of the base, such as the one that ends an answer, are bold.")]
    if preview.KEPT_BACK in kinds:
        told.append(t("Orange with a dashed line: an answer that the file turns off, which is read and not learned."))
    if preview.CUT in kinds:
        told.append(t("Struck through: beyond {length} tokens, where rows are cut.", length=f"{length:,}"))
    st.caption(_ui.plain(joined(*told)))
    if found.is_plain:
        st.caption(t("The base has no chat template; questions and answers are marked with plain headings."))
    if not found.trained:
        st.error(t("No token of these rows would be trained."))
    for note in tally.dropped_notes:
        st.warning(_ui.plain(str(note)))


def _part(row: preview.Row, part: preview.Part) -> dict[str, Any]:
    """One text of a row as the component takes it."""
    names = {"chosen": t("better answer"), "rejected": t("worse answer"), "good": t("good"), "bad": t("bad")}
    words = [t("Line {line}", line=f"{row.line:,}") if row.line else "", names.get(part.name, "")]
    counted = t("{trained} of {tokens} tokens are trained", trained=part.trained, tokens=part.tokens)
    more = part.tokens - len(part.pieces)
    dropped = "; ".join(map(str, row.dropped))
    return {
        "head": ", ".join(filter(None, words)) + ": " + counted,
        "pieces": list(part.pieces),
        "kinds": list(part.kinds),
        "marks": list(part.marks),
        "more": t(" … and {n} more tokens", n=more) if more else "",
        "foot": t("Left out by the base's chat template: {what}", what=dropped) if dropped else "",
    }
