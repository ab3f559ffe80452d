"""Sweeps: which runs they come to, that stopping and resuming runs nothing twice, and what is read out of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine import events, starter
from engine.data import datasets
from engine.forgetting import claims, sweep_drive, sweep_plan
from engine.report import frontier
from engine.runs import lifecycle, store
from engine.spec import RunSpec, schema
from engine.words import Problem
from engine.workspace import Workspace
from tests import forked
from tests.conftest import tunebook
from tests.helpers import planned


@pytest.fixture
def data(workspace: Workspace) -> str:
    return datasets.add_sample(workspace, starter.sample("new-facts")).id


def plan(workspace: Workspace, data: str, **more: Any) -> tuple[sweep_plan.Sweep, list[Problem]]:
    given: dict[str, Any] = {"title": "a sweep", "base": "starter", "recipes": ["full", "lora"], **more}
    return sweep_plan.make(workspace, data=data, **given)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("train.replay_share=0,0.05", [0, 0.05]),
        ("train.epochs=3", [3]),
        ("layers=top:0.25,[2, 3]", ["top:0.25", [2, 3]]),
        ("evaluate.benchmarks=[blimp,toy-world],[]", [["blimp", "toy-world"], []]),
        ("adapter_args.target_modules=q_proj,v_proj;all-linear", ["q_proj,v_proj", "all-linear"]),
    ],
)
def test_values_are_divided_and_lists_keep_their_commas(text, values):
    assert sweep_plan.parse_values(text) == (text.partition("=")[0], values)


def test_an_unknown_setting_is_named():
    parsed = sweep_plan.parse_values("train.speed=1,2")
    assert isinstance(parsed, Problem) and parsed.rule == "setting-unknown"


def test_recipes_settings_and_seeds_are_all_combined(workspace, data):
    made, problems = plan(workspace, data, settings={"train.replay_share": [0, 0.05]}, seeds=3)
    assert problems == [] and len(made.trials) == 12
    assert [trial.seed for trial in made.trials] == sorted(trial.seed for trial in made.trials)
    assert len({json.dumps([t.recipe, t.set, t.seed]) for t in made.trials}) == 12


def test_everything_wrong_with_a_sweep_is_said_at_once_and_once(workspace, data):
    settings = {"train.learning_rate": [0.001, 7], "evaluate.benchmarks": [["nothing"]]}
    _, problems = plan(workspace, data, settings=settings, recipes=["full", "no-such"], seeds=0)
    said = [problem.sentence for problem in problems]
    assert len(said) == len(set(said))
    assert any("there is no recipe no-such" in text for text in said)
    assert any("Full fine-tuning" in text and "learning_rate cannot be 7" in text for text in said)
    assert any("there is no benchmark nothing" in text for text in said)
    assert any("the sweep has no point" in text for text in said)


def test_a_slip_of_the_finger_does_not_start_a_thousand_runs(workspace, data):
    _, problems = plan(workspace, data, seeds=1000)
    assert [problem.rule for problem in problems] == ["sweep-large"]


@pytest.mark.parametrize("name", sorted(sweep_plan.ready_made()))
def test_each_ready_made_sweep_can_run_on_the_starter(name, workspace, data):
    ready = sweep_plan.ready_made()[name]
    made, problems = plan(
        workspace, data, recipes=ready.recipes, settings=ready.settings, also=ready.also, seeds=ready.seeds
    )
    assert problems == [] and ready.title and ready.about
    wanted = {"recipes": 24, "claims": 27, "ranks": 12, "replay": 15, "keep": 18}.get(name)
    # the sample has 240 rows, so that every step of the ladder of rows comes to all of them, once
    assert len(made.trials) == (wanted if wanted is not None else 3)


def test_the_guides_low_rate_is_a_quarter_of_the_recipes_own(workspace, data):
    ready = sweep_plan.ready_made()["claims"]
    made, _ = plan(workspace, data, recipes=[], also=ready.also)
    usual, _ = planned(workspace, "full", base="starter", dataset=data, overrides={})
    assert usual is not None
    assert made.trials[0].set["train.learning_rate"] == pytest.approx(usual.train.learning_rate / 4)


# --- driving -------------------------------------------------------------------------------------------------------


class Queue:
    """Stands for the runs that a sweep starts: each ends as it is told to, or when the sweep is asked to stop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, workspace: Workspace, ends: dict[int, str]):
        self.states: dict[str, str] = {}
        self.started: list[str] = []
        self.resumed: list[str] = []
        self._ends, self._workspace = ends, workspace
        for module, names in ((lifecycle, ("start", "resume", "stop")), (store, ("status", "exists"))):
            for name in names:
                monkeypatch.setattr(module, name, getattr(self, name))

    def start(self, workspace: Workspace, run_spec: RunSpec, *, name: str, click_id: str) -> str:
        if click_id in self.started:
            return f"run-{self.started.index(click_id)}"
        self.started.append(click_id)
        run_id = f"run-{len(self.started) - 1}"
        self.states[run_id] = self._ends.get(len(self.started) - 1, "finished")
        return run_id

    def resume(self, workspace: Workspace, run_id: str) -> None:
        self.resumed.append(run_id)
        self.states[run_id] = "finished"

    def status(self, workspace: Workspace, run_id: str) -> str:
        return self.states[run_id]

    def exists(self, workspace: Workspace, run_id: str) -> bool:
        return run_id in self.states

    def stop(self, workspace: Workspace, run_id: str) -> None:
        self.states[run_id] = "stopped"


