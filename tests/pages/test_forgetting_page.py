"""The Forgetting page: one run, runs against each other, sweeps; remedies; and reports that are safe to open."""

from __future__ import annotations

import csv
import functools
import io
import json
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from engine import events, limits, starter
from engine.benchmarks import library
from engine.data import datasets
from engine.forgetting import claims, evaluations, remedies, sweep_drive
from engine.models import bases
from engine.plan import drafts
from engine.report import Item, blind, files, frontier, headline, paired
from engine.report import items as report_items
from engine.runs import lifecycle, scored, store
from engine.spec import RunSpec, schema
from engine.words import Problem, set_language
from engine.workspace import Workspace
from pages import _chart_marks, _forgetting_frontier, _forgetting_lines, _forgetting_parallel, _forgetting_report
from tests import apps
from tests.apps import button, has_button, open_page, preference_run, shown, table, texts
from tests.helpers import finished_run
from tests.pages.test_language import made_run


def select(app, key: str):
    return next(w for kind in ("selectbox", "button_group", "multiselect") for w in app.get(kind) if w.key == key)


def test_a_run_that_goes_on_is_shown_until_its_scores_are_there(workspace: Workspace):
    older = preference_run(workspace)
    run_id = made_run(workspace, datasets.add_sample(workspace, starter.sample("new-facts")).id, 1)
    app = open_page("forgetting", run=run_id)
    assert shown(app.get("progress")[0].proto.text).startswith("Training: step 5 of 10")
    assert app.selectbox(key="scored_run").value == older and app.query_params["run"] in (run_id, [run_id])

    for model in ("base", "tuned"):
        items = [Item(item=str(i), family="sums", prompt_sha="p", gold=0, correct=True) for i in range(30)]
        (workspace.run_dir(run_id) / "items").mkdir(exist_ok=True)
        report_items.write_items(workspace.run_dir(run_id) / "items" / f"{model}-toy-world.jsonl", items)
    log = events.EventLog(workspace.run_dir(run_id))
    log.append(events.Finished(step=10))
    log.close()
    app.run()
    assert not app.exception and not app.get("progress")
    assert app.selectbox(key="scored_run").value == run_id


@given(st.lists(st.tuples(st.floats(0, 280), st.floats(0, 330), st.sampled_from(["A", "C1", "1500"])), max_size=15))
def test_marks_of_points_never_lie_upon_each_other_or_on_a_point_and_none_is_left_out(drawn):
    places, texts = [(x, y) for x, y, _ in drawn], [text for *_, text in drawn]
    boxes = _chart_marks.beside(places, texts)
    assert len(boxes) == len(places)
    for number, box in enumerate(boxes):
        assert not any(box.meets(other) for other in boxes[:number])
        assert box.left >= 0 and box.right <= 280 and box.bottom >= 0 and box.top <= 330
        assert not any(box.left < x < box.right and box.bottom < y < box.top for x, y in places)


def test_letters_stand_for_runs_and_seeds_of_one_share_letter_colour_and_dash():
    assert [_forgetting_frontier.letter(n) for n in (0, 25, 26, 51, 52)] == ["A", "Z", "AA", "AZ", "BA"]
    marks = _forgetting_lines.marked([["a"], ["b", "c"], *([str(n)] for n in range(12))])
    assert [marks[one].text for one in ("a", "b", "c", "11")] == ["A", "B1", "B2", "N"]
    assert marks["b"][1:] == marks["c"][1:] and len({mark[2:] for mark in marks.values()}) == 14
    every = [marks[one] for one in "abc"]
    assert _forgetting_lines.short(every, every) == "A, B" and _forgetting_lines.short(every[:2], every) == "A, B1"


def sft(**changes) -> RunSpec:
    plain = RunSpec(
        recipe=schema.RecipeRef("lora", "0" * 64), base=schema.BaseRef("starter"), dataset=schema.DatasetRef("d" * 64)
    )
    return msgspec.structs.replace(plain, **changes)


def test_remedies_change_one_thing_and_name_their_source():
    found = {one.name: one for one in remedies.of(sft())}
    assert set(found) == {"replay", "kl", "rank", "rate", "oft", "freeze"}
    assert found["replay"].changes == {"train.replay_share": 0.1}
    assert found["rank"].changes == {"adapter_args.rank": 8, "adapter_args.alpha": 16}
    assert found["rate"].changes["train.learning_rate"] == pytest.approx(0.25 * schema.Train().learning_rate)
    assert (found["oft"].recipe, found["freeze"].recipe) == ("oft", "freeze-bottom")
    assert all(one.effect and one.source for one in found.values())


def test_a_remedy_that_is_taken_already_is_not_offered():
    assert "oft" not in [r.name for r in remedies.of(sft(adapter="oft"))]
    assert "freeze" not in [r.name for r in remedies.of(sft(adapter="full", layers="bottom_frozen:0.5"))]
    assert "replay" not in [r.name for r in remedies.of(sft(train=schema.Train(replay_share=0.5)))]
    assert [r.name for r in remedies.of(sft(objective="dpo"))] == ["beta", "rank", "rate"]
    assert {r.recipe for r in remedies.of(sft(quantize="4bit")) if r.name == "oft"} == {"qoft"}


