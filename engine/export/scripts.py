"""Python scripts out of the templates beside this file (*.py.jinja).

A template reads like the script it makes. What it fills in comes from people, so it goes through a filter that makes
Python of it: `literal` a value, `docstring` text inside three quotes, `name` an identifier. What went through none is
refused, so that no name of a model or a recipe can become code.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2


class _Source(str):
    """Text that a filter has made Python of."""


def fill(template: str, **values: Any) -> str:
    """Return the script that a template makes of plain values: texts, numbers, lists and dictionaries of them."""
    return _environment().get_template(template).render(values)


def _literal(value: Any) -> _Source:
    if not isinstance(value, str | int | float | list | None):
        raise TypeError(f"a script takes no {type(value).__name__}")
    return _Source(repr(value))


def _docstring(value: Any) -> _Source:
    return _Source(str(value).replace("\\", "\\\\").replace('"""', "'''"))


def _name(value: str) -> _Source:
    if not value.isidentifier():
        raise ValueError(f"{value!r} is no name")
    return _Source(value)


def _checked(value: Any) -> _Source:
    if not isinstance(value, _Source):
        raise TypeError(f"{value!r} went through no filter")
    return value


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(  # noqa: S701 - it writes Python, where nothing is escaped as in HTML
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        finalize=_checked,
    )
    environment.filters |= {"literal": _literal, "docstring": _docstring, "name": _name}
    return environment
