"""Checks the rows of one piece of a file. Pieces can be checked in any process; joined in order they give one verdict.

Most rows of a large file look alike and are good. For these there is a quick way: the row is decoded into typed
structs, which refuses what is missing, of the wrong type or unknown, and a few searches of its bytes show that nothing
in it could be worth a word. Whatever is not plainly good goes the careful way, which finds what is wrong, or that all
is well. The quick way may never say anything that the careful way would not (tests hold it).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from heapq import heappush, heappushpop
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec
from xxhash import xxh3_64_intdigest as hash64

from engine.check.content import ContentRules, row_flags
from engine.check.ledger import Ledger
from engine.check.repeats import Hashes
from engine.check.rules import LEAK_CHARACTERS, Lengths, RowRules
from engine.read import faults, formats, texts
from engine.read import lines as read_lines
from engine.words import Problem, later

COLUMNS_KEPT = 200
# Rows that may be longer than the window are counted exactly up to this many, else estimated from as many.
WINDOW_ROWS = 2_000
_CANNOT_BE_SEEN = texts.INVISIBLE_SET | {""}
# The end of a row, without the white space, backslashes and letters n that an escaped line break may consist of.
_END_BYTES, _END_KEPT = 140, 70
_WITHOUT = b" \t\r\n\\n"


class RowSink(Protocol):
    """Takes the good rows of a check. start() may come twice: rows taken before the second call do not count."""

    def start(self, reading: formats.Reading) -> None: ...

    def add(self, line: int, row: dict[str, Any], raw: bytes) -> None: ...


class HasAnswers(Exception):
    """A file taken for prompts only has an answer after all."""


class Piece(msgspec.Struct, kw_only=True):
    """What was found in one piece of a file. Rows and lines are counted from the start of the piece."""

    rows: int = 0
    bad_rows: int = 0
    lines: int = 0  # line ends of the piece, where its lines are counted from its own start
    has_answers: bool = False  # a file of prompts has an answer: the rest of the piece was not read
    errors: dict[str, int] = {}
    warnings: dict[str, int] = {}
    kept_errors: list[Problem] = []
    kept_warnings: list[Problem] = []
    columns: list[str] = []
    layout_columns: list[str] = []
    has_objects: bool = False
    good_labels: int = 0
    bad_labels: int = 0
    target_characters: int = 0
    label_changes: dict[str, int] = {}
    lengths: tuple[int, int, int, int] = (0, 0, 0, 0)  # pairs, longer ones, sum and sum of squares of differences
    ends: bytes = b""
    exact: bytes = b""
    row_lines: bytes = b""
    judged: bytes = b""
    long_rows: int = 0  # rows whose bytes could be more tokens than the window has
    long_bytes: int = 0
    long_sample: list[tuple[int, int]] = []  # (mark, row) of those with the lowest marks

    def hashes(self, per_row: int) -> Hashes:
        hashes = Hashes(per_row)
        hashes.ends.frombytes(self.ends)
        hashes.exact.frombytes(self.exact)
        hashes.lines.frombytes(self.row_lines)
        hashes.judged.frombytes(self.judged)
        return hashes


class _Columns:
    """The columns met, in their order: of all rows, and of rows that are of the file's layout."""

    def __init__(self) -> None:
        self.of_file: dict[str, None] = {}
        self.of_layout: dict[str, None] = {}
        self.has_objects = False  # an object without fields has no columns to show for it

    def add(self, columns: dict[str, None], names: Iterable[str]) -> None:
        for name in names:
            if len(columns) >= COLUMNS_KEPT:
                return
            columns[name] = None