def test_a_click_makes_the_same_run_with_a_lower_rate(workspace: Workspace) -> None:
    run_id = preference_run(workspace)
    app = open_page("forgetting", run=run_id)
    button(app, "more_rate").click().run()
    (saved,) = (workspace.root / "drafts").glob("*.json")
    draft = drafts.load(workspace, saved.stem)
    rate = store.load_spec(workspace, run_id).train.learning_rate
    assert draft is not None and draft.overrides["train.learning_rate"] == pytest.approx(rate / 4)
    assert "arXiv 2605.26097" in draft.reasons[0]


def test_flipped_questions_are_read_side_by_side(workspace: Workspace) -> None:
    app = open_page("forgetting", run=preference_run(workspace))
    next(s for s in app.selectbox if s.key == "questions").set_value("toy-world").run()
    tables = [d.value for d in app.dataframe if "Flipped" in d.value.columns]
    assert tables[0]["Flipped"].tolist().count("lost") == 40 and not app.exception


def test_no_two_charts_tables_or_fields_of_a_view_have_one_name_and_a_chart_says_its_figures(
    workspace: Workspace,
) -> None:
    run_id = preference_run(workspace)
    for model in ("base", "tuned"):
        path = workspace.run_dir(run_id) / "items" / f"{model}-toy-world.jsonl"
        likely = [msgspec.structs.replace(one, loglikelihoods=[-1.0, -2.0]) for one in report_items.read_items(path)]
        report_items.write_items(path, likely)
    shutil.copytree(workspace.run_dir(run_id), workspace.run_dir("20260101-000000-abcde0"))
    for view in ("run", "compare"):
        app = open_page("forgetting", run=run_id, view=view)
        pictures = [one.proto.alt for kind in ("plotly_chart", "dataframe") for one in app.get(kind)]
        fields = [getattr(one, "label", "") for kind in FIELDS for one in app.get(kind)]
        assert pictures and all(pictures)
        assert not [name for names in (pictures, fields) for name, often in Counter(names).items() if often > 1]
        if view == "run":
            assert {"Base: how likely each choice is", "Tuned: how likely each choice is"} <= set(pictures)
            gained, lost = pictures[:2]
            assert "Base: 16.7 %; Tuned: 83.3 %, learned" in gained and "toy-world knowledge: real drop, -66.7" in lost


FIELDS = ("selectbox", "multiselect", "radio", "slider", "toggle", "number_input", "text_input", "text_area")


def test_the_set_that_lost_most_is_read_first_and_lost_and_won_stand_apart_in_the_report(workspace: Workspace) -> None:
    run_id = preference_run(workspace)
    app = open_page("forgetting", run=run_id)
    (asked,) = [s for s in app.selectbox if s.key == "questions"]
    assert [shown(one) for one in asked.options] == [
        "toy-world knowledge: lost 40, won 0 of 60",
        "better answer likelier than the worse one: lost 0, won 40 of 60",
    ]
    flipped = [d.value["Lost and won"].tolist() for d in app.dataframe if "Verdict" in d.value.columns]
    assert "lost 40, won 0" in flipped[0]
    one = scored.of(workspace, run_id)
    page = _forgetting_report.as_html(one, one.judged(), {}).decode()
    lost, won = page.index("Lost: right before"), page.index("Won: wrong before")
    assert page[lost:won].count("<tr>") == page[won:].count("<tr>") == 1 + 40


def test_a_base_that_was_asked_by_itself_has_its_scores_on_the_page(workspace: Workspace) -> None:
    source = workspace.run_dir(preference_run(workspace))
    spec = RunSpec(
        kind="evaluate", recipe=evaluations.RECIPE, base=schema.BaseRef("starter"), dataset=schema.DatasetRef(""),
        evaluate=schema.Evaluate(benchmarks=["toy-world"]),
    )  # fmt: skip
    alone = finished_run(workspace, 7, spec)
    (alone / "items").mkdir()
    shutil.copy(source / "items" / "base-toy-world.jsonl", alone / "items")
    app = open_page("forgetting", run=alone.name)
    (shown,) = [one.value for one in app.dataframe if "How many" in one.value.columns]
    assert shown["Base"].tolist() == ["100.0 % [94.0, 100.0]"] and "asked by itself" in texts(app)
    assert not app.exception and "has no scores yet" not in texts(app)
    (alone / "items" / "base-toy-world.jsonl").write_bytes(b"{")
    broken = open_page("forgetting", run=alone.name)
    assert not broken.exception and "cannot be compared" in broken.error[0].value


def test_runs_stand_against_each_other_and_one_is_picked(workspace: Workspace) -> None:
    run_id = preference_run(workspace)
    other = workspace.run_dir("20260102-000000-abcdef")
    source = workspace.run_dir(run_id)
    (other / "items").mkdir(parents=True)
    for path in [*source.glob("items/*"), source / "spec.json", source / "events.jsonl"]:
        (other / path.relative_to(source)).write_bytes(path.read_bytes())
    # this one lost nothing
    (other / "items" / "tuned-toy-world.jsonl").write_bytes((source / "items" / "base-toy-world.jsonl").read_bytes())
    app = open_page("forgetting", run=run_id, view="compare")
    assert table(app)["Mark"].tolist() == ["● A"]  # they differ in nothing, so they are two seeds of one
    next(one for one in app.toggle if one.key == "by_seed").set_value(False).run()
    assert not app.exception
    told = table(app).set_index("Mark")["Run"]
    assert [str(name)[0] for name in told.index] == ["●", "■"] and "abcdef" in told.iloc[0] + told.iloc[1]
    app.slider[0].set_value(20.0).run()
    assert any("Pick" in str(s.value) and "abcdef" in str(s.value) and "(A" in shown(s.value) for s in app.success)
    assert button(app, "look_at_picked").proto.type == "primary"
    # what the pictures show stands in a table too; what one seed cannot tell, and who is picked, is said once
    (losses,) = [one.value.map(shown) for one in app.table if "Loss on trained rows" in one.value.columns]
    assert losses.to_numpy().tolist() == [[n, "0.600 → 0.600, lowest 0.600"] for n in ("A1", "A2")]
    said = texts(app) + "".join(shown(one.label) for one in app.main.button)
    assert said.count("one seed") + said.count("One seed") == 1 and said.count(told.iloc[0]) == 1


