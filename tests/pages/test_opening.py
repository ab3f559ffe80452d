"""The first screen, and how a page opens: at its top, its heading in focus, its name in the tab, its language known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from streamlit.testing.v1 import AppTest

from engine.data import Dataset, datasets
from engine.forgetting import summary
from engine.runs import scored, store
from engine.workspace import Workspace
from tests.apps import texts
from tests.browsers import SLOW_MS, Server, settled
from tests.conftest import ROOT


def first_screen(**parameters: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / "_frame.py"), default_timeout=60)
    for key, value in parameters.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception, app.exception
    return app


def current_step(app: AppTest) -> str:
    (here,) = [one.proto.label for one in app.get("page_link") if one.proto.icon == ":material/arrow_forward:"]
    return re.sub(r"\W|\d", "", here)


@pytest.mark.page
def test_the_first_screen_says_what_this_is_and_offers_the_sample(workspace: Workspace) -> None:
    app = first_screen()
    assert app.title[0].value == "Tunebook"
    assert "see what it gained and what it forgot" in texts(app)
    assert current_step(app) == "Data"
    assert app.button(key="try_it").proto.type == "primary"
    assert [one.value for one in app.header] == ["Data"]  # the first step itself, below
    assert not list(workspace.root.glob("datasets/*"))


@pytest.mark.page
def test_one_click_takes_the_sample_to_train_with_what_the_advisor_says(workspace: Workspace) -> None:
    app = first_screen()
    app.button(key="try_it").click().run()
    assert not app.exception, app.exception
    assert app.title[0].value == "Train"
    assert "From the advisor" in texts(app)
    assert not app.button(key="start").disabled


@pytest.mark.page
def test_data_that_is_ready_leads_to_the_advisor(new_facts: Dataset) -> None:
    app = first_screen()
    assert current_step(app) == "Advisor"
    app.button(key="home_next").click().run()
    assert app.title[0].value == "Advisor"
    assert app.query_params["dataset"] == new_facts.id


@pytest.mark.page
def test_recent_runs_stand_there_with_the_first_sentence_of_their_report(workspace: Workspace, real_run: str) -> None:
    app = first_screen()
    assert current_step(app) == "Forgetting"
    assert summary.of(scored.of(workspace, real_run), ways=[]).headline in texts(app)
    assert store.name(workspace, real_run) in [one.label for one in app.button if one.key == f"recent_{real_run}"]
    app.button(key="home_next").click().run()
    assert app.title[0].value == "Forgetting"


@pytest.mark.page
def test_data_that_no_run_was_made_of_comes_before_runs_of_other_data(
    workspace: Workspace, real_run: str, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "What is {n}?", "completion": "It is {n}."}}\n' for n in range(40)))
    mine = datasets.add(workspace, rows, "rows.jsonl")
    app = first_screen(dataset=mine.id)
    assert current_step(app) == "Advisor"


@pytest.mark.browser
def test_a_page_opens_at_its_top_with_its_heading_in_focus_and_its_name_in_the_tab(server: Server, page: Page) -> None:
    page.goto(f"{server.url}/?lang=zh")
    settled(page)
    expect(page).to_have_title("Tunebook")
    expect(page.locator("html")).to_have_attribute("lang", "zh")
    page.goto(f"{server.url}/guide?lang=en")
    settled(page)
    expect(page).to_have_title("Guide · Tunebook")
    expect(page.locator("html")).to_have_attribute("lang", "en")
    page.set_viewport_size({"width": 1280, "height": 400})
    scroll = "document.querySelector('[data-testid=stMain]').scrollTop"
    page.evaluate(f"{scroll} = 500")
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Train", exact=True).click()
    settled(page)
    expect(page).to_have_title("Train · Tunebook", timeout=SLOW_MS)
    expect(page.locator("#stMain h1")).to_be_focused()
    assert page.evaluate(scroll) == 0


@pytest.mark.browser
def test_where_what_had_the_focus_is_gone_the_heading_above_has_it_and_nothing_scrolls(
    server: Server, page: Page, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    good = "".join(f'{{"prompt": "What is {n}?", "completion": "It is {n}."}}\n' for n in range(40))
    rows.write_text(good + '{"prompt": "What?"}\n')
    dataset = datasets.add(Workspace(server.home), rows, "rows.jsonl")
    page.set_viewport_size({"width": 1280, "height": 400})
    page.goto(f"{server.url}/data?dataset={dataset.id}")
    settled(page)
    mend = page.get_by_role("button", name="Leave out the row with errors")
    mend.focus()
    scroll = "document.querySelector('[data-testid=stMain]').scrollTop"
    before = page.evaluate(scroll)
    page.keyboard.press("Enter")
    expect(mend).not_to_be_attached(timeout=SLOW_MS)
    settled(page)
    expect(page.get_by_role("heading", name="rows.jsonl")).to_be_focused()
    assert page.evaluate(scroll) <= before
    for name in ("Rename, download or delete", "Delete", "Delete for good"):
        chosen = page.locator("summary, button").get_by_text(name, exact=True)
        chosen.locator("xpath=ancestor-or-self::*[self::summary or self::button]").focus()
        page.keyboard.press("Enter")
    expect(page.locator("#stMain h1")).to_be_focused()
    assert not datasets.list_all(Workspace(server.home))
