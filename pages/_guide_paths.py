"""The Guide page's learning paths: runs on the starter in an order that shows something, and what these runs measured."""

from __future__ import annotations

from typing import NamedTuple

import streamlit as st

from engine import starter
from engine.advise import guide
from engine.data import Dataset, datasets
from engine.forgetting import summary
from engine.models.made import made_by
from engine.runs import Run, scored, store
from engine.spec import RunSpec
from engine.words import t
from engine.workspace import Workspace
from pages import _guide_rules, _ui

# The newest so many are looked through for the steps of a path.
MOST_RUNS = 50


class Step(NamedTuple):
    """One step of a learning path: the rule that names it, and the run on the starter that shows it."""

    rule: str
    recipe: str
    sample: str
    settings: dict[str, object]
    look_at: str


def paths() -> dict[str, tuple[str, tuple[Step, ...]]]:
    """Return the learning paths by name, each with its title and steps, in the visitor's language."""
    return {
        "beginners": (t("For beginners"), (
            Step("O1", "full", "new-facts", {},
                 t("Watch the loss fall, then see what 48 invented facts cost of the old ones.")),
            Step("O2", "lora", "new-facts", {}, t("The same rows with a small adapter: the same facts, less forgotten.")),
            Step("O3", "freeze-bottom", "new-facts", {},
                 t("Only the upper half of the layers moves. Compare with the first.")),
            Step("O4", "full", "new-facts", {"train.replay_share": 0.0},
                 t("Without general rows mixed in, forgetting is at its plainest: read the Forgetting page.")),
        )),
        "advanced": (t("Advanced"), (
            Step("O5", "oft", "new-facts", {}, t("Put it beside the LoRA run on the Forgetting page.")),
            Step("O6", "reward", "preference-pairs", {}, t("PPO's first half: a judge of answers, trained on pairs.")),
            Step("O7", "dpo", "preference-pairs", {}, t("Pairs feed DPO: the better answer gains on the worse.")),
            Step("O7", "kto", "good-bad", {}, t("Single labels feed KTO, however many there are of each.")),
            Step("O8", "dpo", "preference-pairs", {}, t("Two stages: this one starts from your newest run with answers.")),
        )),
        "practice": (t("In practice"), (
            Step("O9", "lora", "new-facts", {"dataset.most_rows": 100},
                 t("Try a few rows first; on Train a button does this for your own data.")),
            Step("O10", "lora", "new-facts", {"train.epochs": 30.0, "train.early_stopping": 0},
                 t("Too many epochs: watch the held-out loss turn while the training loss falls.")),
        )),
    }  # fmt: skip


def show(name: str) -> None:
    """One path: its steps, each a run, and what those that were made here have shown."""
    workspace, rules = _ui.workspace(), guide.rules()
    steps = paths()[name][1]
    runs = store.list_all(workspace)[:MOST_RUNS]
    seen = _seen(workspace, steps, runs)
    for number, step in enumerate(steps, 1):
        rule = rules[step.rule]
        place = st.container(border=True, horizontal=True, vertical_alignment="center")
        place.markdown(
            f"**{number:d}. {_ui.plain(_guide_rules.said(rule))}**  \n{_ui.plain(step.look_at)}", width="stretch"
        )
        base = _newest_answers(workspace, runs) if step.rule == "O8" else "starter"
        with place:
            _guide_rules.try_it(step.recipe, step.sample, step.settings, f"step_{step.rule}_{step.recipe}", base)
    st.header(t("You saw"))
    if not seen:
        st.caption(t("Nothing yet: what each step measured will stand here."))
    for number, run in sorted(seen.items()):
        _you_saw(workspace, number, run)
    left = len(steps) - len(seen)
    if seen and left:
        st.caption(_ui.say("{n} of {total} steps are left.", n=left, total=len(steps)))
    if name == "practice":
        st.header(t("And then"))
        for after in ("O11", "O12"):
            _guide_rules.card(rules[after])


def _you_saw(workspace: Workspace, number: int, run: Run) -> None:
    """What a run of a step came to, by its own report, and the way to that."""
    try:
        said = summary.of(scored.of(workspace, run.id), ways=())
    except (OSError, ValueError):
        return  # its own page says why it cannot be read
    st.markdown(
        _ui.say("**{number}.** {headline} {gained} {lost}", number=number, headline=said.headline, gained=said.gained,
                lost=said.lost)
    )  # fmt: skip
    st.page_link(
        _ui.PAGES / "forgetting.py", label=t("Its report"), icon=":material/arrow_forward:",
        query_params={**_ui.link_parameters(), "run": run.id},
    )  # fmt: skip


def _seen(workspace: Workspace, steps: tuple[Step, ...], runs: list[Run]) -> dict[int, Run]:
    """Return the newest finished run of each step that there is one of, by its number."""
    titles = {one.name: one.title for one in starter.SAMPLES}
    found: dict[int, Run] = {}
    for run in runs:
        if run.status != "finished":
            continue
        try:
            made, data = store.load_spec(workspace, run.id), datasets.load(workspace, run.dataset)
        except (OSError, ValueError):
            continue
        fitting = [number for number, step in enumerate(steps, 1) if _is_of(step, made, data, titles)]
        if fitting:
            found.setdefault(max(fitting, key=lambda number: len(steps[number - 1].settings)), run)
    return found


def _is_of(step: Step, made: RunSpec, data: Dataset, titles: dict[str, str]) -> bool:
    if made.kind != "train" or made.recipe is None or made.recipe.name != step.recipe:
        return False
    if data.name != titles[step.sample] or (step.rule == "O8") != made.base.ref.startswith("run:"):
        return False
    return all(_value(made, path) == value for path, value in step.settings.items())


def _value(made: RunSpec, path: str) -> object:
    part, _, name = path.partition(".")
    return getattr(getattr(made, part), name, None)


def _newest_answers(workspace: Workspace, runs: list[Run]) -> str:
    """Return the newest finished run with answers as a base, else the starter."""
    for run in runs:
        told = store.load_spec(workspace, run.id)
        made = made_by(workspace.run_dir(run.id)) is not None
        if run.status == "finished" and made and told.objective == "sft" and told.adopted is None:
            return f"run:{run.id}"
    return "starter"