def second_run(workspace: Workspace, run_id: str, name: str = "20260102-000000-abcdef") -> str:
    shutil.copytree(workspace.run_dir(run_id), workspace.run_dir(name))
    return name


def test_runs_that_were_not_scored_stand_against_each_other_by_their_losses_and_settings(workspace: Workspace) -> None:
    run_id = preference_run(workspace)
    other = second_run(workspace, run_id)
    shutil.rmtree(workspace.run_dir(other) / "items")
    log = events.EventLog(workspace.run_dir(other))
    log.append(events.Eval(step=6, loss=0.4))
    log.close()
    app = open_page("forgetting", view="compare", runs=f"{run_id},{other}")
    assert not app.exception and not app.slider  # no trade of one
    assert f"- A2: {store.name(workspace, other)}" in texts(app)
    assert f"Not scored, so only their losses and settings stand below: {store.name(workspace, other)}" in texts(app)
    losses = next(
        one.value.map(shown).rename(columns=shown) for one in app.table if "Loss on trained rows" in one.value
    )
    assert losses["Loss on held-out rows"].tolist() == ["–", "0.600 → 0.400, lowest 0.400"]
    shutil.rmtree(workspace.run_dir(run_id) / "items")
    app = open_page("forgetting", view="compare", runs=f"{run_id},{other}")
    assert not app.exception and any("Loss on trained rows" in one.value.columns for one in app.table)


def test_settings_that_differ_are_said_in_the_words_of_train_and_of_many_runs_by_their_value(
    workspace: Workspace,
) -> None:
    run_id = preference_run(workspace)
    ways: list[dict[str, Any]] = [{"keep": "kl"}, {"keep": "skip_surprising"}, {"keep": "kl"}]
    for number, way in enumerate(ways):
        path = workspace.run_dir(second_run(workspace, run_id, f"20260102-{number:06d}-abcdef")) / "spec.json"
        spec = schema.decode(path.read_bytes())
        told = msgspec.structs.replace(spec.objective_args, **way)
        train = msgspec.structs.replace(spec.train, tolerance="high", padding_free=True, replay_share=0.1)
        path.write_bytes(schema.encode(msgspec.structs.replace(spec, objective_args=told, train=train)))
    app = open_page("forgetting", run=run_id, view="compare")
    (found,) = [one.value.map(shown).rename(columns=shown) for one in app.table if "Setting" in one.value.columns]
    assert dict(found.to_numpy().tolist()) == {
        "Replay": "0.1 (A, B); 0 (C)",
        "May forget": "much (A, B); off (C)",
        "Padding-free": "on (A, B); as the machine needs it (C)",
        "Keep what it knew": "hold it to the base (A); leave out what surprises the base (B); not at all (C)",
    }
    drawn = [json.loads(chart.proto.spec) for chart in app.get("plotly_chart")]
    frontier_of, *lines_of = drawn  # a run has one colour in all pictures
    colours = {note["text"]: note["bordercolor"] for note in frontier_of["layout"]["annotations"]}
    assert set(colours) == {"A", "B", "C"} and len(set(colours.values())) == 3 and lines_of
    for one in (line for chart in lines_of for line in chart["data"]):
        assert one["line"]["color"] == colours[one["name"][0]]
    app.multiselect(key="compared_runs").set_value([run_id, "20260102-000000-abcdef"]).run()
    (found,) = [one.value.map(shown).rename(columns=shown) for one in app.table if "Setting" in one.value.columns]
    assert (
        found.columns.tolist() == ["Setting", "A", "B"] and ["May forget", "off", "much"] in found.to_numpy().tolist()
    )
    assert not app.exception


def test_with_one_run_the_comparison_is_only_the_click_that_makes_another(workspace: Workspace) -> None:
    app = open_page("forgetting", run=preference_run(workspace), view="compare")
    assert not app.multiselect and not app.slider and not app.get("plotly_chart") and not app.table
    assert [one.key for one in app.main.button] == ["empty_state"] and "Two runs are needed" in texts(app)
    button(app, "empty_state").click().run()
    (saved,) = (workspace.root / "drafts").glob("*.json")
    draft = drafts.load(workspace, saved.stem)
    assert draft is not None and draft.overrides and not app.exception


def test_an_address_opens_the_runs_that_it_names_and_nothing_else(workspace: Workspace) -> None:
    run_id = preference_run(workspace)
    others = [second_run(workspace, run_id, f"20260102-{n:06d}-abcdef") for n in range(3)]
    named = f"{others[2]},../../etc,{run_id},{others[2]},<script>,20260909-000000-abcdef"
    app = open_page("forgetting", view="compare", runs=named)
    (chosen,) = [one for one in app.multiselect if one.key == "compared_runs"]
    assert chosen.value == [others[2], run_id]
    assert app.query_params["runs"] in (f"{others[2]},{run_id}", [f"{others[2]},{run_id}"])
    usual = open_page("forgetting", view="compare", runs=",".join(["x" * 40] * 90))
    assert len(next(one for one in usual.multiselect if one.key == "compared_runs").value) == 4
    app.radio(key="forgetting_view").set_value("run").run()
    assert "runs" not in app.query_params and "view" not in app.query_params and not app.exception


