"""Going back toward the base: what can be gone back from, which point is suggested, and who needs whom."""

from __future__ import annotations

import json
import math
import random
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from engine import events, limits, starter
from engine.benchmarks import library
from engine.cli import main
from engine.data import datasets
from engine.export import NotExportable, archive, job_runner, portable_recipe
from engine.export.job import Job
from engine.forgetting import evaluations, recovery, recovery_curve
from engine.report import Item, paired, verdicts
from engine.report import items as report_items
from engine.report.items import Joined
from engine.runs import lifecycle, needs, store
from engine.spec import schema
from engine.workspace import Workspace, write_atomically
from tests.apps import button, has_button, open_page, texts
from tests.runs.test_operating import written

UNSEEN, TASK, GENERAL = report_items.UNSEEN, "new-task-choices", "toy-world"


def items(benchmark: str, right: list[bool], family: str = report_items.ALL) -> list[Item]:
    return [
        Item(item=f"{benchmark}-{i}", family=family, prompt_sha="p", choices=["a", "b", "c", "d"], gold=0, correct=one)
        for i, one in enumerate(right)
    ]


def scored_run(joined: dict[str, tuple[list[Item], list[Item]]], workspace: Workspace | None = None) -> Any:
    """What a curve needs of a scored run."""
    found = {name: Joined(name, base, tuned) for name, (base, tuned) in joined.items()}
    rows = paired.compare_joined("run", found.values())
    chance = {name: verdicts.chance_of(one.base) for name, one in found.items()}
    return SimpleNamespace(
        run_id="run", joined=found, rows=rows, chance=chance, spec=SimpleNamespace(adopted=None), workspace=workspace
    )


def a_way(dice: random.Random, n: int, truth: dict[float, tuple[float, float]]) -> recovery_curve.Way:
    """A way whose points answer each question by luck alone: with these shares of the new task and of general knowledge."""

    def drawn(share: float) -> list[bool]:
        return [dice.random() < share for _ in range(n)]

    base = {TASK: items(TASK, drawn(0.25)), GENERAL: items(GENERAL, drawn(0.9))}
    at = {
        part: {TASK: items(TASK, drawn(task)), GENERAL: items(GENERAL, drawn(general))}
        for part, (task, general) in truth.items()
    }
    way = recovery_curve.Way(scored_run({name: (base[name], at[1.0][name]) for name in base}), "scale")
    for part, answers in at.items():
        if part < 1:
            way.add(part, answers)
    return way


def test_the_pooled_reading_is_true_on_average_and_the_one_of_the_chosen_point_is_not(monkeypatch):
    """Points that are all alike: the luckiest seems better than it is, on the questions that chose it."""
    monkeypatch.setattr(recovery_curve.paired, "compare_joined", counted)
    dice, truth = random.Random(0), dict.fromkeys((0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0), (0.9, 0.8))
    cross, naive = [], []
    for _ in range(100):
        way = a_way(dice, 60, truth)
        found = way._suggested()
        assert found.general is not None
        cross.append(found.general.value + share(way, 0.0, GENERAL))
        gains, kept = ({at: share(way, at, name) for at in truth} for name in (TASK, GENERAL))
        naive.append(kept[recovery_curve.choose(gains, kept, 1.0)])
    mean, above = (sum(values) / len(values) for values in (cross, naive))
    error = math.sqrt(0.8 * 0.2 / 60 / len(cross))
    assert abs(mean - 0.8) < 4 * error and above > 0.8 + 5 * error


def share(way: recovery_curve.Way, at: float, name: str) -> float:
    return sum(bool(one.correct) for one in way.known[at][name]) / len(way.known[at][name])


