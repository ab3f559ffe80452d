"""Trackers: none by default, refused in words where they are not installed, and told where to write."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest

from engine import starter
from engine.data import Dataset, datasets
from engine.plan import checks
from engine.runs import environment
from engine.spec import RunSpec, schema
from tests import forked
from tests.conftest import tunebook
from tests.helpers import PROJECT_DIR, planned


@pytest.fixture
def dataset(workspace) -> Dataset:
    return datasets.add_sample(workspace, starter.sample("new-facts"))


def built(workspace, dataset, **train: Any) -> tuple[RunSpec, list[str]]:
    overrides = {f"train.{name}": value for name, value in train.items()}
    run_spec, problems = planned(workspace, "lora", base="starter", dataset=dataset.id, overrides=overrides)
    assert run_spec is not None
    return run_spec, [p.sentence for p in problems if p.where == "train.report_to"]


def test_nothing_is_reported_unless_asked_for(workspace, dataset):
    run_spec, problems = built(workspace, dataset)
    assert run_spec.train.report_to == "none" and not problems


@pytest.mark.parametrize("name", checks.TRACKERS)
def test_a_tracker_that_is_not_installed_is_refused_in_words(workspace, dataset, monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    (problem,) = built(workspace, dataset, report_to=name)[1]
    assert f"{name} is not installed" in problem and "pip install" in problem and "none" in problem


@pytest.mark.parametrize("name", checks.TRACKERS)
def test_a_tracker_that_is_installed_may_be_used(workspace, dataset, monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: module in checks.TRACKERS[name])
    assert built(workspace, dataset, report_to=name)[1] == []


def test_a_tracker_nobody_knows_is_refused(workspace, dataset):
    (problem,) = built(workspace, dataset, report_to="all")[1]
    assert "trackio" in problem


def test_figures_lie_beside_the_run_unless_the_user_has_said_otherwise(workspace, dataset, monkeypatch):
    run_spec, _ = built(workspace, dataset)
    run_dir = workspace.run_dir("r1")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    told = environment.environment(run_dir, run_spec)
    assert told["TENSORBOARD_LOGGING_DIR"] == str(run_dir / "tensorboard")
    assert told["MLFLOW_TRACKING_URI"] == f"sqlite:///{workspace.root}/mlflow.db"
    assert told["WANDB_PROJECT"] == "tunebook"
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert environment.environment(run_dir, run_spec)["WANDB_PROJECT"] == "mine"


@pytest.mark.slow
@pytest.mark.train
@pytest.mark.parametrize(
    ("name", "left"),
    [("tensorboard", "runs/*/tensorboard/events*"), ("trackio", "trackio/*.db"), ("mlflow", "mlflow.db")],
)
def test_a_run_reports_to_a_tracker_that_is_installed(workspace, tmp_path, monkeypatch, name, left):
    if not any(importlib.util.find_spec(module) for module in checks.TRACKERS[name]):
        pytest.skip(f"{name} is not installed")
    monkeypatch.setenv("TRACKIO_DIR", str(workspace.root / "trackio"))
    done = tunebook(
        "train", "lora", "--data", "new-facts", "--wait", "--set", f"train.report_to={name}",
        "--set", "train.max_steps=4", "--set", "evaluate.benchmarks=[]", "--set", "train.replay_share=0",
        home=workspace.root, machine=tmp_path / "machine",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path for path in workspace.root.glob(left) if path.stat().st_size > 100]


@pytest.mark.train
def test_the_trainer_is_told_which_tracker_and_the_name_of_the_run(workspace, dataset):
    code = """
import json, sys
from pathlib import Path
from engine.spec import schema
from engine.estimate.machine_choices import Chosen
from engine.train.objectives import common
run_spec = schema.decode(sys.argv[1].encode())
chosen = Chosen("plain", "fp32", False, "adamw", False, ())
told = common.arguments(run_spec, Path("/x/r1"), 10, evaluates=False, device="cpu", chosen=chosen)
print(json.dumps([told["report_to"], told["run_name"], told["project"]]))
"""
    run_spec, _ = built(workspace, dataset, report_to="trackio")
    done = forked.run_python(code, schema.encode(run_spec).decode(), cwd=PROJECT_DIR)
    assert json.loads(done.stdout.splitlines()[-1]) == ["trackio", "r1", "tunebook"], done.stderr
