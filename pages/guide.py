"""Guide: the written guide behind the advisor: methods, learning paths, practices, questions, every rule judged. One
section is shown at a time, and the address names it."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from engine.advise import guide
from engine.words import language, t
from pages import _guide_methods, _guide_paths, _guide_rules, _ui

# Verdicts of rules where the guide and the sources part, the plainest first.
PARTED = ("wrong", "disputed", "contradiction", "outdated", "unproven", "vendor claim")
SCENARIOS = ("rows", "memory", "alignment")


def _chosen(label: str, words: dict[str, str], key: str, *, as_list: bool = False) -> str:
    """Ask for one of a few, one always chosen; the answer stands in the address."""
    given = st.query_params.get(key)
    if st.session_state.get(key) not in words:
        st.session_state[key] = given if given in words else next(iter(words))
    if as_list:
        value = st.selectbox(_ui.plain(label), list(words), format_func=words.__getitem__, key=key)
    else:
        value = st.radio(
            _ui.plain(label), list(words), format_func=lambda one: _ui.plain(words[one]), key=key, horizontal=True
        )
    st.query_params[key] = value or next(iter(words))
    return st.query_params[key]


def _matches(rule: guide.Rule, wanted: str) -> bool:
    written = (rule.says, rule.when, rule.value_used, rule.why, rule.source)
    texts = (rule.id, *written, *map(t, written), *rule.phrases)
    return all(word in " ".join(texts).lower() for word in wanted.lower().split())


# --- the sections -----------------------------------------------------------------------------------------------------
def _methods() -> None:
    methods = {one.rule: one for one in _guide_methods.methods()}
    names = {rule: one.name for rule, one in methods.items()}
    _guide_methods.show(methods[_chosen(t("Method"), names, "method")])


def _paths() -> None:
    titles = {name: title for name, (title, _) in _guide_paths.paths().items()}
    _guide_paths.show(_chosen(t("Path"), titles, "path"))


def _practices() -> None:
    tables = {name: t(guide.tables()[name]) for name in ("practice", "forgetting", "tools")}
    for rule in guide.table(_chosen(t("About"), tables, "about")):
        with st.container(border=True):
            _guide_rules.card(rule)


def _questions() -> None:
    for number, rule in enumerate(guide.table("faq")):
        question = next((phrase for phrase in rule.also if phrase.endswith("？")), "")
        asked = question if language() == "zh" and question else t(rule.when)
        with st.expander(_ui.plain(asked), expanded=number == 0):
            _guide_rules.card(rule)


def _disputed() -> None:
    st.write(t("Where the guide and the sources part: what the guide says, what the sources say, and what is used."))
    by_verdict = {one: [rule for rule in guide.rules().values() if rule.verdict == one] for one in PARTED}
    words = _ui.verdict_words()
    names = {one: t("{what} ({n})", what=words[one], n=len(found)) for one, found in by_verdict.items() if found}
    _guide_rules.listed(by_verdict[_chosen(t("Verdict"), names, "verdict")])


def _every_rule() -> None:
    asked = st.query_params.get("rule", "")
    if asked in guide.rules():
        home = guide.rules()[asked].table
        st.session_state.setdefault("table", "scenarios" if home in SCENARIOS else home)
    titles = {name: t(title) for name, title in guide.tables().items()}
    table = _chosen(t("Table of the guide"), titles, "table", as_list=True)
    tables = SCENARIOS if table == "scenarios" else (table,)
    _guide_rules.listed([rule for rule in guide.rules().values() if rule.table in tables], opened=asked)


def _sections() -> dict[str, tuple[str, Callable[[], None]]]:
    return {
        "methods": (t("Methods"), _methods),
        "paths": (t("Learning paths"), _paths),
        "practice": (t("Good practice"), _practices),
        "questions": (t("Questions"), _questions),
        "disputed": (t("Disputed"), _disputed),
        "rules": (t("Every rule"), _every_rule),
    }


_ui.heading(t("Guide"), t("The fine-tuning guide behind the advisor. Each rule was held against papers and sources."))
if st.query_params.get("rule") in guide.rules() and st.session_state.get("rule_opened") != st.query_params["rule"]:
    # a link to a rule, perhaps from a page that was left with another one open
    st.session_state["rule_opened"] = st.query_params["rule"]
    st.session_state["section"] = "rules"
    st.session_state.pop("table", None)
wanted = st.text_input(
    t("Search the rules"), placeholder=t("a word, a rule such as C3, 中文"), key="search", bind="query-params"
)
if wanted:
    rules = [rule for rule in guide.rules().values() if _matches(rule, wanted)]
    st.caption(t("{n} of {total} rules", n=len(rules), total=len(guide.rules())))
    if not rules:
        st.info(t("No rule says that. Try fewer or other words."))
    _guide_rules.listed(rules, opened=rules[0].id if len(rules) == 1 else "")
else:
    sections = _sections()
    titles = {name: title for name, (title, _) in sections.items()}
    section = _chosen(t("Contents"), titles, "section")
    st.header(_ui.plain(titles[section]))
    sections[section][1]()
_ui.next_step("advisor", t("Next: ask the advisor about your own data"), is_first=False)
