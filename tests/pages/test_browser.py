"""Paths through a real browser: a headless Chromium against a real server. Waits for what a person would see."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, Page, expect

from engine import events, starter
from engine.data import datasets
from engine.plan import drafts
from engine.runs import follow, store
from engine.workspace import Workspace
from tests.apps import PAGES, preference_run
from tests.browsers import CONTRAST, EXPECTED_404, SLOW_MS, Server, dialogs, faults, settled
from tests.conftest import SHARED_DATA
from tests.helpers import finished_run, planned, wait_until

pytestmark = pytest.mark.browser


def rows_file(tmp_path: Path) -> Path:
    """Alpaca rows: real ones where they are beside the checkout, else some of the same form."""
    real, made = SHARED_DATA / "alpaca_en_200.jsonl", tmp_path / "alpaca.jsonl"
    if real.exists():
        made.write_bytes(b"".join(real.read_bytes().splitlines(keepends=True)[:60]))
        return made
    rows = [
        {"instruction": f"Count to {i}.", "input": "", "output": " ".join(map(str, range(i)))} for i in range(2, 62)
    ]
    made.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def test_a_deep_link_on_a_cold_server_opens_its_page_inside_the_frame(server: Server, page: Page) -> None:
    page.goto(f"{server.url}/forgetting?run=20260101-000000-abcdef")  # the first request of the server
    settled(page)
    expect(page.get_by_role("heading", name="Forgetting")).to_be_visible()
    expect(page.get_by_test_id("stSidebarNav").get_by_role("link")).to_have_count(len(PAGES))
    assert "run=20260101-000000-abcdef" in page.url
    expect(page.get_by_text("Page not found")).to_have_count(0)


def test_from_an_uploaded_file_to_a_forgetting_report(server: Server, page: Page, tmp_path: Path) -> None:
    errors: list[str] = []
    outside: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "request", lambda r: outside.append(r.url) if not r.url.startswith((server.url, "data:", "blob:")) else None
    )
    page.on(
        "response",
        lambda r: errors.append(f"{r.status} {r.url}") if r.status >= 400 and not EXPECTED_404.search(r.url) else None,
    )
    page.goto(server.url)
    settled(page)
    page.get_by_test_id("stFileUploaderDropzoneInput").first.set_input_files(rows_file(tmp_path))
    expect(page.get_by_text("ready to train on")).to_be_visible()
    page.get_by_role("button", name="Next: ask the advisor").click()

    expect(page.get_by_role("heading", name=re.compile("Take LoRA"))).to_be_visible()
    page.get_by_text("Why?", exact=True).click()
    expect(page.get_by_role("link", name=re.compile("LoRA with freezing")).first).to_be_visible()
    page.get_by_role("button", name="Use this", exact=True).click()

    expect(page.get_by_text("From the advisor")).to_be_visible()
    page.get_by_text("Settings", exact=True).click()
    epochs = page.get_by_role("textbox", name="Epochs")
    epochs.fill("3")
    epochs.press("Enter")
    expect(page.get_by_text("Epochs 3 (default 10)")).to_be_visible()
    start = page.get_by_role("button", name="Start", exact=True)
    expect(start).to_be_enabled()
    start.dblclick()

    expect(page).to_have_url(re.compile("/runs"))
    workspace = Workspace(server.home)
    wait_until(lambda: len(store.list_all(workspace)) == 1, timeout_s=30)
    run_id = store.list_all(workspace)[0].id
    # The chart moves in place: the canvas that drew the first points draws the later ones too.
    canvas = page.get_by_test_id("stEChartsChart").locator("canvas").first
    expect(canvas).to_be_visible(timeout=SLOW_MS)
    canvas.evaluate("node => { node.dataset.same = 'yes' }")
    loss = page.get_by_text(re.compile(r"trained rows \d")).first
    first = loss.inner_text()
    wait_until(lambda: loss.inner_text() != first, timeout_s=60)
    assert canvas.evaluate("node => node.dataset.same") == "yes"
    expect(page.get_by_role("button", name="Ask it")).to_be_visible(timeout=5 * SLOW_MS)
    assert [run.id for run in store.list_all(workspace)] == [run_id]  # the double click started one run
    page.get_by_role("button", name="Next: what it gained and what it forgot").click()

    # a tenth of 60 rows is held out, and of so few nothing is said but that
    expect(page.get_by_text(re.compile("Too few to say what it learned: 6 held-out questions"))).to_be_visible()
    expect(page.get_by_text(re.compile("oy-world knowledge")).first).to_be_visible()
    settled(page)
    assert errors == []
    assert outside == []  # nothing is fetched from, or told to, anybody else


def started_on_the_page(server: Server, page: Page, **overrides: object) -> str:
    """Start a run of a sample as a person does, and return its id as soon as it is there."""
    workspace = Workspace(server.home)
    dataset = datasets.add_sample(workspace, starter.sample("new-facts"))
    draft = drafts.Draft(recipe="lora", dataset=dataset.id, overrides={"evaluate.benchmarks": [], **overrides})
    page.goto(f"{server.url}/train?draft={drafts.save(workspace, draft)}")
    start = page.get_by_role("button", name="Start", exact=True)
    expect(start).to_be_enabled(timeout=SLOW_MS)
    start.click()
    wait_until(lambda: store.list_all(workspace), timeout_s=60)
    return store.list_all(workspace)[0].id


CONTROLS = ", ".join(
    f'[data-testid="st{one}"]'
    for one in ("Selectbox", "Radio", "TextInput", "NumberInput", "Checkbox", "Button", "Popover", "DownloadButton")
)


def test_train_shows_at_most_six_controls_and_start_wherever_it_is_scrolled(server: Server, page: Page) -> None:
    dataset = datasets.add_sample(Workspace(server.home), starter.sample("new-facts"))
    page.goto(f"{server.url}/train?dataset={dataset.id}")
    expect(page.get_by_role("button", name="Start", exact=True)).to_be_enabled(timeout=SLOW_MS)  # it is drawn last
    settled(page)
    shown = page.get_by_test_id("stMainBlockContainer").locator(CONTROLS)
    assert 3 <= sum(one.is_visible() for one in shown.all()) <= 6
    page.get_by_text("Settings", exact=True).click()
    main = page.get_by_test_id("stMain")
    for width, height in ((1440, 900), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        for top in (0, 700, 10**6):
            main.evaluate("(node, top) => { node.scrollTop = top; }", top)
            expect(page.get_by_role("button", name="Start", exact=True)).to_be_in_viewport(ratio=1)
        assert main.evaluate("node => node.scrollWidth <= node.clientWidth")


def test_a_phone_lists_runs_without_a_table_and_after_a_deletion_the_heading_has_the_focus(
    server: Server, page: Page
) -> None:
    workspace = Workspace(server.home)
    dataset = datasets.add_sample(workspace, starter.sample("new-facts"))
    spec, _ = planned(workspace, "lora", base="starter", dataset=dataset.id, overrides={})
    for number in range(1, 18):
        finished_run(workspace, number, spec)
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{server.url}/runs")
    settled(page)
    listed = page.locator(".st-key-narrow_runs li button")
    expect(listed).to_have_count(15)
    page.get_by_role("button", name="Show all 17").click()
    expect(listed).to_have_count(17)
    expect(listed.nth(15)).to_be_focused()
    assert not page.locator(".st-key-wide_runs").is_visible()
    assert page.get_by_test_id("stMain").evaluate("node => node.scrollWidth <= node.clientWidth")
    page.set_viewport_size({"width": 1280, "height": 900})
    expect(page.locator(".st-key-wide_runs")).to_be_visible()
    assert not listed.first.is_visible()
    page.set_viewport_size({"width": 390, "height": 844})
    listed.nth(16).press("Enter")
    expect(page).to_have_url(re.compile("run=20260101-000001-abcdef"))
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete for good").click()
    expect(page.get_by_role("heading", name="Runs", level=1)).to_be_focused()
    assert not store.exists(workspace, "20260101-000001-abcdef")


@pytest.mark.slow
def test_a_refresh_a_second_tab_and_a_server_that_ends_or_is_killed_all_show_the_same_run_going_on(
    server: Server, page: Page, browser: Browser
) -> None:
    run_id = started_on_the_page(server, page, **{"train.max_steps": 20_000})
    workspace = Workspace(server.home)

    def goes_on() -> None:
        before = store.summary(workspace, run_id).step
        wait_until(lambda: store.summary(workspace, run_id).step > before, timeout_s=60)

    expect(page).to_have_url(re.compile("/runs"))
    expect(page.get_by_text("Training: step")).to_be_visible(timeout=SLOW_MS)
    page.reload()
    expect(page.get_by_text("Training: step")).to_be_visible(timeout=SLOW_MS)
    page.goto(f"{server.url}/forgetting?run={run_id}")
    expect(page.get_by_text("Training: step")).to_be_visible(timeout=SLOW_MS)
    second = browser.new_context().new_page()
    second.goto(f"{server.url}/runs?run={run_id}")
    expect(second.get_by_text("Training: step")).to_be_visible(timeout=SLOW_MS)
    expect(second).to_have_title(re.compile("^[0-9]+ % running"))
    second.context.close()

    for number in (signal.SIGTERM, signal.SIGKILL):
        server.kill(number)
        goes_on()  # nobody serves, and it trains on
        server.start()
        page.goto(f"{server.url}/runs?run={run_id}")
        expect(page.get_by_text("Training: step")).to_be_visible(timeout=SLOW_MS)
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.get_by_text("Stopped as asked")).to_be_visible(timeout=2 * SLOW_MS)
    found, _ = events.read(workspace.run_dir(run_id))
    assert isinstance(found[-1], events.Stopped) and found[-1].resumable
    assert sum(isinstance(e, events.Started) for e in found) == 1


@pytest.mark.slow
def test_a_run_whose_browser_is_closed_at_once_is_found_finished_later(server: Server, browser: Browser) -> None:
    context = browser.new_context()
    run_id = started_on_the_page(server, context.new_page(), **{"train.max_steps": 5})
    context.close()
    workspace = Workspace(server.home)
    assert store.status(workspace, run_id) in ("queued", "running")
    assert follow.wait(workspace, run_id) == "finished"
    later = browser.new_context().new_page()
    later.goto(f"{server.url}/runs")
    expect(later.get_by_role("button", name="Ask it")).to_be_visible(timeout=SLOW_MS)
    expect(later).to_have_title(re.compile("^finished"))
    later.context.close()


def test_a_broken_file_is_explained_and_mended_in_the_browser(server: Server, page: Page, tmp_path: Path) -> None:
    opened = dialogs(page)
    lines = [json.dumps({"prompt": f"q{i}", "completion": f"a{i}"}) for i in range(1000)]
    lines[612] = lines[612][:-3]
    lines[40] = json.dumps({"prompt": "<img src=x onerror=alert(1)> **bold**", "completion": None})
    broken = tmp_path / "<img src=x onerror=alert(2)>.jsonl"
    broken.write_text("\n".join(lines) + "\n")
    page.goto(f"{server.url}/data")
    settled(page)
    with page.expect_file_chooser() as chooser:  # by keyboard alone
        page.get_by_label("Choose a file").press("Enter")
    chooser.value.set_files(broken)
    expect(page.get_by_text("line 613").first).to_be_visible()
    expect(page.get_by_text("Line 41: completion is null")).to_be_visible()
    expect(page.get_by_role("button", name="Next: ask the advisor")).to_have_count(0)
    page.get_by_role("button", name="Edit").nth(1).click()  # below the row of line 41
    row = page.get_by_role("textbox", name="Row 613 as it stands in the file")
    expect(row).to_have_value(lines[612])
    row.fill(lines[612] + '2"}')
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("1,000 questions with answers, 1 with errors")).to_be_visible()
    page.get_by_role("button", name="Leave out the row with errors").click()
    expect(page.get_by_text("999 questions with answers, ready to train on")).to_be_visible()
    expect(page.get_by_role("button", name="Next: ask the advisor")).to_be_enabled()
    assert opened == [] and page.locator('img[src="x"]').count() == 0  # what looks like a page stayed text

    # Another file is dropped; what was uploaded before is gone from the uploads and kept as data.
    dropped = page.evaluate_handle(
        """() => {
            const held = new DataTransfer();
            held.items.add(new File(['{"text": "one"}\\n{"text": "two"}\\n'], "dropped.jsonl"));
            return held;
        }"""
    )
    page.get_by_text("Bring other data").click()
    page.locator(".zone").dispatch_event("drop", {"dataTransfer": dropped})
    expect(page.get_by_role("heading", name="dropped.jsonl")).to_be_visible()
    expect(page.get_by_text("2 texts, ready to train on")).to_be_visible()
    workspace = Workspace(server.home)
    assert list(workspace.uploads_dir.glob("*")) == []
    assert sorted(path.parent for path in workspace.datasets_dir.glob("*/original")) == sorted(
        path for path in workspace.datasets_dir.iterdir()
    )


@pytest.mark.slow
def test_what_is_trained_is_shown_token_by_token_as_text(server: Server, page: Page, tmp_path: Path) -> None:
    opened = dialogs(page)
    hostile = "<img src=x onerror=alert(1)>"
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": hostile, "completion": f"{hostile} {n}"}) + "\n" for n in range(9)))
    page.goto(f"{server.url}/data")
    settled(page)
    page.get_by_test_id("stFileUploaderDropzoneInput").first.set_input_files(rows)
    expect(page.get_by_text("ready to train on")).to_be_visible()
    page.get_by_text("What is trained").click()
    shown = page.locator(".text").first
    expect(shown).to_be_visible(timeout=2 * SLOW_MS)
    assert shown.inner_text() == f"<|user|>{hostile}<|end|><|assistant|>{hostile} 0<|end|>"
    assert "".join(shown.locator(".trained").all_inner_texts()) == f"{hostile} 0<|end|>"
    assert opened == [] and page.locator('img[src="x"]').count() == 0


GROUND = {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 21, 28)"}


# What axe-core finds in Streamlit's own parts, by rule; this list may only become shorter.
OF_STREAMLIT: tuple[str, ...] = ()


@pytest.mark.parametrize(("language", "width"), [("en", 1280), pytest.param("zh", 390, marks=pytest.mark.slow)])
def test_every_page_can_be_read_and_used_by_everybody_in_both_themes(
    server: Server, page: Page, trained_home: Path, language: str, width: int
) -> None:
    shutil.copytree(trained_home, server.home, dirs_exist_ok=True)
    run = store.list_all(Workspace(server.home))[0]
    page.set_viewport_size({"width": width, "height": 900})
    views = {"": {}, **{name: {} for name in PAGES}, "forgetting": {"view": "compare"}, "forgetting ": {}}
    for name, parameters in views.items():
        named = urlencode({"run": run.id, "dataset": run.dataset, "lang": language, **parameters})
        page.goto(f"{server.url}/{name.strip()}?{named}")
        settled(page)
        for theme, ground in GROUND.items():  # the page follows the system's setting as it changes
            page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
            expect(page.get_by_test_id("stApp")).to_have_css("background-color", ground)
            wait_until(lambda: not page.evaluate(CONTRAST), 60, f"contrast of {name}, {theme}")
            found = [one for one in faults(page) if not one.startswith(OF_STREAMLIT)]
            assert found == [], f"{name}, {theme}"


FOCUSED = """() => {
  const e = document.activeElement;
  const said = e.getAttribute("aria-label") || e.closest("label")?.innerText || e.innerText || "";
  return e.tagName === "MAIN" || said.startsWith("Help for") ? "" : said;
}"""


def test_the_keyboard_alone_reaches_and_works_what_the_forgetting_page_offers(server: Server, page: Page) -> None:
    run_id = preference_run(Workspace(server.home))
    (Workspace(server.home).run_dir(run_id) / "adapter").mkdir()  # what it has made, from which the way back goes
    page.goto(f"{server.url}/forgetting?run={run_id}")
    expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible(timeout=SLOW_MS)
    settled(page)

    def walk(to: str) -> None:
        for _ in range(100):
            page.keyboard.press("Tab")
            if to in page.evaluate(FOCUSED):
                return
        raise AssertionError(f"Tab never reaches {to}")

    controls = (
        "One run", "Run", "Recover what it lost", "Ask it", "Use it", "Compare with another",
        "Train it again with one thing changed", "Every score and question", "Ask it more benchmarks", "Figures and report",
    )  # fmt: skip
    for control in controls:
        walk(control)  # each after the one before, in the order of the page
    another = Workspace(server.home).run_dir("20260102-000000-abcdef")
    shutil.copytree(Workspace(server.home).run_dir(run_id), another)
    page.goto(f"{server.url}/forgetting?run={run_id}")
    expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible(timeout=SLOW_MS)
    settled(page)
    walk("One run")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_text("Settings that differ")).to_be_visible(timeout=SLOW_MS)
    settled(page)
    slider = page.get_by_role("slider", name="I accept losing at most (points)")

    def raised() -> bool:  # a page that is drawn anew a moment later takes the focus from what had it
        walk("I accept losing at most")
        page.keyboard.press("End")
        return slider.input_value() == "20"

    wait_until(raised, timeout_s=60)


def test_rows_are_read_on_a_phone_a_fold_is_entered_by_keyboard_and_what_is_said_in_passing_covers_no_answer(
    server: Server, page: Page, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"question {n}", "completion": f"answer {n}" if n else None} for n in range(9)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = datasets.add(Workspace(server.home), file, "rows.jsonl")
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{server.url}/data?dataset={dataset.id}")
    settled(page)
    expect(page.get_by_text("assistant: answer 8")).to_be_visible()  # each field of a row, where a table shows one
    expect(page.get_by_test_id("stDataFrame")).not_to_be_visible()
    page.set_viewport_size({"width": 1280, "height": 900})
    expect(page.get_by_test_id("stDataFrame")).to_be_visible()
    expect(page.get_by_text("assistant: answer 8")).not_to_be_visible()
    page.get_by_text("Rename, download or delete").click()
    delete = page.get_by_role("button", name="Delete", exact=False)
    delete.focus()
    page.keyboard.press("Enter")
    inside = page.get_by_test_id("stPopoverBody")
    expect(inside).to_be_focused()
    page.keyboard.press("Tab")
    expect(inside.get_by_role("button", name="Delete for good")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_test_id("stPopover").get_by_role("button")).to_be_focused()
    page.keyboard.press("Escape")
    expect(inside).to_have_count(0)
    page.get_by_role("button", name="Leave out the row with errors").click()
    said = page.get_by_test_id("stToast").bounding_box()
    undo = page.get_by_role("button", name="Undo").bounding_box()
    assert said is not None and undo is not None and said["y"] > 900 / 2 > undo["y"] + undo["height"]


def test_another_base_brings_its_own_defaults_and_keeps_what_was_changed_by_hand(
    server: Server, page: Page, tmp_path: Path
) -> None:
    real = tmp_path / "real-model"
    real.mkdir()
    (real / "config.json").write_text(
        '{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "max_position_embeddings": 2048}'
    )
    header = json.dumps({"w": {"dtype": "F16", "shape": [3_000_000_000], "data_offsets": [0, 6_000_000_000]}}).encode()
    with (real / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 6_000_000_000)  # a sparse file: no block is written
    (real / "tokenizer.json").write_text("{}")
    page.goto(f"{server.url}/data")
    settled(page)
    page.get_by_text("Try a sample").click()
    page.get_by_role("button", name="Use New facts").click()
    expect(page.get_by_text("ready to train on")).to_be_visible()
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Train").click()
    page.get_by_text("Settings", exact=True).click()
    epochs = page.get_by_role("textbox", name="Epochs")
    epochs.fill("7")
    epochs.press("Enter")
    expect(page.get_by_text("Epochs 7 (default 10)")).to_be_visible()
    rate = page.get_by_role("textbox", name="Learning rate")
    expect(rate).to_have_value("0.003")
    base = page.get_by_role("combobox", name="Model to start from")
    base.fill(str(real))
    base.press("Enter")
    expect(rate).to_have_value("0.0002")
    expect(page.get_by_role("textbox", name="Epochs")).to_have_value("7")
    expect(page.get_by_text("Your own changes were kept: Epochs")).to_be_visible()


def test_a_card_of_8_gb_and_7b_typed_are_two_clicks(server: Server, page: Page) -> None:
    page.goto(f"{server.url}/advisor")
    settled(page)
    page.get_by_role("button", name=re.compile("card:|Card:")).click()
    page.get_by_role("spinbutton", name="Memory of the card, in GB").click()
    page.keyboard.type("8")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Card: 8 GB, planned")).to_be_visible()
    page.keyboard.press("Tab")  # past the two buttons of the field, which no key stops at, or onto them
    page.get_by_role("spinbutton", name="Size of the model").focus()
    page.keyboard.type("7")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=re.compile("QLoRA of rank 16: on a card of 8 GB it fits"))).to_be_visible()


@pytest.mark.slow
def test_a_card_of_8_gb_and_7b_are_four_clicks_and_the_answer_is_on_the_first_screen(
    server: Server, page: Page
) -> None:
    page.goto(f"{server.url}/advisor")
    settled(page)
    for chip, choice in ((re.compile("card:|Card:"), "8 GB"), (re.compile("Model:"), "7B")):
        page.get_by_role("button", name=chip).click()
        page.get_by_text(choice, exact=True).click()
        expect(page.get_by_role("button", name=re.compile(f"{choice}, planned"))).to_be_visible()
    expect(page.get_by_role("heading", name=re.compile("QLoRA of rank 16: on a card of 8 GB it fits"))).to_be_visible()
    page.keyboard.press("Escape")
    settled(page)
    expect(page.locator(".js-plotly-plot .legend")).to_be_visible()
    controls = page.get_by_test_id("stMain").locator("button:visible, summary:visible, input:visible")
    assert controls.count() <= 6
    assert max(box["y"] + box["height"] for one in controls.all() if (box := one.bounding_box())) < 900
    page.set_viewport_size({"width": 390, "height": 844})  # on a phone the rules' words are read whole
    page.get_by_text("Why?", exact=True).click()
    rules = page.get_by_test_id("stMain").get_by_test_id("stPageLink").locator("p")
    expect(rules.first).to_be_visible()
    settled(page)
    assert all(one.evaluate("node => node.scrollWidth <= node.clientWidth") for one in rules.all())