def test_runs_whose_base_knows_no_benchmark_stand_against_each_other_by_the_loss_on_general_text(
    workspace: Workspace,
) -> None:
    run_id = preference_run(workspace)
    for path in workspace.run_dir(run_id).glob("items/*-toy-world.jsonl"):
        path.unlink()

    def write(name: str, rise: float) -> None:
        for model, loss in (("base", 3.0), ("tuned", 3.0 + rise)):
            told = [
                Item(item=str(n), family="text", prompt_sha="p", loglikelihoods=[-10 * (loss + n % 5 / 50)], tokens=10)
                for n in range(40)
            ]
            report_items.write_items(workspace.run_dir(name) / "items" / f"{model}-general-text.jsonl", told)

    other = second_run(workspace, run_id)
    write(run_id, 0.5)
    write(other, 0.0)
    slower = msgspec.structs.replace(store.load_spec(workspace, other).train, learning_rate=1e-6)
    spec = msgspec.structs.replace(store.load_spec(workspace, other), train=slower)
    (workspace.run_dir(other) / "spec.json").write_bytes(schema.encode(spec))
    app = open_page("forgetting", run=run_id, view="compare")
    assert not app.exception and not app.slider and "kept general text best" in texts(app)
    told = table(app)
    assert told["Lost: loss on general text"].str[:5].tolist() == ["0.000", "0.500"]
    assert [name[0] for name in told["Mark"]] == ["●", "■"]
    one = open_page("forgetting", run=run_id)
    drawn = [json.loads(chart.proto.spec) for chart in one.get("plotly_chart")]
    words = [note["text"] for figure in drawn for note in figure["layout"]["annotations"]]
    assert "▼ Tuned: 3.540, real drop" in words  # the words stand above their bars, which nothing crosses


@pytest.mark.parametrize(("split_seed", "shown"), [(0, True), (1, False)])
def test_distances_from_the_base_stand_side_by_side_only_where_they_are_of_the_same_rows(
    workspace: Workspace, split_seed: int, shown: bool
) -> None:
    run_id = preference_run(workspace)
    source, other = workspace.run_dir(run_id), workspace.run_dir("20260102-000000-abcdef")
    distances = "".join(
        f'{{"item": "{n}", "family": "unseen rows", "kl_nats": {1 + n % 3}.0, "tokens": 4}}\n' for n in range(30)
    )
    (source / "items" / "kl-to-base.jsonl").write_text(distances)
    (other / "items").mkdir(parents=True)
    for path in [*source.glob("items/*"), source / "spec.json", source / "events.jsonl"]:
        (other / path.relative_to(source)).write_bytes(path.read_bytes())
    own = store.load_spec(workspace, run_id)
    dataset = msgspec.structs.replace(own.dataset, split_seed=split_seed)
    (other / "spec.json").write_bytes(schema.encode(msgspec.structs.replace(own, dataset=dataset)))
    app = open_page("forgetting", run=run_id, view="compare")
    asked = [str(one) for d in app.dataframe if "Questions" in d.value.columns for one in d.value["Questions"]]
    assert asked and any("moved from the base" in one for one in asked) == shown


def test_the_points_along_a_run_stand_on_its_page_and_beside_other_runs(workspace: Workspace) -> None:
    run_id = preference_run(workspace)
    assert evaluations.along(scored.of(workspace, run_id)) == []
    offered = open_page("forgetting", run=run_id)
    button(offered, "along_again").click().run()
    (saved,) = (workspace.root / "drafts").glob("*.json")
    draft = drafts.load(workspace, saved.stem)
    assert draft is not None and draft.overrides["evaluate.along"] == evaluations.POINTS
    items = workspace.run_dir(run_id) / "items"
    for benchmark in ("new-task-preference", "toy-world"):  # at step 2 it had learned the same and lost nothing
        model = "tuned" if benchmark.startswith("new") else "base"
        (items / f"at-2-{benchmark}.jsonl").write_bytes((items / f"{model}-{benchmark}.jsonl").read_bytes())
    points = evaluations.along(scored.of(workspace, run_id))
    assert [(p.step, round(p.change or 0, 2)) for p in points] == [(2, 0.0), (3, -0.67)]
    app = open_page("forgetting", run=run_id)
    assert not app.exception and not has_button(app, "along_again")
    told = next(one.value.map(shown) for one in app.table if "Mark" in one.value.map(shown).rename(columns=shown))
    told = told.rename(columns=shown)
    assert told["Mark"].tolist() == ["● 2", "■ 3"] and told["Run"].tolist()[0].endswith("step 2")
    next(s for s in app.slider if s.key == "tolerance_along").set_value(10.0).run()
    button(app, "shorter_run").click().run()
    made = [drafts.load(workspace, path.stem) for path in (workspace.root / "drafts").glob("*.json")]
    assert 2 in [one.overrides.get("train.max_steps") for one in made if one is not None]
    other = second_run(workspace, run_id)
    spec = store.load_spec(workspace, other)
    changed = msgspec.structs.replace(spec, train=msgspec.structs.replace(spec.train, max_steps=7))
    (workspace.run_dir(other) / "spec.json").write_bytes(schema.encode(changed))
    compared = open_page("forgetting", run=run_id, view="compare")
    assert [name.rpartition(", ")[2] for name in table(compared)["Run"]] == ["step 3", "step 3"]  # each way's end
    next(one for one in compared.toggle if one.key == "every_compare").set_value(True).run()
    every = next(d.value for d in compared.dataframe if "Frontier" in d.value.columns)
    assert sorted(name.rpartition(", ")[2] for name in every["Run"]) == ["step 2", "step 2", "step 3", "step 3"]


