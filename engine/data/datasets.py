"""Stored datasets: datasets/<id>/ with the untouched original, canonical rows.parquet, report.json and meta.json.

How such a folder is made stands in making.py. Only the rows of a large file come after: the report of the check is
what a person waits for, so it stands first, and rows.parquet is made by make_rows(), at the latest when somebody reads
it.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
from filelock import FileLock

from engine import graders, limits, looker
from engine.check import DatasetError, Report, apart, checked_mapping, text_files
from engine.data import making
from engine.data.fixes import AS_TEXT, DROP_BAD_ROWS, Edit, in_order
from engine.graders import offers
from engine.read import OnProgress, lines, texts
from engine.spec import schema
from engine.words import Problem
from engine.words import language as language_of_reader
from engine.workspace import (
    BadId,
    Unreadable,
    Workspace,
    checked,
    one_line,
    open_regular,
    read_struct,
    scratch,
)

__all__ = [
    "Dataset",
    "DatasetError",
    "add",
    "add_sample",
    "attach",
    "delete",
    "grade_by",
    "graders_for",
    "list_all",
    "load",
    "make_rows",
    "preview",
    "problems",
    "rename",
    "rows_path",
    "states",
    "tried",
    "users",
]


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """One stored dataset. `created` is in seconds since 1970; `parent` is the id of the one this is a fix of."""

    id: str
    name: str
    created: float
    folder: Path
    report: Report
    parent: str | None = None
    eval_id: str | None = None
    fixes: tuple[str | Edit, ...] = ()
    mapping: dict[str, str] = {}
    grader: schema.GraderRef | None = None

    @property
    def trainable(self) -> bool:
        return self.report.trainable

    @property
    def outdated(self) -> bool:
        """True when the report is of an earlier version of the check; recheck.py brings today's."""
        return self.report.outdated

    @property
    def good_rows(self) -> int:
        return self.report.rows - self.report.bad_rows

    @property
    def size_bytes(self) -> int | None:
        """How large the file is that was brought; None where it is gone, or something else lies in its place."""
        try:
            found = (self.folder / "original").stat()
        except OSError:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    @property
    def has_rows(self) -> bool:
        """False while the rows that training reads are still to be made."""
        return self.report.type is None or not self.good_rows or making.are_whole(self.folder / "rows.parquet")