def counted(run: str, found: Any) -> list[Any]:
    """Comparisons without intervals, which take most of the time."""
    rows = []
    for one in found:
        lost = sum(bool(a.correct) and not b.correct for a, b in zip(one.base, one.tuned, strict=True))
        won = sum(bool(b.correct) and not a.correct for a, b in zip(one.base, one.tuned, strict=True))
        n = len(one.base)
        rows.append(
            paired.Comparison(
                run=run, benchmark=one.benchmark, family=report_items.ALL, n=n,
                base=sum(bool(a.correct) for a in one.base) / n, tuned=sum(bool(b.correct) for b in one.tuned) / n,
                change=(won - lost) / n,
                low=-1, high=1, base_only_right=lost, tuned_only_right=won,
            )
        )  # fmt: skip
    return rows


def test_the_point_that_loses_least_of_those_that_keep_the_gain_is_suggested_and_said():
    right = {1.0: (96, 70), 0.5: (96, 97), 0.3: (60, 99)}

    base = {TASK: items(TASK, known(25)), GENERAL: items(GENERAL, known(100))}
    at = {p: {TASK: items(TASK, known(a)), GENERAL: items(GENERAL, known(b))} for p, (a, b) in right.items()}
    way = recovery_curve.Way(scored_run({name: (base[name], at[1.0][name]) for name in base}), "scale")
    for part in (0.5, 0.3):
        way.add(part, at[part])
    curve = way.curve(finished=True)
    assert curve.suggested is not None and curve.suggested.halves == (0.5, 0.5) and curve.suggested.at == 0.5
    assert curve.suggested.gain.value == pytest.approx(0.71) and curve.in_points and curve.general_in == "points"
    assert curve.suggested.got_back is not None and curve.suggested.got_back.value == pytest.approx(0.27)
    said = recovery_curve.sentences(curve)
    assert len(said) == 1 and "50 % of the way" in said[0] and "+71.0" in said[0] and "-30.0" in said[0]
    assert msgspec.json.decode(msgspec.json.encode(curve), type=recovery_curve.Curve) == curve
    assert way.curve(finished=False).suggested is None


def test_a_point_that_recognises_what_it_does_not_say_any_more_is_not_suggested():
    names = {TASK: 25, "new-task-exact": 0, GENERAL: 100}
    right = {1.0: (96, 92, 70), 0.75: (96, 92, 85), 0.5: (96, 60, 97)}
    base = {name: items(name, known(count)) for name, count in names.items()}
    at = {part: {n: items(n, known(c)) for n, c in zip(names, counts, strict=True)} for part, counts in right.items()}
    way = recovery_curve.Way(scored_run({name: (base[name], at[1.0][name]) for name in base}), "scale")
    for part in (0.75, 0.5):
        way.add(part, at[part])
    found = way.curve(finished=True).suggested
    assert found is not None and found.at == 0.75


def test_where_nothing_was_gained_it_is_said_and_no_point_is_named():
    some = [i % 4 == 0 for i in range(100)]
    base = {TASK: items(TASK, some), GENERAL: items(GENERAL, [True] * 100)}
    way = recovery_curve.Way(scored_run({name: (one, one) for name, one in base.items()}), "interpolate")
    way.add(0.5, base)
    (said,) = recovery_curve.sentences(way.curve(finished=True))
    assert "Nothing was gained" in said and "2510.17776" in said


def known(count: int, of: int = 100) -> list[bool]:
    """So many right answers, spread over both halves of the questions."""
    return [((i * 37) % of) < count for i in range(of)]


def a_curve(right: dict[float, dict[str, int]]) -> recovery_curve.Curve:
    """The way of a run whose points answer so many of 100 questions right; 0 is its base and 1 the run."""
    at = {part: {name: items(name, known(n)) for name, n in told.items()} for part, told in right.items()}
    way = recovery_curve.Way(scored_run({name: (at[0.0][name], at[1.0][name]) for name in at[0.0]}), "scale")
    for part in set(at) - {0.0, 1.0}:
        way.add(part, at[part])
    return way.curve(finished=True)