def swept(workspace: Workspace, made: sweep_plan.Sweep) -> Path:
    run_dir = workspace.run_dir("20261124-201516-0a1b2c")
    run_dir.mkdir(parents=True)
    (run_dir / "sweep.json").write_bytes(msgspec.json.encode(made))
    return run_dir


def last(run_dir: Path) -> Any:
    return events.read(run_dir)[0][-1]


def test_a_sweep_runs_every_point_once_and_says_how_far_it_is(workspace, data, monkeypatch):
    made, _ = plan(workspace, data, seeds=2)
    run_dir, queue = swept(workspace, made), Queue(monkeypatch, workspace, {})
    sweep_drive.drive(run_dir)
    assert isinstance(last(run_dir), events.Finished) and len(queue.started) == 4
    done = [e.done for e in events.read(run_dir)[0] if isinstance(e, events.Progress)]
    assert done == [0, 1, 2, 3, 4]
    assert [trial.run for trial in sweep_drive.load(workspace, run_dir.name).trials] == [f"run-{i}" for i in range(4)]
    sweep_drive.drive(run_dir)  # once more: nothing is left to do
    assert len(queue.started) == 4 and queue.resumed == []


def test_a_failed_point_does_not_stop_the_others_and_is_taken_up_again(workspace, data, monkeypatch):
    made, _ = plan(workspace, data, seeds=2)
    run_dir, queue = swept(workspace, made), Queue(monkeypatch, workspace, {1: "failed"})
    sweep_drive.drive(run_dir)
    end = last(run_dir)
    assert (
        isinstance(end, events.Failed) and str(end.message) == "1 of 4 runs did not finish" and len(queue.started) == 4
    )
    sweep_drive.drive(run_dir)
    assert isinstance(last(run_dir), events.Finished) and queue.resumed == ["run-1"] and len(queue.started) == 4


def test_a_stop_stops_the_run_in_hand_and_resuming_goes_on_there(workspace, data, monkeypatch):
    made, _ = plan(workspace, data, seeds=2)
    run_dir, queue = swept(workspace, made), Queue(monkeypatch, workspace, {1: "running"})
    monkeypatch.setattr(sweep_drive.time, "sleep", lambda _: (run_dir / "stop").touch())
    sweep_drive.drive(run_dir)
    assert isinstance(last(run_dir), events.Stopped) and len(queue.started) == 2 and queue.states["run-1"] == "stopped"
    (run_dir / "stop").unlink()
    sweep_drive.drive(run_dir)
    assert isinstance(last(run_dir), events.Finished) and queue.resumed == ["run-1"] and len(queue.started) == 4


