"""Why a record cannot be read, in words: what is wrong with its syntax or its encoding, and how to mend it."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import msgspec

from engine.read import lines
from engine.read.lines import TOO_LONG, Unreadable
from engine.read.source import guess_encoding, wide_encoding
from engine.read.texts import short
from engine.words import Text, later


def decoded(raw: bytes) -> object:
    """The value of a record, or None when it does not parse; one that can be read all the same counts as parsed."""
    try:
        return msgspec.json.decode(raw)
    except lines.UNPARSED:
        found = mended(raw)
        return found.row if found else None


class Mended(NamedTuple):
    """A record that is no JSON and yet can be read: its value, that as JSON, whether a comma followed it, and the
    columns in which NaN or Infinity was read as null."""

    row: Any
    raw: bytes
    comma: bool
    constants: frozenset[str]


def mended(raw: bytes) -> Mended | None:
    """Read a record with a comma behind it, or with NaN or Infinity in it; None when there is more wrong with it."""
    if isinstance(raw, Unreadable) or raw is TOO_LONG:
        return None
    body = raw.rstrip()
    comma = body.endswith(b",")
    body = body[:-1] if comma else body
    constants: set[str] = set()
    try:
        if comma and lines.parses(body):
            return Mended(msgspec.json.decode(body), body, True, frozenset())
        if b"NaN" not in body and b"Infinity" not in body:
            return None
        row = json.loads(body, parse_constant=lambda word: _CONSTANT)
        if not isinstance(row, dict):
            return None
        for column, value in row.items():
            row[column], found = _without_constants(value)
            if found:
                constants.add(column)
        body = msgspec.json.encode(row)
        return Mended(msgspec.json.decode(body), body, comma, frozenset(constants))
    except (*lines.UNPARSED, ValueError, TypeError, OverflowError):
        return None


_CONSTANT = object()


def _without_constants(value: Any) -> tuple[Any, bool]:
    """A value with null for each NaN and Infinity, and whether there was one."""
    if value is _CONSTANT:
        return None, True
    if isinstance(value, dict):
        pairs = [(name, _without_constants(part)) for name, part in value.items()]
        return {name: part for name, (part, _) in pairs}, any(found for _, (_, found) in pairs)
    if isinstance(value, list):
        parts = [_without_constants(part) for part in value]
        return [part for part, _ in parts], any(found for _, found in parts)
    return value, False


class _NotANumber(Exception):
    pass


def _refuse_constant(word: str) -> None:
    raise _NotANumber(word)


def explain(raw: bytes) -> tuple[str, dict[str, str | int | Text]]:
    """Return the rule and parameters that say why msgspec refused `raw`."""
    if isinstance(raw, Unreadable):
        return raw.rule, raw.parameters
    if raw is TOO_LONG:
        return "too-long", {"limit_mib": lines.MAX_ROW_BYTES >> 20}
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        if re.match(rb"\xed[\xa0-\xbf]", raw[error.start : error.start + 2]):
            return "lone-surrogate", {}
        return "encoding-row", encoding_fault(raw)
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except _NotANumber as found:
        return "nan", {"word": str(found)}
    except json.JSONDecodeError as error:
        return "not-json", _syntax(text, error)
    except RecursionError:
        return "too-deep", {}
    except ValueError:  # more digits than int() takes
        return "number-range", {}
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "lone-surrogate", {}
    except (RecursionError, ValueError):
        return "too-deep", {}
    return "number-range", {}


def encoding_fault(raw: bytes) -> dict[str, str | int | Text]:
    """Say which byte of `raw`, which is not UTF-8, is the first that is wrong, and what the encoding may be."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        at = error.start
    else:
        at = 0
    encoding = wide_encoding(raw) or guess_encoding(raw[max(0, at - 40) : at + 40])
    guess = later(" (it looks like {encoding})", encoding=encoding)
    return {"byte": f"0x{raw[at]:02x}", "position": at + 1, "guess": guess}


_STRINGS_AND_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*("?)|[\[\]{}]', re.DOTALL)


def _missing(text: str) -> str | Text:
    """What would close all that is open at the end of a record that breaks off."""
    closing: list[str] = []
    string = ""
    for match in _STRINGS_AND_BRACKETS.finditer(text):
        found = match[0]
        if found in ("{", "["):
            closing.append("}" if found == "{" else "]")
        elif found in ("}", "]"):
            del closing[-1:]
        elif not match[1]:  # a string without its second quote goes to the end
            string = '"'
    missing = string + "".join(reversed(closing))
    return short(missing, 12) or later("more")


def _syntax(text: str, error: json.JSONDecodeError) -> dict[str, str | int | Text]:
    """Say what is wrong with the syntax and what to do, from what the standard parser stumbled on."""
    position = error.pos
    here = text[position : position + 1]
    place = position + 1
    before = text[:position].rstrip()
    delete = later("or delete the row")
    if text.startswith("\ufeff"):
        reason, remedy = later("a byte order mark stands in front of it"), later("remove the first character")
    elif not here or error.msg.startswith("Unterminated string"):
        reason = later(
            "it breaks off after character {end}, where {missing} is missing", end=len(text), missing=_missing(text)
        )
        remedy = later("complete the record {delete}", delete=delete)
    elif error.msg.startswith("Extra data"):
        reason = later("more text follows the end of the record at character {place}", place=place)
        remedy = later("write one record on each line")
    elif here in "}]" and before.endswith(","):
        reason, remedy = later("a comma too many at character {place}", place=len(before)), later("remove the comma")
    elif here == "\0":
        reason = later(
            "zero bytes at character {place}, which a copy leaves that was not written to its end", place=place
        )
        remedy = later("compare the file with the original, or delete the row")
    elif here == "'":
        reason = later("single quotes at character {place}", place=place)
        remedy = later("write it with a JSON library, which uses double quotes")
    elif re.match(r"(?:True|False|None)\b", text[position:]):
        reason = later("a Python word at character {place}", place=place)
        remedy = later("write true, false or null")
    elif error.msg.startswith("Invalid control character"):
        reason = later("a raw line break, tab or control character inside a text at character {place}", place=place)
        remedy = later("write it as \\n or \\t")
    elif error.msg.startswith("Invalid \\"):
        reason = later("a backslash that escapes nothing at character {place}", place=place)
        remedy = later("write \\\\ for a backslash")
    else:
        reason = later('unexpected "{found}" at character {place}', found=short(text[position:], 12), place=place)
        remedy = later("correct it {delete}", delete=delete)
    return {"reason": reason, "remedy": remedy}
