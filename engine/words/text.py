"""The language of a sentence: t() says it now, later() keeps it with its parameters until somebody reads it.

Gettext, with the English text as the key; a catalogue per language lies in locales/ (docs/chinese.md has its terms).
"""

from __future__ import annotations

import gettext
import os
from collections.abc import Mapping
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path

import msgspec

_language: ContextVar[str] = ContextVar("language", default="en")
_LOCALES = Path(__file__).parent / "locales"
_WIDE_ENDS = ("。", "！", "？", "；", "：")  # hold their own space


@lru_cache(maxsize=1)
def languages() -> tuple[str, ...]:
    """Return the language codes that can be chosen, English first."""
    return ("en", *sorted(path.parents[1].name for path in _LOCALES.glob("*/LC_MESSAGES/tunebook.mo")))


def language_of(tag: str | None) -> str | None:
    """Return the language that a tag such as zh-CN, zh_CN.UTF-8 or en asks for, or None when there is no such one."""
    code = (tag or "").replace("_", "-").partition("-")[0].partition(".")[0].lower()
    return code if code in languages() else None


def set_language(code: str | None) -> None:
    """Choose the language of this thread or task; an unknown code means English.

    Visitors of one server have a thread each, so one never hears another's language. A new thread begins in English.
    """
    _language.set(language_of(code) or "en")


def language() -> str:
    """Return the language of this thread or task."""
    return _language.get()


def environment_language(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the language a terminal asks for: TUNEBOOK_LANG, then what gettext itself reads, in its order."""
    for name in ("TUNEBOOK_LANG", "LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        for tag in environment.get(name, "").split(":"):
            if tag:
                return language_of(tag)
    return None


@lru_cache(maxsize=8)
def _catalogue(code: str) -> gettext.NullTranslations:
    return gettext.translation("tunebook", _LOCALES, [code], fallback=True)


def t(text: str, /, **parameters: object) -> str:
    """Return `text` in the chosen language with {name} parameters filled in.

    Values from users are only ever parameters, so a brace in them is text and never a placeholder.
    """
    text = _catalogue(_language.get()).gettext(text) if text else text
    return text.format(**parameters) if parameters else text


def joined(*sentences: object) -> str:
    """Return sentences one after another, without those that are empty: a space apart, as after a full stop of Latin
    script; a Chinese one needs none."""
    told = [str(one) for one in sentences if one]
    return "".join(one if one.endswith(_WIDE_ENDS) else f"{one} " for one in told).rstrip()


class Text(msgspec.Struct, frozen=True):
    """A text that is looked up when it is read, not when it is written: str(text) speaks the reader's language.

    It goes into files (a report, the events of a run) as its English text and its parameters, which may be texts too.
    """

    text: str
    parameters: dict[str, str | int | float | bool | Text | None] = {}

    def __str__(self) -> str:
        try:
            return t(self.text, **self.parameters)
        except (LookupError, ValueError, AttributeError, TypeError):  # out of a file: words that lack a parameter
            return self.text

    def __format__(self, how: str) -> str:
        return format(str(self), how)

    def __contains__(self, part: str) -> bool:
        return part in str(self)


def later(text: str, /, **parameters: str | int | float | bool | Text | None) -> Text:
    """Return a text for somebody who reads it later; the same as t() otherwise."""
    return Text(text, parameters)
