"""What was uploaded in any form, or repaired, trains: from the file to a finished run through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from engine.check import check_file
from engine.data import Dataset, datasets, fixes
from engine.data.fixes import AS_TEXT, CONVERT_LABELS, STRIP_BOM
from engine.read.formats import TYPES
from engine.workspace import Workspace
from tests.check.test_check_cases import CASES, INDEX
from tests.train.test_train import train

pytestmark = pytest.mark.train

TINY = ("--set", "train.max_steps=2", "--set", "train.evaluations=1", "--set", "train.threads=1",
        "--set", "evaluate.benchmarks=[]")  # fmt: skip


def mapped_csv(path: Path) -> tuple[str, ...]:
    rows = [f'{n},"What is {n}, doubled?","It is {2 * n}.\nOr ""{n} + {n}""."' for n in range(12)]
    path.write_text("\r\n".join(["id,ask,reply", *rows, "13,,", "14,too few"]) + "\r\n")
    return "lora", "--map", "ask=prompt", "--map", "reply=completion", "--drop-bad-rows"


def parquet(path: Path) -> tuple[str, ...]:
    messages = [
        [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"A number, {n}."}]
        for n in range(12)
    ]
    pyarrow.parquet.write_table(pyarrow.table({"messages": messages}), path)
    return ("lora",)


def labels_as_words(path: Path) -> tuple[str, ...]:
    labels = ["yes", "no", 1, 0, "true", "false"] * 2
    rows = [{"prompt": f"Is {n} even?", "completion": "Yes.", "label": label} for n, label in enumerate(labels)]
    path.write_text("\ufeff" + "\n".join(map(json.dumps, rows)))
    return "kto", "--fix", STRIP_BOM, "--fix", CONVERT_LABELS


def plain_text(path: Path) -> tuple[str, ...]:
    path.write_text("\n\n".join(f"It was day {n}, and the sun came up\nas it had before." for n in range(12)))
    return "lora", "--fix", AS_TEXT


@pytest.mark.parametrize(
    "write", [mapped_csv, parquet, *(pytest.param(w, marks=pytest.mark.slow) for w in (labels_as_words, plain_text))]
)
def test_a_file_trains_whatever_its_container_its_columns_and_its_repairs(tmp_path, write):
    path = tmp_path / "data"
    recipe, *how = write(path)
    status, _, _ = train(tmp_path, recipe, "--data", str(path), *how, *TINY)
    assert status == 0  # finished
    [dataset] = datasets.list_all(Workspace(tmp_path / "home"))
    assert dataset.good_rows == 12 and dataset.trainable


def fixable() -> list[str]:
    """The samples for which a repair is offered."""
    cases = [case for case in INDEX.values() if "base" not in case and "against" not in case]
    return sorted({case["file"] for case in cases if fixes.offers(_report(case["file"]))})


def _report(name: str):
    mapping = next((case.get("mapping") for case in INDEX.values() if case["file"] == name), None)
    return check_file(CASES / name, mapping=mapping)


def repaired(workspace: Workspace, name: str) -> Dataset:
    offered = fixes.offers(_report(name))
    return datasets.add(workspace, CASES / name, name, fixes=list(offered))


@pytest.mark.parametrize("name", fixable())
def test_the_fix_of_each_fixable_sample_checked_again_has_no_errors(workspace, name):
    fixed = repaired(workspace, name)
    again = check_file(fixed.folder / "original")
    assert (again.errors, again.type) == ({}, fixed.report.type) and again.rows == fixed.good_rows > 0


RECIPES = {
    "language-modeling": "lora", "prompt-completion": "lora", "preference": "dpo", "unpaired-preference": "kto",
    "prompt-only": None, "stepwise": None,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", fixable())
def test_the_fix_of_each_fixable_sample_trains(tmp_path, name):
    workspace = Workspace(tmp_path / "home")
    fixed = repaired(workspace, name)
    recipe = RECIPES[fixed.report.type or ""]
    if recipe is None:
        pytest.skip("no recipe trains on this kind of data")
    status, _, _ = train(tmp_path, recipe, "--data", fixed.id, *TINY)
    assert status == (0 if fixed.good_rows > 1 else 2)  # a single row is no data: refused before the start


def test_every_kind_of_data_has_a_recipe_or_none():
    assert RECIPES.keys() == set(TYPES)
