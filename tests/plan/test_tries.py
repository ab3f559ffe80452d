"""A first try on 1,000 rows of a large file, one click before the whole, and the way from it to all rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine import events
from engine.data import Dataset, datasets
from engine.plan import plans, tries
from engine.runs import lifecycle, store
from engine.workspace import Workspace
from tests.apps import button, open_page, shown

LONG = {"train.epochs": 500}


@pytest.fixture
def many(workspace: Workspace, tmp_path: Path, monkeypatch) -> Dataset:
    monkeypatch.setenv("TUNEBOOK_MACHINE_DIR", str(tmp_path / "machine"))
    monkeypatch.setattr(lifecycle, "_spawn", lambda *_: None)
    file = tmp_path / "many.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"q{n}", "completion": f"a{n}"}) + "\n" for n in range(6000)))
    return datasets.add(workspace, file, "many.jsonl")


def planned(workspace: Workspace, rows: Dataset, **overrides: Any) -> Any:
    return plans.make(workspace, "lora", base="starter", dataset=rows, overrides={**LONG, **overrides})


def finish(workspace: Workspace, run_id: str) -> None:
    log = events.EventLog(workspace.run_dir(run_id))
    log.append(events.Finished(step=1))
    log.close()


def test_a_try_comes_first_on_many_rows_that_take_long_until_one_was_made(workspace, many) -> None:
    plan = planned(workspace, many)
    assert plan.rows > tries.MANY_ROWS and plan.time.likely_s > tries.LONG_S and tries.comes_first(plan)
    assert not tries.comes_first(planned(workspace, many, **{"train.epochs": 0.1}))  # quick
    assert not tries.comes_first(planned(workspace, many, **{"dataset.most_rows": 2000}))  # it is one
    tried = tries.of(plan)
    assert tried is not None and tried.rows == 1000 and tried.spec.train == plan.spec.train
    finish(workspace, lifecycle.start(workspace, tried.spec))
    assert not tries.comes_first(plan)


@pytest.mark.page
def test_the_first_button_starts_the_try_and_its_page_leads_on_to_all_rows(workspace, many) -> None:
    state = {"overrides": dict(LONG)}
    app = open_page("train", state, dataset=many.id)
    assert shown(button(app, "try_first").label).startswith("Try 1,000 rows first (about ")
    button(app, "try_first").click().run()
    (run,) = store.list_all(workspace)
    assert store.load_spec(workspace, run.id).dataset.most_rows == 1000
    finish(workspace, run.id)
    app = open_page("runs", run=run.id)
    button(app, "all_rows").click().run()
    (saved,) = (workspace.root / "drafts").glob("*.json")
    app = open_page("train", draft=saved.stem)
    assert next(m for m in app.metric if m.label == "Rows to train on").value == "5,500"
    assert "try_first" not in [one.key for one in app.button] or "then all" not in button(app, "try_first").label
    assert button(app, "start").label == "Start"
