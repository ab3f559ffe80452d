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


def looked_at(
    function: Callable[..., Any],
    *arguments: Any,
    at: Path,
    progress: OnProgress | None = None,
    base: Base | None = None,
) -> Any:
    """Call a function that reads a file which somebody brought, in a process that may fail: with `progress` as long as that
    goes on, else for ten seconds at the most. Where a chosen `base` reads its rows, that is what is named. Raises
    DatasetError."""
    named = base.folder if base is not None and base.kind != "starter" else None
    try:
        return looker.ask(function, *arguments, at=named or at, progress=progress, memory_bytes=looker.memory_for(at))
    except looker.Refused as refused:
        raise DatasetError(refused.problem) from refused


def report_of(path: Path, *, progress: OnProgress | None = None, **how: Any) -> Report:
    """Check a file, or a folder of texts, and return its report, as check_file() does; `how`: further arguments of it.
    Raises DatasetError."""
    told = _How(**how)
    return looked_at(_report, path, told, at=path, progress=progress or looker.patiently, base=told.base)


def _report(path: Path, how: _How, progress: OnProgress | None = None) -> Report:
    with text_files.as_rows(path, path.name) as rows:
        return check_file(
            rows, name=path.name, progress=progress, mapping=how.mapping, problems_path=how.problems_path,
            base=how.base, max_length=how.max_length, against=how.against,
        )  # fmt: skip
