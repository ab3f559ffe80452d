"""Pages of docs/ that are one table made by a command: how they are laid out and written."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path


def page(words: Sequence[str], header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a page: its `words`, line by line, and the table under them."""
    head, *body = (f"| {' | '.join(one)} |" for one in (header, *rows))
    return "\n".join([*words, "", head, "|" + "---|" * len(header), *body]) + "\n"


def write(path: Path, text: str, doc: str | None) -> None:
    """Write a page as a command does: `doc` is what its --help says first."""
    argparse.ArgumentParser(description=doc.splitlines()[0] if doc else None).parse_args()
    path.write_text(text, encoding="utf-8")
