"""Specs of a later version: what in them this version does not know, told apart from a file that is cut or damaged."""

from __future__ import annotations

import json
import typing
from functools import lru_cache
from typing import Any, Literal

import msgspec

from engine.spec import schema
from engine.spec.schema import SCHEMA, RunSpec
from engine.words import Problem


def unknown(data: bytes) -> tuple[str, ...]:
    """Return what a spec.json says that only a later version can have written: dotted paths of settings, with their value
    where only that is new. Empty for one of this version, and for what is no spec at all."""
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return ()
    if not isinstance(told, dict):
        return ()
    version = told.get("schema", SCHEMA)
    newer = (f"schema {version}",) if isinstance(version, int) and version > SCHEMA else ()
    return (*newer, *_unknown(RunSpec, told, ""))


def is_whole(data: bytes) -> bool:
    """Return whether a spec.json is one JSON object to its end."""
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False


def problem(data: bytes) -> Problem | None:
    """Return why this version cannot read a spec.json: it is of a later version, or cut or damaged. None where it can."""
    if found := unknown(data):
        return Problem(rule="run-later", where="spec.json", parameters={"names": ", ".join(found)[:200]})
    try:
        json.loads(data)  # first: what is cut says so, and not what was read until there
        schema.decode(data)
    except (ValueError, RecursionError) as error:
        return Problem(rule="run-broken", where="spec.json", parameters={"reason": str(error)[:200]})
    return None


def _unknown(struct: type, told: dict[str, Any], prefix: str) -> list[str]:
    found, fields = [], _fields(struct)
    for name, value in told.items():
        path = f"{prefix}{name}"
        if name not in fields:
            found.append(path[:60])
            continue
        nested, choices = fields[name]
        if nested is not None and isinstance(value, dict):
            found += _unknown(nested, value, f"{path}.")
        elif choices and isinstance(value, str) and value not in choices:
            found.append(f"{path} = {value[:40]}")
    return found


@lru_cache(maxsize=32)
def _fields(struct: type) -> dict[str, tuple[type | None, tuple[Any, ...]]]:
    """Return the fields of a struct as they are written: the struct inside, and the words that a field of choices takes."""
    found, hints = {}, typing.get_type_hints(struct)
    for field in msgspec.structs.fields(struct):
        name, annotation = field.encode_name, hints[field.name]
        parts = (annotation, *typing.get_args(annotation))  # those of an optional one too
        nested = next((one for one in parts if isinstance(one, type) and issubclass(one, msgspec.Struct)), None)
        words = next((typing.get_args(one) for one in parts if typing.get_origin(one) is Literal), ())
        found[name] = (nested, words)
    return found