def test_killed_between_a_start_and_its_note_the_same_run_is_found_again(workspace, data, monkeypatch):
    made, _ = plan(workspace, data, seeds=1)
    run_dir, queue = swept(workspace, made), Queue(monkeypatch, workspace, {})
    sweep_drive.drive(run_dir)
    (run_dir / "sweep.json").write_bytes(msgspec.json.encode(made))  # as if nothing had been noted
    sweep_drive.drive(run_dir)
    assert len(queue.started) == 2


# --- what came out -------------------------------------------------------------------------------------------------


def configuration(recipe: str, changes: list[float], gain: float = 0.7, **more: Any) -> claims.Configuration:
    made = RunSpec(
        recipe=schema.RecipeRef(recipe, "0"),
        base=schema.BaseRef("starter"),
        dataset=schema.DatasetRef("d"),
        adapter=recipe if recipe in ("lora", "oft") else "full",
        layers="bottom_frozen:0.5" if recipe == "freeze-bottom" else "all",
        train=schema.Train(replay_share=more.get("replay", 0.0), learning_rate=more.get("rate", 2e-3)),
    )
    seeds = [
        frontier.Point(name="", runs=[f"{recipe}-{i}"], measure="new-task-choices", gain=gain, gain_low=gain, gain_high=gain,
                     new_task=gain, change=x, change_low=x, change_high=x, retention=1 + x, retention_low=1 + x,
                     retention_high=1 + x)
        for i, x in enumerate(changes)
    ]  # fmt: skip
    name = sweep_plan.label(recipe, {"train.replay_share": more.get("replay", 0.0)})
    return claims.Configuration(
        name=name, recipe=recipe, set={}, point=frontier.over_seeds(name, seeds), seeds=seeds, spec=made
    )


def verdicts(*found: claims.Configuration) -> dict[str, str]:
    return {claim.rule: claim.verdict for claim in claims.claims(found)}


def test_the_claims_are_confirmed_by_intervals_over_seeds():
    full = configuration("full", [-0.26, -0.25, -0.27])
    assert verdicts(full, configuration("lora", [-0.001, 0.001, 0.0])) == {
        "M1": "confirmed", "M4": "not tested", "M2": "not tested", "M3": "not tested",
    }  # fmt: skip
    assert verdicts(full, configuration("lora", [-0.07, -0.06, -0.08]))["M1"] == "partly confirmed"
    assert verdicts(full, configuration("lora", [-0.3, -0.1, -0.4]))["M1"] == "not confirmed"
    both = [configuration("lora", [-0.001, 0.0, 0.001]), configuration("oft", [-0.3, -0.1, -0.4])]
    assert verdicts(full, *both)["M1"] == "partly confirmed"
    assert verdicts(full, configuration("full", [-0.14, -0.15, -0.13], replay=0.05))["M4"] == "confirmed"
    assert verdicts(full, configuration("full", [-0.34, -0.35, -0.33], replay=0.05))["M4"] == "not confirmed"
    assert verdicts(full, configuration("freeze-bottom", [-0.01, -0.02, -0.01]))["M2"] == "confirmed"
    assert verdicts(full, configuration("full", [-0.1, -0.09, -0.11], rate=5e-4))["M3"] == "confirmed"


