"""The blind comparison on the Forgetting page: two answers to one prompt, no names, one key each."""

from __future__ import annotations

import streamlit as st

from engine import limits
from engine.forgetting import evaluations
from engine.report import blind
from engine.runs import ScoredRun, store
from engine.words import t
from engine.workspace import Unreadable
from pages import _failures, _forgetting_ask, _ui

FOLD = "blind_fold"


def show(scored: ScoredRun) -> None:
    """Let a person choose between answers of base and tuned model, or have these written first."""
    _ui.fold(t("Compare the answers, names hidden"), FOLD, lambda: _compare(scored))


def _compare(scored: ScoredRun) -> None:
    if not blind.has_texts(scored.joined):
        _write_first(scored)
        return
    try:
        found = blind.read(scored.folder)
    except (OSError, Unreadable) as error:
        st.error(_ui.say("The choices of this run cannot be read: {reason}", reason=error))
        if st.button(t("Begin anew"), key="blind_anew"):
            _keep(scored, blind.begin())
        return
    if found is None:
        _offer(scored)
    elif found.shown:
        _result(scored, found)
    else:
        _choose(scored, found)


def _offer(scored: ScoredRun) -> None:
    n = sum(not pair.are_same for pair in blind.drawn(scored.joined, 0))
    st.write(_ui.say("Up to {n} held-out prompts, one after another, each with two answers. Which is better?", n=n))
    st.caption(t("Names and sides are hidden until the end. You can leave at any time and go on later."))
    if st.button(t("Begin"), key="blind_begin"):
        _keep(scored, blind.begin())


def _keep(scored: ScoredRun, judgements: blind.Judgements) -> None:
    limits.settle(scored.workspace)
    blind.write(scored.folder, judgements)
    st.rerun()


@_failures.fragment(run_every=None)
def _choose(scored: ScoredRun, found: blind.Judgements) -> None:
    """One prompt, its two answers, and a key for each choice; every choice is written as it is made. A key draws this part
    alone anew, and takes effect before the prompt above it is drawn."""
    now = blind.read(scored.folder) or found
    pairs = blind.drawn(scored.joined, now.seed)
    left, place = blind.left_to_judge(now, pairs), st.container()
    words: tuple[tuple[blind.Choice, str, str], ...] = (
        ("left", t("A is better"), "A"), ("right", t("B is better"), "B"), ("same", t("Neither"), "N"),
    )  # fmt: skip
    with st.container(horizontal=True):
        for choice, label, key in words:
            if st.button(_ui.plain(label), key=f"blind_{choice}", shortcut=key, disabled=not left) and left:
                now = blind.judged(now, left[0], choice)
                blind.write(scored.folder, now)
        if st.button(t("Undo the last"), key="blind_undo", shortcut="U"):
            now = blind.undone(now)
            blind.write(scored.folder, now)
    left, asked = blind.left_to_judge(now, pairs), sum(not pair.are_same for pair in pairs)
    with place:
        done = asked - len(left)
        st.progress(done / max(1, asked), _ui.say("{done} of {total}", done=done, total=asked))
        if left:
            _show(left[0])
    end = t("End here and show which was which") if left else t("Show which was which")
    if st.button(_ui.plain(end), key="blind_end", disabled=bool(left) and not now.made):
        blind.write(scored.folder, blind.ended(now))
        st.rerun()


def _show(pair: blind.Pair) -> None:
    """A prompt and its two answers, as text."""
    with st.container(border=True):
        st.text(pair.prompt)
    for column, letter, text in zip(st.columns(2, border=True), "AB", (pair.left, pair.right), strict=True):
        column.markdown(f"**{_ui.plain(letter)}**")
        column.text(text or "–")


def _result(scored: ScoredRun, found: blind.Judgements) -> None:
    pairs = blind.drawn(scored.joined, found.seed)
    st.markdown(f"**{_ui.plain(blind.wins(found, pairs).sentence)}**")
    st.caption(
        t("The interval is exact (Clopper and Pearson) over the prompts that were decided. Same words are a tie.")
    )
    made = blind.choices(found, pairs)
    for pair in pairs:
        if (choice := made.get(pair.item)) is None:
            continue
        with st.container(border=True):
            st.text(pair.prompt)
            for column, letter, text, is_tuned, side in zip(
                st.columns(2), ("A", "B"), (pair.left, pair.right), (pair.tuned_is_left, not pair.tuned_is_left),
                ("left", "right"), strict=True,
            ):  # fmt: skip
                told = t("{name}: {text}", name=letter, text=t("Tuned") if is_tuned else t("Base")) + (
                    " ✓" if choice == side else ""
                )
                column.markdown(f"**{_ui.plain(told)}**")
                column.text(text or "–")
    if st.button(t("Judge them once more"), key="blind_again"):
        _keep(scored, blind.begin())


def _write_first(scored: ScoredRun) -> None:
    """Offer to let both models answer held-out prompts, with what that costs."""
    if any(run.status in store.LIVE for run in scored.evaluations):
        st.caption(t("It is being asked; wait until that has ended."))
        return
    made, problems = evaluations.texts(scored.workspace, scored.run_id)
    st.write(
        _ui.say(
            "No answer to a held-out prompt is there yet. Base and tuned model write up to {n} each, of 256 tokens at most.",
            n=blind.PROMPTS,
        )
    )
    seconds = evaluations.texts_seconds(scored.workspace, scored)
    told = t("about {time}", time=_ui.duration(max(1.0, seconds))) if seconds is not None else t("time not known yet")
    st.caption(_ui.plain(told))
    _ui.problem_list(problems)
    if st.button(t("Write them"), key="blind_texts", disabled=made is None):
        assert made is not None
        _forgetting_ask.start(scored.workspace, made)
