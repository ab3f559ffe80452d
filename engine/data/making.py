"""How the folder of a data set is made: the file repaired, checked, its rows written, all of it renamed into place.

It is made beside the others and renamed when it is whole, so that a crash or a full disk leaves no half one. Its name is
a hash of the bytes, the mapping and the fixes: the same file is stored once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec

from engine import limits
from engine.check import DatasetError, Report, canonical, check_file, os_problem
from engine.data.fixes import Edit, repair
from engine.read import OnProgress
from engine.spec import schema
from engine.workspace import Workspace, write_atomically

# Of larger files the rows are made after the report: converting takes about ten times as long as checking.
ROWS_LATER_BYTES = 16 << 20
# What a crashed add left behind is removed when it is older than this.
LEFTOVER_AGE_S = 24 * 3600


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """meta.json. `grader`: what says whether an answer to these rows is right."""

    name: str
    created: float
    parent: str | None = None
    eval_id: str | None = None
    fixes: tuple[str | Edit, ...] = ()
    mapping: dict[str, str] = {}
    grader: schema.GraderRef | None = None


def fill(
    original: Path,
    name: str,
    fixes: tuple[str | Edit, ...],
    mapping: dict[str, str],
    parent: str | None,
    eval_id: str | None,
    progress: OnProgress | None,
) -> str:
    """Write the other files of a dataset beside its original and return its id."""
    folder = original.parent
    with ThreadPoolExecutor(1) as beside:  # hashing needs no interpreter
        hashing = beside.submit(_sha256, original)
        if fixes:
            hashing.result()
            repair(original, fixes, mapping, progress)
        with_rows = original.stat().st_size < ROWS_LATER_BYTES
        report = check_into(folder, original, name, mapping, progress, with_rows=with_rows)
        sha256 = hashing.result()
    if limits.on():
        limits.check_rows(report.rows)
    meta = Meta(name=name, created=time.time(), parent=parent, eval_id=eval_id, fixes=fixes, mapping=mapping)
    write(folder / "report.json", report)
    write(folder / "meta.json", meta)
    return _dataset_id(sha256, meta.mapping, fixes)


def check_into(
    folder: Path,
    original: Path,
    name: str,
    mapping: dict[str, str],
    progress: OnProgress | None,
    *,
    with_rows: bool,
) -> Report:
    """Check a file and return its report; what the report cannot hold is written to `folder`: problems.jsonl with all
    problems where there are many and, in the same pass, rows.parquet."""

    def checked(sink: canonical.ParquetSink | None) -> Report:
        problems_path = folder / "problems.jsonl"
        report = check_file(
            original,
            name=name,
            progress=progress,
            sink=sink,
            problems_path=problems_path,
            mapping=mapping,
            most_rows=limits.limits().rows if limits.on() else None,
        )
        return msgspec.structs.replace(report, problems_file=problems_path.name) if report.problems_file else report

    if not with_rows:
        return checked(None)
    with canonical.ParquetSink(folder / "rows.parquet") as sink:
        report = checked(sink)
        sink.finish()
    return report


def write_rows(folder: Path, mapping: dict[str, str], progress: OnProgress | None) -> None:
    """Write the rows of a data set that is stored without them."""
    made = folder / "rows.new"
    with canonical.ParquetSink(made) as sink:
        check_file(folder / "original", progress=progress, sink=sink, mapping=mapping)
        sink.finish()
    if (folder / "rows.parquet").is_dir():  # no rows: something else of that name
        shutil.rmtree(folder / "rows.parquet")
    os.replace(made, folder / "rows.parquet")


def are_whole(rows: Path) -> bool:
    """Whether a rows.parquet is there to its end, as far as its marks tell; one that was cut is made anew."""
    try:
        with rows.open("rb") as file:
            start = file.read(4)
            file.seek(-4, os.SEEK_END)
            return start == file.read() == b"PAR1"
    except (OSError, ValueError):
        return False


def write(path: Path, value: Meta | Report) -> None:
    """Write one of a data set's JSON files, whole or not at all."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(value), indent=1))


def _dataset_id(sha256: str, mapping: dict[str, str], fixes: tuple[str | Edit, ...]) -> str:
    key = msgspec.json.encode([sha256, dict(sorted(mapping.items())), fixes])
    return hashlib.sha256(key).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def into_place(folder: Path, final: Path) -> None:
    """Rename a finished folder; another process that stored the same file first has won."""
    folder.chmod(0o755)
    try:
        os.rename(folder, final)
    except OSError:
        if (final / "meta.json").exists():
            return
        if not final.is_dir():
            raise
        # Something without a meta.json is in the way: no dataset, as meta.json is part of every one.
        shutil.rmtree(final)
        os.rename(folder, final)


def remove_leftovers(workspace: Workspace) -> None:
    """Remove what an add or delete that was killed left behind."""
    for pattern in (".new-*", ".old-*"):
        for folder in workspace.datasets_dir.glob(pattern):
            try:
                old = time.time() - folder.stat().st_mtime > LEFTOVER_AGE_S
            except OSError:
                continue
            if old:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn an OSError, and what a hosted demo refuses, into the DatasetError that says what it means."""
    try:
        yield
    except limits.OverLimit as refused:
        raise DatasetError(refused.problems[0]) from refused
    except OSError as error:
        raise DatasetError(os_problem(error, error.filename or path)) from error
