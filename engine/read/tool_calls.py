"""Calls of tools and lists of tools, in every spelling that files have -> OpenAI's form with arguments as objects.

A call becomes {"type": "function", "id": its id if it has one, "function": {"name", "arguments": an object}}, a tool
{"type": "function", "function": {...}}. Chat templates write both with their own hands, so a text of JSON in their place
would be printed in quotes.
"""

from __future__ import annotations

import ast
from typing import Any

import msgspec

from engine.read import texts
from engine.words import Text, later

# Roles, in lower case, whose turns are calls of tools written as text.
CALL_ROLES = ("function_call", "tool_call", "tool_calls")
# Parts of a message's content that are calls, and where these keep what is called and with what.
CALL_PARTS = ("tool_call", "tool_use", "function_call")
_ARGUMENTS = ("arguments", "input", "parameters")


class Malformed(Exception):
    """What should be a call or a list of tools and is not: why, and under which key of its holder ("" for the holder)."""

    def __init__(self, reason: str | Text, key: str = ""):
        super().__init__(str(reason))
        self.reason, self.key = reason, key


def calls_of(message: dict[str, Any], *, drop_nulls: bool) -> list[dict[str, Any]]:
    """The calls a message has under `tool_calls` or, in OpenAI's older form, `function_call`. Raises Malformed.

    `drop_nulls`: the file is one whose columns give every object the keys of all others, with nulls (Parquet).
    """
    calls = message.get("tool_calls") or []
    if not calls:
        one = message.get("function_call")
        return [_call(_parsed(one, "function_call"), "function_call", drop_nulls)] if one else []
    calls = _parsed(calls, "tool_calls")
    if isinstance(calls, dict):
        calls = [calls]
    if not isinstance(calls, list):
        raise Malformed(later("this is {found}", found=texts.kind_of(calls)), "tool_calls")
    found = []
    for index, call in enumerate(calls):
        place = f"tool_calls[{index}]"
        found.append(_call(_parsed(call, place), place, drop_nulls))
    return found


def call_of_part(part: dict[str, Any], *, drop_nulls: bool) -> dict[str, Any]:
    """The call that is a part of a message's content. Raises Malformed."""
    held = part.get("value", part.get(str(part.get("type"))))
    return _call(_parsed(part if held is None else held, ""), "", drop_nulls)


def calls_of_text(text: str, *, drop_nulls: bool = False) -> list[dict[str, Any]] | None:
    """The calls that are the text of a turn of CALL_ROLES; None when it is some other text. Raises Malformed when it
    begins as an object or a list and cannot be read as one, or when what it calls with cannot."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    value = _parsed(text, "")
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) and ("name" in call or "function" in call) for call in calls):
        return None
    return [_call(call, "", drop_nulls) for call in calls]


def tools_of(value: object, functions: object = None, *, drop_nulls: bool = False) -> list[dict[str, Any]]:
    """The tools of a row: of its `tools` and, in OpenAI's older form, its `functions`. Raises Malformed."""
    found = []
    for name, held in (("tools", value), ("functions", functions)):
        if held is None or (isinstance(held, str) and not held.strip()):
            continue
        tools = _parsed(held, name)
        if isinstance(tools, dict):
            tools = [tools]
        if tools is None:
            continue
        if not isinstance(tools, list):
            raise Malformed(later("this is {found}", found=texts.kind_of(tools)), name)
        found += [_tool(_parsed(tool, name), name, drop_nulls) for tool in tools]
    return found


def name_of(tool: dict[str, Any]) -> str:
    """The name of a call or of a tool in OpenAI's form."""
    return tool["function"]["name"]


def without_nulls(value: Any) -> Any:
    """A value without the keys of its objects that hold null, at any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(held) for key, held in value.items() if held is not None}
    return [without_nulls(held) for held in value] if isinstance(value, list) else value


def _parsed(value: object, key: str) -> Any:
    """A value that may be written as text: as JSON, or as Python writes what JSON can hold."""
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        try:
            read = ast.literal_eval(value.strip()) if len(value) < 100_000 else None
            if isinstance(read, dict | list):
                msgspec.json.encode(read)
                return read
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, msgspec.MsgspecError):
            pass
    raise Malformed(later("it is not valid JSON"), key)


def _call(call: object, key: str, drop_nulls: bool) -> dict[str, Any]:
    held = call.get("function") if isinstance(call, dict) else None
    function = held if isinstance(held, dict) else call
    if not isinstance(function, dict):
        raise Malformed(later("this is {found}", found=texts.kind_of(call)), key)
    name = function.get("name") or (held if isinstance(held, str) else None)
    if not isinstance(name, str) or not name.strip():
        raise Malformed(later("it does not name a tool"), key)
    arguments = next((function[word] for word in _ARGUMENTS if function.get(word) is not None), None)
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        arguments = {}
    try:
        for _ in range(2):  # some write the text of a text
            arguments = _parsed(arguments, key)
    except Malformed:
        raise Malformed(later("its arguments are not valid JSON"), key) from None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        found = texts.kind_of(arguments)
        raise Malformed(later("its arguments are {found} and not an object of names and values", found=found), key)
    own: dict[str, Any] = {"type": "function"}
    if isinstance(call, dict) and isinstance(number := call.get("id"), str) and number:
        own["id"] = number
    return own | {"function": {"name": name, "arguments": without_nulls(arguments) if drop_nulls else arguments}}


def _tool(tool: object, key: str, drop_nulls: bool) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if isinstance(tool, dict) and function is None:
        # Without the object around it, as in OpenAI's older form; Anthropic has another word for the parameters.
        function = {
            "parameters" if word == "input_schema" else word: held for word, held in tool.items() if word != "type"
        }
    if not isinstance(function, dict):
        raise Malformed(later("a tool is {found} and not an object", found=texts.kind_of(tool)), key)
    if not isinstance(function.get("name"), str):
        raise Malformed(later("a tool has no name"), key)
    return {"type": "function", "function": without_nulls(function) if drop_nulls else function}
