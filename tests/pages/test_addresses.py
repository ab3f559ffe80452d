"""What an address causes by itself: nothing is asked of the hub, started, or noted before somebody has clicked."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine import starter
from engine.data import datasets, jobs
from engine.models import bases, shortlist
from engine.plan import drafts
from engine.spec import schema
from engine.workspace import Workspace
from tests.apps import button, has_button, open_page, texts
from tests.helpers import fake_spec
from tests.hub import Hub, Repository
from tests.models.test_bases import CONFIG, model
from tests.models.test_hub import repository
from tests.models.test_hub import server as server  # a fixture


@pytest.fixture
def hub(server: Hub) -> Hub:
    server.models["tiny/open"] = Repository(repository())
    return server


@pytest.mark.parametrize("page", ["train", "advisor"])
def test_the_hub_is_asked_about_a_base_of_an_address_after_a_click_only(hub: Hub, page: str) -> None:
    app = open_page(page, base="tiny/open").run()
    assert hub.requests == [] and "The address names tiny/open" in texts(app) and not has_button(app, "download_base")
    button(app, "take_named_base").click().run()
    assert hub.requests and has_button(app, "download_base") and not has_button(app, "take_named_base")


@pytest.mark.parametrize("page", ["data", "chat"])
def test_no_other_page_asks_the_hub_about_a_base_of_an_address(hub: Hub, page: str) -> None:
    open_page(page, base="tiny/open").run()
    assert hub.requests == []


def test_a_draft_or_a_run_of_an_address_asks_the_hub_nothing_either(hub: Hub, workspace: Workspace) -> None:
    draft = drafts.save(workspace, drafts.Draft(recipe="lora", base="tiny/open"))
    run = workspace.run_dir("20260101-000000-abcdef")
    run.mkdir(parents=True)
    made = msgspec.structs.replace(fake_spec(), base=schema.BaseRef("tiny/open"))
    (run / "spec.json").write_bytes(schema.encode(made))
    for app in (open_page("train", draft=draft), open_page("train", run=run.name)):
        assert has_button(app, "take_named_base") and hub.requests == []


def test_a_draft_that_a_click_has_opened_is_gone_on_with(hub: Hub, workspace: Workspace) -> None:
    draft = drafts.save(workspace, drafts.Draft(recipe="lora", base="tiny/open"))
    app = open_page("train", state={"clicked_draft": draft}, draft=draft)
    assert hub.requests and has_button(app, "download_base")


def test_no_folder_of_an_address_is_noted_and_no_model_counted(workspace: Workspace, monkeypatch) -> None:
    begun: list[str] = []
    monkeypatch.setattr(bases.counted, "start", lambda _, __, place: begun.append(place.name))
    monkeypatch.setattr(shortlist, "remember_folder", lambda _, folder: begun.append(folder))
    folder = model(workspace.root.parent / "unusual", config={**CONFIG, "model_type": "stablelm"})
    draft = drafts.save(workspace, drafts.Draft(recipe="lora", base=str(folder)))
    app = open_page("train", draft=draft)
    assert begun == []
    button(app, "take_named_base").click().run()
    assert "unusual" in begun


def test_no_job_is_started_for_data_of_an_address(workspace: Workspace, monkeypatch) -> None:
    started: list[jobs.Call] = []
    monkeypatch.setattr(jobs, "start", lambda call, token=None: started.append(call) or workspace.root / "jobs" / "one")
    monkeypatch.setattr(jobs, "result", lambda folder: None)
    dataset = datasets.add_sample(workspace, starter.sample("mixed-answers"))
    (dataset.folder / "rows.parquet").unlink()
    app = open_page("data", dataset=dataset.id)
    assert started == [] and "reading it takes a click" in texts(app)
    button(app, "rows_job_go").click().run()
    assert [call.dataset for call in started] == [dataset.id]


def test_what_was_chosen_with_a_click_is_gone_on_with_when_the_page_is_loaded_again(
    hub: Hub, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str | None] = []
    monkeypatch.setattr(jobs, "start", lambda call, token=None: started.append(call.dataset) or workspace.root / "jobs")
    monkeypatch.setattr(jobs, "result", lambda folder: None)
    dataset = datasets.add_sample(workspace, starter.sample("mixed-answers"))
    (dataset.folder / "rows.parquet").unlink()
    button(open_page("data", dataset=dataset.id), "rows_job_go").click().run()
    button(open_page("train", base="tiny/open"), "take_named_base").click().run()
    open_page("data", dataset=dataset.id)
    assert started == [dataset.id, dataset.id]
    assert has_button(open_page("train", base="tiny/open"), "download_base")
    draft = drafts.save(workspace, drafts.Draft(recipe="lora", base="tiny/open", dataset=dataset.id))
    assert has_button(open_page("train", draft=draft), "download_base")


def test_the_data_and_base_of_a_run_that_was_clicked_on_are_gone_on_with(hub: Hub, workspace: Workspace) -> None:
    run = workspace.run_dir("20260101-000000-abcdef")
    run.mkdir(parents=True)
    made = msgspec.structs.replace(fake_spec(), base=schema.BaseRef("tiny/open"))
    (run / "spec.json").write_bytes(schema.encode(made))
    app = open_page("train", state={"current_run": run.name, "only_named_run": False})
    assert has_button(app, "download_base") and hub.requests


@pytest.mark.parametrize("ref", [" /", "engine", "  gguf:/x"])
def test_an_address_names_no_folder_however_it_is_written(ref: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(bases.__file__).parents[2])
    looked: list[str] = []
    look = bases.folders.look
    monkeypatch.setattr(bases.folders, "look", lambda folder: looked.append(str(folder)) or look(folder))
    read = bases.headers.read
    monkeypatch.setattr(bases.headers, "read", lambda path: looked.append(str(path)) or read(path))
    open_page("train", base=ref)
    assert set(looked) <= {str(starter.MODEL_DIR)}
