"""The tokenizer of a run, and rows as it reads them: engine/render decides that, over what transformers has loaded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from engine.render import Coder, Encoded, NotWritten, coder
from engine.render import encode as encoding
from engine.runs import failures

_CODERS: WeakKeyDictionary[Any, Coder] = WeakKeyDictionary()


def get_ready(tokenizer: Any, folder: Path | None = None, day: str | None = None) -> bool:
    """Make a loaded tokenizer one that rows can be read with: a base without a chat template gets the plain one, and a
    template that writes the date always writes `day`. `folder` holds the base's files, which say at which tokens it
    stops. Returns whether the plain template was needed. Raises RunRefused when the template cannot be used."""
    if isinstance(tokenizer.chat_template, dict):  # several by name
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    made = _made(tokenizer, coder.own_stops(folder) if folder is not None else (), day)
    if made.is_plain:
        tokenizer.chat_template = made.template.source
    if made.template.day is not None:
        tokenizer.apply_chat_template = partial(tokenizer.apply_chat_template, strftime_now=made.template.now)
    _CODERS[tokenizer] = made
    return made.is_plain


def coder_of(tokenizer: Any) -> Coder:
    """The coder that get_ready() made of a tokenizer, or a new one where its template was changed since."""
    made = _CODERS.get(tokenizer)
    if made is None or made.template.source != tokenizer.chat_template:
        made = _CODERS[tokenizer] = _made(tokenizer, (), None)
    return made


def _made(tokenizer: Any, stops: tuple[int, ...], day: str | None) -> Coder:
    special = {name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
    try:
        return Coder(tokenizer.backend_tokenizer, special, tokenizer.chat_template, stops=stops, day=day)
    except NotWritten as error:
        raise failures.RunRefused(error.problem) from error


def render(tokenizer: Any, messages: list[dict[str, Any]], tools: str | None = None) -> str:
    """Return the text of a conversation up to where the assistant's answer begins. Raises NotWritten."""
    return coder_of(tokenizer).ask(messages, tools)


def stops(tokenizer: Any) -> list[int] | None:
    """The ids at which an answer is over: the base's own, and the mark that ends its turns; None when there is none."""
    return list(coder_of(tokenizer).stops) or None


def until_end(tokenizer: Any, ids: list[int]) -> list[int]:
    """Token ids up to the first at which an answer is over, that one included."""
    ends = coder_of(tokenizer).stops
    return ids[: next((at for at, one in enumerate(ids) if one in ends), len(ids)) + 1]


def turn_end(tokenizer: Any) -> int | None:
    """The id that ends an answer of this base: the mark of its template, else its end-of-text token."""
    return coder_of(tokenizer).turn_end


def encode(row: dict[str, Any], tokenizer: Any, max_length: int) -> Encoded:
    """Return the token ids and labels of one canonical row, cut to `max_length` tokens. Raises NotWritten."""
    return encoding.encode(row, coder_of(tokenizer)).within(max_length)