class RowChecks:
    """Checks rows that come in blocks; take() gives what was found since it was last called.

    `every`: a file for all problems. `long_bytes`: rows of more bytes may be longer than the model's window.
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
        every: BinaryIO | None = None,
        long_bytes: int | None = None,
        quick: bool = True,
        example: dict[str, Any] | None = None,
        overlap: Callable[[dict[str, Any]], int | None] | None = None,
    ):
        self.reading, self.mapping, self.sink, self.has_lines = reading, mapping, sink, has_lines
        self.ledger = Ledger(every, has_cells)
        self.columns = _Columns()
        self.rules = RowRules(reading, self.ledger) if reading else None
        self.content = ContentRules(reading, self.ledger.warn) if reading else None
        self.rule = self.rules.row_rule() if self.rules else None
        self.messages_column = reading.layout.fields["messages"] if reading and reading.prompts_only else None
        self.bare = reading is not None and reading.layout.name == formats.BARE.name
        self.lifted = reading is not None and any("." in column for column in reading.layout.fields.values())
        self.fitting: set[tuple[str, ...]] = set()  # key tuples that fit the layout without a second look
        self.long_limit = long_bytes
        self.overlap = overlap
        self.rows_before = 0  # rows of the file that were taken already
        self.quick = self.scan = None
        if quick:
            from engine.check.scan import Scan  # loads numpy, which takes longer than checking a small file

            self.scan = Scan()
            if reading and sink is None and overlap is None and example is not None:
                self.quick = _quick_way(reading, example)
        self._begin()

    def _begin(self) -> None:
        self.rows = self.bad_rows = 0
        self.hashes = Hashes(judgements(self.reading))
        self.long: list[tuple[int, int]] = []
        self.long_rows = self.long_total = 0

    def take(self, lines: int = 0) -> Piece:
        """What was found in the rows since the last time; `lines`: how many lines they had."""
        ledger, rules, hashes = self.ledger, self.rules, self.hashes
        piece = Piece(
            rows=self.rows,
            bad_rows=self.bad_rows,
            lines=lines,
            errors=dict(ledger.errors),
            warnings=dict(ledger.warnings),
            kept_errors=ledger.kept_errors,
            kept_warnings=ledger.kept_warnings,
            columns=list(self.columns.of_file),
            layout_columns=list(self.columns.of_layout),
            has_objects=self.columns.has_objects,
            ends=hashes.ends.tobytes(),
            exact=hashes.exact.tobytes(),
            row_lines=hashes.lines.tobytes(),
            judged=hashes.judged.tobytes(),
            long_rows=self.long_rows,
            long_bytes=self.long_total,
            long_sample=[(-mark, row) for mark, row in self.long],
        )
        if rules:
            piece.good_labels, piece.bad_labels = rules.labels[True], rules.labels[False]
            piece.target_characters, piece.label_changes = rules.target_characters, rules.label_changes
            lengths = rules.lengths
            piece.lengths = (lengths.pairs, lengths.longer, lengths.total, lengths.squares)
            rules.labels = {True: 0, False: 0}
            rules.target_characters, rules.label_changes, rules.lengths = 0, {}, Lengths()
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
        # Hashes of all rows, those with errors included: lists are made quicker in one go.
        hashes.ends.extend([hash64(raw[-_END_BYTES:].translate(None, _WITHOUT)[-_END_KEPT:]) or 1 for raw in lines])
        hashes.exact.extend([hash64(raw.rstrip()) & 0xFFFFFFFF for raw in lines])
        hashes.lines.extend(numbers)
        if self.long_limit is not None:
            for row, raw in enumerate(lines, start=before + 1):
                if len(raw) > self.long_limit:
                    self._long_row(raw, row)
        ledger, careful, quick = self.ledger, self._careful, self.quick
        is_open: Any = quick or _CLOSED
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
                hashes.ends[row - 1] = hashes.exact[row - 1] = 0
                hashes.judged.extend([0] * hashes.per_row)
        if self.rules is not None:
            self.rules.target_characters += characters

    def _long_row(self, raw: bytes, row: int) -> None:
        """Keep the rows with the lowest marks: a sample that does not depend on how the file is divided."""
        self.long_rows += 1
        self.long_total += len(raw)
        marked = (-zlib.crc32(raw), row)
        if len(self.long) < WINDOW_ROWS:
            heappush(self.long, marked)
        else:
            heappushpop(self.long, marked)

    def _careful(self, raw: bytes, suspect: bool, quotes: int, number: int) -> bool:
        """Check one row with care and return whether it is good. `quotes` is -1 where they were not counted."""
        ledger, reading, rule = self.ledger, self.reading, self.rule
        try:
            row = _decode(raw)
        except read_lines.UNPARSED:
            failed, parameters = faults.explain(raw)
            ledger.error(failed, None, **parameters)
            return False
        if quotes != _quotes(row) and (twice := _key_twice(raw, row)) is not None:
            ledger.error("duplicate-key", found=texts.short(twice))
            return False
        good = False
        if self.bare and type(row) is list:
            row = {"messages": row}
            if self.messages_column and formats.has_assistant(row["messages"]):
                raise HasAnswers
            good = rule is not None and rule(row)
        elif type(row) is not dict:
            ledger.error("not-object", found=texts.kind_of(row))
        else:
            shape = tuple(row)
            fits = shape in self.fitting
            if not fits:
                fits = self._fits(row, shape)
            if fits and rule is not None:
                if self.lifted and reading is not None:
                    row = formats.plain_row(row, reading.layout)
                if self.messages_column and formats.has_assistant(row[self.messages_column]):
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

    def _fits(self, row: dict[str, Any], shape: tuple[str, ...]) -> bool:
        """Say whether a row of keys not met before is of the file's layout; note what is wrong when not."""
        columns, ledger, reading = self.columns, self.ledger, self.reading
        columns.has_objects = True
        columns.add(columns.of_file, shape)
        if reading is None:
            return False
        layout = reading.layout
        missing = [column for column in layout.required if column not in row]
        own = formats.own_layout(formats.renamed(row, self.mapping) if self.mapping else row)
        if layout.name == formats.BARE.name:
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
            columns.add(columns.of_layout, shape)
        # A row with nulls is looked at each time: which of its columns count depends on its values.
        media = [column for column in formats.MEDIA_COLUMNS if column in row and column not in layout.fields.values()]
        for column in media:
            if row[column]:
                ledger.error("media-column", column)
                return False
        if (
            not missing
            and not media
            and own is not None
            and own.name == layout.name
            and len(shape) <= 64
            and len(self.fitting) < 1_000
        ):
            known = set(layout.fields.values())
            if all(row[column] is not None for column in known if column in row):
                self.fitting.add(shape)
        return not missing


