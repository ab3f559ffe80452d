"""Answers as a run trains: of each prompt the first, one of the middle and the newest in full, with what has changed."""

from __future__ import annotations

import difflib
import html
import re
from collections.abc import Sequence

import streamlit as st

from engine import events, limits
from engine.words import t
from pages import _ui

# Words, single Chinese characters, and what stands between them: the parts in which two answers are held against each other.
_PARTS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|\s+|[^\w\s]")
# More parts than this are not compared: the time grows with the square of it.
MOST_PARTS = 1_500
_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere;margin:0 0 .25rem"
_MARK = f"{_ui.HIGHLIGHT};color:inherit;text-decoration:underline"


def show(samples: Sequence[events.Sample]) -> None:
    """Show every prompt with its answers."""
    by_prompt: dict[str, list[events.Sample]] = {}
    for sample in samples:
        by_prompt.setdefault(sample.prompt, []).append(sample)
    if not by_prompt:
        return
    st.header(t("Answers as it trains"))
    st.caption(t("What is underlined was not in the first answer."))
    for prompt, answers in by_prompt.items():
        with st.container(border=True):
            st.markdown(f"**{_ui.plain(prompt)}**")
            _answers(sorted(answers, key=lambda one: one.step))


def _answers(answers: Sequence[events.Sample]) -> None:
    first, kept = answers[0], picked(answers)
    for column, one in zip(st.columns(len(kept)), kept, strict=True):
        with column:
            st.caption(t("Before training") if one.step == 0 else _ui.say("After step {n}", n=f"{one.step:,}"))
            st.html(f'<p style="{_TEXT}">{marked(first.text, one.text) or "–"}</p>')
            if one is not first and one.text == first.text:
                st.caption(t("the same as the first"))


def picked(answers: Sequence[events.Sample]) -> list[events.Sample]:
    """Return the first, the middle and the newest of some answers; of fewer than three, all."""
    if len(answers) < 3:
        return list(answers)
    return [answers[0], answers[len(answers) // 2], answers[-1]]


def marked(first: str, text: str) -> str:
    """Return a text as HTML, with what is not in the first one marked. Nothing in it is HTML of its own."""
    text, first = limits.unnamed(text), limits.unnamed(first)
    before, after = _PARTS.findall(first), _PARTS.findall(text)
    if first == text or max(len(before), len(after)) > MOST_PARTS:
        return html.escape(text)
    found = []
    for kind, _, _, start, end in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        part = html.escape("".join(after[start:end]))
        found.append(part if kind == "equal" or not part.strip() else f'<mark style="{_MARK}">{part}</mark>')
    return "".join(found)