def test_grades_tell_the_gain_and_behaviour_is_a_line_of_its_own_and_no_knowledge():
    behaviour = next(one.name for one in library.available() if one.kind == "graded")
    curve = a_curve({
        0.0: {report_items.GRADED: 10, TASK: 25, GENERAL: 100, behaviour: 90},
        0.5: {report_items.GRADED: 80, TASK: 95, GENERAL: 98, behaviour: 85},
        1.0: {report_items.GRADED: 82, TASK: 96, GENERAL: 70, behaviour: 40},
    })  # fmt: skip
    assert curve.measure == report_items.GRADED and curve.in_points and curve.to_take == 0.5
    point = curve.at(0.5)
    assert point is not None and point.gain and point.general and point.behaviour
    figures = [point.gain.value, point.general.value, point.behaviour.value]
    assert figures == pytest.approx([0.70, -0.02, -0.05])
    assert curve.suggested is not None and curve.suggested.behaviour is not None


def test_a_persons_own_graded_questions_and_verifiable_instructions_are_behaviour_and_choices_are_not(workspace):
    grader = {"name": "length", "parameters": {"least": 1, "most": 5}}
    own = {
        "graded": [{"question": f"Say yes {n}.", "grader": grader} for n in range(9)],
        "choices": [{"question": f"Is {n} odd?", "choices": ["yes", "no"], "answer": n % 2} for n in range(9)],
    }  # fmt: skip
    names = {}
    for kind, rows in own.items():
        data = "\n".join(map(json.dumps, rows)).encode()
        one, problems = evaluations.add_questions(workspace, data, kind)
        assert one is not None and one.kind == kind, problems
        names[kind] = one.name
    told = [TASK, names["graded"], names["choices"], "ifeval", "mmlu"]
    origin = scored_run({name: (items(name, known(80)), items(name, known(60))) for name in told}, workspace)
    way = recovery_curve.Way(origin, "scale")
    assert (sorted(way.behaviour), sorted(way.general)) == (
        sorted([names["graded"], "ifeval"]), sorted([names["choices"], "mmlu"]),
    )  # fmt: skip


def test_where_no_general_knowledge_was_asked_nothing_is_said_to_be_better_or_worse():
    (said,) = recovery_curve.sentences(a_curve({0.0: {TASK: 25}, 0.5: {TASK: 60}, 1.0: {TASK: 96}}))
    assert "what going back gives back is not known" in said and "no other point" not in said


def test_a_point_whose_gain_is_noise_is_not_suggested_nor_kept(workspace):
    curve = a_curve({0.0: {TASK: 25, GENERAL: 100}, 0.5: {TASK: 29, GENERAL: 99}, 1.0: {TASK: 29, GENERAL: 70}})
    assert curve.suggested is not None and curve.suggested.at == 0.5 and curve.to_take is None
    assert "Nothing was gained" in recovery_curve.sentences(curve)[0]
    run_id = a_run(workspace)
    scan = written(workspace, 2, makes="", kind="recover", recover=schema.Recover(run_id, "scale", None, [0.5]))
    write_atomically(workspace.run_dir(scan) / recovery_curve.CURVE, msgspec.json.encode(curve))
    at, problems = recovery.suggested(workspace, run_id)
    assert at is None and [one.rule for one in problems] == ["recover-unsuggested"]


def test_of_equals_the_nearest_to_the_run_is_chosen_and_too_little_gain_is_none():
    assert recovery_curve.choose({0.5: 0.9, 0.75: 0.9, 1.0: 0.9}, {0.5: 0.0, 0.75: 0.0, 1.0: -0.1}, 1.0) == 0.75
    assert recovery_curve.choose({0.5: 0.8, 1.0: 0.9}, {0.5: 0.0, 1.0: -0.2}, 1.0) == 1.0
    assert recovery_curve.choose({0.0: 0.0, 0.5: -0.1, 1.0: -0.2}, {0.0: 0.0, 0.5: 0.0, 1.0: 0.0}, 1.0) == 1.0
    # a rate too high: half of the way has the better gain, and the run itself does not keep 95 % of it
    assert recovery_curve.choose({0.5: 0.30, 1.0: 0.17}, {0.5: 0.0, 1.0: 0.1}, 1.0) == 0.5
    # of intruders the run stands at 0
    assert recovery_curve.choose({0.0: 0.9, 0.5: 0.9, 1.0: 0.9}, {0.0: 0.0, 0.5: 0.0, 1.0: 0.0}, 0.0) == 0.0


