"""Take along: a draft and its rows as one file, which another Tunebook opens. The way on from where a demo ends.

The file is a zip of `draft.json`, the rows as they were brought (`rows`) and, where some belong to them, the questions
they are scored with (`questions`). Nothing else in it is read, and no name in it becomes a path.
"""

from __future__ import annotations

import errno
import lzma
import secrets
import shutil
import struct
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from engine.check import DatasetError
from engine.data import Dataset, datasets
from engine.models import bases
from engine.plan import drafts
from engine.spec import recipes, schema, settings
from engine.words import Problem, t
from engine.workspace import Workspace, regular

SCHEMA = 1
DRAFT, ROWS, QUESTIONS = "draft.json", "rows", "questions"
# Of each file of rows: a download lies in the memory of the server that sends it, and what comes is no bomb.
MOST_ROWS_BYTES = 500 << 20
# Of settings and reasons; a file with more is none of ours.
MOST_DRAFT_BYTES = 1 << 20
# What zipfile and what it unpacks with raise for a file that is none, or is damaged; a seek before its start is an OSError.
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, KeyError, EOFError, NotImplementedError, RuntimeError,
    ValueError, OSError, msgspec.MsgspecError,
)  # fmt: skip


class _Rows(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What has to be known of rows to read and grade them as they were."""

    name: str
    mapping: dict[str, str] = {}
    grader: schema.GraderRef | None = None


class _Held(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tunebook: int
    draft: drafts.Draft
    rows: _Rows | None = None
    questions: _Rows | None = None


class Opened(NamedTuple):
    """What was opened: the draft that is stored now, its id, and the data set it names."""

    draft_id: str
    draft: drafts.Draft
    dataset: Dataset | None


def pack(workspace: Workspace, draft: drafts.Draft, out: IO[bytes]) -> None:
    """Write a draft with its rows. A base that a run here made is named by the base below it, which can be had
    elsewhere. Raises DatasetError where the data is gone."""
    rows = datasets.load(workspace, draft.dataset) if draft.dataset else None
    questions = _questions(workspace, rows) if rows is not None else None
    held = _Held(tunebook=SCHEMA, draft=_portable(workspace, draft), rows=_told(rows), questions=_told(questions))
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(DRAFT, msgspec.json.encode(held))
        for name, one in ((ROWS, rows), (QUESTIONS, questions)):
            if one is not None:
                file.write(one.folder / "original", name)


def is_too_large(workspace: Workspace, rows: Dataset) -> bool:
    """Whether a data set or its questions are more than is taken along."""
    both = (rows, _questions(workspace, rows))
    return any(one is not None and (one.size_bytes or 0) > MOST_ROWS_BYTES for one in both)


def _questions(workspace: Workspace, rows: Dataset) -> Dataset | None:
    """Return the questions that belong to rows; None where there are none, or none any more."""
    with suppress(DatasetError):
        return datasets.load(workspace, rows.eval_id) if rows.eval_id else None
    return None


def _told(rows: Dataset | None) -> _Rows | None:
    return _Rows(rows.name, rows.mapping, rows.grader) if rows is not None else None


def _portable(workspace: Workspace, draft: drafts.Draft) -> drafts.Draft:
    """Return a draft without what only this home has."""
    base, reasons = draft.base, list(draft.reasons)
    below = bases.describe(base, workspace)
    while below.adapter_of is not None:
        below = bases.describe(below.adapter_of, workspace)
    if base.startswith("run:"):
        base = "starter" if below.ref.startswith("run:") else below.ref
        reasons.append(
            t("It was to go on from a run that stays behind; here it starts from {base}. Export that run to have it.",
              base=base)
        )  # fmt: skip
    elif below.kind == "folder":
        reasons.append(t("Its base is a folder of the machine it comes from: choose the same model here."))
    return msgspec.structs.replace(draft, base=base, dataset=None, reasons=reasons)


def holds_one(path: Path) -> bool:
    """Whether a file is one that `pack` wrote, by the names in it."""
    try:
        with zipfile.ZipFile(regular(path)) as file:
            return DRAFT in file.namelist()
    except _DAMAGED:
        return False


def unpack(workspace: Workspace, path: Path) -> Opened:
    """Store the rows and the draft of a file that was taken along. A setting that is not known here, as one of a later
    version, is left out and named. Raises DatasetError with what is wrong."""
    try:
        with zipfile.ZipFile(regular(path)) as file:
            held = _read(file)
            questions = _add(workspace, file, QUESTIONS, held.questions, None)
            rows = _add(workspace, file, ROWS, held.rows, questions)
    except DatasetError:
        raise
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # of the disk, not of the file
            raise
        raise DatasetError(Problem(rule="take-along-broken", parameters={"reason": str(error)[:200]})) from error
    draft = msgspec.structs.replace(_known(held.draft), dataset=rows.id if rows is not None else None)
    return Opened(drafts.save(workspace, draft), draft, rows)


def _read(file: zipfile.ZipFile) -> _Held:
    with file.open(DRAFT) as told:
        data = told.read(MOST_DRAFT_BYTES + 1)
    if len(data) > MOST_DRAFT_BYTES:
        raise ValueError(DRAFT)
    held = msgspec.json.decode(data, type=_Held)  # a RecursionError is a RuntimeError
    if held.tunebook != SCHEMA:
        raise ValueError(f"{DRAFT}: {held.tunebook}")
    known = recipes.recipes()
    if held.draft.recipe not in known:
        what: dict[str, Any] = {"name": held.draft.recipe[:80], "names": ", ".join(known)}
        raise DatasetError(Problem(rule="recipe-unknown", parameters=what))
    return held


def _known(draft: drafts.Draft) -> drafts.Draft:
    left_out = [path for path in draft.overrides if path not in settings.fields()]
    if not left_out:
        return draft
    names = ", ".join(path[:80] for path in left_out[:20])
    reason = t("These settings are not known here and were left out: {names}.", names=names)
    kept = {path: value for path, value in draft.overrides.items() if path not in left_out}
    return msgspec.structs.replace(draft, overrides=kept, reasons=[*draft.reasons, reason])


def _add(
    workspace: Workspace, file: zipfile.ZipFile, name: str, told: _Rows | None, questions: Dataset | None
) -> Dataset | None:
    """Store one of the two files of rows; checked like any other that is brought."""
    if told is None:
        return None
    size = file.getinfo(name).file_size
    if size > MOST_ROWS_BYTES:
        raise ValueError(f"{name}: {size} bytes")
    workspace.uploads_dir.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(workspace.uploads_dir).free < 2 * size:  # here, and once more where it is stored
        raise DatasetError(Problem(rule="disk-full"))
    target = workspace.uploads_dir / secrets.token_hex(8)
    how: dict[str, Any] = {"mapping": told.mapping, "eval_id": questions.id if questions is not None else None}
    try:
        with file.open(name) as packed, target.open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)  # never more than it says: zipfile stops there
        made = datasets.add(workspace, target, told.name, move=True, **how)
        return made if told.grader is None else datasets.grade_by(workspace, made.id, told.grader, tries=False)
    finally:
        target.unlink(missing_ok=True)
