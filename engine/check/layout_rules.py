"""The rules for the keys of a row: whether it is of the layout that most rows of its file have."""

from __future__ import annotations

from typing import Any

from engine.check.ledger import Ledger
from engine.check.piece import COLUMNS_KEPT, Piece
from engine.read import formats, texts
from engine.words import later


class LayoutRules:
    """The rules for the keys of a row, and the columns met: of all rows, and of rows that are of the file's layout."""

    def __init__(self, reading: formats.Reading | None, mapping: dict[str, str], ledger: Ledger):
        self.reading, self.mapping, self.ledger = reading, mapping, ledger
        self.fitting: set[tuple[str, ...]] = set()  # keys in their order that fit without a second look
        self.columns: dict[str, None] = {}
        self.layout_columns: dict[str, None] = {}
        self.has_objects = False  # an object without fields has no columns to show for it

    def take(self, piece: Piece) -> None:
        """Put what was met so far into a piece."""
        piece.columns, piece.layout_columns = list(self.columns), list(self.layout_columns)
        piece.has_objects = self.has_objects

    def fits(self, row: dict[str, Any], shape: tuple[str, ...]) -> bool:
        """Say whether a row of keys not met before is of the file's layout; note what is wrong when not."""
        ledger, reading = self.ledger, self.reading
        self.has_objects = True
        _keep(self.columns, shape)
        if reading is None:
            return False
        layout = reading.layout
        missing = [column for column in layout.required if column not in row]
        own = formats.own_layout(formats.renamed(row, self.mapping) if self.mapping else row, reading.unjudged)
        if layout.is_bare:
            ledger.error("other-layout", found=texts.column_list(row), wanted=later("a list of messages"))
            return False
        if own is not None and own.name != layout.name:
            base = formats.BY_NAME[layout.name].required
            more = set(own.required) > set(base)
            foreign = missing and not set(own.required) < set(base)
            if more or foreign:
                ledger.error("other-layout", found="+".join(own.required), wanted="+".join(layout.required))
                return False
        for column in missing:
            ledger.error("missing-field", column, found=texts.column_list(row))
        if not missing:
            _keep(self.layout_columns, shape)
        # A row with nulls is looked at each time: which of its columns count depends on its values.
        media = [column for column in formats.MEDIA_COLUMNS if column in row and column not in layout.fields.values()]
        for column in media:
            if not texts.is_empty(row[column]):
                ledger.error("media-column", column)
                return False
        unread = self._unread(row)
        for column in unread if not missing else ():
            if row[column] is not None and row[column] not in ("", [], {}):
                ledger.warn("chained-rows" if column.startswith("parent_") else "unread-column", column)
        if (
            not missing
            and not media
            and not unread
            and own is not None
            and own.name == layout.name
            and len(shape) <= 64
            and len(self.fitting) < 1_000
        ):
            known = set(layout.fields.values())
            if all(row[column] is not None for column in known if column in row):
                self.fitting.add(shape)
        return not missing

    def _unread(self, row: dict[str, Any]) -> list[str]:
        """Columns of a row that this layout has no place for and that may change what the row means."""
        assert self.reading is not None
        read = {
            *self.reading.layout.fields.values(),
            *self.reading.layout.required,
            self.reading.unjudged,
            *self.mapping,
        }
        return [column for column in row if column not in read and column.strip().lower() in formats.DECISIVE]


def _keep(columns: dict[str, None], names: tuple[str, ...]) -> None:
    for name in names:
        if len(columns) >= COLUMNS_KEPT:
            return
        columns[name] = None
