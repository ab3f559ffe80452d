"""The Guide page's rules: one to be read, a list of them that opens, and the run on the starter that shows one."""

from __future__ import annotations

import re
from collections.abc import Sequence

import streamlit as st

from engine import starter
from engine.advise import guide
from engine.data import datasets
from engine.plan import drafts
from engine.spec import recipes as spec_recipes
from engine.spec import settings as spec_settings
from engine.words import language, t
from pages import _ui

_WORDS = re.compile("[\u4e00-\u9fff]{3}")
# A search that finds more shows the first of them.
MOST_FOUND = 30


def said(rule: guide.Rule) -> str:
    """Return what a rule says, in the reader's language: the guide's own words where these are, with what they mean beside
    them where they are but a size or a formula."""
    if language() != "zh":
        return t(rule.says)
    own = f"“{rule.spoken}”"
    return own if _WORDS.search(rule.spoken) else f"{own} · {t(rule.says)}"


def card(rule: guide.Rule) -> None:
    """One rule to be read: what it says, when it holds, what the sources say, and last the guide's words where they are in
    another language."""
    st.markdown(_ui.plain(said(rule)))
    verdict = _ui.verdict_words()[rule.verdict]
    st.markdown(
        _ui.say(
            "**{verdict}.** {why} Tunebook uses: {value}.",
            verdict=verdict[0].upper() + verdict[1:],
            why=t(rule.why),
            value=t(rule.value_used),
        )
    )
    st.caption(
        _ui.say("{rule} · For {when} · Source: {source}", rule=rule.id, when=t(rule.when), source=t(rule.source))
    )
    if language() != "zh":
        st.caption(_ui.say("In the guide's own words: “{words}”", words=rule.spoken))


def listed(rules: Sequence[guide.Rule], opened: str = "") -> None:
    """Rules one below the other, each by its words and verdict, to be opened; the one that was asked for is open."""
    words = _ui.verdict_words()
    for rule in rules[:MOST_FOUND]:
        with st.expander(_ui.plain(f"{rule.id} · {said(rule)} · {words[rule.verdict]}"), expanded=rule.id == opened):
            card(rule)
    if len(rules) > MOST_FOUND:
        st.caption(_ui.say("The first {n} of {total}: say one word more.", n=MOST_FOUND, total=len(rules)))


def try_it(recipe: str, sample: str, settings: dict[str, object], key: str, base: str = "starter") -> None:
    """Offer a run on the starter, with its sample; what stands on other runs as the chain of them."""
    recipes = spec_recipes.recipes()
    if recipe not in recipes:
        return
    if recipes[recipe].needs:
        about = t("Three runs on the starter, one after the other: SFT, reward model and PPO.")
        if st.button(t("Try it"), key=key, icon=":material/linear_scale:", help=about):
            _ui.choose("base", base)
            _ui.go("train", chain="ppo")
        return
    about = t("A run on the starter, the small model that comes with Tunebook. Train says how long it takes.")
    if st.button(t("Try it"), key=key, icon=":material/play_arrow:", help=about):
        workspace = _ui.workspace()
        draft = drafts.Draft(
            recipe=recipe,
            base=base,
            dataset=datasets.add_sample(workspace, starter.sample(sample)).id,
            overrides={path: value for path, value in settings.items() if path in spec_settings.fields()},
            reasons=[t("A run on the starter, to see what the guide says.")],
            came_from=t("From the guide"),
        )
        _ui.go("train", draft=drafts.save(workspace, draft))
