"""Where in the text of a row a problem is, so that a page can mark the spot."""

from __future__ import annotations

import json
import re
from typing import Any

from engine.words import Problem

_PART = re.compile(r"\[(\d+)\]|([^.\[\]]+)")
_SPACE = re.compile(r"[ \t\r\n]*")
_decoder = json.JSONDecoder()


def spot(text: str, problem: Problem) -> tuple[int, int] | None:
    """The first and past-the-last character of what a problem of this row is about; None when no one spot is."""
    if not text:
        return None
    position = problem.parameters.get("position")
    if problem.rule == "encoding-row" and isinstance(position, int):
        return None if position > len(text) else (position - 1, position)
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        at = min(error.pos, len(text) - 1)
        return at, len(text) if error.msg.startswith("Unterminated") else at + 1
    except (ValueError, RecursionError):
        return None
    if problem.rule == "nan":
        found = re.search(r"-?\b(NaN|Infinity)\b", text)
        return found.span() if found else None
    if not problem.where:
        return None
    parts: list[str | int] = [int(n) if n else name for n, name in _PART.findall(problem.where)]
    try:
        return _walk(text, parts) or _walk(text, [problem.where])
    except (ValueError, StopIteration, RecursionError):
        return None


def _walk(text: str, parts: list[Any]) -> tuple[int, int] | None:
    """The span of the value at a path, or of the longest part of the path that is there; None when nothing is."""
    at = _skip(text, 0)
    best: tuple[int, int] | None = None
    for part in parts:
        found = None
        for name, start, end in _members(text, at):
            if name == part:
                found = start, end  # the last of several counts, as for the parser
        if found is None:
            break
        best, at = found, found[0]
    return best


def _members(text: str, at: int) -> list[tuple[Any, int, int]]:
    """The members of the object or list that begins at `at`: name or index, and the span of the value."""
    if text[at : at + 1] not in ("{", "["):
        return []
    is_object = text[at] == "{"
    found: list[tuple[Any, int, int]] = []
    at = _skip(text, at + 1)
    while text[at] not in "}]":
        name: Any = len(found)
        if is_object:
            name, at = _decoder.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)  # past the colon
        _, end = _decoder.raw_decode(text, at)
        found.append((name, at, end))
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