# --- what can be gone back from ---------------------------------------------------------------------------------------


def a_run(workspace: Workspace, number: int = 1, *happened: events.Event, **spec: Any) -> str:
    data = datasets.add_sample(workspace, starter.sample("new-facts")).id
    run_id = written(workspace, number, *happened, **{"dataset": schema.DatasetRef(data), **spec})
    for who in ("base", "tuned"):
        path = workspace.run_dir(run_id) / "items" / f"{who}-{TASK}.jsonl"
        report_items.write_items(path, items(TASK, [i % 2 == 0 or who == "tuned" for i in range(40)], UNSEEN))
    return run_id


@pytest.mark.parametrize(
    ("rule", "how"),
    [
        ("recover-judge", {"objective": "reward"}),
        ("recover-kind", {"kind": "evaluate"}),
        ("recover-nothing", {"makes": ""}),
        ("recover-continued", {"adapter_args": schema.AdapterArgs(continues=True)}),
        ("recover-base-gone", {"base": schema.BaseRef("run:20200101-000000-abcdef")}),
        ("recover-base-gone", {"base": schema.BaseRef("owner/not-here")}),
        ("recover-again", {"kind": "recover", "recover": schema.Recover("20200101-000000-abcdef", "scale", 0.5)}),
    ],
)
def test_what_has_no_way_back_is_refused_in_a_sentence_before_anything_starts(workspace, rule, how):
    run_id = a_run(workspace, **how)
    spec, problems = recovery.build(workspace, run_id)
    assert spec is None and [one.rule for one in problems] == [rule]
    assert "{" not in problems[0].sentence and recovery.of(workspace, run_id) is None


def test_a_run_that_has_not_ended_or_moved_nothing_or_is_not_there_has_no_way_back(workspace):
    failed = a_run(workspace, 1, events.Failed(kind="oom", message="no memory", fix="less"))
    still = a_run(workspace, 2, events.Finished(step=3, moved=False))
    for run_id, rule in ((failed, "recover-unfinished"), (still, "recover-unmoved"), ("../etc", "recover-gone")):
        assert [one.rule for one in recovery.build(workspace, run_id)[1]] == [rule]


@pytest.mark.parametrize(
    ("rule", "how"),
    [
        ("intruders-adapter", {"adapter": "oft"}),
        ("intruders-adapter", {"adapter": "full", "makes": "model"}),
        ("intruders-bits", {"quantize": "4bit"}),
        ("intruders-layers", {}),  # an adapter that cannot be read
    ],
)
def test_intruder_dimensions_are_refused_where_they_are_not_known(workspace, rule, how):
    run_id = a_run(workspace, **how)
    assert [one.rule for one in recovery.build(workspace, run_id, intruders=True)[1]] == [rule]
    assert recovery.build(workspace, run_id)[0] is not None  # the way itself can be gone


def test_a_part_that_is_none_and_ends_that_are_no_point_are_refused(workspace):
    run_id = a_run(workspace)
    for at, rule in ((0.0, "recover-end"), (1.0, "recover-end"), (1.5, "recover-part"), (math.nan, "recover-part")):
        assert [one.rule for one in recovery.build(workspace, run_id, at=at)[1]] == [rule]
    assert [one.rule for one in recovery.build(workspace, run_id, points=[math.inf])[1]] == ["recover-part"]


def test_a_run_whose_data_is_gone_or_that_was_asked_nothing_is_not_scored_along_its_way(workspace):
    run_id = a_run(workspace, dataset=schema.DatasetRef("d" * 64))
    assert [one.rule for one in recovery.build(workspace, run_id)[1]] == ["dataset-missing"]
    other = a_run(workspace, 2)
    for path in (workspace.run_dir(other) / "items").glob("*"):
        path.unlink()
    assert [one.rule for one in recovery.build(workspace, other)[1]] == ["recover-unscored"]


