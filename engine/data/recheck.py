"""A stored data set is checked anew, where an earlier version of the check made its report.

What is checked is the file in its folder, the repaired one where it was mended: id, name, parent and validation data stay.
"""

from __future__ import annotations

import filecmp
import os
import tempfile
from pathlib import Path

from filelock import FileLock

from engine import looker
from engine.check import apart
from engine.data import closer, datasets, making
from engine.read import OnProgress
from engine.workspace import Workspace, scratch

# What profile.py, closer.py and readiness.py keep of the rows.
MADE_OF_ROWS = ("statistics-*.json", "readiness-*.bin", closer.NAME)


def check_again(workspace: Workspace, dataset_id: str, progress: OnProgress | None = None) -> datasets.Dataset:
    """Put today's report, and today's rows where they differ, in the place of a data set's own, and return it.

    Each file is replaced whole, so a run that reads the rows meanwhile has the old ones or the new ones; the report comes
    last, so whatever ends this early leaves a data set that is still outdated and can be checked again. Where today's
    rules find no good row, those that runs were trained on stay. Rows of a large file that are still to be made are left
    to make_rows(). Raises DatasetError when there is no such dataset, the file cannot be read or the disk is full.
    """
    dataset = datasets.load(workspace, dataset_id)
    told = progress or looker.patiently
    apart.looked_at(_check_again, workspace, dataset_id, at=dataset.folder / "original", progress=told)
    return datasets.load(workspace, dataset_id)


def _check_again(workspace: Workspace, dataset_id: str, progress: OnProgress | None = None) -> None:
    dataset = datasets.load(workspace, dataset_id)
    folder, original = dataset.folder, dataset.folder / "original"
    rows, problems = folder / "rows.parquet", folder / "problems.jsonl"
    with (
        making.told(folder),
        FileLock(folder / "rows.lock"),
        tempfile.TemporaryDirectory(prefix=scratch("new"), dir=workspace.datasets_dir) as beside,
    ):
        with_rows = rows.exists() or original.stat().st_size < making.ROWS_LATER_BYTES
        report = making.check_into(
            Path(beside), original, dataset.report.file, dataset.mapping, progress, with_rows=with_rows
        )
        new_rows = Path(beside) / rows.name
        has_good_rows = new_rows.exists() and report.rows > report.bad_rows
        if has_good_rows and not (rows.exists() and filecmp.cmp(new_rows, rows, shallow=False)):
            os.replace(new_rows, rows)
        for pattern in MADE_OF_ROWS:
            for kept in folder.glob(pattern):
                kept.unlink(missing_ok=True)
        if report.problems_file:
            os.replace(Path(beside) / problems.name, problems)
        making.write(folder / "report.json", report)
        if not report.problems_file:
            problems.unlink(missing_ok=True)