class Sample(Protocol):
    """A dataset that comes with the starter; `eval_file` holds held-out questions, or is None."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def file(self) -> Path: ...
    @property
    def eval_file(self) -> Path | None: ...


def add(
    workspace: Workspace,
    source: Path | str,
    name: str,
    *,
    drop_bad_rows: bool = False,
    fixes: Iterable[str | Edit] = (),
    mapping: dict[str, str] | None = None,
    parent: str | None = None,
    eval_id: str | None = None,
    progress: OnProgress | None = None,
    move: bool = False,
    wait_for_rows: bool = True,
) -> Dataset:
    """Check the file at `source`, store it and return the dataset; a file that is stored already is left as it is.

    A folder of texts, or a file called .md or .txt that holds no rows, is stored as the rows made of it.

    With `move` the file is taken from where it is, not copied. Without `wait_for_rows` a large file is returned once it
    is checked, and its rows are still to be made.

    With `fixes` (names of engine.data.fixes, and Edits of rows) the stored file is the repaired one; `drop_bad_rows` is
    short for that fix.
    `mapping` says what columns mean that have names of their own. A file with errors is stored too, so that it can be
    shown, but is not trainable. Raises DatasetError when the file cannot be read, the disk is full or no row would be
    left; nothing stored before is harmed by that.
    """
    source = Path(source)
    kept = (*fixes, DROP_BAD_ROWS) if drop_bad_rows else tuple(fixes)
    name, how = _checked_name(name), _How(kept, mapping, parent, eval_id, move, wait_for_rows)
    return load(
        workspace, apart.looked_at(_add, workspace, source, name, how, at=source, progress=progress or looker.patiently)
    )


class _How(msgspec.Struct, frozen=True):
    """How a file is to be stored: as add() is told."""

    fixes: tuple[str | Edit, ...]
    mapping: dict[str, str] | None
    parent: str | None
    eval_id: str | None
    move: bool
    wait_for_rows: bool


def _add(workspace: Workspace, source: Path, name: str, how: _How, progress: OnProgress | None = None) -> str:
    kept, mapping = in_order(how.fixes), checked_mapping(how.mapping)
    with making.told(source):
        if limits.on():  # first: whether a file is there is nobody's business
            limits.check_source(workspace, source)
        # A text is one paragraph a row where a person asks for that.
        text_name = "" if AS_TEXT in kept else name
        with text_files.as_rows(source, text_name) as rows:
            if rows.is_dir():
                raise DatasetError(Problem(rule="file-is-folder", parameters={"path": str(source)}))

            def fill(original: Path) -> str:
                return making.fill(original, name, kept, mapping, how.parent, how.eval_id, progress)

            dataset_id = _store(workspace, rows, fill, move=how.move and rows == source)
    if how.wait_for_rows:
        make_rows(workspace, dataset_id, progress)
    return dataset_id


def _store(workspace: Workspace, source: Path, fill: Callable[[Path], str], *, move: bool) -> str:
    """Make the folder of a data set around the file at `source`, by `fill`, and return its id."""
    with open_regular(source) as file:  # before any folder is made
        making.remove_leftovers(workspace)
        limits.settle(workspace)
        workspace.datasets_dir.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=scratch("new"), dir=workspace.datasets_dir))
        try:
            original = folder / "original"
            if move:
                os.replace(source, original)
            else:
                with original.open("wb") as copy:
                    shutil.copyfileobj(file, copy, lines.CHUNK_BYTES)
            dataset_id = fill(original)
            final = workspace.dataset_dir(dataset_id)
            if not (final / "meta.json").exists():
                making.into_place(folder, final)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return dataset_id


def make_rows(workspace: Workspace, dataset_id: str, progress: OnProgress | None = None) -> None:
    """Write the rows that training reads, where they are still to be made; what somebody else makes is waited for.

    Raises DatasetError when there is no such dataset or the disk is full.
    """
    dataset = load(workspace, dataset_id)
    if not dataset.has_rows:
        apart.looked_at(
            _make_rows, workspace, dataset_id, at=dataset.folder / "original", progress=progress or looker.patiently
        )


def _make_rows(workspace: Workspace, dataset_id: str, progress: OnProgress | None = None) -> None:
    dataset = load(workspace, dataset_id)
    with making.told(dataset.folder), FileLock(dataset.folder / "rows.lock"):
        if not dataset.has_rows:
            making.write_rows(dataset.folder, dataset.mapping, progress)


def add_sample(workspace: Workspace, sample: Sample) -> Dataset:
    """Store a sample of the starter and, as a dataset of its own, the evaluation file it may bring."""
    eval_id = None
    if sample.eval_file is not None:
        eval_id = add(workspace, sample.eval_file, f"{sample.title} (evaluation)").id
    dataset = add(workspace, sample.file, sample.title, eval_id=eval_id)
    if dataset.eval_id != eval_id:
        # The same file was uploaded before, without its evaluation file.
        dataset = _change(workspace, dataset, eval_id=eval_id)
    return dataset


def load(workspace: Workspace, dataset_id: str) -> Dataset:
    """Return a stored dataset. Raises DatasetError when there is none, or when its files cannot be read."""
    folder = _folder(workspace, dataset_id)
    try:
        meta = read_struct(folder / "meta.json", making.Meta)
        report = read_struct(folder / "report.json", Report)
    except (Unreadable, OSError) as error:
        raise DatasetError(Problem(rule="dataset-damaged", parameters={"dataset": dataset_id[:12]})) from error
    return Dataset(
        id=dataset_id,
        name=one_line(meta.name) or dataset_id[:12],
        created=meta.created,
        folder=folder,
        report=report,
        parent=meta.parent,
        eval_id=meta.eval_id,
        fixes=meta.fixes,
        mapping=meta.mapping,
        grader=meta.grader,
    )


def list_all(workspace: Workspace) -> list[Dataset]:
    """All stored datasets, newest first; those whose files are damaged are listed by unreadable()."""
    found = []
    for folder in workspace.datasets_dir.glob("[0-9a-z]*"):
        with suppress(DatasetError):
            found.append(load(workspace, folder.name))
    return sorted(found, key=lambda dataset: (dataset.created, dataset.id), reverse=True)


def unreadable(workspace: Workspace) -> dict[Path, Problem]:
    """What lies where datasets do and cannot be read as one, each with the reason."""
    found = {}
    # another name is not ours to offer for deletion
    for folder in sorted(workspace.datasets_dir.glob("[0-9a-f]" * 64)):
        try:
            load(workspace, folder.name)
        except DatasetError as error:
            found[folder] = error.problem
    return found


def rename(workspace: Workspace, dataset_id: str, name: str) -> Dataset:
    """Give a dataset another name. Raises DatasetError for a blank one."""
    return _change(workspace, load(workspace, dataset_id), name=_checked_name(name))


def attach(workspace: Workspace, dataset_id: str, eval_id: str | None) -> Dataset:
    """Let another dataset be what runs on this one are scored on, or none. Raises DatasetError when it is not there."""
    if eval_id is not None:
        _folder(workspace, eval_id)
    return _change(workspace, load(workspace, dataset_id), eval_id=eval_id)


def grade_by(workspace: Workspace, dataset_id: str, grader: schema.GraderRef | None, *, tries: bool = True) -> Dataset:
    """Let a grader say of runs on this data whether an answer is right, or none. Raises graders.Refused where it cannot
    be made and, unless it is not to be tried, DatasetError where most of the right answers of the rows fail it."""
    dataset = load(workspace, dataset_id)
    if grader is not None and tries:
        problem = tried(workspace, dataset, grader).problem(grader.name)
        if problem is not None:
            raise DatasetError(problem)
    return _change(workspace, dataset, grader=grader)


def tried(workspace: Workspace, dataset: Dataset, grader: schema.GraderRef) -> graders.Trial:
    """Try a grader on the right answers of a data set's first rows. Raises graders.Refused where it cannot be made."""
    made = rows_path(workspace, dataset.id).stat().st_mtime_ns
    return _tried(workspace.root, dataset.id, made, grader, language_of_reader())


