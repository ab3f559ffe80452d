"""The Train page: at most six controls before a fold is opened, the answer first, Start below, and what is wrong at its
field and above Start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Block, Node, Widget

from engine import starter
from engine.data import Dataset, datasets
from engine.plan import drafts, plans
from engine.spec import recipes
from engine.words import Problem
from engine.workspace import Workspace
from pages import _problems
from tests import apps
from tests.apps import button, field, has_button, open_page, shown, texts

FOLDS = ("expandable", "expander", "popover")
MOST = 6


def seen(node: Node) -> list[str]:
    """The controls of a part of the page that are there before a fold is opened; what opens one is a control too where it
    is a button."""
    found: list[str] = []
    for one in node.children.values() if isinstance(node, Block) else ():
        if one.type in FOLDS:
            found += ["popover"] if one.type == "popover" else []
        elif isinstance(one, Widget):
            found.append(f"{one.type} {one.key}")
        else:
            found += seen(one)
    return found


def controls(app: AppTest) -> list[str]:
    return seen(app.main)


def find(app: AppTest, text: str) -> None:
    """Search for a setting. The field is looked up each time: a page that was shown anew has another one."""
    next(one for one in app.text_input if one.key == "find_setting").set_value(text).run()


def test_what_is_folded_is_made_when_it_is_opened_and_what_was_chosen_there_stays(new_facts: Dataset) -> None:
    app = open_page("train", dict.fromkeys(apps.FOLDS, False), dataset=new_facts.id)
    assert not app.text_input and not app.metric and not app.table and not app.code
    app.session_state["settings_fold"] = app.session_state["more_fold"] = True
    app.run()
    field(app, "number_input", "train.max_steps").set_value(7)
    app.text_input(key="run_name").set_value("small").run()
    app.session_state["settings_fold"] = app.session_state["more_fold"] = False
    app.run()
    assert not app.text_input and "Changed: Most steps 7" in texts(app)
    app.session_state["settings_fold"] = app.session_state["more_fold"] = True
    app.run()
    assert field(app, "number_input", "train.max_steps").value == 7 and app.text_input(key="run_name").value == "small"


@pytest.fixture(scope="module")
def samples() -> dict[str, str]:
    """Which sample each recipe is tried with."""
    return {name: one.sample for name, one in recipes.recipes().items()}


@pytest.mark.parametrize("name", recipes.recipes())
def test_at_most_six_controls_stand_before_any_fold(workspace: Workspace, samples: dict[str, str], name: str) -> None:
    data = datasets.add_sample(workspace, starter.sample(samples[name]))
    app = open_page("train", {"chosen_recipe": name}, dataset=data.id)
    found = controls(app)
    assert 3 <= len(found) <= MOST, found
    assert found.count("popover") == 1  # the recipes
    assert not [one for one in found if "start" in one]


def test_start_and_what_keeps_it_stand_below_the_page_with_one_line_each(new_facts: Dataset) -> None:
    app = open_page("train", dataset=new_facts.id)
    below = app._tree.children[3]  # main, sidebar, event, bottom
    assert seen(below) == ["button start"]
    field(app, "text_input", "train.epochs").set_value("0").run()
    below = app._tree.children[3]
    markdown: list[Any] = list(below.get("markdown"))
    (said,) = [one.value for one in markdown]
    assert shown(said).startswith(":red[**:material/error:**] Epochs cannot be 0") and button(app, "start").disabled


def test_the_answer_is_one_sentence_above_all_controls_with_the_figures_of_the_plan(
    workspace: Workspace, new_facts: Dataset
) -> None:
    app = open_page("train", dataset=new_facts.id)
    plan = plans.make(workspace, "lora", base="starter", dataset=new_facts, overrides={})
    said = shown(next(one.value for one in app.main.markdown))
    assert said.startswith(f"LoRA teaches Starter (toy model, built in) **{plan.rows:,} rows** of New facts")
    assert f"**{plan.steps:,} steps**" in said and "Memory: **fits**" in said
    assert "It takes" in said and "with start and scoring (a guess: no run of this kind" in said
    assert shown(open_page("train").main.markdown[0].value).startswith("Choose data")


def test_one_row_and_one_step_are_said_as_one(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "q", "completion": "a"}\n')
    app = open_page("train", {"overrides": {"train.max_steps": 1}}, dataset=datasets.add(workspace, file, "one").id)
    assert "**1 row** of one in **1 step**." in texts(app) and "one · 1 row" in app.selectbox[1].options


def test_a_setting_outside_its_range_is_said_above_start_and_put_right_by_a_click(new_facts: Dataset) -> None:
    app = open_page("train", dataset=new_facts.id)
    assert not has_button(app, "put_right_train.learning_rate")
    field(app, "text_input", "train.learning_rate").set_value("0.5").run()
    warned = "A learning rate of 0.5 is above what is known to work here, 0.000375 to 0.006, and can break the model"
    assert warned in texts(app) and not button(app, "start").disabled  # it may be meant
    button(app, "put_right_train.learning_rate").click().run()
    assert not app.exception and warned not in texts(app) and app.session_state["overrides"] == {}
    assert field(app, "text_input", "train.learning_rate").value == "0.003"


def test_dpo_at_the_guides_rate_is_warned_of_on_a_real_base(workspace: Workspace) -> None:
    pairs = datasets.add_sample(workspace, starter.sample("preference-pairs"))
    told = {"train.learning_rate": 5e-4}
    draft = drafts.Draft(recipe="dpo", base="HuggingFaceTB/SmolLM2-135M-Instruct", dataset=pairs.id, overrides=told)
    app = open_page("train", draft=drafts.save(workspace, draft))
    assert "A learning rate of 0.0005 is above what is known to work here, 1e-06 to 5e-05" in texts(app)
    assert shown(button(app, "put_right_train.learning_rate").label) == "Set Learning rate to 5e-06"


def test_the_settings_are_in_four_groups_and_found_by_title_help_and_path(new_facts: Dataset) -> None:
    app = open_page("train", dataset=new_facts.id)

    def paths() -> list[str]:
        every = [*app.text_input, *app.number_input, *app.selectbox, *app.checkbox]
        return sorted(str(one.key).partition("~")[0] for one in every if str(one.key).startswith("set_"))

    named = [shown(one.value) for one in app.main.markdown]
    for group in ("Learning", "Rows and length", "Adapter and memory", "Scoring and machine"):
        assert named.count(f"**{group}**") == 1
    assert "Most steps (0: as the epochs ask)" in [shown(one.label) for one in app.number_input]
    for asked in ("Rank", "width of the two lora", "adapter_args.rank"):
        find(app, asked)
        assert "set_adapter_args.rank" in paths() and "set_train.epochs" not in paths()
    find(app, "no such thing")
    assert paths() == [] and "No setting of this recipe" in texts(app)


def test_what_was_changed_stays_changed_while_a_search_hides_it(new_facts: Dataset) -> None:
    app = open_page("train", dataset=new_facts.id)
    field(app, "text_input", "train.epochs").set_value("3").run()
    find(app, "rank")
    find(app, "")
    assert app.session_state["overrides"] == {"train.epochs": 3.0}
    assert field(app, "text_input", "train.epochs").value == "3"


@pytest.mark.parametrize(
    ("sample", "usual", "cannot"),
    [
        ("new-facts", "lora", {"dpo", "kto", "reward", "ppo"}),
        ("preference-pairs", "dpo", {"lora", "full", "kto", "ppo"}),
        ("good-bad", "kto", {"lora", "dpo", "reward", "ppo"}),
    ],
)
def test_the_data_chooses_the_recipe_and_what_cannot_learn_from_it_has_a_reason_and_no_button(
    workspace: Workspace, sample: str, usual: str, cannot: set[str]
) -> None:
    data = datasets.add_sample(workspace, starter.sample(sample))
    app = open_page("train", dataset=data.id)
    offered = [str(one.key) for one in app.button if str(one.key).startswith("recipe_")]
    assert offered[0] == f"recipe_{usual}" and not {f"recipe_{name}" for name in cannot} & set(offered)
    assert not button(app, "start").disabled
    said = texts(app)
    for name in cannot:
        title = recipes.recipes()[name].title
        assert any(title in line and ":material/block:" in line for line in said.splitlines()), name


def test_other_data_takes_its_own_recipe_and_a_draft_keeps_the_one_it_names(
    workspace: Workspace, new_facts: Dataset
) -> None:
    pairs = datasets.add_sample(workspace, starter.sample("preference-pairs"))
    app = open_page("train", dataset=new_facts.id)
    button(app, "recipe_oft").click().run()
    next(one for one in app.selectbox if one.label == "Rows to learn from").set_value(pairs.id).run()
    assert not app.exception and '"name": "dpo"' in app.code[0].value and not button(app, "start").disabled
    draft = drafts.Draft(recipe="lora", dataset=pairs.id)
    app = open_page("train", draft=drafts.save(workspace, draft))
    assert '"name": "lora"' in app.code[0].value and button(app, "start").disabled
    assert "This recipe learns from questions with answers, or plain texts or conversations" in texts(app)


def test_a_recipe_without_its_judge_says_how_to_get_one(workspace: Workspace) -> None:
    data = datasets.add_sample(workspace, starter.sample("ppo-prompts"))
    said = texts(open_page("train", dataset=data.id))
    assert any("PPO: PPO needs a reward model" in one and "train the recipe" in one for one in said.splitlines())


def test_another_recipe_is_one_click_in_the_list_and_its_own_sentence_is_shown(new_facts: Dataset) -> None:
    app = open_page("train", dataset=new_facts.id)
    button(app, "recipe_oft").click().run()
    assert not app.exception and '"name": "oft"' in app.code[0].value
    assert recipes.recipes()["oft"].trade in texts(app)
    assert not [one for one in app.number_input if shown(one.label) == "Rank"]


@pytest.mark.parametrize("key", ["when", "trade", "title"])
def test_no_two_recipes_share_a_sentence(key: str) -> None:
    told = [getattr(one, key) for one in recipes.recipes().values()]
    assert len(told) == len(set(told))


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (Problem(rule="replay-sft-only", where="train.replay_share"), "General rows can only be mixed"),
        (Problem(rule="tolerance-objective", where="train.tolerance", parameters={"objective": "PPO"}), "“May forget”"),
        (Problem(rule="devices-kind", where="machine.devices", parameters={"setting": "adapter", "value": "oft",
                                                                          "sound": "lora"}), "“Devices”"),
    ],
)  # fmt: skip
def test_a_problem_names_settings_as_their_fields_do(problem: Problem, said: str) -> None:
    told: Any = _problems.in_titles(problem)
    assert said in told and "train." not in told and "machine." not in told
