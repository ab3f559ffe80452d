"""How many tokens the rows of a data set have for a base, without loading it: the mean, and the longest.

Rows are counted with the base's own tokenizer.json where it is on this machine, else by their bytes. The chat template's
marks are allowed for, not rendered: exact counts belong to the child.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from engine import looker
from engine.check import DatasetError
from engine.data import datasets
from engine.models import Base
from engine.workspace import Workspace

# A row is counted from so many spread over the data set; the longest by their bytes are counted too.
SAMPLED, LONGEST = 200, 20
# In larger data sets no row is looked for: a page must stay quick, and the longest is taken to be as long as allowed.
MOST_ROWS_READ = 20_000
# A chat template adds about so many tokens around a message (ChatML: 5; Llama 3: 5 to 6).
MARKS_PER_MESSAGE = 6
# So many bytes are counted; of what is beyond, the tokens follow from those.
MOST_COUNTED_BYTES = 8_000_000
# English text has about four bytes a token with vocabularies of 32,000 to 152,000.
BYTES_PER_TOKEN = 4.0


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of a row: the mean, and the longest (None where it was not looked for). `counted`: by the base's tokenizer."""

    mean: float
    longest: int | None
    counted: bool


def of(dataset: datasets.Dataset, base: Base, workspace: Workspace) -> Lengths | None:
    """Return how long the rows of a data set are for a base, or None when they cannot be read."""
    if not dataset.has_rows:  # nobody waits here until they are made
        return None
    try:
        path = datasets.rows_path(workspace, dataset.id)
        changed = path.stat().st_mtime_ns
    except (DatasetError, OSError, ValueError):
        return None
    tokenizer = base.folder / "tokenizer.json" if base.folder is not None else None
    return _measure(str(path), changed, str(tokenizer) if tokenizer is not None and tokenizer.is_file() else None)


@lru_cache(maxsize=32)
def _measure(path: str, _changed: int, tokenizer_path: str | None) -> Lengths | None:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        rows = file.metadata.num_rows
        batches = file.iter_batches(batch_size=1000)
        found = [row for batch in batches for row in batch.to_pylist()] if rows <= MOST_ROWS_READ else next(
            batches).to_pylist()  # fmt: skip
    if not found:
        return None
    pieces = [_pieces(row) for row in found]
    order = sorted(range(len(pieces)), key=lambda index: -sum(len(text) for text in pieces[index]))
    sample = range(0, len(pieces), max(1, len(pieces) // SAMPLED))
    long = order[:LONGEST] if rows <= MOST_ROWS_READ else []
    counts, counted = _counts([pieces[index] for index in (*sample, *long)], tokenizer_path)
    mean = sum(counts[: len(sample)]) / len(sample)
    return Lengths(mean=mean, longest=max(counts[len(sample) :], default=None), counted=counted)


def _pieces(row: dict[str, Any]) -> list[bytes]:
    """Return the texts of a row that go through the model at once; of a pair, the question and its longer answer."""
    answers = [_texts(row.get(side)) for side in ("chosen", "rejected")]
    longer = max(answers, key=lambda texts: sum(map(len, texts)))
    shared = [_texts(value) for name, value in row.items() if name not in ("chosen", "rejected", "choices", "family")]
    return [text for texts in (*shared, longer) for text in texts]


def _texts(value: Any) -> list[bytes]:
    if isinstance(value, str):
        return [value.encode("utf-8", "replace")]
    if isinstance(value, dict):
        value = [item for name, item in value.items() if name != "role"]
    return [text for item in value for text in _texts(item)] if isinstance(value, list) else []


def _counts(rows: list[list[bytes]], tokenizer_path: str | None) -> tuple[list[int], bool]:
    """Return the tokens of each row's texts, and whether the tokenizer has counted them."""
    if tokenizer_path is not None:
        left, sent = MOST_COUNTED_BYTES, []
        for text in (text for texts in rows for text in texts):
            if len(text) <= left:
                sent.append(text)
                left -= len(text)
        with suppress(looker.Refused):
            found = looker.ask(_tokens, Path(tokenizer_path), sent, at=Path(tokenizer_path).parent)
            if found is not None:
                known = dict(zip(sent, found, strict=True))
                each = max(1, sum(map(len, sent))) / max(1, sum(found))
                return [_sum(texts, lambda text: known.get(text, len(text) / each)) for texts in rows], True
    return [_sum(texts, lambda text: len(text) / BYTES_PER_TOKEN) for texts in rows], False


def _sum(texts: list[bytes], count: Callable[[bytes], float]) -> int:
    return round(sum(count(text) + MARKS_PER_MESSAGE for text in texts))


def _tokens(path: Path, texts: list[bytes]) -> list[int] | None:
    """Return how many tokens each text has; None where the tokenizer cannot be used."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception:  # the library raises bare Exceptions
        return None
    return [len(tokenizer.encode(text.decode("utf-8", "replace"), add_special_tokens=False).ids) for text in texts]
