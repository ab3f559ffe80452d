"""Scans: every rule is named and has its parameters, and every text a person reads can be looked up."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from engine.words import languages, rules, set_language, t
from tests.house.sources import ALL, ENGINE, PAGES, PROJECT, TRAIN, called, calls, name_of, tree_of
from tests.house.test_layers import FLOOR_OF

WORDS = PROJECT / "engine" / "words"
FILES = sorted((PROJECT / "engine").rglob("sentences.yaml"))
# What a library says -> the rule that says it in words; all that such a rule is given is the message.
SIGNS = PROJECT / "engine" / "runs" / "failure_signs.yaml"
WRITTEN = [path for path in [*ENGINE, *TRAIN] if path.parent != WORDS and path.name != "build_starter.py"]
LETTER = re.compile(r"[^\W\d_]")


def placeholders(text: str) -> set[str]:
    return {re.split(r"[.\[]", name)[0] for _, name, _, _ in string.Formatter().parse(text) if name is not None}


# --- rules ---
def raised(path: Path) -> Iterator[tuple[int, str, set[str] | None]]:
    """Yield line, rule and parameters (None when they are not all literal) of every rule that a file names.

    Rules are named in Problem(rule=...), and through small helpers that take the rule and keywords.
    """
    for node in calls(path):
        if called(node) == "Problem":
            rule = next((k.value for k in node.keywords if k.arg == "rule"), None)
            given = next((k.value for k in node.keywords if k.arg == "parameters"), None)
            if isinstance(rule, ast.Constant):
                names: set[str] | None = set()
                if isinstance(given, ast.Dict):
                    literal = [key.value for key in given.keys if isinstance(key, ast.Constant)]
                    names = {str(name) for name in literal} if len(literal) == len(given.keys) else None
                elif given is not None:
                    names = None
                yield node.lineno, str(rule.value), names
        elif called(node).rpartition(".")[2] == "fault" and isinstance(node.args[0], ast.Constant):
            yield node.lineno, str(node.args[0].value), {k.arg for k in node.keywords if k.arg}
        elif called(node) == "_failed" and isinstance(node.args[1], ast.Constant):
            yield node.lineno, str(node.args[1].value), {k.arg for k in node.keywords if k.arg}
        elif called(node) == "_other" and path.name == "folders.py":
            named = [n.value for one in node.args[2:3] for n in ast.walk(one) if isinstance(n, ast.Constant)]
            given = {"folder", *(k.arg for k in node.keywords if k.arg)}
            yield from ((node.lineno, rule, given) for rule in named if isinstance(rule, str) and "." not in rule)


def test_the_scan_finds_who_names_rules():
    named = {rule for path in WRITTEN for _, rule, _ in raised(path)}
    assert {"quantize-full", "base-no-config", "run-signal", "dataset-none"} <= named  # one of each way to name them


def test_a_rule_that_is_named_exists_and_has_its_parameters():
    wrong = []
    known = rules.rules()
    for path, line, rule, given in ((file, *one) for file in WRITTEN for one in raised(file)):
        if rule not in known:
            wrong.append(f"{name_of(path)}:{line}: there is no rule {rule}")
            continue
        wanted = placeholders(known[rule].says + known[rule].do) | {"where"}
        if given is not None and not wanted - {"where"} <= given | {"where"}:
            wrong.append(f"{name_of(path)}:{line}: {rule} lacks {sorted(wanted - given - {'where'})}")
        elif given is not None and not given <= wanted:
            wrong.append(f"{name_of(path)}:{line}: {rule} is given {sorted(given - wanted)} in vain")
    assert wrong == []


def literals(path: Path) -> set[str]:
    if path == SIGNS:
        return {group["rule"] for group in yaml.safe_load(path.read_text("utf-8"))}
    constants = (node.value for node in ast.walk(tree_of(path)) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str)}


def test_the_rules_of_the_table_of_messages_exist_and_want_no_more_than_the_message():
    known = rules.rules()
    assert literals(SIGNS) <= set(known)
    wanted = {name for rule in literals(SIGNS) for name in placeholders(known[rule].says + known[rule].do)}
    assert wanted <= {"error"}


def test_every_rule_is_named_somewhere():
    named = {text for path in [*WRITTEN, SIGNS, *PAGES] for text in literals(path)}
    assert sorted(set(rules.rules()) - named) == []


def test_a_rule_stands_beside_the_lowest_package_that_names_it():
    """Single files of the engine share engine/sentences.yaml, which is below all packages."""
    named: dict[Path, set[str]] = {}
    for path in [*WRITTEN, SIGNS]:
        folder = PROJECT.joinpath(*path.relative_to(PROJECT).parent.parts[:2])
        named.setdefault(folder, set()).update(literals(path))
    floors = {folder: FLOOR_OF.get(folder.name, 0) for folder in named}
    wrong = []
    for path in FILES:
        lower = [folder for folder in named if floors[folder] < floors[path.parent]]
        for rule in yaml.safe_load(path.read_text("utf-8")):
            wrong += [f"{rule} is not named in {name_of(path.parent)}"] if rule not in named[path.parent] else []
            wrong += [f"{rule} is named in {name_of(folder)} too" for folder in lower if rule in named[folder]]
    assert wrong == []


def test_each_rule_stands_once_in_a_file_that_is_read():
    written = [rule for path in FILES for rule in re.findall(r"^([\w-]+):", path.read_text("utf-8"), re.MULTILINE)]
    assert sorted(written) == sorted(rules.rules())


# --- texts ------------------------------------------------------------------------------------------------------------
def texts(path: Path) -> Iterator[ast.Call]:
    yield from (node for node in calls(path) if called(node) in ("t", "words.t", "_ui.say", "say") and node.args)


def test_a_text_is_looked_up_as_it_is_written():
    """An f-string, a sum or a call would ask the catalogue for a text that no catalogue can hold."""
    for path, node in ((file, node) for file in ALL if file.parent != WORDS for node in texts(file)):
        assert isinstance(node.args[0], ast.Constant | ast.Name | ast.Attribute | ast.Subscript), (
            f"{name_of(path)}:{node.lineno}: {ast.unparse(node.args[0])}"
        )


def test_a_text_gets_exactly_the_parameters_it_names():
    for path, node in ((file, node) for file in ALL if file.parent != WORDS for node in texts(file)):
        first = node.args[0]
        if not isinstance(first, ast.Constant) or any(k.arg is None for k in node.keywords):
            continue
        given = {k.arg for k in node.keywords}
        assert isinstance(first.value, str)
        wanted = placeholders(first.value) if given or re.search(r"\{\w+\}", first.value) else set()
        assert wanted == given, f"{name_of(path)}:{node.lineno}: {first.value!r}"


# --- the pages --------------------------------------------------------------------------------------------------------
# name of a widget or of a helper of _ui -> how many leading arguments are shown, all of them when None
SHOWN: dict[str, int | None] = {
    **dict.fromkeys(("title", "header", "subheader", "markdown", "caption", "info", "warning", "error", "success"), 1),
    **dict.fromkeys(("button", "download_button", "form_submit_button", "link_button", "text_input", "text_area"), 1),
    **dict.fromkeys(("checkbox", "toggle", "radio", "selectbox", "multiselect", "slider", "number_input"), 1),
    **dict.fromkeys(("file_uploader", "metric", "expander", "popover", "toast", "spinner", "status", "text"), 1),
    **dict.fromkeys(("pills", "segmented_control", "select_slider", "chat_input", "tabs", "ProgressColumn"), 1),
    "write": None,
}
SHOWN_NAMES = {"label", "help", "placeholder", "text", "title", "alt", "caption", "reason", "body", "message"}
NAMES_OF_THEIR_OWN = {"Tunebook"}


def bare(node: ast.expr) -> Iterator[str]:
    """Yield the literal texts with letters in an expression that no call has looked up."""
    match node:
        case ast.Constant(value=str() as value):
            shown = re.sub(r":material/\w+:|:(red|orange|small)\[", "", value)  # icons and colours
            if LETTER.search(shown) and not shown.startswith("/") and shown not in NAMES_OF_THEIR_OWN:
                yield value
        case ast.JoinedStr(values=values):
            for part in values:
                yield from bare(part)
        case ast.FormattedValue(value=value):
            yield from bare(value)
        case ast.IfExp(body=body, orelse=orelse):
            yield from bare(body)
            yield from bare(orelse)
        case ast.BoolOp(values=values):
            for part in values:
                yield from bare(part)
        case ast.BinOp(left=left, right=right):
            yield from bare(left)
            yield from bare(right)
        case ast.List(elts=elts) | ast.Tuple(elts=elts):
            for part in elts:
                yield from bare(part)


def shown_on(path: Path) -> Iterator[tuple[int, ast.expr]]:
    for node in calls(path):
        name = called(node).rpartition(".")[2]
        if called(node) in ("_ui.empty", "empty") and len(node.args) == 3:
            yield from ((node.lineno, argument) for argument in (node.args[0], node.args[2]))
        elif called(node) in ("_ui.next_step", "next_step") and len(node.args) > 1:
            yield node.lineno, node.args[1]
        elif isinstance(node.func, ast.Attribute) and name in SHOWN and called(node) not in ("st.set_page_config",):
            yield from ((node.lineno, argument) for argument in node.args[: SHOWN[name]])
        else:
            continue
        yield from ((node.lineno, k.value) for k in node.keywords if k.arg in SHOWN_NAMES)


def test_the_scan_sees_what_pages_show():
    assert sum(1 for path in PAGES for _ in shown_on(path)) > 80
    (bad,) = ast.parse("st.title(f'{x} runs' if x else t('none'))").body
    assert isinstance(bad, ast.Expr)
    assert isinstance(bad.value, ast.Call)
    assert list(bare(bad.value.args[0])) == [" runs"]


def test_what_a_page_shows_has_been_looked_up():
    assert [
        f"{name_of(path)}:{line}: {text!r}" for path in PAGES for line, node in shown_on(path) for text in bare(node)
    ] == []


# --- the run's own sentences ------------------------------------------------------------------------------------------
def test_a_sentence_in_the_events_of_a_run_has_been_looked_up():
    """The page shows the text of Log and the reason of Started and Interrupted as they are in the file."""
    found = []
    for path, node in ((file, node) for file in WRITTEN for node in calls(file)):
        if called(node) in ("events.Log", "Log", "events.Interrupted", "events.Failed", "Failed"):
            shown = [k.value for k in node.keywords if k.arg in ("text", "reason", "message", "fix")]
        elif called(node).endswith("notes.append"):  # what loading and preparing have to say, written as Log
            shown = node.args
        else:
            continue
        found += [f"{name_of(path)}:{node.lineno}: {text!r}" for value in shown for text in bare(value)]
    assert found == []


# --- columns ----------------------------------------------------------------------------------------------------------
def columns(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and the names of each table that is written as a dictionary, whose later keys replace earlier ones."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Dict):
            parts = [key for key in node.keys if key is not None]
            spread = [value for key, value in zip(node.keys, node.values, strict=True) if key is None]
            parts += [key for part in spread for inner in ast.walk(part) if isinstance(inner, ast.Dict)
                      for key in inner.keys if key is not None]  # fmt: skip
            names = [
                key.args[0].value
                for key in parts
                if isinstance(key, ast.Call) and ast.unparse(key.func) == "t" and isinstance(key.args[0], ast.Constant)
            ]
            if len(names) > 1:
                yield node.lineno, [str(name) for name in names]


def test_the_scan_finds_tables():
    assert sum(1 for path in PAGES for _ in columns(path)) > 10


@pytest.mark.parametrize("language", languages())
def test_no_two_columns_of_a_table_have_one_name(language):
    set_language(language)
    try:
        for path in PAGES:
            for line, names in columns(path):
                shown = [t(name) for name in names]
                assert len(set(shown)) == len(shown), f"{path.name}:{line}: {shown}"
    finally:
        set_language("en")
