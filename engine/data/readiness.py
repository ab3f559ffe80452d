"""How a base reads every row of a data set: which its chat template refuses, which a window cuts, what it leaves out.

Each row is rendered and encoded as the run will do it, a group of rows.parquet at a time, and only numbers are kept, so
memory does not grow with the rows' texts. It is done once for a data set and a base, and kept beside the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from engine import looker
from engine.check import DatasetError
from engine.data import datasets, profile
from engine.models import Base
from engine.read import OnProgress
from engine.render import Coder, NoTokenizer, outcome
from engine.render import preview as rendered
from engine.words import Problem, Text, later
from engine.workspace import MALFORMED, Workspace, write_atomically

VERSION = 2
# Up to so many rows, of so many bytes as they are kept, a page waits: about a second (0.15 to 0.4 ms a row were measured
# with the starter).
AT_ONCE_ROWS, AT_ONCE_BYTES = 3_000, 1 << 20
PREVIEWED_ROWS, PREVIEWED_CHARACTERS = 200, 2_000_000
# So many reasons are told; further ones are counted.
REASONS = 5


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept beside the data: the rows, and what is wrong or worth knowing of the base itself."""

    version: int
    tally: outcome.Stored
    base_warnings: tuple[Problem, ...] = ()
    base_notes: tuple[Text, ...] = ()


class Window(NamedTuple):
    """The window of a run: `length` in tokens, of which `answer` are kept for what the model writes; with `whole` the run
    leaves out what it would cut. `most` is what the base reads at once."""

    length: int
    answer: int = 0
    whole: bool = False
    most: int | None = None


class Readiness:
    """What becomes of all rows of a data set with a base, as sentences for any window."""

    def __init__(self, kept: Kept, has_targets: bool):
        self.tally = outcome.Tally.of_stored(kept.tally)
        self.base_warnings, self.base_notes = kept.base_warnings, kept.base_notes
        self.has_targets = has_targets

    def stops(self, window: Window) -> Problem | None:
        """Why a run on these rows would fail, or no row be left to train on; None where neither is so."""
        tally = self.tally
        if tally.rowless:
            return tally.rowless_problem
        if tally.refused_rows == tally.rows:
            return tally.refused[0].problem if tally.refused else None
        lost, cut = self._lost_and_cut(window)
        kept_back = self._kept_back()
        gone = len({*lost, *kept_back}) + (len(cut) if window.whole else 0)
        if tally.refused_rows + gone < tally.rows:
            return None
        if len(kept_back) == len(tally.lines):
            return Problem(rule="data-all-kept-back")
        needed = tally.keeps_all if self.has_targets else min(tally.first) + window.answer
        return Problem(rule="data-nothing-trained", parameters={"length": window.length, "needed": needed})

    def warnings(self, window: Window) -> list[Text]:
        """What a run with such a window leaves out or cuts, with the lines."""
        found = [later("{says}; {do}.", says=one.texts[0], do=one.texts[1]) for one in self.base_warnings]
        found += self._refusals()
        lost, cut = self._lost_and_cut(window)
        if window.whole:
            lost, cut = sorted([*lost, *cut]), []
        length = f"{window.length:,}"
        if not self.has_targets:
            why = later("with an answer they do not fit {length} tokens", length=length)
        elif window.whole:
            why = later("they do not fit {length} tokens whole", length=length)
        else:
            why = later("nothing of their answer fits {length} tokens", length=length)
        if lost:
            found.append(self._left_out(lost, why))
        if cut:
            why = later("what of their answer is beyond {length} tokens is not learned", length=length)
            told = {"n": f"{len(cut):,}", "total": f"{self.tally.rows:,}", "lines": outcome.named(cut, len(cut))}
            found.append(later("Cut: {n} of {total} rows, lines {lines}: {why}.", why=why, **told))
        if kept_back := self._kept_back():
            found.append(self._left_out(kept_back, later("the file turns off each of their answers")))
        if (lost or cut) and self.has_targets:
            found.append(self._remedy(window))
        return found

    @property
    def notes(self) -> list[Text]:
        """What the base's chat template leaves out of the rows, and what is worth knowing of the base."""
        return [*self.tally.dropped_notes, *self.base_notes]

    def _lost_and_cut(self, window: Window) -> tuple[list[int], list[int]]:
        """The lines of which nothing fits, and those of which a part does; what is kept back is neither."""
        if not self.has_targets:  # a question may fill all that its answer does not need
            return self.tally.lost(window.length - window.answer + 1), []
        back = set(self._kept_back())
        return [one for one in self.tally.lost(window.length) if one not in back], self.tally.cut(window.length)

    def _kept_back(self) -> list[int]:
        """The lines of rows whose answers are all turned off."""
        return self.tally.untrained if self.has_targets else []

    def _refusals(self) -> list[Text]:
        refused = self.tally.refused
        found = []
        for one in refused[:REASONS]:
            reason, do = one.problem.texts
            why = later("{reason}; {do}", reason=reason, do=do)
            found.append(self._left_out(one.lines, why, one.rows))
        if rest := sum(one.rows for one in refused[REASONS:]):
            found.append(later("Left out: {n} more rows, for other reasons of this kind.", n=f"{rest:,}"))
        return found

    def _left_out(self, lines: Sequence[int], why: Text, count: int | None = None) -> Text:
        count = len(lines) if count is None else count
        told = {"n": f"{count:,}", "total": f"{self.tally.rows:,}", "lines": outcome.named(lines, count)}
        return later("Left out: {n} of {total} rows, lines {lines}: {why}.", why=why, **told)

    def _remedy(self, window: Window) -> Text:
        needed = self.tally.keeps_all
        if window.most and needed > window.most:
            return later(
                "{needed} tokens would keep all of them, and the base reads {window}: shorten these rows, or split them.",
                needed=f"{needed:,}",
                window=f"{window.most:,}",
            )
        return later(
            'A "Longest row" (train.max_length) of {needed} tokens would keep all of them.', needed=f"{needed:,}"
        )