@pytest.mark.parametrize(
    ("steps", "points", "found"), [(100, 4, {20, 40, 60, 80}), (3, 5, {1, 2}), (1, 5, set()), (10, 0, set())]
)
def test_points_on_the_way_are_spread_and_leave_out_the_ends(steps, points, found):
    assert report_items.way_points(steps, points) - {0} == found


def test_what_a_demo_refuses_is_said_where_an_evaluation_or_a_sweep_is_started(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise limits.OverLimit(Problem(rule="demo-full"))

    monkeypatch.setattr(lifecycle, "start", refuse)
    monkeypatch.setattr(evaluations, "build", lambda *_, **__: (sft(kind="evaluate"), []))
    monkeypatch.setattr(bases, "describe", functools.partial(_sound, bases.describe))
    said = Problem(rule="demo-full").sentence
    app = open_page("forgetting", run=preference_run(workspace))
    button(app, "ask_more").click().run()
    assert not app.exception and said in texts(app)
    data = datasets.add_sample(workspace, starter.sample("new-facts"))
    app = open_page("forgetting", dataset=data.id, view="sweep")
    button(app, "start_sweep").click().run()
    assert not app.exception and said in texts(app) and not sweep_drive.list_all(workspace)


def _sound(describe, ref, *arguments, **more):
    """Describe a run that was written by hand as if its weights were there."""
    found = describe("starter" if ref.startswith("run:") else ref, *arguments, **more)
    return msgspec.structs.replace(found, problems=[])


def test_a_sweep_is_planned_on_the_page_and_its_problems_are_named(workspace: Workspace) -> None:
    data = datasets.add_sample(workspace, starter.sample("new-facts"))
    app = open_page("forgetting", dataset=data.id, view="sweep")
    assert "24 runs, one after another." in texts(app) or "27 runs" in texts(app)
    next(s for s in app.selectbox if s.key == "sweep_kind").set_value("own").run()
    next(s for s in app.multiselect if s.key == "sweep_recipes").set_value(["lora"]).run()
    app.text_area[0].set_value("train.learning_rate=0.001, 7\ntrain.speed=1").run()
    assert "learning_rate cannot be 7" in texts(app) and "train.speed" in texts(app)
    assert button(app, "start_sweep").disabled and not sweep_drive.list_all(workspace)


def test_an_empty_page_offers_the_way_on_and_a_sweep_needs_rows() -> None:
    assert has_button(open_page("forgetting"), "empty_state")
    assert has_button(open_page("forgetting", view="sweep"), "sweep_needs_data")


def test_a_further_figure_of_the_same_text_is_no_further_loss() -> None:
    def line(benchmark: str, change: float) -> paired.Comparison:
        return paired.Comparison(
            run="r", benchmark=benchmark, family=report_items.ALL, n=100, base=3.0, tuned=3.0 + change, change=change,
            low=0.9 * change, high=1.1 * change, base_only_right=None, tuned_only_right=None,
        )  # fmt: skip

    rows = [line("general-text", 0.3), line("general-text:bits-per-byte", 0.1), line("general-text-zh", 0.2)]
    lost = headline.summary(rows).lost
    assert lost.startswith("General text: worse by 0.3") and lost.endswith("Also lost: General text, Chinese.")


def test_a_sweep_is_drawn_through_the_settings_that_differ_and_what_they_came_to() -> None:
    def made(recipe: str, change: float, **chosen: Any) -> claims.Configuration:
        point = frontier.Point(name=recipe, runs=[recipe], measure="new-task-choices", gain=0.7, change=change)
        return claims.Configuration(name=recipe, recipe=recipe, set=chosen, point=point, seeds=[], spec=sft())

    rate, replay = "train.learning_rate", "train.replay_share"
    found = [made("full", -0.25, **{rate: 0.002, replay: 0.1}), made("lora", -0.01, **{rate: 0.0005, replay: 0.1})]
    columns = _forgetting_parallel.axes(found)
    assert columns == {
        "Recipe": ["Full fine-tuning", "LoRA"], "Learning rate": ["0.002", "0.0005"], "Gained, points": [70.0, 70.0],
        "Lost, points": [25.0, 1.0],
    }  # fmt: skip
    drawn = _forgetting_parallel.figure(columns, 2).to_plotly_json()["data"][0]["dimensions"]
    assert [one["label"] for one in drawn] == list(columns)
    assert list(drawn[1]["ticktext"]) == ["0.0005", "0.002"] and list(drawn[1]["values"]) == [1, 0]


EVIL = "<script>alert(1)</script>\"'&"


def test_the_html_report_holds_no_script_and_asks_no_host() -> None:
    page = files.as_html(
        heading=EVIL, sentence=EVIL, about=[EVIL],
        changes=[files.Interval(label=EVIL, value=-3.0, low=-5.0, high=-1.0)],
        first=files.Part(title="first", header=[EVIL], rows=[[EVIL]]),
        folds=[files.Part(title=EVIL, lines=[EVIL], header=[EVIL], rows=[[EVIL]])],
    ).decode()  # fmt: skip
    tags, shown = [], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append((tag, dict(attrs)))

        def handle_data(self, data):
            shown.append(data)

    Reader().feed(page)
    assert {tag for tag, _ in tags}.isdisjoint({"script", "img", "link", "iframe", "a"})
    assert not any(name in ("src", "href") or name.startswith("on") for _, found in tags for name in found)
    assert "default-src 'none'" in page and "http://" not in page and "https://" not in page
    # as it is wherever it stands: title, heading, sentence, line, the first table twice, a fold four times
    assert shown.count(EVIL) == 10 and f"{EVIL}: -3.0" in shown
    names = [tag for tag, _ in tags]
    assert names.count("h1") == names.count("main") == 1 and ("html", {"lang": "en"}) in tags
    places = [found for tag, found in tags if found.get("class") == "wide"]
    assert len(places) == 2 and all(one["tabindex"] == "0" and one["aria-label"] for one in places)
    assert names.index("details") > names.index("svg") > names.index("table")  # the answer first, all else in folds
    assert "details::details-content" in page.partition("@media print")[2]  # which are open on paper


def test_a_report_that_is_made_in_a_thread_of_its_own_is_in_the_reader_s_language(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = scored.of(workspace, preference_run(workspace))
    made: list[Any] = []
    monkeypatch.setattr(_forgetting_report.st, "download_button", lambda _, data, **__: made.append(data))
    set_language("zh")
    try:
        _forgetting_report.downloads(one, one.judged(), {})
    finally:
        set_language("en")
    with ThreadPoolExecutor(1) as pool:  # as the server does
        page = pool.submit(made[-1]).result().decode()
    assert '<html lang="zh">' in page and "微调后" in page and "Tuned said" not in page


def test_a_benchmark_of_the_pack_has_its_title_in_the_reader_s_language(workspace: Workspace) -> None:
    set_language("zh")
    try:
        assert "General text" not in library.titles(workspace).values()
    finally:
        set_language("en")
    assert library.titles(workspace)["general-text"] == "General text"


def test_a_spreadsheet_takes_no_text_for_a_formula() -> None:
    rows = paired.compare_items(
        "r1", "=cmd()",
        [Item(item="1", family="f", prompt_sha="p", choices=["a", "b"], gold=0, correct=True)],
        [Item(item="1", family="f", prompt_sha="p", choices=["a", "b"], gold=0, correct=False)],
    )  # fmt: skip
    (line,) = csv.DictReader(io.StringIO(files.as_csv(files.records(rows)).decode("utf-8-sig")))
    assert line["benchmark"] == "'=cmd()" and float(line["change"]) == -1.0


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("tuned-toy-world.jsonl", b'{"item": "\xff"}\n', "cannot be compared"),
        ("tuned-toy-world.jsonl", b'{"item"', "cannot be compared"),
        ("at-2-toy-world.jsonl", b'{"broken', "points along this run cannot be compared"),
        ("at-2-toy-world.jsonl", b"", "points along this run cannot be compared"),
        ("settings.json", b'{"toy-world": 7}', "real drop"),
        ("settings.json", b"\xff", "real drop"),
    ],
)
def test_broken_scores_are_said_and_take_nothing_else_away(
    workspace: Workspace, file: str, content: bytes, says: str
) -> None:
    run_id = preference_run(workspace)
    (workspace.run_dir(run_id) / "items" / file).write_bytes(content)
    for view in ("run", "compare"):
        app = open_page("forgetting", run=run_id, view=view)
        assert view == "compare" or says in texts(app)


