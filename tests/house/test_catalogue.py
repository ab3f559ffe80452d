"""Scans: no text of the interface lacks a translation, and none stays outside the catalogue."""

from __future__ import annotations

import ast
import gettext
import re
from pathlib import Path

import pytest

from engine.words import languages
from tests.conftest import ROOT
from tests.house.sources import ENGINE, called, name_of, tree_of
from tests.house.sources import PAGES as PAGE_FILES
from tools import messages

CATALOGUES = messages.catalogue_paths()
CHINESE = re.compile(r"[\u4e00-\u9fff]")
PAST = "run `make messages`, translate what it names, and run it again"


def compiled(path: Path) -> dict[str, str]:
    with path.with_suffix(".mo").open("rb") as file:
        return {k: v for k, v in vars(gettext.GNUTranslations(file))["_catalog"].items() if k}


# --- the catalogue ----------------------------------------------------------------------------------------------------
def test_chinese_can_be_chosen():
    assert languages() == ("en", "zh")


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parents[1].name)
def test_no_message_of_the_interface_lacks_a_translation(path):
    translated = messages.read(path)
    missing = [text for text in messages.messages() if not translated.get(text)]
    assert missing == [], PAST
    unused = set(translated) - set(messages.messages()) - set(messages.earlier(path))
    assert sorted(unused) == [], f"no longer used: {PAST}"


def test_what_a_rule_said_before_keeps_its_translation_for_stored_reports(tmp_path):
    path = tmp_path / "zh" / "LC_MESSAGES" / "tunebook.po"
    path.parent.mkdir(parents=True)
    path.write_text(
        CATALOGUES[0].read_text("utf-8")
        + '\n#: engine/check/sentences.yaml\nmsgid "{n} rows were odd"\nmsgstr "{n} 行很怪"\n'
        '\n#: pages/data.py\nmsgid "an old button"\nmsgstr "旧按钮"\n', "utf-8",
    )  # fmt: skip
    for _ in range(2):  # it is still there after the next time
        messages.update(path, messages.read(path))
        kept = messages.read(path)
        assert kept["{n} rows were odd"] == "{n} 行很怪" and "an old button" not in kept
    assert "行很怪".encode() in path.with_suffix(".mo").read_bytes()


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parents[1].name)
def test_a_translation_has_the_parameters_of_its_text(path):
    wrong = [k for k, v in messages.read(path).items() if messages.placeholders(k) != messages.placeholders(v)]
    assert wrong == []


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parents[1].name)
def test_what_is_read_is_what_is_written(path):
    assert compiled(path) == messages.read(path), f"the .mo is older than the .po: {PAST}"


def test_a_chinese_sentence_is_chinese():
    """A translation that only repeats the English would pass for one."""
    (path,) = CATALOGUES
    names = re.compile(
        r"nats per token|The Hugging Face hub|SFT, DPO|arXiv|peft|TRL|transformers|PyTorch|LIMA|Appl|Unsloth|bitsandbytes"
    )
    same = [
        text
        for text, said in messages.read(path).items()
        if len(re.findall(r"[A-Za-z]{2,}", re.sub(r"\{\w+\}", "", text))) > 2 and not CHINESE.search(said)
    ]
    assert [text for text in same if not names.match(text) and "_proj" not in text] == []


def test_the_chinese_has_one_word_for_one_thing():
    """docs/chinese.md is the glossary; its last column says what no translation may hold."""
    (path,) = CATALOGUES
    rows = re.findall(r"^\| .+ \| .+ \| (.+) \|$", (ROOT / "docs" / "chinese.md").read_text("utf-8"), re.MULTILINE)
    never = [re.compile(one) for row in rows for one in re.findall(r"`(.+?)`", row)]
    assert len(never) > 30
    half = re.compile(
        r"[\u4e00-\u9fff][*_]*[,;:?!](?=\s|$)|:[*_ ]*[\u4e00-\u9fff]"
    )  # of half the width, beside Chinese
    apart = re.compile(r"[ \t][，。；：？！、）]|[，。；：？！、（][ \t]")  # a space beside what has its room in itself
    every = [*never, half, apart]
    found = {said: one.pattern for said in messages.read(path).values() for one in every if one.search(said)}
    assert found == {}


def test_the_scan_finds_texts_of_every_kind():
    found = messages.messages()
    for text in (
        "Start",  # a page
        "In part: {why}",  # through _ui.say
        "no GPU was found",  # through later
        "the disk is full",  # a problem's sentence
        "Learning rate",  # a setting's title
        "New facts",  # a sample
        "Full fine-tuning",  # a recipe
        "twice the rank (E10)",  # the guide
    ):
        assert text in found


def test_a_text_is_not_looked_up_before_a_reader_is_known():
    """t() at import time would speak the language of whoever came first, or none."""
    found = []
    for path in ENGINE:
        waiting: list[ast.AST] = [tree_of(path)]
        while waiting:
            node = waiting.pop()
            if isinstance(node, ast.Call) and called(node) == "t":
                found.append(f"{name_of(path)}:{node.lineno}")
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                waiting += ast.iter_child_nodes(node)
    assert found == []


def test_every_fragment_speaks_the_language_of_its_page():
    """st.fragment runs again in a thread that never saw the frame; _failures.fragment chooses the language first."""
    pages = [path for path in PAGE_FILES if path.name != "_failures.py"]
    named = [path.name for path in pages if "st.fragment" in path.read_text(encoding="utf-8")]
    assert named == [], "use _failures.fragment"


def test_no_list_to_choose_from_shows_words_of_streamlit_s_own():
    """They are English for every reader; a list that begins empty says what to do with it in our words."""
    found = []
    for path in PAGE_FILES:
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.Call) or called(node).rpartition(".")[2] not in ("multiselect", "selectbox"):
                continue
            given = {one.arg: one.value for one in node.keywords}
            index = given.get("index")
            is_empty = isinstance(index, ast.Constant) and index.value is None
            if (called(node).endswith("multiselect") or is_empty) and "placeholder" not in given:
                found.append(f"{name_of(path)}:{node.lineno}")
    assert found == []


def test_a_name_and_what_is_said_of_it_are_parted_by_the_colon_of_the_reader_s_language():
    """A colon between two texts is of full width in Chinese: t("{name}: {text}"), not written into an f-string."""
    found = []
    for path in PAGE_FILES:
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.JoinedStr):
                continue
            for before, colon, after in zip(node.values, node.values[1:], node.values[2:], strict=False):
                told = [isinstance(one, ast.FormattedValue) and _is_said(one.value) for one in (before, after)]
                if any(told) and isinstance(colon, ast.Constant) and colon.value == ": ":
                    found.append(f"{name_of(path)}:{node.lineno}")
    assert found == []


def _is_said(node: ast.expr) -> bool:
    """Whether a part of a text is looked up in the reader's language."""
    return any(
        isinstance(one, ast.Call) and called(one).rpartition(".")[2] in ("t", "say", "value_words", "family")
        for one in ast.walk(node)
    )