def test_the_point_that_is_suggested_is_kept_and_where_there_is_none_that_is_said(workspace):
    assert recovery.suggested(workspace, with_curve(workspace)) == (0.5, [])
    at, problems = recovery.suggested(workspace, a_run(workspace, 5))
    assert at is None and [one.rule for one in problems] == ["recover-unsuggested"]


def test_in_a_demo_nobody_goes_back(workspace, monkeypatch):
    run_id = a_run(workspace)
    monkeypatch.setattr(limits, "on", lambda: True)
    assert [one.rule for one in recovery.problems(workspace, run_id)] == ["demo-kind"]


def test_a_saved_point_is_the_runs_spec_with_a_name_of_its_own(workspace):
    run_id = a_run(workspace, adapter="full", makes="model", evaluate=schema.Evaluate(along=3, budget_s=60.0))
    origin = store.load_spec(workspace, run_id)
    spec, problems = recovery.build(workspace, run_id, at=0.5)
    assert spec is not None and not problems and spec.recover == schema.Recover(run_id, "interpolate", 0.5)
    assert (spec.base, spec.dataset, spec.train, spec.recipe) == (
        origin.base,
        origin.dataset,
        origin.train,
        origin.recipe,
    )
    assert schema.decode(schema.encode(spec)) == spec
    assert recovery.name_of(workspace, spec) == "run 1, half way back"
    scan, _ = recovery.build(workspace, run_id, points=[0.5, 1.0, 0.0, 0.25, 0.25])
    assert scan is not None and scan.recover is not None and scan.recover.points == [0.25, 0.5]
    assert recovery.name_of(workspace, scan) == "Way back from run 1"


def test_a_scan_needs_its_run_and_a_point_that_was_kept_stands_by_itself(workspace):
    run_id = a_run(workspace)
    scan = written(workspace, 2, makes="", kind="recover", recover=schema.Recover(run_id, "scale", None, [0.5]))
    kept = written(workspace, 3, kind="recover", recover=schema.Recover(run_id, "scale", 0.5))
    halted = written(
        workspace, 4, events.Stopped(step=0, resumable=True), makes="", kind="recover",
        recover=schema.Recover(run_id, "scale", 0.75),
    )  # fmt: skip
    found = {one.id: one for one in needs.of(workspace, run_id)}
    assert set(found) == {scan, halted} and {one.how for one in found.values()} == {"way"}
    assert "way back" in found[scan].sentence and "could not go on" in found[halted].sentence
    lifecycle.delete(workspace, run_id, all_the_same=True)
    assert store.exists(workspace, kept) and recovery.saved(workspace, run_id) == [halted, kept]


def test_a_scan_of_a_run_on_another_run_is_not_said_to_stand_on_that_ones_weights(workspace):
    below = a_run(workspace)
    above = written(workspace, 2, base=schema.BaseRef(f"run:{below}"))
    told = {"kind": "recover", "base": schema.BaseRef(f"run:{below}")}
    scan = written(workspace, 3, makes="", recover=schema.Recover(above, "scale", None, [0.5]), **told)
    kept = written(workspace, 4, recover=schema.Recover(above, "scale", 0.5), **told)
    found = {(one.id, one.how) for one in needs.of(workspace, below)}
    assert found == {(above, "base"), (scan, "way"), (kept, "base")}


def test_what_has_no_weights_or_was_not_trained_says_what_to_take_along_instead(workspace, tmp_path):
    run_id = with_curve(workspace)
    scan = recovery.of(workspace, run_id)
    kept = written(workspace, 3, kind="recover", recover=schema.Recover(run_id, "scale", 0.5))
    assert scan is not None
    for what in ("adapter", "card"):
        with pytest.raises(NotExportable, match=f"keeps no weights.*tunebook recover {run_id} --save"):
            archive.write_part(workspace, scan, what, tmp_path / what)
    found = job_runner.problem(workspace, scan, Job(what="merged"))
    assert found is not None and found.rule == "export-scan"
    for one in (scan, kept):
        with pytest.raises(NotExportable, match=f"goes back from another run.*, {run_id}"):
            portable_recipe.of_run(workspace, one)