def judgements(reading: formats.Reading | None) -> int:
    """How many answers a row judges: a pair two, an answer with a label one."""
    if reading is None or reading.layout.type not in ("preference", "unpaired-preference"):
        return 0
    return 2 if reading.layout.type == "preference" else 1


_decode = msgspec.json.Decoder().decode
# Without a scan every row is a suspect, and its quotes were not counted.
_ALWAYS, _NEVER = repeat(True), repeat(-1)


def _quotes(value: Any) -> int:
    """How many quotes the keys and texts of a value need."""
    kind = type(value)
    if kind is str:
        return 2
    if kind is dict:
        return 2 * len(value) + sum([_quotes(part) for part in value.values()])
    if kind is list:
        return sum([_quotes(part) for part in value])
    return 0


def _key_twice(raw: bytes, row: Any) -> str | None:
    """The first key that stands twice in one object of a record, or None.

    Parsers keep the last of equal keys, so each leaves quotes that the value does not account for. Where quotes may
    be hidden by backslashes the record is parsed again, and each key looked at.
    """
    quotes = raw.count(b'"')
    if quotes != _quotes(row) and (quotes - raw.count(b'\\"') != _quotes(row) or b'\\\\"' in raw):
        try:
            json.loads(raw, object_pairs_hook=_unique)
        except _Twice as twice:
            return str(twice)
        except (ValueError, RecursionError):
            return None
    return None


