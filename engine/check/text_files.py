"""Files of plain text (.md, .txt), alone or a folder of them, as rows of JSON Lines with the text and its file's name.

The bytes come first: a file that holds rows is read as these, whatever it is called. A text is cut at blank lines alone,
so that no paragraph is torn; how many tokens a row may have is known only with a base, which is chosen later.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import msgspec

from engine.check.notes import FILE_COLUMN, MAX_CHARACTERS
from engine.check.records import OpenFile
from engine.check.report import DatasetError, os_problem
from engine.read import source, texts
from engine.words import Problem, later
from engine.workspace import is_regular, regular

ENDINGS = (".md", ".markdown", ".txt")


@contextmanager
def as_rows(path: Path, name: str) -> Iterator[Path]:
    """Yield the file to check: the rows made of a text or of a folder with texts, else `path` itself.

    `name` is what the file is called where it comes from. Raises DatasetError when a text cannot be read.
    """
    if path.is_dir():
        found = [(file, str(file.relative_to(path))) for file in in_folder(path)]
    else:
        try:
            regular(path)
        except OSError as error:
            raise DatasetError(os_problem(error, path)) from error
        found = [(path, name)] if is_text(path, name) else []
    if not found:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="tunebook-texts-") as folder:
        made = Path(folder) / "rows.jsonl"
        write_rows(found, made)
        yield made


def in_folder(folder: Path) -> list[Path]:
    """The texts in a folder and in those below it, in the order of their names; hidden ones are left out."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and is_regular(path))
    return sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts))


def is_text(path: Path, name: str) -> bool:
    """Whether a file is called like a text and its bytes hold no rows."""
    return name.lower().endswith(ENDINGS) and path.is_file() and not _holds_rows(path)


def write_rows(files: Iterable[tuple[Path, str]], target: Path) -> None:
    """Write the texts, each with the name it is shown by, as rows to `target`; one without a word makes no row.

    Raises DatasetError for a file that is no UTF-8 or holds rows, and when there is no text at all.
    """
    with target.open("wb") as out:
        for path, name in files:
            shown = texts.short(name, 200)
            if _holds_rows(path):
                raise DatasetError(Problem(rule="text-file-rows", parameters={"file": shown}))
            try:
                with path.open(encoding="utf-8-sig") as file:
                    for piece in pieces(file):
                        out.write(msgspec.json.encode({"text": piece, FILE_COLUMN: shown}) + b"\n")
            except UnicodeDecodeError:
                raise DatasetError(Problem(rule="text-file-encoding", parameters={"file": shown})) from None
        if not out.tell():
            raise DatasetError(Problem(rule="empty-file"))


def pieces(file: TextIO, most: int = MAX_CHARACTERS) -> Iterator[str]:
    """Cut a text at blank lines into pieces of at most `most` characters; a longer paragraph is a piece by itself."""
    held = ""
    for paragraph in _paragraphs(file):
        if held and len(held) + 2 + len(paragraph) > most:
            yield held
            held = ""
        held = f"{held}\n\n{paragraph}" if held else paragraph
    if held:
        yield held


def _paragraphs(file: TextIO) -> Iterator[str]:
    held: list[str] = []
    for line in file:
        if texts.is_blank(line):
            if held:
                yield "".join(held).rstrip("\n")
            held = []
        else:
            held.append(line)
    if held:
        yield "".join(held).rstrip("\n")


def _holds_rows(path: Path) -> bool:
    """Whether the bytes are rows, or something else that is no text, which the check names."""
    with path.open("rb") as file:
        opened = OpenFile(file, None)
        try:
            opened.begin()
            # A text may begin with a bracket, as a link of Markdown does; rows have one record that parses.
            return opened.container in ("csv", "parquet") or any(row is not None for _, _, row in opened.sample())
        except source.NotRows as refused:
            found = refused.problem.parameters.get("found")
            return refused.problem.rule not in ("empty-file", "encoding") and found != later("plain text")
