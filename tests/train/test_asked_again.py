"""What a run was asked, put once more when what it was asked of has gone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.models import bases
from engine.spec import OBJECTIVES, recipes
from engine.train import asked_again
from engine.workspace import Workspace

pytestmark = pytest.mark.train


def test_where_the_rows_are_gone_general_knowledge_is_asked_all_the_same(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    spec, _ = recipes.resolve(
        recipes.recipes()["full"],
        base="starter",
        revision=None,
        parameters=None,
        dataset_id="a" * 64,
        overrides={"evaluate.benchmarks": ["toy-world"]},
    )
    told = SimpleNamespace(begin=lambda *_: None)
    run: Any = SimpleNamespace(
        told=told, spec=spec, workspace=workspace, base=bases.describe("starter", workspace), tokenizer=None,
        objective=OBJECTIVES[spec.objective],
    )  # fmt: skip
    origin: Any = SimpleNamespace(evaluations=[])
    asked = asked_again._every(run, origin, None)
    assert [one.benchmark for one in asked] == ["toy-world"]
