"""Scans: a file of a home is read by the helpers of engine/workspace.py, which know one way to fail, and what an action of a
page raises is said on it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.house.sources import PAGES, called, calls, name_of, sources, tree_of

# Files that read JSON by themselves, each with its reason.
BY_THEMSELVES = {
    "engine/workspace.py": "the helpers",
    "engine/starter/stored.py": "a file that comes with Tunebook",
    "engine/train/build_starter.py": "files that come with Tunebook, as they are made",
    "engine/train/objectives/ppo.py": "numbers of an optimizer, of which one may be no number; resuming says what is broken",
}
PARSERS = ("json.loads", "json.load", "msgspec.json.decode")
# Actions that read and write nothing but the session.
OF_THE_SESSION = {"_switch_language"}


def raw_readers() -> Iterator[str]:
    for path in sources("engine", "pages"):
        for node in calls(path):
            inside = [called(one) for part in node.args for one in ast.walk(part) if isinstance(one, ast.Call)]
            if called(node) in PARSERS and any(
                one.endswith(("read_bytes", "read_text", "read_regular")) for one in inside
            ):
                yield name_of(path)


def test_json_of_a_file_is_read_by_the_helpers_of_the_workspace():
    found = set(raw_readers())
    assert found & set(BY_THEMSELVES), "the scan finds nothing at all"
    assert sorted(found - set(BY_THEMSELVES)) == [], "use read_struct, find_struct, read_lines, read_object"


def actions() -> Iterator[tuple[str, ast.expr]]:
    """Yield every action that Streamlit calls before a page runs, by on_click or on_change."""
    for path in PAGES:
        for node in calls(path):
            for one in node.keywords:
                if re.fullmatch("on_(click|change|[a-z]+_change)", one.arg or ""):
                    yield name_of(path), one.value


def test_what_an_action_before_the_page_raises_is_said_on_the_page():
    kept = {
        node.name
        for path in PAGES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(one) == "_failures.kept" for one in node.decorator_list)
    }
    wrong = []
    for name, value in actions():
        does_nothing = isinstance(value, ast.Constant) or ast.unparse(value) == "lambda: None"
        if not does_nothing and ast.unparse(value) not in kept | OF_THE_SESSION:
            wrong.append(f"{name}: {ast.unparse(value)}")
    assert wrong == [], "decorate it with _failures.kept"
    assert len(kept) >= 3