# --- what it comes to, first ---------------------------------------------------------------------------------------


def test_a_headline_three_sentences_and_one_button_come_first_and_all_else_is_folded(workspace: Workspace) -> None:
    run_id = preference_run(workspace)
    (workspace.run_dir(run_id) / "adapter").mkdir()  # what it has made, from which the way back goes
    app = open_page("forgetting", run=run_id)
    said = texts(app)
    assert app.header[0].value == "It learned the task\\. It lost most of what it knew\\."
    for words in ("Gained: It learned the preference", "Lost: It lost toy-world", "What to do: Recover"):
        assert words in said.replace("**", "")
    assert button(app, "to_do").label == "Recover what it lost"
    folded = [one for fold in app.expander for one in fold.dataframe]
    assert len(folded) == len(app.dataframe) and len(app.header) == 1
    assert [one.key for one in app.button if one.proto.type == "primary"] == ["to_do"]
    in_folds = {one.key for fold in app.expander for one in fold.button}
    first = [one.key for one in app.main.button if one.key not in in_folds]
    assert first == ["to_do", "ask_it", "use_it", "compare_it"]  # with the switch and the list: six
    button(app, "compare_it").click().run()
    assert app.radio(key="forgetting_view").value == "compare" and not app.exception


def test_what_is_folded_is_made_when_it_is_opened(workspace: Workspace) -> None:
    run_id = preference_run(workspace)
    closed = open_page("forgetting", dict.fromkeys(apps.FOLDS, False), run=run_id)
    assert not closed.dataframe and not closed.get("download_button") and len(closed.header) == 1
    closed.session_state["report_fold"] = True
    assert len(closed.run().get("download_button")) == 3


