"""Checks the rows of one piece of a file. Pieces can be checked in any process; joined in order they give one verdict.

Most rows of a large file look alike and are good. For these there is a quick way: the row is decoded into typed
structs, which refuses what is missing, of the wrong type or unknown, and a few searches of its bytes show that nothing
in it could be worth a word. Whatever is not plainly good goes the careful way, which finds what is wrong, or that all
is well. The quick way may never say anything that the careful way would not (tests hold it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any, Protocol

import msgspec

from engine.check.content_rules import ContentRules, row_flags
from engine.check.keys import key_twice, quotes_of
from engine.check.layout_rules import LayoutRules
from engine.check.ledger import Ledger
from engine.check.piece import Piece
from engine.check.quick import CLOSED, quick_way
from engine.check.repeats import Hashes
from engine.check.row_rules import RowRules, judgements
from engine.check.value_rules import LEAK_CHARACTERS
from engine.read import faults, formats, literals, texts, turns
from engine.read import lines as read_lines

_CANNOT_BE_SEEN = texts.INVISIBLE_SET | {""}
_decode = msgspec.json.Decoder().decode
# Without a scan every row is a suspect, and its quotes were not counted.
_ALWAYS, _NEVER = repeat(True), repeat(-1)


class RowSink(Protocol):
    """Takes the good rows of a check. start() may come twice: rows taken before the second call do not count."""

    def start(self, reading: formats.Reading) -> None: ...

    def add(self, line: int, row: dict[str, Any], raw: bytes) -> None: ...


class HasAnswers(Exception):
    """A file taken for prompts only has an answer after all."""


class RowChecks:
    """Checks rows that come in blocks; take() gives what was found since it was last called.

    `overlap` is given every good row, and says which line of the validation file asks the same.
    """

    def __init__(
        self,
        reading: formats.Reading | None,
        *,
        mapping: dict[str, str],
        has_cells: bool = False,
        has_lines: bool = True,
        sink: RowSink | None = None,
        quick: bool = True,
        example: dict[str, Any] | None = None,
        overlap: Callable[[dict[str, Any]], int | None] | None = None,
    ):
        self.reading, self.sink, self.has_lines = reading, sink, has_lines
        self.ledger = Ledger(has_cells)
        self.layout = LayoutRules(reading, mapping, self.ledger)
        self.rules = RowRules(reading, self.ledger) if reading else None
        self.content = ContentRules(reading, self.ledger.warn) if reading else None
        self.rule = self.rules.row_rule() if self.rules else None
        self.messages_column = reading.layout.fields["messages"] if reading and reading.prompts_only else None
        self.bare = reading is not None and reading.layout.is_bare
        self.lifted = reading is not None and (reading.layout.is_nested or reading.turn_pairs)
        self.unpacked = reading.unpacked if reading else ()
        # Where NaN stands in any other column, nothing is lost. The field inside a column is a part of that.
        self.used = {column.partition(".")[0] for column in reading.layout.fields.values()} if reading else set()
        self.overlap = overlap
        self.rows_before = 0  # rows of the file that were taken already
        self.quick = self.scan = None
        if quick:
            from engine.check.scan import Scan  # loads numpy, which takes longer than checking a small file

            self.scan = Scan()
            if reading and sink is None and overlap is None and example is not None:
                self.quick = quick_way(reading, example)
        self._begin()

    def _begin(self) -> None:
        self.rows = self.bad_rows = self.commas = self.first_comma = 0
        self.hashes = Hashes(judgements(self.reading))

    def take(self, lines: int = 0) -> Piece:
        """What was found in the rows since the last time; `lines`: how many lines they had."""
        ledger, hashes = self.ledger, self.hashes
        piece = Piece(
            rows=self.rows,
            bad_rows=self.bad_rows,
            lines=lines,
            errors=dict(ledger.errors),
            warnings=dict(ledger.warnings),
            rows_with=dict(ledger.rows_with),
            kept_errors=ledger.kept_errors,
            kept_warnings=ledger.kept_warnings,
            ends=hashes.ends.tobytes(),
            exact=hashes.exact.tobytes(),
            row_lines=hashes.lines.tobytes(),
            judged=hashes.judged.tobytes(),
            commas=self.commas,
            first_comma=self.first_comma,
        )
        self.layout.take(piece)
        if self.rules:
            self.rules.take(piece)
        ledger.clear()
        self.rows_before += self.rows
        self._begin()
        return piece

    def block(self, places: Iterable[int | None], lines: list[bytes], block: bytes) -> None:
        """Check rows that stand together in `block`, with the line each begins on. Raises HasAnswers."""
        # A blank line is the least of all lines, or begins with less than a record does.
        if min(lines, default=b"{")[:1] <= b" ":
            kept = [(place, raw) for place, raw in zip(places, lines, strict=False) if raw and not raw.isspace()]
            places, lines = [place for place, _ in kept], [raw for _, raw in kept]
            block = b"\n".join(lines)
        before = self.rows
        self.rows += len(lines)
        numbers: Any = list(places) if self.has_lines else range(before + 1, self.rows + 1)
        suspects, quotes, blanks = self.scan.look(lines, block) if self.scan else (_ALWAYS, _NEVER, _ALWAYS)
        hashes = self.hashes
        hashes.add(lines, numbers)
        ledger, careful, quick = self.ledger, self._careful, self.quick
        is_open: Any = quick or CLOSED
        decode, quotes_outside = is_open.decode, is_open.quotes
        sequences, sequence_of = is_open.sequences, is_open.sequence
        characters = 0
        row = before
        for number, raw, suspect, quoted, blank in zip(numbers, lines, suspects, quotes, blanks, strict=False):
            row += 1
            # The quick way: whatever is not plainly good falls through to the careful one.
            if is_open.ready and not suspect:
                try:
                    messages = decode(raw).messages
                    known = sequences[tuple([message.role for message in messages])]
                except KeyError:
                    known = sequence_of(messages)
                except read_lines.UNPARSED:
                    known = None
                # Another count of quotes may mean a key that stands twice.
                if (
                    known is not None
                    and quoted == quotes_outside + 8 * len(messages)
                    and (not blank or _CANNOT_BE_SEEN.isdisjoint([message.content[:1] for message in messages]))
                ):
                    answers, pairs = known
                    for asked, answered in pairs:
                        question = messages[asked].content
                        if messages[answered].content.startswith(question) and len(question) >= LEAK_CHARACTERS:
                            break
                    else:
                        for place in answers:
                            characters += len(messages[place].content)
                        continue
            ledger.line, ledger.row = number if self.has_lines else None, row
            if not careful(raw, suspect, quoted, number):
                self.bad_rows += 1
                hashes.drop(row - 1)
        if self.rules is not None:
            self.rules.target_characters += characters

    def _careful(self, raw: bytes, suspect: bool, quotes: int, number: int) -> bool:
        """Check one row with care and return whether it is good. `quotes` is -1 where they were not counted."""
        try:
            return self._looked_at(raw, suspect, quotes, number)
        except RecursionError:  # what a parser still reads may be too deep for what comes after it
            self.ledger.error("too-deep", None)
            self.ledger.settle(good=False)
            return False

    def _looked_at(self, raw: bytes, suspect: bool, quotes: int, number: int) -> bool:
        ledger, reading, rule = self.ledger, self.reading, self.rule
        try:
            row, written = _decode(raw), raw
        except read_lines.UNPARSED:
            mended = faults.mended(raw)
            if mended is None or mended.constants & self.used:
                failed, parameters = faults.explain(raw)
                ledger.error(failed, None, **parameters)
                return False
            row, written, quotes = mended.row, raw.rstrip().removesuffix(b","), -1
            raw = mended.raw
            if mended.comma:
                self.commas += 1
                self.first_comma = self.first_comma or number
        if quotes != quotes_of(row) and (twice := key_twice(written, row)) is not None:
            ledger.error("duplicate-key", found=texts.short(twice))
            return False
        good = False
        if self.bare and type(row) is list:
            row = {"messages": row}
            if self.messages_column and turns.has_assistant(row["messages"]):
                raise HasAnswers
            good = rule is not None and rule(row)
        elif type(row) is not dict:
            ledger.error("not-object", found=texts.kind_of(row))
        else:
            shape = tuple(row)
            if (shape in self.layout.fitting or self.layout.fits(row, shape)) and rule is not None:
                if self.unpacked:
                    row = literals.unpacked(row, self.unpacked)
                if self.lifted and reading is not None:
                    row = formats.plain_row(row, reading.layout, reading.turn_pairs)
                if self.messages_column and turns.has_assistant(row[self.messages_column]):
                    raise HasAnswers
                good = rule(row)
        if good and self.content is not None:
            if suspect and (found := row_flags(raw)):
                self.content.look(row, found)
            if self.overlap is not None and (same := self.overlap(row)) is not None:
                ledger.warn("overlap", line=same)
        if ledger.pending:
            ledger.settle(good)
        if not good:
            return False
        rules, judged = self.rules, self.hashes.judged
        if self.hashes.per_row and rules is not None:
            judged.extend(rules.judgements)
        if self.sink:
            self.sink.add(number if self.has_lines else self.rows_before + number, row, raw)
        if self.quick is not None and not self.quick.ready:
            self.quick.learn(row)
        return True
