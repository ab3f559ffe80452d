"""Whether two models cut text into the same tokens and write a conversation alike, by their files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from engine import looker
from engine.models.bases import Base
from engine.workspace import read_object, read_regular


def reads_alike(base: Base, folder: Path) -> bool | None:
    """Return whether a base and a reward model cut text into the same tokens and write a conversation alike; None when
    the files do not say, as for a base that is still to be downloaded."""
    if base.folder is None:
        return None
    try:
        return looker.ask(_read_alike, base.folder, folder, at=folder)
    except looker.Refused:
        return None


def _read_alike(base: Path, folder: Path) -> bool | None:
    ours, theirs = _tokens(base), _tokens(folder)
    if ours is None or theirs is None:
        return None
    if ours.pieces != theirs.pieces or any(theirs.added.get(n, text) != text for n, text in ours.added.items()):
        return False
    if ours != theirs:
        return None  # a library may write the rest in another form, or add what its class always has (Qwen2Tokenizer)
    template, other = _template(base), _template(folder)
    # without one, both get the same plain headings, and only the run has them written down
    return None if template is None or other is None else template == other


class _Tokens(NamedTuple):
    """What of tokenizer.json decides the tokens: vocabulary and merges, tokens beside them by number, how text is cut."""

    pieces: list[Any]
    added: dict[int, str]
    cutting: list[Any]


def _tokens(folder: Path) -> _Tokens | None:
    """Read it from a folder; padding and truncation are the trainers' own."""
    try:
        told = read_object(folder / "tokenizer.json")
        added = {one["id"]: one["content"] for one in told.get("added_tokens", [])}
        merges = told["model"].get("merges")
        if isinstance(merges, list):  # "a b" until tokenizers 0.20, ["a", "b"] since
            merges = [one.split(" ") if isinstance(one, str) else one for one in merges]
        pieces = [told["model"].get("vocab"), merges]
        return _Tokens(pieces, added, [told.get("normalizer"), told.get("pre_tokenizer")])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _template(folder: Path) -> str | None:
    try:
        return read_regular(folder / "chat_template.jinja").decode("utf-8")
    except (OSError, ValueError):
        pass
    found = read_object(folder / "tokenizer_config.json").get("chat_template")
    return found if isinstance(found, str) else None
