"""The tokens of a tokenizer against the rows of an embedding: a token beyond the last row cannot be read at all."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from engine.models import weights
from engine.words import Text, later
from engine.workspace import read_object

FILES = ("tokenizer.json", "tokenizer.model")
# What the embedding of tokens is called in the layouts of transformers.
_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
)
NAMED = 20


class TokenRows(msgspec.Struct, frozen=True, kw_only=True):
    """`tokens`: one more than the highest number of a token; `rows`: those of the embedding. `beyond`: the tokens without a
    row and their numbers, the first 20 of them."""

    tokens: int
    rows: int
    beyond: tuple[tuple[str, int], ...]

    @property
    def names(self) -> str:
        """The tokens without a row, as they are named in a sentence."""
        without = self.tokens - self.rows
        return ", ".join(text for text, _ in self.beyond) + (", ..." if without > len(self.beyond) else "")

    @property
    def note(self) -> Text | None:
        """What is to be known of them; None where every token has its row."""
        if not self.beyond:
            return None
        return later(
            "The tokenizer has {tokens} tokens, the model {rows} rows for them: data with {names} cannot be trained on.",
            tokens=f"{self.tokens:,}", rows=f"{self.rows:,}", names=self.names,
        )  # fmt: skip


def read(folder: Path, files: tuple[Path, ...], config: dict[str, Any]) -> TokenRows | None:
    """Count both, from tokenizer.json and from the header of the weights, or else config.json; None where they do not
    say."""
    rows = held(files)
    rows = rows if rows is not None else config.get("vocab_size")
    path = folder / "tokenizer.json"
    try:
        seen = path.stat()
    except OSError:
        return None
    if not isinstance(rows, int) or rows <= 0:
        return None
    found = _tokens(str(path), seen.st_mtime_ns, seen.st_size, rows)
    return None if found is None else TokenRows(tokens=found[0], rows=rows, beyond=found[1])


def held(files: tuple[Path, ...]) -> int | None:
    """How many rows the embedding in some weights files has, by their headers; None where none is found."""
    shapes = (shape for file in files for name, shape in weights.shapes(file).items() if name.endswith(_EMBEDDINGS))
    return next((shape[0] for shape in shapes if len(shape) == 2), None)


@lru_cache(maxsize=64)  # a page asks at every click, and such a file may have 20 MB
def _tokens(path: str, _changed: int, _size: int, rows: int) -> tuple[int, tuple[tuple[str, int], ...]] | None:
    try:
        told = read_object(Path(path))
        vocabulary = told["model"].get("vocab") or {}
        pieces = (
            vocabulary.items() if isinstance(vocabulary, dict) else ((one[0], at) for at, one in enumerate(vocabulary))
        )
        every = {number: text for text, number in pieces}
        every |= {one["id"]: one["content"] for one in told.get("added_tokens") or []}
        if not all(type(number) is int and isinstance(text, str) for number, text in every.items()):
            return None
        beyond = sorted((number, text) for number, text in every.items() if number >= rows)
        return max(every, default=-1) + 1, tuple((text, number) for number, text in beyond[:NAMED])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
