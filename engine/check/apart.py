"""A file checked in a process that may fail (engine/looker.py): what it costs, its tables and a base's template decide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from engine import looker
from engine.check import text_files
from engine.check.file import check_file
from engine.check.report import DatasetError, Report
from engine.models import Base
from engine.read import OnProgress


class _How(msgspec.Struct, frozen=True):
    """What check_file() is told beside the file."""

    mapping: dict[str, str] | None = None
    problems_path: Path | None = None
    base: Base | None = None
    max_length: int | None = None
    against: Path | None = None


def looked_at(function: Callable[..., Any], *arguments: Any, at: Path, progress: OnProgress | None = None) -> Any:
    """Call a function that reads a file which somebody brought, in a process that may fail: with `progress` as long as that
    goes on, else for ten seconds at the most. Raises DatasetError."""
    try:
        return looker.ask(function, *arguments, at=at, progress=progress, memory_bytes=looker.memory_for(at))
    except looker.Refused as refused:
        raise DatasetError(refused.problem) from refused


def report_of(path: Path, *, progress: OnProgress | None = None, **how: Any) -> Report:
    """Check a file, or a folder of texts, and return its report, as check_file() does; `how`: further arguments of it.
    Raises DatasetError."""
    return looked_at(_report, path, _How(**how), at=path, progress=progress or looker.patiently)


def _report(path: Path, how: _How, progress: OnProgress | None = None) -> Report:
    with text_files.as_rows(path, path.name) as rows:
        return check_file(
            rows, name=path.name, progress=progress, mapping=how.mapping, problems_path=how.problems_path,
            base=how.base, max_length=how.max_length, against=how.against,
        )  # fmt: skip
