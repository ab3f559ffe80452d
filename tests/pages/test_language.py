"""Language: each reader hears only the language they chose, on every page and of all that is stored."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from playwright.sync_api import Browser, expect
from streamlit.testing.v1 import AppTest

from engine import events, processes, starter
from engine.advise import guide
from engine.check import check_file
from engine.cli import main
from engine.data import copies, datasets
from engine.report import Item, items
from engine.runs import failures, store
from engine.spec import recipes, schema
from engine.words import Problem, environment_language, language_of
from engine.words import text as words_text
from engine.words.text import Text, later, set_language, t
from engine.workspace import Workspace
from tests.apps import PAGES
from tests.browsers import Server
from tests.conftest import ROOT

CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture(autouse=True)
def _english_again() -> Iterator[None]:
    yield
    set_language("en")


# --- choosing ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({}, None),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "C.UTF-8"}, None),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "en_GB.UTF-8"}, "en"),
        ({"LANG": "en_GB.UTF-8", "LANGUAGE": "zh:en"}, "zh"),
        ({"LANG": "en_GB.UTF-8", "TUNEBOOK_LANG": "zh"}, "zh"),
        ({"TUNEBOOK_LANG": "../../etc"}, None),
    ],
)
def test_a_terminal_says_which_language_it_wants(environment, language):
    assert environment_language(environment) == language


def test_the_command_line_speaks_the_chosen_language(tmp_path, monkeypatch, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "q", "completion": "a"}\n{"prompt": "q", "completion": null}\n')
    for arguments, environment, said in (
        (["check", str(file)], "zh", "第 2 行：completion 为 null；补上文本，或删除这一行"),
        (["--lang", "en", "check", str(file)], "zh", "line 2: completion is null; add text or delete the row"),
        (["--lang", "zh", "check", str(file)], "en", "第 2 行"),
    ):
        monkeypatch.setenv("TUNEBOOK_LANG", environment)
        with pytest.raises(SystemExit):
            main(arguments)
        assert said in capsys.readouterr().out


def test_two_readers_at_once_each_hear_their_own_language():
    heard: dict[str, set[str]] = {"en": set(), "zh": set()}
    together = threading.Barrier(2)

    def read(language: str) -> None:
        set_language(language)
        for _ in range(50):
            together.wait()
            heard[language].add(t("Forgetting"))

    readers = [threading.Thread(target=read, args=(language,)) for language in heard]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert heard == {"en": {"Forgetting"}, "zh": {"遗忘"}}


# --- what is stored and read later ------------------------------------------------------------------------------------
def test_a_text_said_later_is_looked_up_when_it_is_read():
    said = later("this is {found}", found=later("a list"))
    stored = msgspec.json.decode(msgspec.json.encode(said), type=Text)
    assert str(stored) == "this is a list" and f"{stored:>16}" == "  this is a list"
    set_language("zh")
    assert str(stored) == "这是列表"


def test_a_failure_is_told_in_the_language_of_its_reader(tmp_path):
    set_language("zh")  # the language of the process that failed does not count
    log = events.EventLog(tmp_path)
    refused = failures.RunRefused(Problem(rule="data-nothing-trained", parameters={"length": 8, "needed": 25}))
    log.append(failures.from_exception(refused))
    log.close()
    set_language("en")
    summary = store.summarise(tmp_path)
    assert summary.failure is not None and "no token would be trained" in summary.failure["message"]
    set_language("zh")
    assert "没有词元会被训练" in summary.failure["message"] and "25" in summary.failure["fix"]


def test_a_run_of_before_texts_were_said_later_still_reads(tmp_path):
    (tmp_path / "events.jsonl").write_text('{"event":"log","seq":1,"text":"as it was written"}\n')
    (event,) = events.read(tmp_path)[0]
    assert str(event.text) == "as it was written"


def test_a_stored_report_is_read_in_another_language(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "q", "completion": "a"}\n{"prompt": "q", "completion": 7}\n{"prompt": "q",}\n')
    set_language("zh")
    stored = msgspec.json.encode(check_file(file).problems)
    set_language("en")
    english = [problem.sentence for problem in msgspec.json.decode(stored, type=tuple[Problem, ...])]
    assert english == [problem.sentence for problem in check_file(file).problems]
    set_language("zh")
    chinese = [problem.sentence for problem in msgspec.json.decode(stored, type=tuple[Problem, ...])]
    assert all(map(CHINESE.search, chinese)) and not any(re.search(r"a number|comma", said) for said in chinese)


# --- every page -------------------------------------------------------------------------------------------------------
# What is shown as it is in every language: what a person brought, code, names of works, and technical names.
NOT_OURS = re.compile(
    r"LoRA Learns Less and Forgets Less|LoRA [Ww]ithout [Rr]egret|Thinking Machines|alignment handbook|JSON Lines"
    r"|pip install [\w ;]+|git lfs pull|tunebook [\w <>-]+|H2O LLM Studio|Appl\. Sci|Hugging Face|Bonett|McNemar"
    r"|my own rows|a run of mine|asks for a capital|user: [^\n]*|assistant: [^\n]*"
)
ENGLISH = re.compile(r"\b[A-Za-z][a-z']+(?:[ ,]+[A-Za-z]?[a-z']+){2,}")
# Fields of an element that no person reads.
HIDDEN_FIELDS = {
    *("id", "element_id", "form_id", "key", "user_key", "chart_id", "file_id", "fragment_id", "active_script_hash"),
    *("icon", "url", "theme", "column_order", "columns", "name", "format", "language", "step", "delta"),
}


def strings(message: Message) -> Iterator[str]:
    """Yield every text in an element, as the browser gets it."""
    for field, value in message.ListFields():
        if field.name in HIDDEN_FIELDS:
            continue
        many = value if field.is_repeated else [value]
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in many:
                yield from strings(inner) if isinstance(inner, Message) else ()
        elif field.type == FieldDescriptor.TYPE_STRING:
            yield from many


def in_chart(value: Any) -> Iterator[str]:
    """Yield the labels of a chart."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("text", "name") and isinstance(inner, str):
                yield inner
            elif key != "template":
                yield from in_chart(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from in_chart(inner)


def shown(app: AppTest) -> Iterator[str]:
    """Yield every text a person can see on a page: words, labels, help, choices, tables and charts."""

    def under(node: Any) -> Iterator[Any]:
        yield node
        for child in getattr(node, "children", {}).values():
            yield from under(child)

    for node in under(app._tree):
        proto = getattr(node, "proto", None)
        if node.type in ("code", "json"):
            continue
        if isinstance(getattr(node, "value", None), pd.DataFrame):
            frame = node.value.reset_index()
            yield from map(str, frame.columns)
            yield from (str(cell) for column in frame for cell in frame[column])
        if proto is None:
            continue
        for text in strings(proto):
            if text.startswith("$$") or text.lstrip().startswith("export default"):  # a formula, a component's program
                continue
            if text.startswith("{"):
                try:
                    yield from in_chart(json.loads(text))
                    continue
                except ValueError:
                    pass
            yield text


def english_in(app: AppTest) -> list[str]:
    quoted = [phrase for rule in guide.rules().values() for phrase in rule.phrases if ENGLISH.search(phrase)]
    not_ours = re.compile("|".join([*map(re.escape, quoted), NOT_OURS.pattern]))
    texts = (re.sub(r"(?s)<(style|script)>.*?</\1>|`[^`]*`|\\(?=\W)", "", text) for text in shown(app))
    return sorted({found.group() for text in texts for found in ENGLISH.finditer(not_ours.sub("", text))})


class Heard:
    """A catalogue that writes down what it was asked for and does not have."""

    def __init__(self, catalogue: Any):
        self.catalogue, self.lacks = catalogue, set()

    def gettext(self, text: str) -> str:
        if text not in vars(self.catalogue)["_catalog"]:
            self.lacks.add(text)
        return self.catalogue.gettext(text)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    made = Heard(words_text._catalogue("zh"))
    usual = words_text._catalogue
    monkeypatch.setattr(words_text, "_catalogue", lambda code: made if code == "zh" else usual(code))
    return made


def made_run(workspace: Workspace, dataset_id: str, number: int, *ending: events.Event) -> str:
    """Write a run folder with every kind of event; without an ending this process answers for it."""
    run_id = f"20260101-00000{number}-00000{number}"
    folder = workspace.run_dir(run_id)
    folder.mkdir(parents=True)
    recipe = recipes.recipes()["lora"]
    run_spec, _ = recipes.resolve(
        recipe, base="starter", revision=None, parameters=1e6, dataset_id=dataset_id, overrides={}
    )
    (folder / "spec.json").write_bytes(schema.encode(run_spec))
    store.rename(workspace, run_id, "a run of mine")
    log = events.EventLog(folder)
    why = later("no GPU was found")
    step = {"rewards/chosen": 0.1, "rewards/accuracies": 0.5, "kl": 0.1}
    for event in (
        events.Queued(device="cpu"),
        events.Started(attempt=1, versions={}, device="cpu", backend="plain", reason=why),
        events.Log(text=later("Going on from {checkpoint}.", checkpoint="checkpoint-5")),
        events.Log(text=later("{n} rows were left out: nothing of their answer fits {length} tokens.", n=2, length=8)),
        events.Phase(phase="training"),
        events.Step(step=5, total_steps=10, epoch=1, loss=1.0, left_s=100.0, tokens_per_s=9.0, metrics=step),
        events.Eval(step=5, loss=1.0, metrics=step),
        events.Sample(step=5, prompt="asks for a capital", text="x"),
        *ending,
    ):
        log.append(event)
    log.close()
    if not ending:
        identity = processes.identify(os.getpid())
        (folder / "pid.json").write_bytes(msgspec.json.encode(identity))
    return run_id


def scored(folder: Path) -> None:
    """Add the items of a scored run: one benchmark with right answers, one loss."""
    (folder / "items").mkdir()
    for model, right, loss in (("base", 30, -2.0), ("tuned", 10, -1.0)):
        known = [
            Item(
                item=f"{n}", family="capitals", prompt_sha="", prompt="asks for a capital", choices=["x", "y"], gold=0,
                loglikelihoods=[0.0, -1.0], choice=int(n >= right), correct=n < right,
            )
            for n in range(40)
        ]  # fmt: skip
        losses = [
            Item(item=f"{n}", family=family, prompt_sha="", loglikelihoods=[loss - n / 100], tokens=2)
            for n, family in enumerate([items.SEEN, items.UNSEEN] * 20)
        ]
        items.write_items(folder / "items" / f"{model}-toy-world.jsonl", known)
        items.write_items(folder / "items" / f"{model}-new-task-loss.jsonl", losses)


def opened(language: str, page: str, **parameters: str) -> AppTest:
    """Open a page in a session of its own, as a browser with that address would."""
    app = AppTest.from_file(str(ROOT / "pages" / "_frame.py"), default_timeout=60)
    return to(app, page, lang=language, **parameters)


def to(app: AppTest, page: str, **parameters: str) -> AppTest:
    """Go on to another page in the same session."""
    app.switch_page(f"{page}.py")
    for key, value in parameters.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception, app.exception
    return app


def switched(app: AppTest, language: str) -> AppTest:
    """Click a language in the sidebar."""
    next(radio for radio in app.sidebar.radio if radio.key == "language_switch").set_value(language).run()
    assert not app.exception, app.exception
    set_language(language)  # AppTest asks lists for their words in this thread
    return app


def test_no_page_says_anything_in_english_to_a_chinese_reader(workspace: Workspace, tmp_path: Path, heard: Heard):
    rows = [json.dumps({"prompt": f"user: {n}", "completion": "assistant: x"}) for n in range(20)]
    broken = tmp_path / "my own rows.jsonl"
    broken.write_text("\n".join([*rows, '{"prompt": "q", "completion": null}', rows[0], "{broken"]))
    bad = datasets.add(workspace, broken, broken.name)
    good = copies.fixed(workspace, bad.id, fixes=["drop_bad_rows"])
    failure = failures.from_exception(MemoryError())
    live, failed, done = (
        made_run(workspace, good.id, 1),
        made_run(workspace, good.id, 2, failure),
        made_run(workspace, good.id, 3, events.Finished(step=10)),
    )
    scored(workspace.run_dir(done))
    set_language("zh")  # AppTest asks lists for their words in this thread
    app = opened("zh", "data", dataset=bad.id)
    found: dict[str, list[str]] = {"data, with bad rows": english_in(app)}
    for name, parameters in [
        ("runs", {"run": live}),
        ("runs", {"run": failed}),
        *((page, {"run": done, "dataset": good.id}) for page in PAGES),
    ]:
        to(app, name, **parameters)
        found[f"{name} {parameters}"] = english_in(app)
        assert CHINESE.search(app.title[0].value)
    assert {page: texts for page, texts in found.items() if texts} == {}
    assert sorted(heard.lacks) == [], "outside the catalogue"


def test_the_switch_keeps_the_page_the_data_and_the_run(workspace: Workspace):
    data = datasets.add_sample(workspace, starter.sample("new-facts"))
    run_id = made_run(workspace, data.id, 3, events.Finished(step=10))
    english = opened("en", "runs", run=run_id, dataset=data.id)
    chinese = opened("zh", "runs", run=run_id, dataset=data.id)
    english.run()  # after the other
    assert (english.title[0].value, chinese.title[0].value) == ("Runs", "训练任务")
    assert next(radio for radio in english.sidebar.radio if radio.key == "language_switch").options == [
        "English",
        "中文",
    ]
    switched(english, "zh")
    assert english.title[0].value == "训练任务"
    kept = {name: english.query_params[name] for name in ("lang", "run", "dataset")}
    assert kept == {"lang": "zh", "run": run_id, "dataset": data.id}
    to(english, "forgetting")
    assert english.title[0].value == "遗忘" and english.query_params["lang"] == "zh"


def test_an_address_that_asks_for_no_language_of_ours_gets_english():
    for value in ("../../etc", "<script>", "xx", "", "ZH", "zh-TW"):
        assert language_of(value) == ("zh" if value.lower().startswith("zh") else None)
    app = opened("../../etc", "data")
    assert app.title[0].value == "Data"


# --- in real browsers -------------------------------------------------------------------------------------------------
@pytest.mark.browser
def test_a_browser_comes_back_to_the_language_it_was_shown_last(server: Server, browser: Browser):
    context = browser.new_context(locale="en")
    page = context.new_page()
    for address, title in {
        "guide?lang=zh": "指南",
        "guide": "指南",
        "guide?lang=en": "Guide",
        "guide?": "Guide",
    }.items():
        page.goto(f"{server.url}/{address}")
        expect(page).to_have_title(f"{title} · Tunebook", timeout=60_000)
        expect(page.locator("html")).to_have_attribute("lang", "zh" if title == "指南" else "en")
    context.add_cookies([{"name": "tunebook_language", "value": "../../etc", "url": server.url}])
    page.goto(f"{server.url}/guide")
    expect(page).to_have_title("Guide · Tunebook", timeout=60_000)
    context.close()


@pytest.mark.slow
@pytest.mark.browser
def test_two_visitors_of_one_server_follow_a_run_each_in_their_language(server: Server, browser: Browser):
    """The part of the page that follows a run comes from threads that never ran the rest of it."""
    here = Workspace(server.home)
    run_id = made_run(here, datasets.add_sample(here, starter.sample("new-facts")).id, 1)
    visitors = {language: browser.new_context(locale=language).new_page() for language in ("en", "zh")}
    words_of = {"en": "Training: step {n} of 10", "zh": "训练：第 {n} / 10 步"}
    for page in visitors.values():
        page.goto(f"{server.url}/runs?run={run_id}")  # the browser says which language it wants
    log = events.EventLog(here.run_dir(run_id))
    for step in (6, 7, 8):
        log.append(events.Step(step=step, total_steps=10, epoch=1, loss=1.0, left_s=100.0))
        for language, page in visitors.items():
            expect(page.get_by_text(words_of[language].format(n=step))).to_be_visible(timeout=60_000)
    log.append(failures.from_exception(MemoryError()))
    log.close()
    expect(visitors["en"].get_by_text("the machine ran out of memory")).to_be_visible(timeout=60_000)
    expect(visitors["zh"].get_by_text("机器内存不足")).to_be_visible(timeout=60_000)
    for page in visitors.values():
        page.context.close()


@pytest.mark.slow
@pytest.mark.browser
def test_what_was_chosen_survives_that_its_words_change(server: Server, browser: Browser):
    here = Workspace(server.home)
    data = datasets.add_sample(here, starter.sample("new-facts"))
    page = browser.new_context(locale="en").new_page()
    page.goto(f"{server.url}/train?dataset={data.id}")
    page.get_by_role("button", name="LoRA", exact=True).click()
    page.get_by_role("button", name="Full fine-tuning", exact=True).click()
    expect(page.get_by_text("Learns the most and forgets the most.")).to_be_visible()
    page.get_by_test_id("stSidebar").get_by_text("中文").click()
    expect(page.locator("#stMain h1")).to_have_text("训练")
    expect(page.get_by_text("怎样训练", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="全量微调", exact=True)).to_be_visible()
    expect(page.get_by_role("combobox", name="从哪个模型开始")).to_have_value("入门模型 Starter（内置的玩具模型）")
    expect(page.get_by_text("学得最多，忘得也最多。")).to_be_visible()
    expect(page.get_by_test_id("stAlert")).to_have_count(0)
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="指南").click()
    expect(page.locator("#stMain h1")).to_have_text("指南")
    page.reload()
    expect(page.locator("#stMain h1")).to_have_text("指南")
    page.context.close()
