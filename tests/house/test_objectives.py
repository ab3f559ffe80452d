"""A new objective costs three files: its code, its entry in OBJECTIVES, its recipe. One is added to a copy and used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

# Learn from the answers that someone called good, and leave the bad ones out.
MODULE = '''
"""Supervised fine-tuning on the good ones of marked answers."""

from engine.train import rows
from engine.train.objectives import common, sft
from engine.train.run import Run
from engine.train.tokenize import encode


def prepare(run: Run) -> None:
    train, unseen = rows.divide(run.spec, run.workspace)
    train, unseen = [one for one in train if one["label"]], [one for one in unseen if one["label"]]
    coded = [[encode(row, run.tokenizer, run.length) for row in some] for some in (train, unseen)]
    asked = rows.prompts(unseen, run.tokenizer)
    run.rows = rows.Rows(coded[0], [], coded[1], rows.to_score(train, unseen), asked, [f"{len(train)} good answers"])


config = sft.config
trainer = sft.trainer
samples = common.written_samples
questions = sft.questions
'''
ENTRY = """
OBJECTIVES["selected"] = Objective(
    name="selected", label="Selected", method="fine-tuning on good answers", goal="Answer as the good rows do",
    data_types=("unpaired-preference",)
)
"""
NAME = "selected"
MODULE_PATH = f"engine/train/objectives/{NAME}.py"
ENTRY_PATH = "engine/spec/objectives.py"
RECIPE_PATH = f"recipes/{NAME}.yaml"


def add_objective(project: Path) -> None:
    (project / MODULE_PATH).write_text(MODULE)
    table = project / ENTRY_PATH
    table.write_text(table.read_text() + ENTRY)
    recipe = yaml.safe_load((project / "recipes" / "lora.yaml").read_text())
    recipe |= {
        "title": "Selected",
        "objective": "selected",
        "data_types": ["unpaired-preference"],
        "sample": "good-bad",
    }
    for values in (recipe["defaults"], *(size["set"] for size in recipe["sizes"])):
        values.pop("train.replay_share", None)
    (project / RECIPE_PATH).write_text(yaml.safe_dump(recipe))


def contents(project: Path) -> dict[str, bytes]:
    return {str(path.relative_to(project)): path.read_bytes() for path in project.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the objective in it, after a run of it on the starter."""
    project = tmp_path_factory.mktemp("extended")
    for name in ("engine", "pages", "recipes", ".streamlit"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "app.py", project)
    before = contents(project)
    add_objective(project)
    after = contents(project)
    assert [name for name in sorted(after) if after[name] != before.get(name)] == [ENTRY_PATH, MODULE_PATH, RECIPE_PATH]
    return project


def run(project: Path, *arguments: str, code: int = 0) -> str:
    """Run Python on the copy; what it says."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=project, capture_output=True, text=True, timeout=300,
        env={**os.environ, "TUNEBOOK_HOME": str(project / "home"), "TUNEBOOK_MACHINE_DIR": str(project / "machine")},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout or done.stderr


PAGES = """
import sys
from streamlit.testing.v1 import AppTest
run_id, dataset_id = sys.argv[1:]
for page in ("train", "advisor", "forgetting"):
    app = AppTest.from_file("pages/_frame.py", default_timeout=60)
    app.switch_page(f"{page}.py")
    app.session_state["why"], app.session_state["why_part"] = True, "others"  # the advisor's other ways
    app.query_params["dataset"], app.query_params["run"] = dataset_id, run_id
    app.run()
    assert not app.exception, (page, app.exception)
    print(page, [one.options for one in app.selectbox], [one.label for one in app.button])
    print(*[one.value for one in (*app.markdown, *app.info)])
"""


@pytest.mark.slow
@pytest.mark.train
def test_an_objective_is_one_recipe_one_module_and_one_entry(extended: Path):
    """It trains, is scored against its base, is exported or refused in words, and stands on the pages."""
    command = ("-m", "engine.cli")
    short = ("--set", "train.max_steps=2", "--set", "train.evaluations=1", "--set", "evaluate.limit=24")
    done = run(extended, *command, "train", "selected", "--data", "good-bad", "--wait", "--json", *short)
    run_id = json.loads(done)["id"]
    folder = extended / "home" / "runs" / run_id
    spec = json.loads((folder / "spec.json").read_text())
    assert spec["objective"] == "selected" and "217 good answers" in (folder / "events.jsonl").read_text()

    compared = run(extended, *command, "compare", run_id)
    assert "new-task-exact" in compared and "toy-world" in compared
    refused = run(extended, *command, "export", run_id, "--what", "trl", "--to", "trl", code=1)
    assert "Selected is not written for it here" in refused
    said = run(extended, "-c", PAGES, run_id, spec["dataset"]["id"])
    train, advisor = said.split("advisor ")
    assert "'Selected'" in train and "Selected with LoRA" in advisor
