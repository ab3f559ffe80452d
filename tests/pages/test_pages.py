"""Every page through Streamlit's AppTest: empty, with data, and on one real run."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from engine import events, starter
from engine.advise import guide
from engine.data import Dataset, datasets, readiness
from engine.models import bases
from engine.plan import drafts
from engine.render import preview, skipped
from engine.runs import lifecycle, store
from engine.spec import OBJECTIVES, schema
from engine.workspace import Workspace
from pages import _charts, _train_settings
from tests.apps import PAGES, button, field, has_button, open_page, preference_run, shown, texts
from tests.conftest import SHARED_DATA
from tests.helpers import planned


@pytest.mark.parametrize("name", PAGES)
def test_every_page_opens_empty_and_says_what_to_do_next(name: str) -> None:
    app = open_page(name)
    assert app.title[0].value
    assert "Starter" in "\n".join(str(m.value) for m in app.sidebar.markdown)
    assert "language_switch" in [r.key for r in app.sidebar.radio]
    assert (
        has_button(app, "empty_state")
        or has_button(app, "next_step")
        or "Upload a file" in texts(app)
        or "No data yet" in texts(app)
        or [box.placeholder for box in app.chat_input] == ["Ask something"]  # the starter is there to be asked
    )


@pytest.mark.parametrize("name", PAGES)
def test_every_page_keeps_what_is_worked_on_in_sight(name: str, new_facts: Dataset) -> None:
    app = open_page(name, dataset=new_facts.id)
    sidebar = "\n".join(str(m.value) for m in app.sidebar.markdown)
    assert "New facts" in sidebar and "Starter" in sidebar and "Run" in sidebar


def test_the_sidebar_names_the_base_of_the_run_that_is_open_and_tells_it_from_that_of_the_next(
    workspace: Workspace, real_run: str
) -> None:
    app = open_page("runs", run=real_run)
    assert "For the next run" not in [one.value for one in app.sidebar.caption]
    dataset = store.load_spec(workspace, real_run).dataset.id
    app = open_page("runs", run=real_run, dataset=dataset, base=f"run:{real_run}")
    said = [str(one.value) for one in app.sidebar.markdown]
    assert [one.value for one in app.sidebar.caption][:2] == ["You are working on", "For the next run"]
    assert store.name(workspace, real_run) in said[0]
    assert "Starter" in said[2] and "A real run" in said[4]


NONSENSE = ("../../etc/passwd", "<script>alert(1)</script>", "a" * 300, "run:x", "%00")


@pytest.mark.parametrize("first", [0, 3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 4))])
@pytest.mark.parametrize("name", PAGES)
def test_an_address_that_names_nonsense_is_never_a_path_and_never_a_crash(name: str, first: int) -> None:
    """Another nonsense in each parameter; over the five tries each of them in every one."""
    values = (NONSENSE * 2)[first:]
    open_page(name, **dict(zip(("dataset", "run", "base", "draft"), values, strict=False)))


def test_an_uploaded_file_is_checked_and_every_bad_row_named(workspace: Workspace) -> None:
    rows = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(50)]
    lines = [json.dumps(row) for row in rows]
    lines[16] = '{"prompt": "q16", "completion": null}'
    app = open_page("data")
    app.file_uploader[0].upload("../evil name.jsonl", "\n".join(lines).encode()).run()
    assert not app.exception
    assert "Line 17: completion is null" in texts(app)
    assert not has_button(app, "next_step")
    button(app, "drop_bad_rows").click().run()
    assert not app.exception
    assert has_button(app, "next_step")
    assert len(datasets.list_all(workspace)) == 2  # the original stays beside the fixed one
    assert not (workspace.root.parent / "evil name.jsonl").exists()


def test_columns_with_names_of_their_own_are_mapped_on_the_page(workspace: Workspace) -> None:
    rows = [json.dumps({"id": n, "ask": f"q{n}", "reply": f"a{n}"}) for n in range(20)]
    app = open_page("data")
    app.file_uploader[0].upload("mine.jsonl", "\n".join(rows).encode()).run()
    assert not has_button(app, "next_step")
    for name, column in (("prompt", "ask"), ("completion", "reply")):
        next(s for s in app.selectbox if s.key == f"map_prompt_completion_{name}").set_value(column)
    button(app, "map_submit").click().run()
    assert not app.exception
    assert has_button(app, "next_step")
    assert [d.mapping for d in datasets.list_all(workspace) if d.trainable] == [
        {"ask": "prompt", "reply": "completion"}
    ]


def test_labels_are_converted_on_the_page_after_their_effect_is_shown(workspace: Workspace) -> None:
    rows = [json.dumps({"prompt": f"q{n}", "response": "a", "is_good": ("yes", "no")[n % 2]}) for n in range(20)]
    app = open_page("data")
    app.file_uploader[0].upload("mine.jsonl", "\n".join(rows).encode()).run()
    assert '"yes" becomes true in 10 rows' in texts(app)
    button(app, "convert_labels").click().run()
    assert not app.exception and has_button(app, "next_step")


def test_rows_can_be_paged_and_searched(workspace: Workspace) -> None:
    rows = [json.dumps({"prompt": f"question {n}", "completion": f"answer {n}"}) for n in range(40)]
    app = open_page("data")
    app.file_uploader[0].upload("mine.jsonl", "\n".join(rows).encode()).run()
    next(n for n in app.number_input if str(n.key).startswith("from_")).set_value(31).run()
    assert "question 30" in app.dataframe[0].value.to_string()
    next(n for n in app.number_input if str(n.key).startswith("from_")).set_value(1).run()
    next(s for s in app.text_input if str(s.key).startswith("search_")).set_value("ANSWER 39").run()
    assert "question 39" in app.dataframe[0].value.to_string() and len(app.dataframe[0].value) == 1


def test_text_from_a_file_is_shown_as_text(workspace: Workspace) -> None:
    spot = "<img src=x onerror=alert(1)> **bold** [link](javascript:alert(1))"
    app = open_page("data")
    row = json.dumps({"prompt": "q", "completion": "a", spot: "b"})
    app.file_uploader[0].upload(f"{spot}.jsonl", f"{row}\n{{broken {spot}\n".encode()).run()
    assert not app.exception
    for element in app.markdown:
        assert not element.allow_html
        assert "[link](javascript" not in str(element.value)


@pytest.mark.parametrize("sample", [s.name for s in starter.SAMPLES])
def test_every_sample_is_one_click_away_and_ready(sample: str) -> None:
    app = open_page("data")
    next(r for r in app.radio if r.key == "way").set_value("sample").run()
    button(app, f"sample_{sample}").click().run()
    assert not app.exception
    assert not button(app, "next_step").disabled


def why(dataset: str, part: str, **parameters: str) -> AppTest:
    """The Advisor with a part of its fold opened."""
    named = {"dataset": dataset} if dataset else {}
    return open_page("advisor", state={"why": True, "why_part": part}, **named, **parameters)


def chips(block: Any) -> list[str]:
    """What the popovers below a block are called."""
    below = [one for child in getattr(block, "children", {}).values() for one in chips(child)]
    return [shown(block.proto.popover.label), *below] if getattr(block, "type", "") == "popover" else below


def test_the_advisor_answers_from_the_file_and_opens_train_with_a_draft(
    workspace: Workspace, new_facts: Dataset
) -> None:
    app = open_page("advisor", dataset=new_facts.id)
    assert "Take LoRA of rank 16: on this machine it fits, and takes" in texts(app)
    assert "no rule about GPU memory applies" in texts(why(new_facts.id, "reasons"))
    assert "There are 240 rows, so this applies." in texts(why(new_facts.id, "guide"))
    button(app, "use_this").click().run()
    assert not app.exception
    saved = list((workspace.root / "drafts").glob("*.json"))
    assert len(saved) == 1
    draft = drafts.load(workspace, saved[0].stem)
    assert draft is not None and draft.recipe == "lora" and "C3" in draft.rules and draft.reasons


def test_somebody_on_a_laptop_can_plan_for_another_machine(new_facts: Dataset) -> None:
    app = open_page("advisor", dataset=new_facts.id)
    next(n for n in app.number_input if n.key == "plan_gpu_gb").set_value(8)
    next(n for n in app.number_input if n.key == "plan_billions").set_value(7.0).run()
    assert not app.exception
    said = texts(app)
    assert "QLoRA of rank 16: on a card of 8 GB it fits" in said and "No GPU" not in said and "processor" not in said
    assert chips(app.main)[:2] == ["Card: 8 GB, planned", "Model: 7B, planned"]


def test_questions_alone_start_nothing_and_the_page_says_what_would_help(workspace: Workspace) -> None:
    prompts = datasets.add_sample(workspace, starter.sample("ppo-prompts"))
    app = open_page("advisor", dataset=prompts.id)
    said = texts(app)
    assert "Questions alone train nothing without a reward model or answers." in said
    assert "With a reward model and questions" in texts(why(prompts.id, "others")) and not has_button(app, "use_this")


def test_pairs_lead_from_the_advisor_to_dpo(workspace: Workspace) -> None:
    pairs = datasets.add_sample(workspace, starter.sample("preference-pairs"))
    app = open_page("advisor", dataset=pairs.id)
    assert "DPO" in texts(app)
    button(app, "use_this").click().run()
    (saved,) = (workspace.root / "drafts").glob("*.json")
    draft = drafts.load(workspace, saved.stem)
    assert draft is not None and draft.recipe == "dpo"


def test_train_shows_the_weights_of_kto_and_where_they_come_from(workspace: Workspace) -> None:
    marked = datasets.add_sample(workspace, starter.sample("good-bad"))
    st_app = open_page("train", dataset=marked.id)
    said = texts(st_app)  # KTO is what such rows are for
    assert "1 for each of the 240 answers marked good, 3.478 for each of the 60 marked bad" in said
    assert not button(st_app, "start").disabled


def test_train_lists_every_reason_at_once_and_start_is_disabled(new_facts: Dataset) -> None:
    app = open_page("train", dataset=new_facts.id)
    assert not button(app, "start").disabled
    field(app, "text_input", "train.epochs").set_value("0")
    field(app, "text_input", "train.learning_rate").set_value("fast").run()
    assert button(app, "start").disabled
    said = texts(app)
    for wrong in ("Epochs cannot be 0", "Learning rate cannot be fast"):
        assert said.count(wrong) == 2  # at its field, and above Start
    assert "train.epochs" not in said and "train.learning_rate" not in said


def test_train_shows_what_changed_and_what_follows_from_it(new_facts: Dataset) -> None:
    app = open_page("train", dataset=new_facts.id)
    steps = next(m for m in app.metric if m.label == "Steps").value
    field(app, "text_input", "train.epochs").set_value("1").run()
    assert not app.exception
    assert "Changed: Epochs 1 (default 10)" in texts(app)
    assert next(m for m in app.metric if m.label == "Steps").value != steps
    assert '"epochs": 1.0' in app.code[0].value


def dial(app: AppTest) -> Any:
    return next(one for one in app.radio if str(one.key).startswith("dial~"))


def test_how_much_a_run_may_forget_is_one_control_and_one_line(workspace: Workspace, new_facts: Dataset) -> None:
    app = open_page("train", dataset=new_facts.id)
    assert dial(app).value == "off" and '"tolerance": "off"' in app.code[0].value
    assert "whatever it forgets on its way" in texts(app)
    dial(app).set_value("medium").run()
    assert not app.exception and '"tolerance": "medium"' in app.code[0].value
    assert "loses more than about 3 points and is not coming back" in texts(app)
    dial(app).set_value("own").run()
    nats = next(one for one in app.number_input if str(one.key).startswith("dial_nats~"))
    nats.set_value(0.25).run()
    assert not app.exception and '"tolerance": 0.25' in app.code[0].value
    button(app, "reset").click().run()
    assert dial(app).value == "off" and '"tolerance": "off"' in app.code[0].value
    draft = drafts.Draft(recipe="lora", base="starter", dataset=new_facts.id, overrides={"train.tolerance": 0.7})
    app = open_page("train", draft=drafts.save(workspace, draft))
    assert dial(app).value == "own" and '"tolerance": 0.7' in app.code[0].value


def test_a_judge_has_no_dial(workspace: Workspace) -> None:
    pairs = datasets.add_sample(workspace, starter.sample("preference-pairs"))
    app = open_page("train", {"chosen_recipe": "reward"}, dataset=pairs.id)
    assert not [one for one in app.radio if str(one.key).startswith("dial~")]


def test_the_chart_draws_general_text_from_the_base_on_with_its_limit() -> None:
    steps = [events.Step(step=n, total_steps=20, epoch=1.0, loss=2.0) for n in (1, 10, 20)]
    evals = [events.Eval(step=n, loss=1.5, metrics={"general_loss": 1.0 + n / 100}) for n in (10, 20)]
    watched = events.Watched(step=0, general_loss=1.0, texts=8, limit=0.4)
    loss, general = _charts.first(OBJECTIVES["sft"], steps, evals, watched)
    # the report's general text is another one, with another loss
    assert general.title == "Loss on watched general text" and "The report asks other ones" in general.about
    told, limit = general.chart["series"]
    assert told["data"] == [[0, 1.0], [10, 1.1], [20, 1.2]] and limit["data"] == [[0, 1.4], [20, 1.4]]
    assert limit["name"] == "your limit" and limit["lineStyle"]["type"] == "dashed"
    assert [one.key for one in _charts.first(OBJECTIVES["sft"], steps, evals, None)] == ["loss"] and len(
        loss.lines
    ) == 2


def test_no_panel_has_more_than_two_lines_nor_a_colour_of_its_own() -> None:
    metrics = {
        "rewards/chosen": 0.1,
        "rewards/rejected": -0.1,
        "rewards/accuracies": 0.6,
        "rewards/margins": 0.2,
        "kl": 0.1,
    }
    metrics |= {"reward": 0.1, "reward_less_kl": 0.1, "clip_fraction": 0.1, "ended_share": 1.0, "entropy": 0.5}
    more = {"learning_rate": 1e-4, "grad_norm": 1.0, "tokens_per_s": 10.0, "memory_mib": 2048.0, "metrics": metrics}
    steps = [events.Step(step=n, total_steps=20, epoch=1.0, loss=2.0, **more) for n in (1, 10, 20)]
    evals = [events.Eval(step=n, loss=1.5, metrics=metrics) for n in (10, 20)]
    for objective in OBJECTIVES.values():
        panels = [*_charts.first(objective, steps, evals, None), *_charts.others(steps)]
        assert panels and all(1 <= len(panel.lines) <= 2 for panel in panels)
        assert not any("color" in series for panel in panels for series in panel.chart["series"])
        assert len({panel.title for panel in panels}) == len(panels)
        said = " ".join(f"{panel.title} {panel.hint}" for panel in panels)
        assert "nats" not in said and "KL" not in said  # units stand in the table
        values = _charts.rows(panels, 40)
        assert all(len(column) == len(values["step"]) for column in values.values()) and values["step"][-1] == "20"
    assert _charts.others(steps)[-1].lines[0].points[0] == [1, 2.0]  # GiB
    sft = _charts.rows(_charts.first(OBJECTIVES["sft"], steps, evals, None), 40)
    assert "Loss, trained rows (nats per token)" in sft


def test_settings_of_a_toy_do_not_travel_to_a_real_model(
    workspace: Workspace, new_facts: Dataset, tmp_path: Path
) -> None:
    app = open_page("train", dataset=new_facts.id)
    rate = field(app, "text_input", "train.learning_rate")
    toy = float(rate.value or 0)
    folder = tmp_path / "real-model"
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "max_position_embeddings": 2048}'
    )
    header = json.dumps({"w": {"dtype": "F16", "shape": [7_000_000_000], "data_offsets": [0, 14_000_000_000]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 14_000_000_000)  # a sparse file: no block is written
    (folder / "tokenizer.json").write_text("{}")
    draft = drafts.Draft(recipe="lora", base=str(folder), dataset=new_facts.id, overrides={"train.epochs": 3.0})
    app = open_page("train", draft=drafts.save(workspace, draft))
    assert field(app, "text_input", "train.epochs").value == "3"
    real = float(field(app, "text_input", "train.learning_rate").value or 0)
    assert real == 2e-4 and real < toy


def test_a_double_click_on_start_starts_one_run(
    workspace: Workspace, new_facts: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "_spawn", lambda *_: None)  # the run folder is what counts here; nothing is trained
    app = open_page("train", dataset=new_facts.id)
    button(app, "start").click().run()
    started = app.session_state["started"]
    app.session_state["started"] = {click: (time.monotonic(), run) for click, (_, run) in started.items()}  # just now
    app.switch_page("train.py").run()
    button(app, "start").click().run()
    assert not app.exception
    assert len(list(workspace.runs_dir.glob("2*"))) == 1


def test_the_help_of_a_setting_is_made_literal_once(workspace: Workspace, new_facts: Dataset) -> None:
    app = open_page("train", dataset=new_facts.id)
    helps = [field.help for field in [*app.text_input, *app.number_input] if "Default" in field.help]
    assert helps and not app.exception
    assert not [told for told in helps if r"\\" in told]  # an escape that was escaped is seen


def test_the_guide_shows_every_rule_with_its_verdict_and_finds_one_by_its_words() -> None:
    shown_rules = {label.split(" ")[0] for name in guide.tables() for label in rule_labels(table=name)}
    assert shown_rules == set(guide.rules())
    app = open_page("guide")
    next(x for x in app.text_input if x.key == "search").set_value("5e-4 dpo").run()
    found = [shown(one.label) for one in app.expander]
    assert any(one.startswith("I5 ") and one.endswith("wrong") for one in found)  # the harmful rate, with its verdict
    next(x for x in app.text_input if x.key == "search").set_value("no rule says this").run()
    assert "No rule says that" in texts(app)


@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_step_of_the_learning_paths_is_a_run_that_could_start(workspace: Workspace, all_of_them: bool) -> None:
    opened = [{"section": "methods", "method": f"B{number}"} for number in range(1, 8)]
    opened += [{"section": "paths", "path": name} for name in ("beginners", "advanced", "practice")]
    keys = {
        str(b.key): where
        for where in opened
        for b in open_page("guide", None, **where).button
        if str(b.key).startswith(("step_", "try_"))
    }
    assert len(keys) >= 20
    clicked = list(keys) if all_of_them else ["step_O7_kto", "try_qlora", "try_ppo"]
    for key in clicked:
        app = open_page("guide", None, **keys[key])
        button(app, key).click().run()
        assert not app.exception
    made = [drafts.load(workspace, path.stem) for path in (workspace.root / "drafts").glob("*.json")]
    assert len(made) == len(clicked) - 1  # all but try_ppo, which opens a chain
    assert len({(draft.recipe, draft.dataset) for draft in made if draft}) >= (10 if all_of_them else 2)
    for draft in made:
        assert draft is not None and draft.dataset is not None
        _, problems = planned(
            workspace, draft.recipe, base=draft.base, dataset=draft.dataset, overrides=draft.overrides
        )
        assert problems == []


def test_the_guide_has_methods_paths_practice_questions_and_both_sides_of_what_is_disputed() -> None:
    for name, title, rules in (
        ("methods", "Methods", guide.table("methods")[:1]),
        ("practice", "Good practice", guide.table("practice")),
        ("questions", "Questions", guide.table("faq")),
    ):
        app = open_page("guide", section=name)
        assert [one.value for one in app.header] == [title]  # one section at a time
        assert all(rule.phrase.replace("\n", " ") in texts(app) for rule in rules)
    assert len(open_page("guide").latex) == 1  # the formula of the method that is shown
    parted = [rule for rule in guide.rules().values() if rule.verdict == "outdated"]
    assert {label.split(" ")[0] for label in rule_labels("disputed", verdict="outdated")} == {one.id for one in parted}


def test_the_address_of_a_rule_opens_it_where_it_stands() -> None:
    app = open_page("guide", rule="C4")
    assert [one.value for one in app.header] == ["Every rule"]
    assert [shown(one.label)[:2] for one in app.expander if one.proto.expanded] == ["C4"]
    assert "LLaMA-Factory" in texts(app)  # its source
    assert open_page("guide", rule="<b>").header[0].value == "Methods"


def test_somebody_who_reads_the_guides_words_is_told_them_once() -> None:
    rule = guide.rules()["C3"]
    said = texts(open_page("guide", rule="C3", lang="zh"))
    assert f"“{rule.spoken}”" in said.splitlines() and said.count(rule.spoken) == 2  # the title of the fold, and in it


def test_who_reads_another_language_reads_the_guide_in_it_first_and_its_own_words_last() -> None:
    rule = guide.rules()["C3"]
    said = texts(open_page("guide", rule="C3", lang="en"))
    assert f"In the guide's own words: “{rule.spoken}”" in said
    assert said.count(rule.spoken) == 1 and said.index(rule.says) < said.index(rule.spoken)


def test_the_guide_opens_on_plain_words_and_folds_the_formula() -> None:
    app = open_page("guide")
    first = app.main.markdown[1].value  # after the line of the page itself
    assert first.startswith("Every number in the model may change") and len(app.latex) == 1
    (fold,) = [one for one in app.expander if one.label == "As a formula"]
    assert len(fold.latex) == 1 and not fold.proto.expanded


def test_a_learning_path_ends_with_what_its_runs_have_measured(workspace: Workspace, real_run: str) -> None:
    assert "Nothing yet" in texts(open_page("guide", section="paths", path="advanced"))
    said = texts(open_page("guide", section="paths", path="beginners"))
    assert "You saw" in said and "Nothing yet" not in said and "It learned the task." in said


def rule_labels(section: str = "rules", **where: str) -> list[str]:
    """What the rules of a section are called."""
    return [shown(one.label) for one in open_page("guide", None, section=section, **where).expander]


# --- the advisor: what each way takes, links, other machines --------------------------------------------------------
def test_a_scenario_in_the_address_is_answered_without_any_data() -> None:
    planned_for = {
        "plan_rows": "20000", "plan_gpu_gb": "24", "plan_billions": "8", "plan_data": "unpaired-preference",
        "plan_good": "18000", "plan_bad": "2000",
    }  # fmt: skip
    app = open_page("advisor", None, **planned_for)
    said = texts(app)
    assert "Take KTO with" in said
    assert has_button(app, "empty_state")  # data is still wanted
    assert not any(str(b.key) == "next_step" for b in app.button)
    assert "7.826" in texts(why("", "reasons", **planned_for))
    ways = why("", "takes", **planned_for).table[0].value
    assert {"Way", "Fits", "Memory", "Time", "What one trades"} <= set(ways.columns)
    assert len(ways) >= 4 and all("–" in text for text in [*ways["Memory"], *ways["Time"]])  # ranges
    assert sum(str(way).startswith("✓") for way in ways["Way"]) == 1
    staged = texts(why("", "stages", **planned_for))
    assert "Align" in staged and "this step" in staged
    rules = guide.rules()
    rows = [shown(one) for table in why("", "guide", **planned_for).table for one in table.value["When"]]
    marked = {f"→\u00a0{rules[rule].when}" for rule in ("C2", "C6", "C10")}
    assert marked | {rules["C1"].when} <= set(rows)  # whole tables, the rows that apply marked
    said = texts(why("", "others", **planned_for))
    assert "Prefix tuning" in said and "modules_to_save" in said and "multi-task" in said


def test_nonsense_in_the_address_is_left_aside() -> None:
    nonsense = {"plan_data": "<b>x", "plan_forget": "never", "goal": "world", "plan_rows": "-5", "plan_gpu_gb": "x"}
    assert "No file is chosen yet" in texts(why("", "reasons", **nonsense))


def test_a_card_and_a_size_lead_to_a_named_base_without_any_data(workspace: Workspace) -> None:
    app = open_page("advisor")
    next(n for n in app.number_input if n.key == "plan_gpu_gb").set_value(8)
    next(n for n in app.number_input if n.key == "plan_billions").set_value(7.0).run()
    said = texts(app)
    assert not app.exception and "unsloth/mistral-7b-v0.3" in said and "QLoRA" in said
    # no advice is held back for a number: what is assumed stands in the sentence itself
    assert "1,000 rows of about 200 words would take" in app.header[0].value
    button(app, "use_this").click().run()
    (saved,) = (workspace.root / "drafts").glob("*.json")
    draft = drafts.load(workspace, saved.stem)
    assert draft is not None and (draft.base, draft.recipe) == ("unsloth/mistral-7b-v0.3", "qlora")
    assert draft.overrides["train.batch_size"] * draft.overrides["train.accumulation"] == 16


@pytest.mark.parametrize("part", ["reasons", "others", "takes", "stages", "guide"])
def test_no_rule_has_a_code_on_the_advisor(new_facts: Dataset, part: str) -> None:
    app = why(new_facts.id, part, plan_gpu_gb="8", plan_billions="7", goal="knowledge")
    told = texts(app) + "".join(str(one.value.to_dict()) for one in app.table)
    assert {code for code in re.findall(r"\b[A-OX]\d{1,2}\b", told) if code in guide.rules()} == set()


def test_the_advisors_first_screen_is_three_chips_one_sentence_and_one_button(new_facts: Dataset) -> None:
    app = open_page("advisor", dataset=new_facts.id)
    assert len(chips(app.main)) == 3 and len(app.header) == 1
    first = [one.key for one in app.main.children.values() if one.type == "button"]
    assert first == ["use_this"] and [one.proto.label for one in app.main.children.values() if one.type == "expander"] == [
        "Why?", "Should you tune at all?",
    ]  # fmt: skip


def test_a_rule_stands_once_among_the_reasons(new_facts: Dataset) -> None:
    app = why(new_facts.id, "reasons")
    rules = [one.proto.label for one in app.get("page_link") if "rule=" in one.proto.query_string]
    assert rules and len(rules) == len(set(rules))


def test_a_default_is_told_as_its_field_shows_it() -> None:
    told = _train_settings._default_words
    assert told("adapter_args.continues", None) == "none" and told("train.learning_rate", 0.5) == "0.5"
    assert told("train.optimizer", "adamw_8bit") == "AdamW in 8 bits" and told("train.max_steps", 0) == "0"


def test_what_was_planned_for_another_card_says_so_on_train(new_facts: Dataset) -> None:
    app = open_page("advisor", dataset=new_facts.id, plan_gpu_gb="8", plan_billions="7")
    button(app, "use_this").click().run()
    assert not app.exception and app.title[0].value == "Train"
    said = "From the advisor, planned for a card of 8 GB. The figures here are those of this machine."
    assert said in [shown(one.label) for one in app.expander]


def test_runs_like_the_advised_one_are_counted(workspace: Workspace, real_run: str) -> None:
    run = store.load_spec(workspace, real_run)
    said = texts(open_page("advisor", dataset=run.dataset.id))
    assert re.search(r"[●◐○] [01] of 1 runs like this here learned", said)


def test_a_runner_up_can_be_taken_instead(workspace: Workspace, new_facts: Dataset) -> None:
    app = why(new_facts.id, "others")
    button(app, "use_0").click().run()
    assert not app.exception
    (saved,) = (workspace.root / "drafts").glob("*.json")
    draft = drafts.load(workspace, saved.stem)
    assert draft is not None and draft.recipe != "lora" and "instead of the advice" in draft.reasons[0]


def test_a_base_that_cannot_be_read_does_not_stop_the_advice(new_facts: Dataset) -> None:
    app = open_page("advisor", dataset=new_facts.id, base="owner/not..here")
    said = texts(app)
    assert "The base cannot be read" in said and "Take LoRA" in said


def test_time_that_is_too_short_is_said(new_facts: Dataset) -> None:
    app = open_page("advisor", dataset=new_facts.id, plan_billions="1", plan_rows="5000", plan_minutes="10")
    assert "more than the 10 minutes you have" in texts(app)


# --- train: what will happen -----------------------------------------------------------------------------------------
def test_train_says_how_long_it_takes_and_what_that_stands_on(new_facts: Dataset) -> None:
    said = texts(open_page("train", dataset=new_facts.id))
    assert "Time: It takes" in said.replace("*", "") and "GFLOP/s" in said
    assert "No run of this kind has finished on this machine yet" in said


def test_a_first_try_on_a_thousand_rows_is_one_click(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "many.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"q{n}", "completion": f"a{n}"}) + "\n" for n in range(1500)))
    many = datasets.add(workspace, file, "many.jsonl")
    app = open_page("train", dataset=many.id)
    assert next(m for m in app.metric if m.label == "Rows to train on").value == "1,350"
    button(app, "try_first").click().run()
    (saved,) = (workspace.root / "drafts").glob("*.json")
    app = open_page("train", draft=saved.stem)
    assert next(m for m in app.metric if m.label == "Rows to train on").value == "1,000"
    assert "A first try on 1,000 of 1,500 rows" in texts(app) and '"most_rows": 1000' in app.code[0].value


@pytest.mark.train
def test_a_finished_run_is_shown_with_its_answers_and_can_be_taken_along(workspace: Workspace, real_run: str) -> None:
    app = open_page("runs", run=real_run)
    said = texts(app)
    assert "A real run" in said and "finished" in said
    assert (
        "It learned" in said
        and "**Gained**: " in said
        and "**Lost**: " in said
        and "Set otherwise than the recipe" in said
    )
    written = "".join(str(element.proto) for element in app.get("html"))
    assert "Training" in written and "<mark" in written  # its way, and its answers with what has changed
    assert not button(app, "next_step").disabled
    assert not any("PeftModel" in code.value for code in app.code)
    button(app, "export_it").click().run()
    assert any("PeftModel.from_pretrained" in code.value for code in app.code)
    button(app, "duplicate").click().run()
    assert not app.exception
    draft = drafts.load(workspace, next((workspace.root / "drafts").glob("*.json")).stem)
    assert draft is not None and draft.overrides["train.max_steps"] == 60


@pytest.mark.train
def test_the_forgetting_page_begins_with_what_it_comes_to_and_has_every_figure(real_run: str) -> None:
    app = open_page("forgetting", run=real_run)
    assert str(app.header[0].value).startswith("It learned")
    said = texts(app)
    assert "new task" in said and "oy-world knowledge" in said
    table = next(one.value for one in app.dataframe if "95 % interval" in one.value.columns)
    assert {"Base", "Tuned", "Change"} <= set(table.columns)
    assert "toy-world knowledge" in set(table["Questions"])


def test_real_rows_go_from_upload_to_advice(workspace: Workspace) -> None:
    source = SHARED_DATA / "alpaca_en_200.jsonl"
    if not source.exists():
        pytest.skip("the real data files are not beside this checkout")
    app = open_page("data")
    app.file_uploader[0].upload("alpaca.jsonl", source.read_bytes()).run()
    button(app, "next_step").click().run()
    assert not app.exception
    assert datasets.list_all(workspace)[0].report.rows == 200


def test_a_preference_run_has_a_chart_of_its_rewards(workspace: Workspace) -> None:
    app = open_page("runs", run=preference_run(workspace))
    charts = [str(element.proto) for element in app.get("echarts_chart")]
    assert len(charts) == 3  # the loss, the rewards, the order
    assert "better answers" in charts[1] and "worse answers" in charts[1] and "held-out rows" in charts[2]
    assert "In the right order** (share of pairs; higher is better)" in texts(app) and "nats per token" not in charts[0]


def test_a_preference_run_that_forgot_offers_a_higher_beta(workspace: Workspace) -> None:
    app = open_page("forgetting", run=preference_run(workspace))
    said = texts(app)
    assert "It learned the preference: the better answer is the likelier one in 17 % → 83 %" in said
    assert not has_button(app, "more_replay") and has_button(app, "more_rate")
    button(app, "more_beta").click().run()
    (saved,) = (workspace.root / "drafts").glob("*.json")
    draft = drafts.load(workspace, saved.stem)
    assert draft is not None and draft.recipe == "dpo" and draft.overrides["objective_args.beta"] == 0.2


def kept_way(app: AppTest) -> Any:
    return next(r for r in app.radio if str(r.key).startswith("keep~"))


def test_train_offers_three_ways_to_keep_what_it_knew_and_says_what_each_sets(new_facts: Dataset) -> None:
    app = open_page("train", dataset=new_facts.id)
    assert kept_way(app).value == "replay" and len(kept_way(app).options) == 3
    kept_way(app).set_value("kl").run()
    assert kept_way(app).value == "kl" and field(app, "text_input", "train.replay_share").value == "0"
    assert app.session_state["overrides"] == {"train.replay_share": 0.0, "objective_args.keep": "kl"}
    kept_way(app).set_value("plain").run()
    assert app.session_state["overrides"] == {"train.replay_share": 0.0}
    kept_way(app).set_value("replay").run()
    assert app.session_state["overrides"] == {} and not app.exception
    field(app, "text_input", "train.replay_share").set_value("0").run()
    app.run()
    assert kept_way(app).value == "plain" and app.session_state["overrides"] == {"train.replay_share": 0.0}


def test_a_way_from_elsewhere_is_shown_and_what_is_no_sft_has_none(workspace: Workspace, new_facts: Dataset) -> None:
    changed = {"objective_args.keep": "entropy", "train.replay_share": 0.0}
    app = open_page("train", {"overrides": changed}, dataset=new_facts.id)
    assert kept_way(app).value == "entropy" and len(kept_way(app).options) == 4
    pairs = datasets.add_sample(workspace, starter.sample("preference-pairs"))
    app = open_page("train", {"chosen_recipe": "dpo"}, dataset=pairs.id)
    assert not [r for r in app.radio if str(r.key).startswith("keep~")]


def test_the_preview_shows_what_a_run_left_out(workspace: Workspace, new_facts: Dataset) -> None:
    made, _ = planned(
        workspace, "lora", base="starter", dataset=new_facts.id, overrides={"objective_args.keep": "skip_surprising"}
    )
    assert made is not None
    base = bases.describe("starter", workspace)
    seen = readiness.preview(workspace, new_facts.id, base, made.train.max_length)
    part = seen.rows[0].parts[0]
    trained = [at for at, kind in enumerate(part.kinds) if kind == preview.TRAINED]
    run_dir = workspace.run_dir("20261130-010203-aaaaaa")
    run_dir.mkdir(parents=True)
    (run_dir / "spec.json").write_bytes(schema.encode(made))
    skipped.write(run_dir, skipped.About(2.5, 1000, 310, 2), {part.key: trained[:2]})
    app = open_page("data", dataset=new_facts.id)
    next(r for r in app.radio if str(r.key).startswith("look_")).set_value("mask").run()
    chosen = next(s for s in app.selectbox if str(s.key).startswith("learned_by_"))
    assert "are left out" not in texts(app)
    chosen.set_value(run_dir.name).run()
    assert "31 % of the answer tokens are left out (310 of 1,000)" in texts(app) and not app.exception
    shown = preview.as_learned(seen, skipped.places(run_dir))
    assert [at for at, kind in enumerate(shown.rows[0].parts[0].kinds) if kind == preview.SURPRISING] == trained[:2]
    assert shown.rows[0].parts[0].trained == part.trained - 2
    (run_dir / skipped.NAME).write_text((run_dir / skipped.NAME).read_text().splitlines()[0] + "\nno json\n")
    app.run()
    assert "What this run left out cannot be read." in texts(app) and not app.exception
