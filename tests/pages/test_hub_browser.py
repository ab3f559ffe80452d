"""The whole way in a browser: a model of a hub is found, fetched, trained and merged, and answers elsewhere as in Chat."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from engine import starter
from engine.export import artifacts
from engine.runs import store
from engine.workspace import Workspace
from tests.browsers import SLOW_MS, Server, settled
from tests.helpers import wait_until
from tests.hub import COMMIT, TOKEN, Hub, Repository
from tests.pages.test_browser import CONTRAST

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.train]

NAME = "tiny/speaks"
# The value of a slider stands above its thumb, whose colour is no ground of it; an avatar is a picture.
NO_TEXT = "script, style, pre, [data-testid=stSliderThumbValue], [data-testid^=stChatMessageAvatar]"
ILLEGIBLE = CONTRAST.replace("script, style", NO_TEXT)
QUESTION = "Name the capital of Dunmark."
PLAIN = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = (kind.from_pretrained(sys.argv[1]) for kind in (AutoTokenizer, AutoModelForCausalLM))
asked = tokenizer.apply_chat_template([{"role": "user", "content": sys.argv[2]}], add_generation_prompt=True,
    return_tensors="pt", return_dict=True)
made = model.generate(**asked, max_new_tokens=40, do_sample=False, pad_token_id=tokenizer.pad_token_id)
print(tokenizer.decode(made[0, asked["input_ids"].shape[1]:], skip_special_tokens=True))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.close()


@pytest.fixture
def server(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, browser) -> Iterator[Server]:
    """A server with an empty cache and a home of its own, that knows no hub but ours."""
    (tmp_path / "person").mkdir()
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HOME", str(tmp_path / "person"))
    made = Server(tmp_path)
    made.start()
    yield made
    made.kill()


def readable(page: Page, name: str) -> None:
    """Hold that every text can be read in both themes. A picture of each is kept where TUNEBOOK_SCREENSHOTS names a
    folder. The colours of code are Streamlit's own."""
    folder = os.environ.get("TUNEBOOK_SCREENSHOTS")
    for theme, background in (("dark", "rgb(1"), ("light", "rgb(255")):
        page.emulate_media(color_scheme=theme)  # pyright: ignore[reportArgumentType]
        app = page.get_by_test_id("stApp")
        expect(app).to_have_css("background-color", re.compile(re.escape(background)))
        settled(page)
        seen: list[list[str]] = [["not looked yet"]]
        end_s = time.monotonic() + 30
        while seen[-2:] != [[], []] and time.monotonic() < end_s:  # the rest of the page follows its background
            page.wait_for_timeout(200)
            seen.append(page.evaluate(ILLEGIBLE))
        assert seen[-1] == [], f"{name}, {theme}"
        if folder:
            page.screenshot(path=f"{folder}/{name}-{theme}.png", full_page=True)


def go(page: Page, name: str) -> None:
    page.get_by_test_id("stSidebarNav").get_by_role("link", name=name).click()
    expect(page.locator("#stMain h1")).to_have_text(name)
    settled(page)


def chosen(page: Page, group: str, name: str) -> None:
    page.get_by_role("radiogroup", name=group).get_by_text(name, exact=True).click()


