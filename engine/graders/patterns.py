"""Graders by a regular expression and by JSON of a schema: what a person writes is read by our rules alone, and ends in
time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec
import regex

from engine.graders.grade import Grader, fault, text_of
from engine.words import Problem, t

# An answer is searched for so long, and each of the trials before is.
SEARCH_S, TRIAL_S = 0.2, 0.05
# What a pattern is tried on: the same letter over and over is what makes one explode.
_TRIALS, _TRIAL_LETTERS = ("ab", "abc ", "a,", "0", "word ", "a0 ", "中"), 2_000
# A pattern that calls itself can fill the memory before its time is up.
_CALLS_ITSELF = re.compile(r"\(\?(?:R|\d+|[+-]\d+|&|P>|\(DEFINE)")


class Expression(Grader, frozen=True, tag="regex"):
    """A regular expression finds something in the answer, or matches all of it."""

    pattern: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
    where: Literal["anywhere", "start", "whole"] = "anywhere"
    case: bool = True
    wanted: bool = True

    def score(self, answer: str, row: Mapping[str, Any]) -> tuple[float, str]:
        compiled = _compiled(self.pattern, self.case)
        search = {"anywhere": compiled.search, "start": compiled.match, "whole": compiled.fullmatch}[self.where]
        try:
            found = search(answer, timeout=SEARCH_S) is not None
        except (TimeoutError, MemoryError, RecursionError):
            return 0.0, t("the pattern took too long on this answer")
        return float(found == self.wanted), t("the pattern is in it") if found else t("the pattern is not in it")

    def faults(self) -> Iterator[Problem]:
        yield from pattern_faults(self.pattern, self.case)


@lru_cache(maxsize=256)
def _compiled(pattern: str, case: bool) -> regex.Pattern[str]:
    return regex.compile(pattern, regex.MULTILINE | (0 if case else regex.IGNORECASE))


@lru_cache(maxsize=256)
def pattern_faults(pattern: str, case: bool) -> tuple[Problem, ...]:
    """Return what is wrong with a pattern: it cannot be read, calls itself, or takes too long on repeated letters."""
    try:
        compiled = _compiled(pattern, case)
    except (regex.error, RecursionError, OverflowError, MemoryError, ValueError) as error:
        return (fault("grader-pattern", pattern=pattern[:80], reason=str(error)[:80]),)
    if _CALLS_ITSELF.search(pattern):
        return (fault("grader-pattern", pattern=pattern[:80], reason=t("it calls itself")),)
    letters = dict.fromkeys([*_TRIALS, *(one for one in pattern if one.isalnum())])
    for one in list(letters)[:40]:
        text = (one * _TRIAL_LETTERS)[:_TRIAL_LETTERS]
        # the pattern's own letters at the end: without one that must be there nothing is tried at all
        for tried in (text, f"{text}\0", f"{text}\0{''.join(dict.fromkeys(pattern))}\0{pattern}"):
            try:
                compiled.search(tried, timeout=TRIAL_S)
            except (TimeoutError, MemoryError, RecursionError):
                return (fault("grader-explodes", pattern=pattern[:80], letters=len(tried)),)
    return ()


# What a schema may say. No patterns, no references and no formats: each can run long or reach out.
_KEYWORDS = {
    "type", "properties", "required", "items", "prefixItems", "enum", "const", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
    "additionalProperties", "anyOf", "allOf", "oneOf", "not", "title", "description", "$schema",
}  # fmt: skip
MOST_SCHEMA_PARTS, MOST_VALUES, MOST_DEPTH = 100, 2_000, 32
# Each part of a schema may be held against each value, at some 50 microseconds.
MOST_COMPARED = 20_000
_FENCE = re.compile(r"^```[\w-]*[ \t]*\n(.*?)\n?```$", re.DOTALL)


class Json(Grader, frozen=True, tag="json"):
    """JSON of a schema, or the same JSON as the right answer."""

    schema: dict[str, Any] = msgspec.field(default_factory=dict)
    same: bool = False
    fence: bool = True

    def score(self, answer: str, row: Mapping[str, Any]) -> tuple[float, str]:
        value, reason = self._read(answer)
        if reason:
            return 0.0, reason
        if self.same:
            right, unread = self._read(text_of(row, "reference"))
            if unread:
                return 0.0, t("the right answer is no JSON to compare with")
            if not _are_same(value, right):
                return 0.0, t("it is other JSON than the right one")
        if self.schema:
            if _size(value)[0] * _size(self.schema)[0] > MOST_COMPARED:
                return 0.0, t("the JSON is too large")
            found = next(_validator(msgspec.json.encode(self.schema)).iter_errors(value), None)
            if found is not None:
                place = ".".join(map(str, found.absolute_path))[:60]
                return 0.0, t("JSON of another form: {place} breaks “{keyword}”", place=place or "$",
                              keyword=str(found.validator))  # fmt: skip
        return 1.0, t("JSON of the form asked for") if self.schema else t("JSON")

    def _read(self, text: str) -> tuple[Any, str]:
        """Return the value of a text, and why there is none."""
        fenced = _FENCE.match(text) if self.fence else None
        try:
            value = json.loads(fenced[1] if fenced else text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return None, t("it is no JSON")
        parts, depth = _size(value)
        return (None, t("the JSON is too large")) if parts > MOST_VALUES or depth > MOST_DEPTH else (value, "")

    def faults(self) -> Iterator[Problem]:
        yield from schema_faults(self.schema)


def _are_same(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same; to Python, true is 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_are_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_are_same, one, other))
    return bool(one == other)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _size(value: Any) -> tuple[int, int]:
    """Return how many values a JSON value holds, itself too, and how deep they lie; counted without recursion."""
    parts, deepest, todo = 0, 0, [(value, 1)]
    while todo:
        one, depth = todo.pop()
        parts, deepest = parts + 1, max(deepest, depth)
        inner = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        todo += ((each, depth + 1) for each in inner)
    return parts, deepest


def schema_faults(schema: dict[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong with a schema: a keyword that is not read here, too large, or no schema at all."""
    parts, depth = _size(schema)
    if parts > 10 * MOST_SCHEMA_PARTS or depth > MOST_DEPTH:
        yield fault("grader-schema", reason=t("it is too large"))
        return
    count, unknown, todo = 0, [], [schema]
    while todo:
        one = todo.pop()
        count += 1
        unknown += [key for key in one if key not in _KEYWORDS]
        inner = [one.get("items"), one.get("not"), one.get("additionalProperties")]
        inner += [each for key in ("anyOf", "allOf", "oneOf", "prefixItems") for each in _listed(one.get(key))]
        inner += list(properties.values()) if isinstance(properties := one.get("properties"), dict) else []
        todo += [each for each in inner if isinstance(each, dict)]
    if unknown:
        names = ", ".join(dict.fromkeys(str(key)[:40] for key in unknown))
        yield fault("grader-schema", reason=t("it uses {names}, which is not read here", names=names[:120]))
    elif count > MOST_SCHEMA_PARTS:
        yield fault("grader-schema", reason=t("it is too large"))
    else:
        import jsonschema

        try:
            jsonschema.Draft202012Validator.check_schema(schema)
        except jsonschema.SchemaError as error:
            yield fault("grader-schema", reason=error.message.splitlines()[0][:80])


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


@lru_cache(maxsize=64)
def _validator(schema: bytes) -> Any:
    import jsonschema

    return jsonschema.Draft202012Validator(msgspec.json.decode(schema))