def test_a_preference_that_moved_below_the_likelier_answer_is_said_to_have_moved(workspace: Workspace) -> None:
    run_id = preference_run(workspace)
    folder = workspace.run_dir(run_id) / "items"
    for model, better in (("base", -9.0), ("tuned", -6.0)):  # the worse answer, at -5, stays the likelier one
        told = [
            Item(item=str(n), family=report_items.UNSEEN, prompt_sha="p", choices=["a", "b"], gold=0, correct=False,
                 loglikelihoods=[better, -5.0])
            for n in range(60)
        ]  # fmt: skip
        report_items.write_items(folder / f"{model}-new-task-preference.jsonl", told)
    said = texts(open_page("forgetting", run=run_id)).replace("**", "").partition("Lost:")[0]
    assert "0 % → 0 %" in said and "In 100 % of the 60 pairs the better answer gained on the worse one" in said


def test_what_was_asked_of_a_run_later_stands_with_that_run_and_not_as_one_of_its_own(workspace: Workspace) -> None:
    run_id = preference_run(workspace)
    spec = RunSpec(
        kind="evaluate", recipe=evaluations.RECIPE, base=schema.BaseRef(f"run:{run_id}"), dataset=schema.DatasetRef(""),
        evaluate=schema.Evaluate(benchmarks=["toy-world"]),
    )  # fmt: skip
    later = finished_run(workspace, 7, spec)
    shutil.copytree(workspace.run_dir(run_id) / "items", later / "items")
    for parameters in ({}, {"run": later.name}):
        app = open_page("forgetting", None, **parameters)
        assert app.selectbox(key="scored_run").value == run_id and len(app.selectbox(key="scored_run").options) == 1
        assert "has no scores yet" not in texts(app)


def test_how_it_was_asked_is_said_in_words_without_keys_of_the_machine(workspace: Workspace) -> None:
    run_id = preference_run(workspace)
    told = {
        "questions": 60,
        "chance": 0.5,
        "form": None,
        "base_key": "f" * 64,
        "tuned_key": "e" * 64,
        "window_tokens": 512,
    }
    (workspace.run_dir(run_id) / "items" / "settings.json").write_text(json.dumps({"toy-world": told}))
    app = open_page("forgetting", run=run_id)
    asked = app.table[-1].value.map(shown).rename(columns=shown).iloc[0].to_dict()
    assert asked == {
        "Questions": "toy-world knowledge", "Asked": "60", "How": "Right by guessing: 50 %; Window, tokens: 512",
    }  # fmt: skip


def test_chat_opens_with_the_run_of_the_report(workspace: Workspace) -> None:
    run_id = preference_run(workspace)
    app = open_page("forgetting", run=run_id)
    button(app, "ask_it").click().run()
    assert app.title[0].value == "Chat" and app.query_params["run"] in (run_id, [run_id])


def test_a_remedy_that_a_run_took_already_leads_to_that_run_in_place_of_another_training(workspace: Workspace) -> None:
    run_id = preference_run(workspace)
    folder, other = workspace.run_dir(run_id), workspace.run_dir("20260102-000000-abcdef")
    spec = store.load_spec(workspace, run_id)
    usual = msgspec.structs.replace(spec.train, learning_rate=2e-3)  # of the starter
    spec = msgspec.structs.replace(spec, train=usual)
    (folder / "spec.json").write_bytes(schema.encode(spec))
    shutil.copytree(folder, other)
    slower = msgspec.structs.replace(spec.train, learning_rate=spec.train.learning_rate / 4)
    (other / "spec.json").write_bytes(schema.encode(msgspec.structs.replace(spec, train=slower)))
    items = other / "items"
    (items / "tuned-toy-world.jsonl").write_bytes(
        (items / "base-toy-world.jsonl").read_bytes()
    )  # this one lost nothing
    app = open_page("forgetting", run=run_id)
    said, name = texts(app), store.name(workspace, other.name)
    assert shown(f"Look at {name}: it is this run with one thing changed") in shown(said) and "on one pair" in said
    keys = {one.key for one in app.button}
    assert {"there_rate", "more_rank"} <= keys and not {"more_rate", "there_rank"} & keys
    assert shown(button(app, "to_do_there").label) == f"Look at {name}"
    button(app, "to_do_there").click().run()
    assert app.query_params["run"] in (other.name, [other.name]) and not (workspace.root / "drafts").exists()
    assert button(app, "to_do").label == "Use it"
    kept = open_page("forgetting", run=other.name)
    assert button(kept, "to_do").label == "Use it" and "Nothing to mend" in texts(kept)


def written_answers(workspace: Workspace) -> str:
    """A run whose answers to 24 held-out prompts are there, which nothing else scores, and which lost nothing."""
    run_id = preference_run(workspace)
    folder = workspace.run_dir(run_id) / "items"
    (folder / "tuned-toy-world.jsonl").write_bytes((folder / "base-toy-world.jsonl").read_bytes())
    for path in folder.glob("*-new-task-preference.jsonl"):
        path.unlink()
    for model in ("base", "tuned"):
        found = [
            Item(
                item=str(i),
                family=report_items.UNSEEN,
                prompt_sha="p",
                prompt=f"Question {i}",
                text=f"*{model}* says {i}",
            )
            for i in range(24)
        ]
        report_items.write_items(folder / f"{model}-new-task-texts.jsonl", found)
    return run_id


