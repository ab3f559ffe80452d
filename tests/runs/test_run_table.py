"""The list of runs and the page of one, as a person reads them."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest
import streamlit as st
from streamlit import dataframe_util
from streamlit.testing.v1 import AppTest

from engine import events, starter
from engine.data import datasets
from engine.forgetting import sweep_plan
from engine.plan import plans
from engine.runs import scored, store
from engine.spec import RunSpec, schema, settings
from engine.workspace import Workspace
from pages import _run_answers, _run_list, _run_phone, _run_table
from tests.apps import button, has_button, open_page, texts
from tests.conftest import ROOT
from tests.helpers import finished_run, planned


@pytest.fixture
def spec(workspace: Workspace) -> RunSpec:
    data = datasets.add_sample(workspace, starter.sample("new-facts"))
    found, problems = planned(workspace, "lora", base="starter", dataset=data.id, overrides={})
    assert not problems
    return found


def listed(app) -> list[str]:
    return list(app.dataframe[0].value["Run"])


def test_several_runs_are_a_list_and_one_is_opened_by_its_address(workspace, spec):
    for number in (1, 2):
        finished_run(workspace, number, spec)
    app = open_page("runs")
    assert len(listed(app)) == 2 and not has_button(app, "next_step")
    app = open_page("runs", run="20260101-000001-abcdef")
    assert not app.dataframe and "finished" in str(app.header[0].value)
    button(app, "all_runs").click().run()
    assert len(listed(app)) == 2 and _run_list.LIST in app.query_params[_run_list.VIEW]


def test_the_list_is_looked_through_ordered_and_coloured_by_any_setting(workspace, spec):
    for number, rate in enumerate((1e-4, 3e-4, 2e-4, 1e-4), 1):
        train = msgspec.structs.replace(spec.train, learning_rate=rate)
        folder = finished_run(workspace, number, msgspec.structs.replace(spec, train=train))
        (folder / "meta.json").write_text(f'{{"name": "run {number}"}}')
        log = events.EventLog(folder)
        log.append(events.Eval(step=1, loss=float(10 - number)))
        log.append(events.Finished(step=1))
        log.close()
    app = open_page("runs")
    assert listed(app) == ["run 4", "run 3", "run 2", "run 1"]
    field = {one.key: one for one in [*app.selectbox, *app.text_input, *app.multiselect]}
    field["runs_order"].set_value("name").run()
    assert listed(app) == ["run 1", "run 2", "run 3", "run 4"]
    field["runs_order"].set_value("loss").run()
    assert listed(app)[0] == "run 4"
    field["runs_colour"].set_value("train.learning_rate").run()
    assert list(app.dataframe[0].value["Learning rate"]) == [1e-4, 2e-4, 3e-4, 1e-4]  # numbers, which sort as such
    field["runs_find"].set_value("RUN 3").run()
    assert listed(app) == ["run 3"]
    field["runs_find"].set_value("nothing of that kind").run()
    assert not app.dataframe and "No run fits" in texts(app)


CHANGES = {
    1: (("%", 0.05), ("%", -0.21)), 2: (("%", 0.39), ("%", -0.03)), 3: (("nats/token", -0.3), ("nats/token", 0.04)),
    4: (("%", -0.08), ("%", -0.004)),
}  # fmt: skip


def changed(monkeypatch, changes=CHANGES) -> None:
    """Let runs come to these changes: what each gained and lost, by its number."""

    def brief(number: int) -> scored.Brief:
        gained, lost = (scored.Change(change, unit, "better") for unit, change in changes[number])
        return scored.Brief(stamp="", gained=gained, lost=lost)

    monkeypatch.setattr(scored, "kept_briefs", lambda _, runs: {run.id: brief(int(run.id[9:15])) for run in runs})


def test_what_was_gained_and_lost_sorts_as_numbers_and_is_shown_in_words(workspace, spec, monkeypatch):
    for number in CHANGES:
        finished_run(workspace, number, spec)
    changed(monkeypatch)
    app = open_page("runs")
    frame = app.dataframe[0].value

    def order(column: str) -> list[int]:
        return [5 - (place + 1) for place in frame.sort_values(column).index]  # the newest run comes first

    assert order("Gained") == [4, 1, 3, 2] and order("Lost") == [4, 3, 2, 1]
    assert frame["Started"].is_monotonic_decreasing
    shown = dataframe_util.convert_arrow_bytes_to_pandas_df(app.dataframe[0].proto.arrow_data.styler.display_values)
    assert list(shown["Gained"]) == ["-8 points", "loss 0.30 lower", "39 points", "5 points"]
    assert shown["Lost"].tolist()[0] == "0 points" and set(shown["Started"]) == {"just now"}
    field = {one.key: one for one in app.selectbox}
    field["runs_order"].set_value("gained").run()
    assert list(app.dataframe[0].value["Gained"]) == sorted(frame["Gained"], reverse=True)


def test_where_nothing_is_marked_the_listed_runs_of_the_same_rows_are_compared(workspace, spec, monkeypatch):
    made = [finished_run(workspace, number, spec).name for number in (1, 2, 3)]
    other = msgspec.structs.replace(spec, dataset=msgspec.structs.replace(spec.dataset, id="f" * 64))
    finished_run(workspace, 4, other)  # the newest, alone on its rows
    changed(monkeypatch)
    app = open_page("runs")
    assert button(app, "compare_runs").label == "Compare 3 on the same rows"
    next(one for one in app.text_input if one.key == "runs_find").set_value("another").run()
    assert not has_button(app, "compare_runs")  # of none that is shown
    next(one for one in app.text_input if one.key == "runs_find").set_value("").run()
    button(app, "compare_runs").click().run()
    assert next(one for one in app.multiselect if one.key == "compared_runs").value == made[::-1]


def test_what_rose_is_not_said_to_be_lost():
    told = [_run_table._change(scored.Change(change, unit, "better"), is_lost=True)
            for change, unit in ((0.05, "%"), (-0.2, "nats/token"))]  # fmt: skip
    assert [(one.words, one < 0) for one in told if one is not None] == [("none", True)] * 2


def test_a_narrow_screen_lists_the_name_the_status_and_what_each_run_gained_and_lost(workspace, spec, monkeypatch):
    rates = {1: 1e-4, 2: 3e-4, 3: 3e-4}
    for number, rate in rates.items():
        train = msgspec.structs.replace(spec.train, learning_rate=rate)
        finished_run(workspace, number, msgspec.structs.replace(spec, train=train))
    changed(monkeypatch)
    lists = []
    monkeypatch.setattr(_run_phone, "show", lambda rows, label: lists.append(list(rows)))
    app = open_page("runs")
    lines = [told for _, _, told in lists[0]]
    assert lines == [
        ["finished · Gained loss 0.30 lower · Lost loss 0.04 higher"],
        ["finished · Gained 39 points · Lost 3 points", "Learning rate: 0.0003"],
        ["finished · Gained 5 points · Lost 21 points"],
    ]
    assert [name for _, name, _ in lists[0]] == listed(app)
    finished_run(workspace, 4, spec)  # of four and more runs there is an order, and a colour
    app = open_page("runs", {"runs_colour": "train.learning_rate"})
    assert lists[-1][2][2][1] == "Learning rate: 0.0003"


def test_a_sweep_is_one_row_that_opens(workspace, spec):
    inside = [finished_run(workspace, number, spec).name for number in (1, 2)]
    finished_run(workspace, 3, spec)
    sweep = workspace.run_dir("20260101-000009-abcdef")
    sweep.mkdir()
    told = msgspec.structs.replace(spec, kind="sweep", recipe=sweep_plan.RECIPE)
    (sweep / "spec.json").write_bytes(schema.encode(told))
    (sweep / "meta.json").write_text('{"name": "two seeds"}')
    trials = [sweep_plan.Trial(recipe="lora", seed=n, run=run) for n, run in enumerate(inside)]
    made = sweep_plan.Sweep(title="two seeds", data=spec.dataset.id, base="starter", trials=trials)
    (sweep / "sweep.json").write_bytes(msgspec.json.encode(made))
    log = events.EventLog(sweep)
    log.append(events.Finished(step=2))
    log.close()
    closed = listed(open_page("runs"))
    assert len(closed) == 2 and closed[0] == "▸ two seeds"
    opened = listed(open_page("runs", run=inside[0], show="all"))
    assert opened[0] == "▾ two seeds" and [name.startswith("↳") for name in opened] == [False, True, True, False]
    page = open_page("runs", run=sweep.name)
    assert "Its runs (2)" in texts(page) and len(listed(page)) == 2


def test_a_list_that_lacks_figures_works_out_no_more_than_it_has_time_for(workspace, spec, monkeypatch):
    for number in range(1, 6):
        finished_run(workspace, number, spec)
    monkeypatch.setattr(_run_table, "MOST_WORK_S", -1.0)
    assert len(listed(open_page("runs"))) == 5 and not scored.kept_briefs(workspace, store.list_every(workspace))
    monkeypatch.setattr(_run_table, "MOST_WORK_S", 60.0)
    open_page("runs")
    assert len(scored.kept_briefs(workspace, store.list_every(workspace))) == 5


def test_what_differs_from_the_first_answer_is_marked_and_nothing_of_it_is_html():
    told = _run_answers.marked("The capital is <b>.", "The capital is <i>Pesk</i>.")
    assert "<i>" not in told and "&lt;" in told and told.startswith("The capital is")
    assert "<mark" in told and "text-decoration:underline" in told and "Pesk" in told.partition("<mark")[2]
    assert _run_answers.marked("same words", "same words") == "same words"
    assert _run_answers.marked("首都是上海", "首都是北京").startswith("首都是<mark")  # letter by letter


def test_of_many_answers_the_first_the_middle_and_the_newest_are_shown_in_full():
    answers = [events.Sample(step=n, prompt="p", text=f"answer {n} " * 50) for n in range(0, 70, 10)]
    assert [one.step for one in _run_answers.picked(answers)] == [0, 30, 60]
    assert _run_answers.picked(answers[:2]) == answers[:2]


def test_a_run_that_goes_on_says_what_is_behind_and_what_is_to_come_by_the_plan_it_was_started_with(workspace, spec):
    from pages import _run_timeline

    folder = finished_run(workspace, 1, spec)
    (folder / "events.jsonl").unlink()
    log = events.EventLog(folder)
    for event in (events.Queued(device="cpu"), events.Phase(phase="loading"), events.Phase(phase="training"),
                  events.Step(step=3, total_steps=9, epoch=1, loss=1, left_s=42.0)):  # fmt: skip
        log.append(event)
    log.close()
    assert plans.of_spec(workspace, spec).time is not None
    road = _run_timeline.road(workspace, folder.name, "running")
    assert [one.phase for one in road if one.state == "now"] == ["training"]
    ahead = [one for one in road if one.state == "to come"]
    assert "scoring tuned" in [one.phase for one in ahead] and all(one.left_s for one in ahead)


def test_settings_that_differ_are_said_in_the_words_of_train_and_data_by_their_names(workspace, spec):
    general = datasets.add_sample(workspace, starter.sample("answer-format")).id
    other = msgspec.structs.replace(
        spec,
        train=msgspec.structs.replace(
            spec.train, tolerance="high", padding_free=True, replay_data=general, max_steps=7, optimizer="adamw_8bit"
        ),
        objective_args=msgspec.structs.replace(spec.objective_args, keep="kl"),
        quantize="4bit",
    )
    made = [finished_run(workspace, number, one).name for number, one in enumerate((spec, other), 1)]
    words = {
        path: [store.value_words(workspace, path, value) for value in values]
        for path, values in store.differences(workspace, made)
    }
    assert words == {
        "quantize": ["none", "4 bits"],
        "train.max_steps": ["as the epochs ask", "7"],
        "train.replay_data": ["written by the base, or the starter's own", datasets.load(workspace, general).name],
        "train.tolerance": ["off", "much"],
        "train.optimizer": ["as the machine needs it", "AdamW in 8 bits"],
        "train.padding_free": ["as the machine needs it", "on"],
        "objective_args.keep": ["not at all", "hold it to the base"],
    }
    assert settings.value_words("train.replay_budget_s", None) == "none"
    assert settings.value_words("train.keep_best", True) == "yes" and settings.value_words("layers", [2, 3]) == "2, 3"
    assert len(settings.value_words("adapter_args.target_modules", "q_proj," * 90)) == settings.MOST_WORDS


def test_a_run_that_ended_at_its_first_step_says_so_where_its_line_would_be(workspace, spec):
    made = finished_run(workspace, 1, spec), finished_run(workspace, 2, spec)
    for folder in made:
        (folder / "events.jsonl").unlink()
        log = events.EventLog(folder)
        log.append(events.Phase(phase="training"))
        if folder is made[0]:
            log.append(events.Step(step=1, total_steps=9, epoch=1, loss=9.5))
        log.append(events.Stopped(step=1, resumable=False))
        log.close()
    app = open_page("runs", run=made[0].name)
    assert "Too few values for a line." in texts(app) and "9.5" in texts(app)


def test_marked_runs_are_opened_or_compared(workspace, spec, monkeypatch):
    made = [finished_run(workspace, number, spec).name for number in (1, 2, 3)]
    rows: list[int] = []
    # AppTest has no word for a click on the box of a row
    monkeypatch.setattr(st, "dataframe", lambda *_, **__: SimpleNamespace(selection=SimpleNamespace(rows=rows)))
    app = open_page("runs")
    assert button(app, "compare_runs").label == "Compare runs"  # none of them is scored
    rows[:] = [1]
    next(one for one in app.run().button if one.label == "Open it").click().run()
    assert app.query_params["run"] == made[1]
    rows[:] = [0, 2]
    app = open_page("runs")
    labels = [one.label for one in app.button]
    assert "Compare these 2" in labels and "Open it" not in labels
    next(one for one in app.button if one.label == "Compare these 2").click().run()
    assert app.title[0].value == "Forgetting"
    assert next(one for one in app.multiselect if one.key == "compared_runs").value == [made[2], made[0]]


def test_what_scored_the_way_back_from_a_run_is_listed_behind_it(workspace, spec):
    made = finished_run(workspace, 1, spec)
    way = schema.Recover(run=made.name, way="interpolate", points=[0.0, 0.5, 1.0])
    finished_run(workspace, 2, msgspec.structs.replace(spec, kind="recover", recover=way))
    finished_run(workspace, 3, spec)
    app = open_page("runs")
    assert [one[:1] for one in listed(app)] == ["2", "▸"]
    opened = open_page("runs", run=made.name, show="all")
    assert [one[:1] for one in listed(opened)] == ["2", "▾", "↳"]


def test_the_first_screen_says_of_recent_runs_what_they_came_to_and_what_differs(workspace, spec):
    for number, rate in enumerate((1e-4, 3e-4), 1):
        train = msgspec.structs.replace(spec.train, learning_rate=rate)
        made = finished_run(workspace, number, msgspec.structs.replace(spec, train=train))
    way = schema.Recover(run=made.name, way="interpolate", points=[0.0, 0.5, 1.0])
    finished_run(workspace, 3, msgspec.structs.replace(spec, kind="recover", recover=way))
    app = AppTest.from_file(str(ROOT / "pages" / "_frame.py"), default_timeout=60).run()
    recent = [one.key for one in app.button if str(one.key).startswith("recent_")]
    assert recent == ["recent_20260101-000002-abcdef", "recent_20260101-000001-abcdef"]
    assert "What it gained and lost was not asked yet." in texts(app) and "Learning rate: 0.0003" in texts(app)


def test_the_folder_of_a_run_and_the_command_that_repeats_it_stand_in_a_fold_with_words_before_them(workspace, spec):
    run_id = finished_run(workspace, 1, spec).name
    (workspace.run_dir(run_id) / "meta.json").write_text('{"name": "mine"}')
    app = open_page("runs", run=run_id)
    fold = next(one for one in app.expander if one.label == "Repeat it in a terminal")
    assert run_id in fold.caption[0].value.replace("\\", "") and "tunebook train" in fold.code[0].value
    outside = [one.value for one in [*app.caption, *app.markdown, *app.header]]
    outside.remove(fold.caption[0].value)
    assert not any("abcdef" in text or spec.dataset.id[:12] in text for text in outside)