def test_one_seed_cannot_tell():
    found = [configuration("full", [-0.3]), configuration("lora", [0.0])]
    assert verdicts(*found)["M1"] == "not tested"
    (claim,) = [one for one in claims.claims(found) if one.rule == "M1"]
    assert claim.sentence.startswith("LoRA, replay 0 changed by")
    assert "One seed cannot tell which is better" in frontier.seed_note([one.point for one in found])
    noisy = [msgspec.structs.replace(one.point, gain_low=0.62, gain_high=0.78, change_low=-0.33, change_high=-0.27)
             for one in found]  # fmt: skip
    # half widths of 8 and 3 points, whose squares add up
    assert "under 11 points gained, or 4 points of general knowledge, may be chance" in frontier.seed_note(noisy)
    apart = [msgspec.structs.replace(one, name=name, gain_low=gain - 0.05, gain_high=gain + 0.05, change_low=change - 0.05,
             change_high=change + 0.05) for one, name, gain, change in zip(noisy, "ab", (0.75, 0.01), (-0.03, -0.69),
             strict=True)]  # fmt: skip
    assert frontier.seed_note(apart).startswith("a is better in both, beyond the noise of the questions.")
    assert frontier.seed_note(apart, apart[0]).startswith("It is better in both")  # its name stands just above
    assert "better in both" not in frontier.seed_note([apart[0], msgspec.structs.replace(apart[1], gain_high=0.72)])
    repeated = [configuration("full", [-0.26, -0.25]), configuration("lora", [-0.07, -0.06])]
    assert frontier.seed_note([one.point for one in repeated]) == "" == frontier.seed_note([found[0].point])


def test_a_low_rate_says_what_it_cost_in_learning():
    slow = configuration("full", [-0.01, -0.02, -0.01], gain=0.2, rate=5e-4)
    (claim,) = [c for c in claims.claims([configuration("full", [-0.26, -0.25, -0.27]), slow]) if c.rule == "M3"]
    assert "with +20.0 [+20.0, +20.0] against +70.0 [+70.0, +70.0] gained" in claim.sentence


def test_the_table_has_a_line_for_each_configuration_and_the_claims():
    found = [configuration("full", [-0.26, -0.25, -0.27], gain=0.76), configuration("lora", [-0.07, -0.06, -0.08])]
    marked = frontier.frontier([one.point for one in found])
    found = [msgspec.structs.replace(one, point=point) for one, point in zip(found, marked, strict=True)]
    text = claims.markdown(
        claims.Result(id="s", title="t", status="finished", finished=6, total=6, configurations=found,
                      claims=claims.claims(found))
    ).splitlines()  # fmt: skip
    assert text[2].startswith("| LoRA, replay 0 | 3 | +70.0 [+70.0, +70.0] | -7.0 [-9.5, -4.5] | 93.0 | yes |")
    assert text[3].startswith("| Full fine-tuning, replay 0 | 3 | +76.0")
    assert next(line for line in text if line.startswith("- ")).startswith(
        "- LoRA and OFT naturally prevent forgetting (M1)"
    )


@pytest.mark.train
def test_a_real_sweep_of_two_points_ends_in_the_frontier(tmp_path: Path):
    home, machine = tmp_path / "home", tmp_path / "machine"
    done = tunebook(
        "sweep", "--recipes", "lora", "--set", "train.replay_share=0,0.1", "--set", "train.max_steps=4",
        "--set", "train.evaluations=1", "--set", "evaluate.limit=20", "--data", "new-facts", "--seeds", "1", "--wait",
        home=home, machine=machine, module=forked.module("cli"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| LoRA, replay 0.1, most steps 4" in done.stdout and "| yes |" in done.stdout
    workspace = Workspace(home)
    (sweep,) = sweep_drive.list_all(workspace)
    found = claims.result(workspace, sweep.id)
    assert (found.status, found.finished, found.total) == ("finished", 2, 2) and sweep.progress == 1.0
    assert all(one.point.gain is not None and one.point.retention is not None for one in found.configurations)
    shown = tunebook("compare", sweep.id, "--json", home=home, machine=machine)
    assert {row["run"] for row in json.loads(shown.stdout)} == {
        t.run for t in sweep_drive.load(workspace, sweep.id).trials
    }
    assert store.load_spec(workspace, sweep.id).kind == "sweep"
