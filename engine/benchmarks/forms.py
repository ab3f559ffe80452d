"""The form an answer is asked to have: JSON, a schema, a pattern; and whether it has it."""

from __future__ import annotations

import json
import re
from typing import Any

from engine.words import t


def form_problem(form: Any) -> str:
    """Return what is wrong with a form, or nothing. A form is "json", {"schema": a JSON Schema}, {"regex": a pattern
    that the whole answer must match} or {"choices": [the only answers there are]}."""
    if form == "json":
        return ""
    if not isinstance(form, dict) or len(form) != 1:
        return t('it must be "json", or an object with one of schema, regex and choices')
    if "regex" in form:
        try:
            re.compile(form["regex"])
        except (re.error, TypeError, RecursionError, OverflowError) as error:
            return t("the regular expression cannot be read: {reason}", reason=str(error)[:80])
        return ""
    if "choices" in form:
        whole = isinstance(form["choices"], list) and form["choices"]
        return (
            "" if whole and all(isinstance(x, str) for x in form["choices"]) else t("choices must be a list of texts")
        )
    if "schema" in form:
        import jsonschema

        try:
            jsonschema.Draft202012Validator.check_schema(form["schema"])
        except (jsonschema.SchemaError, TypeError, RecursionError) as error:
            return t("the schema cannot be used: {reason}", reason=str(error).splitlines()[0][:80])
        return ""
    return t('it must be "json", or an object with one of schema, regex and choices')


def has_form(text: str, form: Any) -> bool:
    """Whether an answer has the form asked for (form_problem). References out of a schema are never fetched."""
    text = text.strip()
    if isinstance(form, dict) and "regex" in form:
        return re.fullmatch(form["regex"], text[:10_000]) is not None
    if isinstance(form, dict) and "choices" in form:
        return text in form["choices"]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if form == "json":
        return True
    import jsonschema
    import referencing
    import referencing.exceptions

    validator = jsonschema.Draft202012Validator(form["schema"], registry=referencing.Registry())
    try:
        return bool(validator.is_valid(value))
    except (referencing.exceptions.Unresolvable, RecursionError):
        return False


def form_of(references: list[str]) -> Any:
    """Return the form that the right answers of a data set have in common: the JSON they all are, with the keys they all
    have; None when they are free text."""
    values = []
    for reference in references:
        try:
            values.append(json.loads(reference))
        except (ValueError, RecursionError):
            return None
    if not values or not all(isinstance(value, dict | list) for value in values):
        return None
    if not all(isinstance(value, dict) for value in values):
        return "json"
    keys = set(values[0]).intersection(*values[1:])
    return {"schema": {"type": "object", "required": sorted(keys)}}
