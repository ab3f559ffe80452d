"""Trainings of which people have reported that the figures were not what was trained: real ones, so they are slow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine import events, starter
from engine.report import items
from engine.runs import lifecycle
from engine.workspace import Workspace
from tests.helpers import wait_until
from tests.tiny_models import CODES
from tests.train.test_train import train

pytestmark = [pytest.mark.slow, pytest.mark.train]
QUIET = ("--set", "evaluate.benchmarks=[]", "--set", "train.threads=1")


def settings(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("--set", pair)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def said(run_dir: Path, kind: type) -> list[Any]:
    return [event for event in events.read(run_dir)[0] if isinstance(event, kind)]


def adapter(run_dir: Path) -> dict[str, Any]:
    return load_file(run_dir / "adapter" / "adapter_model.safetensors")


def test_a_run_of_one_step_learns_and_its_first_loss_is_that_of_the_formula(tmp_path):
    """26 pairs at DPO's own values for a real model: all of them are one step, which was the warm-up's at rate 0."""
    lines = starter.sample("preference-pairs").file.read_text().splitlines()[:34]
    data = write(tmp_path / "pairs.jsonl", [json.loads(line) for line in lines])
    small = settings("train.batch_size=4", "train.accumulation=8", "train.epochs=1", "train.warmup=0.1")
    status, _, run_dir = train(tmp_path, "dpo", "--data", data, *QUIET, *small)
    assert status == 0
    (step,) = said(run_dir, events.Step)
    assert step.learning_rate > 0 and step.loss == pytest.approx(0.693147, abs=1e-4)
    assert all(bool(tensor.any()) for name, tensor in adapter(run_dir).items() if "lora_B" in name)
    assert said(run_dir, events.Finished)[-1].moved


def test_ktos_first_loss_is_that_of_the_formula(tmp_path):
    """Before the first step nothing differs from the reference: half of each row's weight."""
    small = settings("train.max_steps=1", "objective_args.weights=[1.0, 1.0]")
    status, _, run_dir = train(tmp_path, "kto", "--data", "good-bad", *QUIET, *small)
    assert status == 0 and said(run_dir, events.Step)[0].loss == pytest.approx(0.5, abs=1e-4)


def test_a_run_that_moves_nothing_says_so(tmp_path):
    small = settings("train.max_steps=2", "train.learning_rate=1e-60", "train.replay_share=0")
    status, _, run_dir = train(tmp_path, "lora", "--data", "new-facts", *QUIET, *small)
    assert status == 0 and not said(run_dir, events.Finished)[-1].moved
    assert any("Nothing was learned" in str(e.text) for e in said(run_dir, events.Log) if e.level == "warning")


def test_one_step_cut_into_passes_in_two_ways_makes_the_same_weights(tmp_path):
    lengths = [1, 40, 3, 25, 2, 60, 7, 1] * 12 + [5, 9, 33]
    rows = [{"prompt": f"Say {n} words.", "completion": " ".join(["stone"] * n)} for n in lengths]
    data, made = write(tmp_path / "unequal.jsonl", rows), []
    for batch, passes in ((16, 1), (2, 8)):
        small = settings(
            f"train.batch_size={batch}", f"train.accumulation={passes}", "train.epochs=1", "train.replay_share=0"
        )
        status, _, run_dir = train(tmp_path, "lora", "--data", data, *QUIET, *small)
        assert status == 0
        made.append((adapter(run_dir), [step.loss for step in said(run_dir, events.Step)]))
    (one, losses), (other, others) = made
    assert losses == pytest.approx(others, abs=1e-5)
    assert all((one[name] - other[name]).norm() <= 1e-4 * one[name].norm() for name in one)


def test_the_best_weights_are_kept_though_the_home_has_moved_since(tmp_path):
    """Rows that can only be learned by heart: their held-out loss is lowest early, before the home moves."""
    data = write(tmp_path / "codes.jsonl", CODES)
    wild = settings(
        "train.max_steps=60", "train.evaluations=6", "train.learning_rate=0.01", "train.warmup=0", "train.keep_best=true",
        "train.schedule=constant", "train.replay_share=0", "dataset.eval_share=0.25",
    )  # fmt: skip
    status, run_id, run_dir = train(tmp_path, "lora", "--data", data, *QUIET, *wild, "--name", "whole")
    assert status == 0
    whole = {event.step: event.loss for event in said(run_dir, events.Eval)}
    best = min(whole, key=lambda step: whole[step])
    assert best < 60
    first = run_dir

    # the same run, whose last checkpoint is all there is, as if it had been stopped there
    moved = tmp_path / "elsewhere"
    workspace = Workspace(tmp_path / "home")
    again = lifecycle.start(workspace, _spec(workspace, run_id), name="again")
    _until(workspace.run_dir(again), lambda found: any(isinstance(e, events.Eval) and e.step > best for e in found))
    lifecycle.stop(workspace, again)
    _until(workspace.run_dir(again), _ended)
    shutil.move(workspace.root, moved)
    workspace = Workspace(moved)
    before = len(events.read(workspace.run_dir(again))[0])
    lifecycle.resume(workspace, again)
    _until(workspace.run_dir(again), lambda found: _ended(found[before:]))
    run_dir = workspace.run_dir(again)
    (kept,) = [str(event.text) for event in said(run_dir, events.Log) if event.level == "result"]
    assert kept.startswith(f"Kept: the weights of step {best} of 60")
    whole_run, again_run = adapter(first), adapter(run_dir)
    assert all(torch.equal(again_run[name], weights) for name, weights in whole_run.items())
    # the rows that chose are not in the report
    unseen = [
        one for one in items.read_items(run_dir / "items" / "tuned-new-task-loss.jsonl") if one.family == items.UNSEEN
    ]
    assert len(unseen) == len(CODES) // 8


def _spec(workspace: Workspace, run_id: str) -> Any:
    from engine.runs import store

    return store.load_spec(workspace, run_id)


def _ended(found: list[Any]) -> bool:
    return any(isinstance(event, events.TERMINAL) for event in found)


def _until(run_dir: Path, condition: Any) -> None:
    wait_until(lambda: condition(events.read(run_dir)[0]), 300, f"{run_dir.name}: {condition}")
