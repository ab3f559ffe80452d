"""Which answer tokens a run leaves out because its base finds them surprising: found once, kept in the run's folder.

Rows are told by their tokens and labels, so a row is found again whatever became of the data set around it, and by the
preview of a data set as by the run that goes on. One line of JSON a row, after one about all of them.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Container, Mapping
from pathlib import Path

import msgspec

from engine.render.encode import IGNORED, Encoded
from engine.workspace import Unreadable, decoded, open_regular, write_atomically

NAME = "skipped.jsonl"


class About(msgspec.Struct, frozen=True):
    """Tokens whose perplexity under the base is above `threshold` are left out: `skipped` of `tokens` trained ones, and
    `rows` whole rows."""

    threshold: float
    tokens: int
    skipped: int
    rows: int

    @property
    def share(self) -> float:
        return self.skipped / max(1, self.tokens)


class _Line(msgspec.Struct, frozen=True):
    row: str
    at: list[int]


def key(row: Encoded) -> str:
    """Return what tells a row from others: its tokens, and which of them it trains."""
    return hashlib.sha256(array("q", [*row.input_ids, *row.labels]).tobytes()).hexdigest()[:16]


def write(run_dir: Path, about: About, rows: Mapping[str, list[int]]) -> None:
    """Keep the places of the tokens that are left out, by row; rows that lose none are not named."""
    lines = [about, *(_Line(name, at) for name, at in rows.items() if at)]
    write_atomically(run_dir / NAME, b"\n".join(map(msgspec.json.encode, lines)) + b"\n")


def about(run_dir: Path) -> About | None:
    """Return what a run leaves out in all; None where it leaves out nothing by surprise, or has not looked yet."""
    try:
        with open_regular(run_dir / NAME) as file:
            return decoded(file.readline(), About)
    except (OSError, Unreadable):
        return None


def places(run_dir: Path, wanted: Container[str] | None = None) -> dict[str, list[int]]:
    """Return the places by row, of all rows or of those that are wanted. Raises OSError or Unreadable where the file
    cannot be read."""
    found = {}
    with open_regular(run_dir / NAME) as file:
        file.readline()
        for line in file:
            one = decoded(line, _Line)
            if wanted is None or one.row in wanted:
                found[one.row] = one.at
    return found


def without(row: Encoded, at: list[int]) -> Encoded:
    """Return a row that does not train the tokens at these places."""
    labels = list(row.labels)
    for place in at:
        if 0 <= place < len(labels):
            labels[place] = IGNORED
    return row._replace(labels=labels)
