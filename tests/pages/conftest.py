"""Fixtures of the pages: a data set, a real run, a browser and a server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from engine import starter
from engine.data import Dataset, datasets
from engine.runs import lifecycle, store
from engine.workspace import Workspace
from pages import _failures
from tests.browsers import FLAGS, SLOW_MS, Server
from tests.conftest import chromium
from tests.helpers import wait_until


@pytest.fixture(autouse=True)
def no_mistake_is_only_said(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A ValueError that a page met and said in words is a mistake of ours where no test meant it."""
    yield
    met = [one.exc_info[1] for one in caplog.get_records("call") if one.name == _failures.__name__ and one.exc_info]
    assert [error for error in met if type(error) in (ValueError, RecursionError)] == []


@pytest.fixture
def new_facts(workspace: Workspace) -> Dataset:
    return datasets.add_sample(workspace, starter.sample("new-facts"))


@pytest.fixture
def real_run(workspace: Workspace, trained_home: Path) -> str:
    """A copy of the one real run, so that a page may rename it."""
    shutil.copytree(trained_home, workspace.root)
    return store.list_all(workspace)[0].id


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def one_server(
    tmp_path_factory: pytest.TempPathFactory, browser: Browser, request: pytest.FixtureRequest
) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"), forks=getattr(request.module, "FORKS", False))
    yield made
    made.kill()


@pytest.fixture
def server(one_server: Server) -> Iterator[Server]:
    """The server of all these tests, with an empty home. A test that fails leaves no run behind that goes on and on."""
    shutil.rmtree(one_server.home, ignore_errors=True)
    if one_server.process is None:
        one_server.start()
    yield one_server
    workspace = Workspace(one_server.home)
    going_on = [run.id for run in store.list_all(workspace) if run.status in store.LIVE]
    for run_id in going_on:
        lifecycle.stop(workspace, run_id)
    for run_id in going_on:
        wait_until(lambda run_id=run_id: store.status(workspace, run_id) not in store.LIVE, timeout_s=60)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(SLOW_MS)
    yield opened
    context.close()