class _Twice(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> None:
    met: set[str] = set()
    for key, _ in pairs:
        if key in met:
            raise _Twice(key)
        met.add(key)


def _quick_way(reading: formats.Reading, example: dict[str, Any]) -> QuickChat | None:
    """The quick way for the rows of a reading that look like `example`, where there is one."""
    fields = reading.layout.fields
    plain = reading.layout.type == "language-modeling" and "messages" in fields and not reading.prompts_only
    if not plain or reading.layout.name == formats.BARE.name or any("." in column for column in fields.values()):
        return None
    return QuickChat.of(reading, example)


class _CLOSED:
    """No quick way."""

    ready = False
    decode = quotes = sequences = sequence = None


class QuickChat:
    """What the quick way needs to know about conversations: how to decode a record, and which sequences of roles are
    plain. It is written out in RowChecks.block, as a call for each row would cost a tenth of the time."""

    def __init__(self, decode: Callable[[bytes], Any], reading: formats.Reading, keys: set[str], quotes: int):
        self.decode = decode
        self.keys = keys
        self.quotes = quotes  # of everything outside of the messages
        self.roles = reading.style.roles
        self.ready = False  # not before a good row of these keys was seen: the careful way has noted its columns
        self.sequences: dict[tuple[str, ...], tuple[list[int], list[tuple[int, int]]] | None] = {}

    @classmethod
    def of(cls, reading: formats.Reading, example: dict[str, Any]) -> QuickChat | None:
        """The quick way for rows with exactly the keys of `example`, if what they hold is simple."""
        column = reading.layout.fields["messages"]
        others = {reading.layout.fields[m] for m in ("tools", "system") if m in reading.layout.fields}
        if (
            column not in example
            or others & set(example)
            or set(formats.MEDIA_COLUMNS) & set(example)
            or len(example) > 30
        ):
            return None
        role, content = (msgspec.field(name=key) for key in (reading.style.role_key, reading.style.content_key))
        message = msgspec.defstruct(
            "Message",
            [("role", str, role), ("content", str, content)],
            gc=False,
            forbid_unknown_fields=True,
        )
        fields: list[Any] = [("messages", list[message], msgspec.field(name=column))]
        quotes = 2
        for number, (key, value) in enumerate(example.items()):
            if key == column:
                continue
            if isinstance(value, str):
                kind, quotes = str, quotes + 4
            elif value is None or isinstance(value, int | float):
                kind, quotes = int | float | bool | None, quotes + 2
            else:
                return None
            fields.append((f"more{number}", kind, msgspec.field(name=key)))
        row = msgspec.defstruct("Row", fields, gc=False, forbid_unknown_fields=True)
        decode = msgspec.json.Decoder(row).decode
        return cls(decode, reading, set(example), quotes)

    def learn(self, row: dict[str, Any]) -> None:
        """A good row was seen the careful way."""
        if set(row) == self.keys:
            self.ready = True

    def sequence(self, messages: list[Any]) -> tuple[list[int], list[tuple[int, int]]] | None:
        """Where the answers of a plain conversation are, and the questions before them; None when it is not plain."""
        written = tuple(message.role for message in messages)
        kinds = [self.roles.get(role) for role in written]
        plain = (
            kinds[-1:] == ["assistant"]
            and None not in kinds
            and "system" not in kinds[1:]
            and all(one != other or one == "tool" for one, other in pairwise(kinds))
        )
        answers = [place for place, kind in enumerate(kinds) if kind == "assistant"]
        pairs = [(place - 1, place) for place in answers if place and kinds[place - 1] == "user"]
        found = (answers, pairs) if plain else None
        if len(self.sequences) < 1_000:
            self.sequences[written] = found
        return found


def batches(records: Iterator[tuple[int | None, bytes]], size: int) -> Iterator[tuple[list[int | None], list[bytes]]]:
    """Group single records into blocks of about `size` bytes."""
    places: list[int | None] = []
    lines: list[bytes] = []
    held = 0
    for place, raw in records:
        places.append(place)
        lines.append(raw)
        held += len(raw)
        if held >= size:
            yield places, lines
            places, lines, held = [], [], 0
    if lines:
        yield places, lines


def problems_written(path: Path, row_offset: int, line_offset: int) -> Iterator[Problem]:
    """The problems a piece has written, with the rows and lines they have in the whole file."""
    with path.open("rb") as file:
        for line in file:
            yield moved(msgspec.json.decode(line, type=Problem), row_offset, line_offset)


def moved(problem: Problem, row_offset: int, line_offset: int) -> Problem:
    """A problem of a piece, as one of the whole file."""
    if not row_offset and not line_offset:
        return problem
    return msgspec.structs.replace(
        problem,
        row=problem.row + row_offset if problem.row else problem.row,
        line=problem.line + line_offset if problem.line else problem.line,
    )