@lru_cache(maxsize=64)  # a page and a plan ask at every click
def _tried(root: Path, dataset_id: str, _made: int, grader: schema.GraderRef, _language: str) -> graders.Trial:
    return graders.trial(graders.make(grader), preview(Workspace(root), dataset_id, 0, offers.MOST_TRIED))


def graders_for(workspace: Workspace, dataset: Dataset) -> list[graders.Offer]:
    """Return the graders that fit a data set by its first rows, the one that says most first."""
    return _graders_for(workspace.root, dataset.id, rows_path(workspace, dataset.id).stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _graders_for(root: Path, dataset_id: str, _made: int) -> list[graders.Offer]:
    return graders.offer(preview(Workspace(root), dataset_id, 0, offers.MOST_TRIED))


def users(workspace: Workspace, dataset_id: str) -> list[str]:
    """Return the ids of the runs that use a dataset, readable or not, for training or evaluation, the first one first."""
    found = []
    for spec in sorted(workspace.runs_dir.glob("*/spec.json")):
        with suppress(OSError):
            if dataset_id.encode() in spec.read_bytes():
                found.append(spec.parent.name)
    return found


class States(NamedTuple):
    """The states of a file: those that go when one of them is deleted, it the first, and those that stay."""

    going: list[Dataset]
    staying: list[Dataset]


def states(workspace: Workspace, dataset_id: str) -> States:
    """Return the states of a data set's file: it, what it was mended of, and every other mending of that. Those stay that a
    run uses, and those that other data is made of or scored on. Raises DatasetError when there is no such data set."""
    chosen, known = load(workspace, dataset_id), list_all(workspace)
    # a parent that is gone still tells that two are states of one file
    links = [{one.id, one.parent} for one in known if one.parent and (one.fixes or one.mapping)]
    chain = {dataset_id}
    while more := {state for link in links if link & chain for state in link if state} - chain:
        chain |= more
    others = [one for one in known if one.id not in chain]
    needed = {one.eval_id for one in others} | {one.parent for one in others}
    rest = [one for one in known if one.id in chain - {dataset_id}]
    staying = [one for one in rest if one.id in needed or users(workspace, one.id)]
    return States([chosen, *(one for one in rest if one not in staying)], staying)


def delete(workspace: Workspace, dataset_id: str) -> None:
    """Remove a dataset with the states of its file that nothing needs. Raises DatasetError while a run uses it itself."""
    going = [_folder(workspace, dataset_id)]
    if used := users(workspace, dataset_id):
        raise DatasetError(Problem(rule="dataset-in-use", parameters={"run": used[0]}))
    with suppress(DatasetError):  # one that cannot be read goes alone
        going += [one.folder for one in states(workspace, dataset_id).going[1:]]
    for folder in going:
        with making.told(folder):
            # Renamed first: a list made meanwhile sees the whole dataset or none.
            grave = Path(tempfile.mkdtemp(prefix=scratch("old"), dir=workspace.datasets_dir))
            os.rename(folder, grave / "dataset")
            shutil.rmtree(grave, ignore_errors=True)


def rows_path(workspace: Workspace, dataset_id: str) -> Path:
    """The canonical rows that training reads, made now if need be. Raises DatasetError when there is no good row."""
    make_rows(workspace, dataset_id)
    path = _folder(workspace, dataset_id) / "rows.parquet"
    if not path.exists():
        raise DatasetError(Problem(rule="nothing-to-keep"))
    return path


def read_rows(workspace: Workspace, dataset_id: str) -> list[dict[str, Any]]:
    """All canonical rows of a data set, as training, its exports and its plan read them. Raises DatasetError when there
    is no good row."""
    import pyarrow.parquet

    return pyarrow.parquet.read_table(rows_path(workspace, dataset_id)).to_pylist()


def preview(workspace: Workspace, dataset_id: str, start: int = 0, count: int = 20) -> list[dict[str, Any]]:
    """`count` canonical rows from the good row `start` (0-based) on, for display."""
    import pyarrow.parquet

    path = _folder(workspace, dataset_id) / "rows.parquet"
    if not path.exists() or count <= 0:
        return []
    start = max(0, start)
    rows: list[dict[str, Any]] = []
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            first = 0
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if first + size > start:
                    skip = max(0, start - first)
                    rows += file.read_row_group(group).slice(skip, count - len(rows)).to_pylist()
                first += size
                if len(rows) >= count:
                    break
    except (OSError, pyarrow.ArrowException) as error:
        raise DatasetError(Problem(rule="dataset-damaged", parameters={"dataset": dataset_id[:12]})) from error
    return rows


def problems(workspace: Workspace, dataset_id: str) -> tuple[Problem, ...]:
    """The first 1,000 problems of a dataset."""
    return load(workspace, dataset_id).report.problems


def _folder(workspace: Workspace, dataset_id: str) -> Path:
    try:
        folder = workspace.dataset_dir(checked(dataset_id))
    except BadId:
        folder = None
    if folder is None or not (folder / "meta.json").is_file():
        raise DatasetError(Problem(rule="no-dataset", parameters={"dataset": str(dataset_id)[:12]}))
    return folder


def _change(workspace: Workspace, dataset: Dataset, **changes: Any) -> Dataset:
    """Write changed fields of meta.json and return the dataset as it is then."""
    changed = msgspec.structs.replace(dataset, **changes)
    meta = making.Meta(**{name: getattr(changed, name) for name in making.Meta.__struct_fields__})
    with making.told(dataset.folder):
        making.write(dataset.folder / "meta.json", meta)
    return load(workspace, dataset.id)


def _checked_name(name: str) -> str:
    """A name for people, never a path: one line of at most 120 characters. Raises DatasetError when blank."""
    name = one_line(name)
    if texts.is_blank(name):
        raise DatasetError(Problem(rule="dataset-name"))
    return name
