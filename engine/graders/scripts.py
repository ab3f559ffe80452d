"""Words, sentences and scripts of a text, in languages with and without spaces between words."""

from __future__ import annotations

from functools import lru_cache

import regex

# Scripts without spaces between words: their characters are counted, and two stand for a word.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+(?:['’.-][^\W_{UNSPACED}]+)*", regex.V1)
_LETTERS = regex.compile(rf"[{UNSPACED}]|[\p{{L}}--[{UNSPACED}]]+", regex.V1)
# A mark that closes what somebody says ends no sentence where it goes on: "Where?" she asked.
_SENTENCE_END = regex.compile(r"[.!?…]+(?:(?=\s|$)|[\"'”’)\]]+(?=\s+(?!\p{Ll})|\s*$))|[。！？]+[”’」』）]*")
_ABBREVIATION = regex.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|etc|e\.g|i\.e|No|Fig)\.$", regex.IGNORECASE)

# The scripts that a language is written in; the first is the one that must be there.
SCRIPTS: dict[str, tuple[str, ...]] = {
    "en": ("Latin",), "de": ("Latin",), "fr": ("Latin",), "es": ("Latin",), "it": ("Latin",), "pt": ("Latin",),
    "nl": ("Latin",), "pl": ("Latin",), "tr": ("Latin",), "vi": ("Latin",), "id": ("Latin",), "sv": ("Latin",),
    "zh": ("Han",), "ja": ("Hiragana", "Katakana", "Han"), "ko": ("Hangul",), "ru": ("Cyrillic",), "uk": ("Cyrillic",),
    "bg": ("Cyrillic",), "ar": ("Arabic",), "fa": ("Arabic",), "ur": ("Arabic",), "he": ("Hebrew",), "el": ("Greek",),
    "hi": ("Devanagari",), "mr": ("Devanagari",), "bn": ("Bengali",), "ta": ("Tamil",), "te": ("Telugu",),
    "kn": ("Kannada",), "gu": ("Gujarati",), "pa": ("Gurmukhi",), "th": ("Thai",), "ka": ("Georgian",),
    "hy": ("Armenian",), "am": ("Ethiopic",),
}  # fmt: skip
_KNOWN = tuple(dict.fromkeys(script for scripts in SCRIPTS.values() for script in scripts))


_UNSPACED = regex.compile(f"[{UNSPACED}]")


def is_unspaced(letter: str) -> bool:
    return _UNSPACED.match(letter) is not None


def words(text: str) -> int:
    """Return how many words a text has; in scripts without spaces each character counts."""
    return sum(1 for _ in _WORD.finditer(text))


def split(text: str) -> list[str]:
    """Return the words of a text, as they are counted, without their capitals."""
    return [found[0].casefold() for found in _WORD.finditer(text)]


def sentences(text: str) -> int:
    """Return how many sentences a text has; what is left after the last full stop is one."""
    found, start = 0, 0
    for end in _SENTENCE_END.finditer(text):
        if _ABBREVIATION.search(text, max(0, end.start() - 5), end.start() + 1):
            continue
        found += bool(_WORD.search(text, start, end.start()))
        start = end.end()
    return found + bool(_WORD.search(text, start))


def paragraphs(text: str) -> list[str]:
    return [part for part in regex.split(r"\n\s*\n", text) if part.strip()]


@lru_cache(maxsize=1)
def _matchers() -> dict[str, regex.Pattern[str]]:
    return {script: regex.compile(rf"\p{{{script}}}") for script in _KNOWN}


def shares(text: str) -> dict[str, float]:
    """Return how much of a text each script has, by words; two characters without spaces stand for one. Empty where it
    has no letters."""
    counted: dict[str, float] = {}
    for found in _LETTERS.finditer(text):
        first = found[0][0]
        script = next((name for name, one in _matchers().items() if one.match(first)), "other")
        weight = 0.5 if is_unspaced(first) else 1.0
        counted[script] = counted.get(script, 0.0) + weight
    whole = sum(counted.values())
    return {script: weight / whole for script, weight in counted.items()}


def scripts_of(text: str) -> tuple[str, ...]:
    """Return the scripts that a text like this one is written in; empty where it has no letters."""
    found = shares(text)
    if not found:
        return ()
    if found.get("Hiragana", 0) + found.get("Katakana", 0) > 0.1:
        return SCRIPTS["ja"]
    return (max(found, key=lambda script: found[script]),)