def test_answers_are_judged_without_names_left_gone_on_with_and_then_named(workspace: Workspace) -> None:
    run_id = written_answers(workspace)
    app = open_page("forgetting", run=run_id)
    assert button(app, "to_do").label == "Compare the answers"
    button(app, "blind_begin").click().run()
    folder = workspace.run_dir(run_id)

    def choose_tuned(page, times: int) -> None:
        for _ in range(times):
            now = blind.read(folder)
            assert now is not None
            joined = scored.of(workspace, run_id).joined
            pair = blind.left_to_judge(now, blind.drawn(joined, now.seed))[0]
            assert pair.left in [one.value for one in page.text]  # as text, with its stars
            assert "Tuned:" not in texts(page) and "the tuned model won" not in texts(page)
            button(page, "blind_left" if pair.tuned_is_left else "blind_right").click().run()
            assert not page.exception

    choose_tuned(app, 3)
    button(app, "blind_undo").click().run()
    gone_on = open_page("forgetting", run=run_id)  # another day
    found = blind.read(folder)
    assert found is not None and len(found.made) == 2
    pairs = blind.drawn(scored.of(workspace, run_id).joined, found.seed)
    for pair in blind.left_to_judge(found, pairs)[:-1]:  # as by 21 more keys
        found = blind.judged(found, pair, "left" if pair.tuned_is_left else "right")
    blind.write(folder, found)
    gone_on.run()
    choose_tuned(gone_on, 1)
    button(gone_on, "blind_end").click().run()
    sentence = "Names hidden, the tuned model won 24 of 24 (100 % [86, 100]); ties: 0."
    assert sentence in texts(gone_on) and sentence in shown(gone_on.header[0].value)
    assert sentence in files_of(workspace, run_id)
    assert not has_button(gone_on, "blind_left")


def files_of(workspace: Workspace, run_id: str) -> str:
    found = scored.of(workspace, run_id)
    return _forgetting_report.as_html(found, found.judged(), {}).decode()


def test_choices_that_cannot_be_read_are_said_and_can_be_begun_anew(workspace: Workspace) -> None:
    run_id = written_answers(workspace)
    path = workspace.run_dir(run_id) / blind.FILE
    path.write_bytes(b'{"seed": ')
    app = open_page("forgetting", run=run_id)
    assert "The choices of this run cannot be read" in texts(app)
    button(app, "blind_anew").click().run()
    assert not app.exception and blind.read(path.parent) is not None and has_button(app, "blind_same")


def test_the_base_is_asked_first_from_the_advisor_and_its_answer_stands_there(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = datasets.add_sample(workspace, starter.sample("new-facts"))
    started: list[RunSpec] = []
    monkeypatch.setattr(evaluations, "start", lambda _, spec, **__: started.append(spec))
    app = open_page("advisor", dataset=data.id)
    assert button(app, "ask_base_first").label == "Ask the base first"  # nothing was measured here yet
    button(app, "ask_base_first").click().run()
    (spec,) = started
    assert (spec.kind, spec.dataset.id, spec.evaluate.shots, spec.evaluate.against) == ("evaluate", data.id, 4, "")
    folder = workspace.run_dir("20260103-000000-abcdef")
    (folder / "items").mkdir(parents=True)
    (folder / "spec.json").write_bytes(schema.encode(spec))
    log = events.EventLog(folder)
    log.append(events.Finished(step=1))
    log.close()
    for model, right in (("base", 10), ("base-4-examples", 30)):
        found = [
            Item(
                item=str(i), family=report_items.UNSEEN, prompt_sha=model, choices=["a", "b"], gold=0, correct=i < right
            )
            for i in range(40)
        ]
        report_items.write_items(folder / "items" / f"{model}-new-task-choices.jsonl", found)
    app = open_page("advisor", dataset=data.id)
    assert "The base already gets 75 % right with 4 examples" in texts(app) and not has_button(app, "ask_base_first")
    pairs = datasets.add_sample(workspace, starter.sample("preference-pairs"))
    assert not has_button(open_page("advisor", dataset=pairs.id), "ask_base_first")


def test_a_pick_by_general_text_is_said_to_be_sure_only_beyond_the_intervals() -> None:
    def point(name: str, gain: float) -> frontier.Point:
        return frontier.Point(name=name, runs=[name], gain=gain, gain_low=gain - 0.05, gain_high=gain + 0.05)

    best = point("A", 0.5)
    assert _forgetting_frontier._is_clear(best, [best, point("B", 0.39)])
    assert not _forgetting_frontier._is_clear(best, [best, point("B", 0.41)])
    assert not _forgetting_frontier._is_clear(frontier.Point(name="C", runs=["c"], gain=0.5), [point("B", 0.1)])


@pytest.mark.parametrize(
    ("limit", "told"), [(1.0, "1 point (the page's own limit: set yours below)"), (5.0, "5 points (your limit)")]
)
def test_where_no_run_stays_within_the_limit_it_is_said_whose_limit_that_is(limit: float, told: str) -> None:
    def page(limit: float) -> None:
        from engine.report import frontier
        from pages import _forgetting_frontier

        lost = frontier.Point(name="A", runs=["a"], gain=0.5, retention=0.9, change=-0.1, change_low=-0.123)
        _forgetting_frontier._answer([_forgetting_frontier.Trade(lost, "A")], None, limit)

    app = AppTest.from_function(page, args=(limit,)).run()
    (said,) = [shown(one.value) for one in app.warning]
    assert said == f"Each of them may have lost more than {told}. The safest may have lost 12.3."
