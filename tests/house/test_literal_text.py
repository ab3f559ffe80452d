"""Scans: what a page gives Streamlit to read as Markdown, or plotly as HTML, is written here or made literal first.

Which arguments are read as Markdown is taken from Streamlit's own documentation, so that a widget or an argument that is
new to the pages is looked at as well. A text made literal, as by `_ui.plain`, is so where it is shown or a few lines above.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import streamlit as st

from tests.house.sources import PAGES, called, calls, top, tree_of

READS_MARKDOWN = re.compile(r"GitHub-flavored\s+Markdown|markdown,?\s+(as described|including|subject)", re.IGNORECASE)
NUMBER = re.compile(r"[^{}]*[deEfg%,]")  # a format that no text can have: it raises
MAKES_LITERAL = {"plain", "lines", "say", "cells", "figure"}
Scope = ast.FunctionDef | ast.Module


@cache
def markdown_of(widget: str) -> dict[str, int | None]:
    """Return the arguments of a widget that may hold Markdown, each with its place where it has one."""
    function = getattr(st, widget, None)
    if widget == "write":  # any number of anything; texts are Markdown
        return {str(place): place for place in range(20)}
    if widget == "plotly_chart":
        return {"figure_or_data": 0}
    parts = re.split(r"^(\w+) ?: ", inspect.getdoc(function) or "", flags=re.MULTILINE)
    names = {name for name, told in zip(parts[1::2], parts[2::2], strict=True) if READS_MARKDOWN.search(told)}
    if widget == "navigation" or not names:  # its pages are made by st.Page
        return {}
    in_order = [one for one in inspect.signature(getattr(st, widget)).parameters if one != "self"]
    return {name: in_order.index(name) for name in names if name in in_order}


def shown(path: Path) -> Iterator[tuple[ast.Call, ast.expr]]:
    """Yield what each call of a widget, on the page or in a part of it, gives to be read as Markdown or HTML."""
    found = [
        alias
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]
    modules = {alias.asname or top(alias.name) for alias in found} - {"st"}
    for node in calls(path):
        if not isinstance(node.func, ast.Attribute) or called(node).partition(".")[0] in modules:
            continue
        reads = markdown_of(node.func.attr)
        given = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg in reads}
        given |= {
            name: node.args[place] for name, place in reads.items() if place is not None and place < len(node.args)
        }
        form = next((keyword.value for keyword in node.keywords if keyword.arg == "format_func"), None)
        if "options" in given and form is not None:  # what is shown of each choice
            given["options"] = form.body if isinstance(form, ast.Lambda) else form
        yield from ((node, one) for name, one in given.items() if name != "format_func")


def literal(node: ast.expr, scope: Scope, path: Path) -> bool:
    """Whether all of an expression is the pages' own text, a number, or made literal."""

    def all_of(nodes: list[ast.expr]) -> bool:
        return all(literal(one, scope, path) for one in nodes)

    match node:
        case ast.Constant():
            return True
        case ast.JoinedStr(values=parts) | ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.BoolOp(values=parts):
            return all_of(parts)
        case ast.FormattedValue(value=value, format_spec=form):
            return all_of([value]) or (form is not None and NUMBER.fullmatch(ast.unparse(form)[2:-1]) is not None)
        case ast.IfExp(body=one, orelse=other) | ast.BinOp(left=one, op=ast.Add(), right=other):
            return all_of([one, other])
        case ast.Subscript(value=ast.Dict(values=values)):
            return all_of(values)
        case ast.Name(id=name):
            values = assigned(name, scope)
            return bool(values) and None not in values and all_of([one for one in values if one is not None])
        case ast.Call(args=[ast.Constant(), *_]) if called(node) == "t":
            return all_of([one.value for one in node.keywords])
        case ast.Call(args=[ast.GeneratorExp(elt=one) | ast.ListComp(elt=one)]) if called(node).endswith(".join"):
            return all_of([one])
        case ast.Call(args=[ast.Constant(), *_]) if called(node) in ("_ui.say", "say"):
            return True
        case ast.Call() if called(node) == "len":
            return True
        case ast.Call(func=ast.Name(id=name)) if name not in MAKES_LITERAL:
            made = [one for one in tree_of(path).body if isinstance(one, ast.FunctionDef) and one.name == name]
            return bool(made) and all(literal(value, made[0], path) for value in returned(made[0]))
        case ast.Call():
            return called(node).removeprefix("_ui.") in MAKES_LITERAL - {"say"}
    return False


def assigned(name: str, scope: Scope) -> list[ast.expr | None]:
    """Return every value a name is given in a function or at the top of a file; None for one that comes from elsewhere."""
    found: list[ast.expr | None] = []
    for node in ast.walk(scope):
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                found.append(value)
            case ast.AugAssign(target=ast.Name(id=target), value=value) if target == name:
                found.append(value)
            case ast.Name(id=target, ctx=ast.Store()) | ast.arg(arg=target) if target == name:
                found.append(None)
    known = sum(one is not None for one in found)
    return [one for one in found if one is not None or len(found) > 2 * known]  # each assignment stores the name once


def returned(function: ast.FunctionDef) -> list[ast.expr]:
    return [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value is not None]


def scope_of(node: ast.AST, path: Path) -> Scope:
    """Return the innermost function an expression stands in, else its file."""
    around = [
        one
        for one in ast.walk(tree_of(path))
        if isinstance(one, ast.FunctionDef) and any(node is n for n in ast.walk(one))
    ]
    return around[-1] if around else tree_of(path)


def raw(path: Path) -> list[str]:
    return [
        f"{path.name}:{node.lineno}: {called(node)} shows {ast.unparse(one)}"
        for node, one in shown(path)
        if not literal(one, scope_of(node, path), path)
    ]


def test_what_a_page_shows_is_its_own_text_or_made_literal():
    found = [one for path in PAGES for one in raw(path)]
    assert found == [], "put it through _ui.plain, _ui.say, _ui.cells or _ui.figure:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "bad",
    [
        "st.markdown(name)", "st.caption(f'**{name}**')", "st.write('a', name)", "column.metric('a', name)",
        "st.radio('a', names)", "st.radio('a', list(names), format_func=lambda n: names[n])", "st.tabs(names)",
        "st.info(t('{n} rows', n=name))", "st.button('a', help=name)", "st.markdown(_ui.plain('a') + name)",
        "st.table(rows)", "st.plotly_chart(drawn)", "st.progress(0.1, name)", "st.toast(name)", "st.expander(name)",
    ],
)  # fmt: skip
def test_the_scan_sees_a_text_that_comes_from_elsewhere(bad: str, tmp_path: Path) -> None:
    path = tmp_path / "page.py"
    path.write_text(f"def show(name, names, rows, drawn, column):\n    {bad}\n")
    assert len(raw(path)) == 1


def test_the_scan_lets_texts_of_the_page_numbers_and_what_is_made_literal_pass(tmp_path: Path) -> None:
    path = tmp_path / "page.py"
    path.write_text(
        "def show(name, n, rows, drawn):\n    title = _ui.say('{a}', a=name)\n    st.markdown(f'**{title}** {n:,}')\n"
        "    st.info(t('{n} rows', n=f'{n:,}') if n else t('none'))\n    st.table(_ui.cells(rows))\n"
        "    st.radio('a', [1], format_func=lambda one: _ui.plain(one))\n    st.plotly_chart(_ui.figure(drawn))\n"
    )
    assert len(list(shown(path))) == 6 and raw(path) == []