def preview(workspace: Workspace, dataset_id: str, base: Base, length: int) -> rendered.Preview:
    """Some rows of a data set token by token as a base reads them, within a window of `length` tokens. Raises
    NoTokenizer and DatasetError."""
    path = datasets.rows_path(workspace, dataset_id)
    try:
        seen = _previewed(
            workspace.root, dataset_id, path.stat().st_mtime_ns, base.folder, base.ref, profile.key(base), length
        )
    except looker.Refused as error:
        raise NoTokenizer.of(error.problem) from None
    return rendered.Preview(seen.rows, outcome.Tally.of_stored(seen.tally), seen.tokens, seen.trained, seen.is_plain)


class _Seen(msgspec.Struct, frozen=True):
    """A preview as it is sent."""

    rows: tuple[rendered.Row, ...]
    tally: outcome.Stored
    tokens: int
    trained: int
    is_plain: bool


@lru_cache(maxsize=8)  # a page asks at every click
def _previewed(
    root: Path, dataset_id: str, _changed: int, folder: Path | None, ref: str, _key: str, length: int
) -> _Seen:
    return looker.ask(_look, Workspace(root), dataset_id, folder, ref, length, at=folder)


def _look(workspace: Workspace, dataset_id: str, folder: Path | None, ref: str, length: int) -> _Seen:
    coder = Coder.of_folder(folder, ref)
    rows, characters = list[dict[str, Any]](), 0
    for row in datasets.preview(workspace, dataset_id, 0, PREVIEWED_ROWS):
        characters += len(msgspec.json.encode(row))
        if rows and characters > PREVIEWED_CHARACTERS:
            break
        rows.append(row)
    found = rendered.look(rows, coder, length)
    return _Seen(found.rows, found.tally.stored(), found.tokens, found.trained, found.is_plain)


def known(workspace: Workspace, dataset: datasets.Dataset, base: Base) -> Readiness | None:
    """What was counted before; None where it was not."""
    path = _path(workspace, dataset.id, base)
    try:
        return _read(str(path), path.stat().st_mtime_ns, dataset.report.type != "prompt-only")
    except OSError:
        return None


def of(workspace: Workspace, dataset: datasets.Dataset, base: Base) -> Readiness | None:
    """What was counted before, or is counted now where the rows are few; None where they are many (job of jobs.py), or
    not made yet. Raises NoTokenizer when the base's files are not here or cannot be used, DatasetError when the rows
    cannot be read."""
    found = known(workspace, dataset, base)
    if found is not None or not dataset.has_rows or dataset.good_rows > AT_ONCE_ROWS:
        return found
    if datasets.rows_path(workspace, dataset.id).stat().st_size > AT_ONCE_BYTES:
        return None
    try:
        kept = looker.ask(_counted, workspace, dataset.id, base, at=base.folder)
    except looker.Refused as error:
        raise NoTokenizer.of(error.problem) from None
    with suppress(OSError):  # on a disk that takes nothing it is counted anew each time
        _keep(workspace, dataset.id, base, kept)
    return known(workspace, dataset, base) or Readiness(kept, dataset.report.type != "prompt-only")


def count(workspace: Workspace, dataset_id: str, base: Base, progress: OnProgress | None = None) -> None:
    """Read every row of a data set as the base does and keep what becomes of them; `progress` is told rows. Raises
    NoTokenizer, DatasetError and OSError."""
    _keep(workspace, dataset_id, base, _counted(workspace, dataset_id, base, progress))


def _keep(workspace: Workspace, dataset_id: str, base: Base, found: Kept) -> None:
    write_atomically(_path(workspace, dataset_id, base), msgspec.msgpack.encode(found))


def _counted(workspace: Workspace, dataset_id: str, base: Base, progress: OnProgress | None = None) -> Kept:
    import pyarrow
    import pyarrow.parquet

    coder = Coder.of_folder(base.folder, base.ref)
    path = datasets.rows_path(workspace, dataset_id)
    tally = outcome.Tally(base.tokens.rows if base.tokens is not None and base.tokens.beyond else None)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                for row in file.read_row_group(group).to_pylist():
                    tally.take(row, coder)
                    if progress is not None and not tally.rows % 20:
                        progress(tally.rows, file.metadata.num_rows)
    except (OSError, pyarrow.ArrowException) as error:
        problem = Problem(rule="dataset-damaged", parameters={"dataset": dataset_id[:12]})
        raise DatasetError(problem) from error
    return Kept(
        version=VERSION,
        tally=tally.stored(),
        base_warnings=tuple(outcome.base_warnings(coder)),
        base_notes=tuple(outcome.base_notes(coder)),
    )


def _path(workspace: Workspace, dataset_id: str, base: Base) -> Path:
    return workspace.dataset_dir(dataset_id) / f"readiness-{VERSION}-{profile.key(base)}.bin"


@lru_cache(maxsize=8)  # a page asks at every click
def _read(path: str, _changed: int, has_targets: bool) -> Readiness | None:
    try:
        return Readiness(msgspec.msgpack.decode(Path(path).read_bytes(), type=Kept), has_targets)
    except (OSError, *MALFORMED):
        return None
