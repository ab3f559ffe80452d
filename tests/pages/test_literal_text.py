"""Text from people stays text: what Markdown, Streamlit and plotly would make more of is shown, in a browser, as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page, expect

from engine import events
from engine.data import datasets
from engine.plan import drafts
from engine.runs import store
from engine.workspace import Workspace
from pages import _ui
from tests.apps import open_page, preference_run, shown
from tests.browsers import Server, settled

# A name has room for 120 characters; a row, a note and a question for all of it.
NAME = (
    "http://a.bc www.a.bc a@a.bc :material/home: :smile: a -> b $x$ :red[r] ![i](http://a.bc/i) "
    "<b>b</b> **c** `d` [l](a.bc)"
)
TEXT = (
    f"{NAME} https://a.bc/?b=1&c=2 HTTPS://A.BC mailto:a@a.bc <http://a.bc> <a@a.bc> :material_home: :streamlit: :+1: "
    "<img src=http://a.bc/i onerror=alert(1)> :blue-background[b] :color[c]{foreground=red} :help[h] :small[s] a <- b "
    "<-> c -- d >= e <= f ~= g ~~h~~ _i_ $$y$$ &amp; &#65; [^1] | j | # k \\* + \\ end"
)
LINES = f"# head\n===\n- item\n1. first\n> said\n    four in\n```\n{TEXT}\n```"

# What would have been made of it, wherever on the page; links, icons and marks of the page's own look otherwise.
MADE = """() => [...document.querySelectorAll(
  '[href*="a.bc" i], img, .katex, del, sup, ol, blockquote, [data-testid=stMarkdownPre], [aria-label="home icon"], ' +
  '[class*=stMarkdownColored]:not(:has(> strong))'
)].map(node => node.outerHTML.slice(0, 200))"""


@given(st.text())
def test_what_is_made_literal_reads_as_before_in_one_line(text: str) -> None:
    assert shown(_ui.plain(text)) == " ".join(text.expandtabs(4).splitlines())


def test_the_options_of_a_list_are_no_markdown_and_are_shown_without_escapes(
    workspace: Workspace, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "q", "completion": "a"}\n' * 3)
    made = datasets.add(workspace, file, "my_own*rows.jsonl")
    assert "my_own*rows.jsonl" in open_page("advisor", dataset=made.id).selectbox(key="advisor_data").options
    every = open_page("guide", section="rules").selectbox(key="table").options
    assert "Scenario quick look-up" in every and not any("\\" in one for one in every)


def test_a_figure_says_texts_as_they_are_and_keeps_its_own_line_breaks() -> None:
    drawn = go.Figure(go.Bar(x=["<b>a</b>"], y=[1], name="<a href='//a.bc'>", hovertemplate="%{x}<br>b<extra></extra>"))
    told = _ui.figure(drawn)["data"][0]
    assert (told["x"], told["name"]) == (["&lt;b&gt;a&lt;/b&gt;"], "&lt;a href='//a.bc'&gt;")
    assert told["hovertemplate"] == "%{x}<br>b<extra></extra>"


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    made.module = "tests.fakes.chat_server"
    yield made
    made.kill()


def home_full_of_it(workspace: Workspace, folder: Path) -> tuple[str, str]:
    """Two runs and a data set that are named so, with rows, notes, logs and answers that say so; returns their ids."""
    rows = [{"prompt": f"{TEXT} {n}", "completion": TEXT} for n in range(20)] + [{"prompt": TEXT, "completion": None}]
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = datasets.add(workspace, source, NAME)
    run_id = preference_run(workspace)
    run_dir = workspace.run_dir(run_id)
    for path in (run_dir / "items").glob("*-toy-world.jsonl"):
        asked = [{**json.loads(line), "prompt": TEXT, "choices": [TEXT, "b"]} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(one) + "\n" for one in asked))
    log = events.EventLog(run_dir)
    log.append(events.Log(level="warning", text=TEXT))
    log.close()
    shutil.copytree(run_dir, run_dir.with_name("20260101-000001-fedcba"))
    spec = run_dir / "spec.json"
    told = json.loads(spec.read_text())
    spec.write_text(json.dumps({**told, "train": {**told["train"], "epochs": 7}}))
    for one in (run_id, "20260101-000001-fedcba"):
        store.rename(workspace, one, NAME)
        store.write_note(workspace, one, TEXT)
    return dataset.id, run_id


@pytest.mark.slow
@pytest.mark.browser
def test_text_that_looks_like_more_stays_text_on_every_page(server: Server, page: Page, tmp_path: Path) -> None:
    workspace = Workspace(server.home)
    dataset_id, run_id = home_full_of_it(workspace, tmp_path)
    draft = drafts.save(workspace, drafts.Draft(recipe="dpo", dataset=dataset_id, reasons=[TEXT], came_from=TEXT))
    outside: list[str] = []
    page.on("request", lambda asked: outside.append(asked.url) if "a.bc" in asked.url.lower() else None)
    wrong: list[str] = []

    def holds(*texts: str) -> None:
        """The page shows the texts as they are, and has made nothing of them."""
        settled(page)
        for text in texts:
            expect(page.locator("#stMain")).to_contain_text(text, use_inner_text=True)
        wrong.extend(f"{page.url}: {made}" for made in page.evaluate(MADE))

    def opens(name: str, **parameters: str) -> None:
        page.goto(f"{server.url}/{name}?{urlencode(parameters)}")

    opens("data", dataset=dataset_id)
    holds(NAME)
    page.get_by_text("Bring other data").click()
    page.get_by_text("Data from before").click()
    holds(NAME)
    opens("advisor", dataset=dataset_id)
    holds(NAME)
    opens("train", draft=draft)
    holds(TEXT)

    opens("runs", run=run_id)
    holds(NAME, TEXT)
    opens("runs", run=run_id, show="all")
    holds()

    opens("forgetting", run=run_id)
    holds()
    opens("forgetting", run=run_id, view="compare")
    expect(page.get_by_test_id("stTable").first).to_contain_text(NAME, use_inner_text=True)
    holds(NAME)

    opens("chat", run=run_id)
    settled(page)
    page.get_by_test_id("stChatInputTextArea").fill(LINES)
    page.get_by_test_id("stChatInputTextArea").press("Enter")
    expect(page.get_by_text("tokens in").first).to_be_visible()
    holds(TEXT)
    said = page.get_by_test_id("stChatMessage").inner_text().replace("\u00a0", " ")
    assert LINES in said
    assert page.locator("#stMain").inner_text().replace("\u00a0", " ").count(LINES) == 2  # asked, and answered
    assert wrong == []
    assert outside == []