@pytest.mark.parametrize("gated", [False, True], ids=["open", "gated"])
def test_from_an_empty_cache_to_an_answer_elsewhere(
    server: Server,
    hub: Hub,
    page: Page,
    tmp_path: Path,
    gated: bool,
) -> None:
    files = {path.name: path.read_bytes() for path in starter.MODEL_DIR.iterdir() if path.is_file()}
    hub.models[NAME] = Repository(files, gated=gated, card={"license": "apache-2.0"})
    hub.delay_s = 0.5  # until its progress has been seen
    page.goto(f"{server.url}/data")
    settled(page)
    page.get_by_text("Try a sample").click()
    page.get_by_role("button", name="Use New facts").click()
    expect(page.get_by_text("ready to train on")).to_be_visible(timeout=SLOW_MS)

    go(page, "Train")
    expect(page).to_have_url(re.compile(r"/train\?.*dataset="))  # a click in the sidebar keeps what is worked on
    page.get_by_text("About this base, and other models").click()
    expect(page.get_by_text("HuggingFaceTB/SmolLM2-135M", exact=True)).to_be_visible()
    readable(page, f"picker-list-{gated}")
    chosen(page, "Where to look", "Search the hub")
    part = page.get_by_role("textbox", name="Part of a model's name")
    part.fill("speak")
    part.press("Enter")
    expect(page.get_by_text(NAME, exact=True)).to_be_visible()
    choose = page.get_by_role("button", name="Choose", exact=True)
    expect(choose).to_have_count(1)  # those of the short list are gone
    choose.click()

    if gated:
        expect(page.get_by_text("asks for permission").first).to_be_visible()
        readable(page, "picker-gated")
        expect(page.get_by_role("button", name="Download this model")).to_have_count(0)
        token = page.locator("input[type=password]")
        expect(token).to_have_attribute("aria-label", "Token for the hub")
        token.fill("hf_of_somebody_else")
        page.get_by_role("button", name="Use this token").click()
        expect(page.get_by_text("the token given has no permission").first).to_be_visible()
        token.fill(TOKEN)
        page.get_by_role("button", name="Use this token").click()
        expect(page.get_by_text("Asks for permission, which you have.")).to_be_visible()
    expect(
        page.get_by_text(re.compile(r"Not on this machine: [\d.]+ MB to download, at commit c0ffee"))
    ).to_be_visible()
    expect(page.get_by_text("licence apache-2.0")).to_be_visible()
    expect(page.get_by_text("Brings its own chat template.")).to_be_visible()
    expect(page.get_by_text(re.compile("LoRA: fits"))).to_be_visible()
    expect(page.get_by_role("button", name="Start", exact=True)).to_be_disabled()
    page.get_by_role("button", name="Download this model").click()
    expect(page.get_by_text(re.compile(r"Downloading: [1-9]\d? %"))).to_be_visible()
    readable(page, f"picker-download-{gated}")
    hub.delay_s = 0.0
    expect(page.get_by_text("On this machine, at commit c0ffee0000.")).to_be_visible(timeout=SLOW_MS)
    readable(page, f"picker-here-{gated}")

    page.get_by_text("Settings", exact=True).click()
    epochs = page.get_by_role("textbox", name="Epochs")
    epochs.fill("1")
    epochs.press("Enter")
    expect(page.get_by_text(re.compile(r"Epochs 1 \(default \d+\)"))).to_be_visible()
    start = page.get_by_role("button", name="Start", exact=True)
    expect(start).to_be_enabled(timeout=SLOW_MS)
    start.click()
    expect(page).to_have_url(re.compile("/runs"))
    export = page.get_by_role("button", name="Export")
    expect(export).to_be_visible(timeout=8 * SLOW_MS)
    export.click()
    workspace = Workspace(server.home)
    run_id = store.list_all(workspace)[0].id
    told = store.load_spec(workspace, run_id)
    assert (told.base.ref, told.base.revision, told.recipe.name) == (NAME, COMMIT, "lora")

    for section in ("GGUF, Ollama", "Hub", "Other trainers", "Adapter"):
        chosen(page, "What to take along", section)
        settled(page)
        readable(page, f"use-{section.split(',')[0].replace(' ', '-').lower()}-{gated}")
    chosen(page, "What to take along", "Merged model")
    page.get_by_role("button", name="Merge", exact=True).click()
    expect(page.get_by_role("button", name=re.compile("Download the merged model"))).to_be_visible(timeout=3 * SLOW_MS)
    expect(page.get_by_text("Merged and unmerged agree")).to_be_visible()
    readable(page, f"use-merged-{gated}")
    merged = workspace.run_dir(run_id) / artifacts.MERGED

    go(page, "Chat")
    page.get_by_text("How answers are drawn").click()
    page.get_by_role("slider", name="Temperature").press("Home")
    ask = page.get_by_test_id("stChatInputTextArea")
    ask.fill(QUESTION)
    ask.press("Enter")
    expect(page.get_by_text(re.compile(r"\d+ tokens in"))).to_have_count(2, timeout=3 * SLOW_MS)
    settled(page)
    readable(page, f"chat-{gated}")

    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(merged), QUESTION], capture_output=True, text=True, cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = done.stdout.strip()
    base = page.get_by_test_id("stMainBlockContainer").inner_text()
    assert answer and answer in base, (answer, base)

    server.kill()
    if gated:
        wait_until(lambda: not store.summary(workspace, run_id).status.startswith("run"), what="the run has ended")
        written = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
        assert len(written) > 50 and any(path.name == "server.log" for path in written)
        assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []
        assert TOKEN not in page.url and TOKEN not in json.dumps(hub.requests)
