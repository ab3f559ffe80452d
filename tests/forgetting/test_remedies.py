"""The order of what can be done about forgetting: by what was measured, and never by what was only said."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.forgetting import remedies
from engine.forgetting.measured import table
from engine.report import Item
from engine.report import items as report_items
from engine.runs import scored as runs_scored
from engine.runs import store
from engine.spec import RunSpec, schema
from engine.workspace import Workspace
from tests.conftest import ROOT
from tests.helpers import finished_run


def run_of(
    adapter: schema.Adapter = "lora", share: float = 0.0, rate: float = 3e-3, recipe: str = "", **changes: Any
) -> RunSpec:  # fmt: skip
    return RunSpec(
        recipe=schema.RecipeRef(recipe or adapter, "0" * 64), adapter=adapter, base=schema.BaseRef("starter"),
        dataset=schema.DatasetRef("d" * 64), train=schema.Train(replay_share=share, learning_rate=rate), **changes,
    )  # fmt: skip


def scored(workspace: Workspace, number: int, spec: RunSpec, kept: int) -> None:
    """A finished run that kept so many of 100 answers the base had right."""
    folder = finished_run(workspace, number, spec)
    for side, right in (("base", 100), ("tuned", kept)):
        asked = [
            Item(item=str(n), family="f", prompt_sha="s", gold=0, choices=["a", "b"], loglikelihoods=[0.0, -1.0],
                 choice=int(n >= right), correct=n < right)
            for n in range(100)
        ]  # fmt: skip
        report_items.write_items(folder / "items" / f"{side}-toy-world.jsonl", asked)


def names(spec: RunSpec, workspace: Workspace | None = None) -> list[str]:
    return [one.name for one in remedies.of(spec, workspace)]


def test_more_replay_is_not_offered_where_it_was_measured_to_change_nothing() -> None:
    """README: LoRA loses as much at 30 % of general rows as at 10 %."""
    assert names(run_of(share=0.0))[:4] == ["kl", "freeze", "oft", "replay"]
    assert names(run_of(share=0.1)) == ["kl", "freeze", "rank", "rate"]
    assert not any("strongest" in one.effect.lower() for one in remedies.of(run_of(share=0.1)))


def test_what_nobody_has_measured_says_so_and_stands_after_what_helped() -> None:
    found = remedies.of(run_of(share=0.1))
    assert [one.name for one in found if one.points is None] == ["rank", "rate"]
    assert all("Not measured" in one.measured for one in found if one.points is None)
    assert names(run_of(objective="dpo")) == ["beta", "rank", "rate"]


def test_pairs_of_runs_of_this_home_count_before_the_starters(workspace) -> None:
    plain = run_of(share=0.1)
    scored(workspace, 1, plain, 80)
    scored(workspace, 2, run_of(share=0.3), 95)
    scored(workspace, 3, run_of(share=0.1, rate=1e-3), 82)
    scored(workspace, 4, run_of(share=0.3, rate=5e-4), 99)  # differs in two things: no pair with the first
    found = {one.name: one for one in remedies.of(plain, workspace)}
    assert list(found)[:2] == ["replay", "rate"]
    assert found["replay"].points == pytest.approx(15) and "here on one pair" in found["replay"].measured
    assert found["rate"].points == pytest.approx((2 + 4) / 2)
    other = msgspec.structs.replace(plain, dataset=schema.DatasetRef("e" * 64))
    assert names(other, workspace) == names(other)  # runs on other rows say nothing of these


def test_being_held_to_the_base_is_offered_where_a_run_can_be_and_counts_pairs_of_it(workspace: Workspace) -> None:
    plain, held = run_of(share=0.1), schema.ObjectiveArgs(keep="kl")
    found = {one.name: one for one in remedies.of(plain)}["kl"]
    assert found.changes == {"objective_args.keep": "kl", "train.replay_share": 0.0} and "3 seeds" in found.measured
    assert found.points == pytest.approx(2.1)  # against 10 % of general rows, as this run has them
    others: tuple[dict[str, Any], ...] = (
        {"objective_args": held}, {"machine": schema.Machine(backend="unsloth")}, {"machine": schema.Machine(devices=2)},
        {"objective": "dpo"},
    )  # fmt: skip
    assert not any("kl" in names(run_of(**other)) for other in others)
    assert "kl" in names(run_of("oft")) and "kl" not in names(run_of("oft", share=0.1))  # less than a point
    scored(workspace, 1, plain, 80)
    scored(workspace, 2, run_of(objective_args=held), 95)
    scored(workspace, 3, run_of(share=0.3, objective_args=held), 70)  # with general rows too: another thing
    best = remedies.best(remedies.of(plain, workspace))
    assert best is not None and best.name == "kl" and best.points == pytest.approx(15)


def test_only_what_runs_of_this_home_support_is_the_one_to_take(workspace: Workspace) -> None:
    plain = run_of(share=0.1)
    assert remedies.best(remedies.of(plain, workspace)) is None  # the starter's figures are of another machine
    scored(workspace, 1, plain, 80)
    scored(workspace, 2, run_of(share=0.3), 95)
    scored(workspace, 3, run_of(share=0.1, rate=1e-3), 79)  # it cost a point
    found = remedies.of(plain, workspace)
    best = remedies.best(found)
    assert best is not None and best.name == "replay" and "rate" not in [one.name for one in found]


def test_a_run_with_a_setting_outside_of_what_is_known_to_work_is_no_half_of_a_pair(workspace: Workspace) -> None:
    plain = run_of(share=0.1)
    scored(workspace, 1, plain, 97)
    scored(workspace, 2, run_of(share=0.1, rate=0.5), 31)
    assert remedies.best(remedies.of(plain, workspace)) is None
    scored(workspace, 3, run_of(share=0.1, rate=1e-3), 99)
    best = remedies.best(remedies.of(plain, workspace))
    assert best is not None and best.points == pytest.approx(2)


def test_a_remedy_is_done_where_a_finished_run_differs_in_it_alone(workspace: Workspace) -> None:
    plain = run_of(share=0.1, rate=4e-3)
    scored(workspace, 1, plain, 80)
    run = runs_scored.of(workspace, store.list_all(workspace)[0].id)
    ways = {one.name: one for one in remedies.of(plain, workspace)}
    assert not any(remedies.done(run, one, store.list_all(workspace)) for one in ways.values())
    scored(workspace, 2, run_of(share=0.1, rate=1e-3, layers="top:0.5"), 80)  # differs in two things
    scored(workspace, 3, run_of(share=0.1, rate=2e-3), 80)  # another rate than the one that is offered
    assert remedies.done(run, ways["rate"], store.list_all(workspace)) is None
    scored(workspace, 4, run_of(share=0.1, rate=1e-3), 80)
    scored(workspace, 5, run_of("full", share=0.1, layers="bottom_frozen:0.5", recipe="freeze-bottom"), 80)
    found = {
        name: there.id
        for name, one in ways.items()
        if (there := remedies.done(run, one, store.list_all(workspace))) is not None
    }
    newest_first = [one.id for one in store.list_all(workspace)]
    assert found == {"rate": newest_first[1], "freeze": newest_first[0]}
    assert remedies.draft(run, ways["rate"]).came_from == f"{run.name}, with a lower rate (0.001)"


def test_no_remedy_promises_more_than_the_run_has_lost(workspace: Workspace) -> None:
    plain = run_of(share=0.1)
    scored(workspace, 1, plain, 80)
    scored(workspace, 2, run_of(share=0.3), 95)
    less, more = (remedies.of(plain, workspace, lost)[0].measured for lost in (3.3, 20.0))
    assert less.endswith("+15.0 points. This run lost 3.3 points, so no more than that can come back.")
    assert more.endswith("+15.0 points.")


def test_each_figure_of_the_starter_stands_in_the_readme() -> None:
    said = Path(ROOT / "README.md").read_text("utf-8").replace("\u2212", "-")
    figures = {float(one) for one in re.findall(r"\| (-\d+\.\d) \[", said)}
    assert table() and {figure for row in table() for figure in (row.before, row.after)} <= figures
