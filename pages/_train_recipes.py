"""The Train page's recipes: one button that opens them by what they are for, those that fit first, and why others do not."""

from __future__ import annotations

import streamlit as st

from engine.data import Dataset
from engine.models import Base
from engine.plan import plans
from engine.spec import OBJECTIVES, objectives, recipes
from engine.words import t
from engine.workspace import Workspace
from pages import _problems, _ready, _ui

# What is wrong with the data or with a setting is said above Start, and keeps no recipe from being chosen.
_OF_THE_DATA = ("dataset", "dataset.eval_id")


def chosen(known: dict[str, recipes.Recipe], dataset: Dataset | None) -> str:
    """Return the recipe that is chosen, by a click or a draft; the usual one for the kind of the data where none is, or
    where other data was taken since, which it cannot read."""
    name, chosen_for = st.session_state.get("chosen_recipe"), st.session_state.get("recipe_chosen_for")
    if name in known and (_reads(known[name], dataset) or (dataset is not None and dataset.id == chosen_for)):
        return str(name)
    usual = _ready.usual_recipe(dataset)
    return usual if usual in known else next(iter(known))


def select(
    known: dict[str, recipes.Recipe], name: str, workspace: Workspace, dataset: Dataset | None, base: Base
) -> None:  # fmt: skip
    """Show which recipe is chosen, with its own sentences, and the others behind it."""
    with st.container(gap="xxsmall", key="how_to_train"):
        st.markdown(f":small[{t('How to train')}]")
        # a click inside leaves it open; under another key it begins anew, closed
        opened = st.popover(
            _ui.plain(t(known[name].title)), width="stretch",
            key=f"recipes~{name}~{st.session_state.get('picked_recipe', 0)}",
        )  # fmt: skip
    with opened:
        for goal, group in _groups(known, dataset).items():
            with st.container(gap="xsmall"):
                st.markdown(f"**{_ui.plain(t(goal))}**")
                _group(group, name, workspace, dataset, base)
        st.caption(t("Without training: the Advisor asks the base first, with examples in its context."))
    st.caption(_ui.plain(t(known[name].trade)))


def _groups(known: dict[str, recipes.Recipe], dataset: Dataset | None) -> dict[str, list[recipes.Recipe]]:
    """The recipes by goal; the goal that the data serves comes first, and in it the usual way."""
    usual = _ready.usual_recipe(dataset)
    found: dict[str, list[recipes.Recipe]] = {}
    for goal in dict.fromkeys(one.goal for one in OBJECTIVES.values()):
        found[goal] = sorted(
            (one for one in known.values() if OBJECTIVES[one.objective].goal == goal),
            key=lambda one: (one.name != usual, ("lora", "oft", "full").index(one.adapter), "layers" in one.defaults,
                             one.quantize != "none", one.name),
        )  # fmt: skip
    fits = {goal: any(_reads(one, dataset) for one in group) for goal, group in found.items()}
    return {goal: found[goal] for goal in sorted(found, key=lambda goal: not fits[goal]) if found[goal]}


def _reads(recipe: recipes.Recipe, dataset: Dataset | None) -> bool:
    return dataset is None or dataset.report.type in recipe.data_types


def _group(
    group: list[recipes.Recipe], name: str, workspace: Workspace, dataset: Dataset | None, base: Base
) -> None:  # fmt: skip
    """The recipes of a goal that can be chosen, and one line for each reason why others cannot."""
    cannot: dict[str, list[str]] = {}
    for one in group:
        if reason := _reason(one, workspace, dataset, base):
            cannot.setdefault(reason, []).append(t(one.title))
            continue
        left, right = st.columns([2, 5], vertical_alignment="center", gap="small")
        kind = "primary" if one.name == name else "secondary"
        if left.button(_ui.plain(t(one.title)), key=f"recipe_{one.name}", type=kind, width="stretch"):
            st.session_state["chosen_recipe"] = one.name
            st.session_state["picked_recipe"] = st.session_state.get("picked_recipe", 0) + 1
            st.rerun()
        right.caption(_ui.plain(t(one.when)))
    for reason, titles in cannot.items():
        st.caption(":material/block: " + _ui.say("{names}: {reason}", names=", ".join(titles), reason=reason))


def _reason(recipe: recipes.Recipe, workspace: Workspace, dataset: Dataset | None, base: Base) -> str:
    """Why a recipe cannot run here, and what to do about it; empty where it can."""
    if not _reads(recipe, dataset):
        wanted = objectives.rows_words(recipe.data_types[0])
        return t("learns from {wanted}; take a sample of them on Data, or bring your own", wanted=wanted)
    plan = plans.make(workspace, recipe.name, base=base, dataset=dataset, overrides={})
    own = [one for one in plan.problems if one.where not in _OF_THE_DATA and one not in base.problems]
    return _problems.in_titles(own[0]) if own else ""