def test_comparing_a_scan_on_the_command_line_shows_the_way(workspace, capsys):
    run_id = with_curve(workspace)
    scan = recovery.of(workspace, run_id)
    for one in (scan, written(workspace, 9, makes="", kind="recover", recover=schema.Recover(run_id, "scale"))):
        with pytest.raises(SystemExit):
            main(["compare", str(one)])
        said = capsys.readouterr().out
        assert ("Suggested: 50 % of the way" in said) == (one == scan) == ("Nothing was scored yet" not in said)


# --- the page ---------------------------------------------------------------------------------------------------------


def with_curve(workspace: Workspace) -> str:
    """A finished run with a way that was scored, written by hand."""
    run_id = a_run(workspace)
    scan = written(workspace, 2, makes="", kind="recover", recover=schema.Recover(run_id, "scale", None, [0.5]))

    def figure(value: float) -> recovery_curve.Figure:
        return recovery_curve.Figure(value=value, low=value - 0.02, high=value + 0.02)

    points = [
        recovery_curve.Point(at=at, gain=figure(gain), general=figure(general), lines={TASK: figure(gain)})
        for at, gain, general in ((0.0, 0.0, 0.0), (0.5, 0.74, -0.03), (1.0, 0.75, -0.26))
    ]
    suggested = recovery_curve.Suggested(
        at=0.5, halves=(0.5, 0.5), gain=figure(0.74), general=figure(-0.03), got_back=figure(0.23)
    )
    curve = recovery_curve.Curve(
        run=run_id, way="scale", measure=TASK, general_in="points", points=points, suggested=suggested
    )
    write_atomically(workspace.run_dir(scan) / recovery_curve.CURVE, msgspec.json.encode(curve))
    return run_id


@pytest.mark.page
def test_the_page_offers_the_way_and_one_click_starts_one_scan(workspace, monkeypatch):
    run_id, started = a_run(workspace), []
    monkeypatch.setattr(recovery, "start", lambda *a, **k: started.append(a[1]) or "20260101-000009-abcdef")
    app = open_page("forgetting", run=run_id, recover="1")
    assert "6 points between the base and this run" in texts(app) and not has_button(app, "save_point")
    button(app, "score_way").click().run()
    assert not app.exception and [one.recover.points for one in started] == [sorted(recovery.POINTS)]


@pytest.mark.page
def test_the_page_shows_the_point_to_take_and_says_what_was_chosen_by_hand(workspace, monkeypatch):
    run_id, kept = with_curve(workspace), []
    monkeypatch.setattr(recovery, "start", lambda *a, **k: kept.append(a[1]) or run_id)
    app = open_page("forgetting", run=run_id, recover="1")
    assert "Suggested: 50 % of the way" in texts(app) and "set by hand" not in texts(app)
    handle = next(one for one in app.select_slider if str(one.key).startswith("handle_"))
    assert handle.value == 50
    handle.set_value(75).run()
    assert "was not scored" in texts(app) and has_button(app, "score_here")
    button(app, "save_point").click().run()
    assert not app.exception and [one.recover.at for one in kept] == [0.75]


@pytest.mark.page
def test_a_point_is_chatted_with_before_it_is_kept(workspace):
    run_id = with_curve(workspace)
    write_atomically(workspace.run_dir(run_id) / "adapter" / "adapter_model.safetensors", one_tensor())
    app = open_page("chat", run=run_id, at="0.5")
    assert f"run:{run_id}@0.5" in app.multiselect[0].value and has_button(app, "save_point")
    for odd in ("2", "nan", "x", "-1"):
        app = open_page("chat", run=run_id, at=odd)
        assert not [one for one in app.multiselect[0].value if "@" in one] and not has_button(app, "save_point")


def one_tensor() -> bytes:
    header = json.dumps({"a.lora_A.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + b"\0\0\0\0"
