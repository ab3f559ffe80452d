"""The rules that only all rows of a file together can break: repetitions, labels, lengths, columns."""

from __future__ import annotations

from array import array

from xxhash import xxh3_64_intdigest as hash64

from engine.check.ledger import PROBLEMS_KEPT
from engine.check.notes import FILE_COLUMN
from engine.check.piece import GROUP_ROWS
from engine.check.records import OpenFile
from engine.check.repeats import Hashes, Places, Repeats
from engine.check.totals import Totals
from engine.check.window import Window
from engine.read import formats, texts
from engine.spec import counts
from engine.words import Text, later

# Fewer pairs say little about lengths; the effect is a medium one by the usual reading (Cohen).
LEAST_PAIRS, LARGE_EFFECT = 30, 0.5


def judge_file(file: OpenFile, totals: Totals, window: Window | None) -> None:
    """Note what is wrong or odd over all rows, once these have been read."""
    _repetitions(file, totals)
    reading = file.reading
    if totals.commas:
        totals.warn("line-commas", line=totals.first_comma or None, count=totals.commas)
    if reading is None:
        if totals.has_objects:
            shown = texts.name_list(totals.columns, 20) or later("no fields")
            totals.error("unknown-layout", found=shown, known=formats.known_layouts(), blank=_blank_names(totals))
        return
    if reading.prompts_only:
        totals.warn("no-answers")
    if reading.unpacked:
        totals.warn("unpacked", found=texts.name_list(reading.unpacked, 12))
    if window is not None:
        window.judge(totals, has_lines=file.has_lines)
    if "label" in reading.layout.fields:
        _labels(totals)
    _length_bias(totals)
    if reading.unjudged:
        totals.warn("label-not-judged", found=reading.unjudged)
    used = {*reading.layout.fields.values(), *reading.layout.required, *file.mapping, reading.unjudged}
    # Of those that may change what a row means, and of images, each row says so; what is empty needs no word.
    said = {*formats.DECISIVE, *formats.MEDIA_COLUMNS, *_SAID_BY_DESIGN}
    unused = [name for name in totals.layout_columns if name not in used and name.strip().lower() not in said]
    if unused:
        totals.warn("unused-columns", found=texts.name_list(unused, 12))


# Columns that say nothing to learn by what they are: how OpenAI's API may call tools, and which file a text came from.
_SAID_BY_DESIGN = ("parallel_tool_calls", FILE_COLUMN)


def _blank_names(totals: Totals) -> str | Text:
    """Say which names of columns would be those of a layout but for blanks around them."""
    named = [name for name in totals.columns if name != name.strip()]
    if not named or formats.layout_of(name.strip() for name in totals.columns) is None:
        return ""
    return later(" (without the blank in {names} they would be)", names=texts.name_list(named, 12))


def _repetitions(file: OpenFile, totals: Totals) -> None:
    """Warn of rows that repeat or contradict an earlier one."""
    limit = None if totals.path else PROBLEMS_KEPT
    same, near = totals.repeats.duplicates(limit)
    _warn_places(file, totals, "duplicate-row", same)
    if near:
        _warn_places(file, totals, "near-duplicate", _near_repetitions(file, totals, near, limit))
    against = totals.repeats.contradictions(limit)
    for row, line, first in against:
        totals.warn("contradiction", row=row + 1, line=line if file.has_lines else None, first=first)
    totals.count_more("contradiction", against.count - len(against))


def _warn_places(file: OpenFile, totals: Totals, rule: str, places: Places) -> None:
    for row, line, first in places:
        shown = later("line {line}", line=first) if file.has_lines else later("row {row}", row=first)
        totals.warn(rule, row=row + 1, line=line if file.has_lines else None, first=shown)
    totals.count_more(rule, places.count - len(places))


def _near_repetitions(file: OpenFile, totals: Totals, near: array[int], limit: int | None) -> Places:
    """Rows, of those given, that repeat one of them but for white space: these are read a second time."""
    found = Places(limit)
    with Repeats() as whole:
        part = Hashes()
        for line, raw in file.records_at(near, totals.ranges):
            part.ends.append(hash64(_squeezed(raw)) or 1)
            part.exact.append(0)
            part.lines.append(line & 0xFFFFFFFF)
            if len(part.ends) >= GROUP_ROWS:
                whole.extend(part, 0)
                part = Hashes()
        whole.extend(part, 0)
        same, _ = whole.duplicates(limit)
    for place, line, first in same:
        found.add_one(near[place], line, first)
    found.count = same.count
    return found


def _squeezed(raw: bytes) -> bytes:
    """A record without its white space, escaped line breaks included."""
    return raw.translate(None, b" \t\r\n").replace(b"\\n", b"")


def _labels(totals: Totals) -> None:
    """Warn when all labels are the same, or say which weight makes up for their balance: that which a run of KTO uses."""
    good, bad = totals.labels
    if good + bad > 1 and not (good and bad):
        totals.warn("one-sided-labels", label="true" if good else "false")
    # Weight times number of the good over the same of the bad should lie between 1 and 4/3, which a run sees to; labels
    # that are no further apart than that need no word.
    if good and bad and good + bad >= 20 and max(good, bad) > min(good, bad) * 4 / 3:
        desirable, undesirable = counts.kto_weights(good, bad)
        name, weight = ("undesirable", undesirable) if good > bad else ("desirable", desirable)
        totals.warn("label-balance", good=good, bad=bad, name=name, weight=str(weight))


def _length_bias(totals: Totals) -> None:
    lengths = totals.lengths
    if lengths.pairs >= LEAST_PAIRS and abs(lengths.effect) >= LARGE_EFFECT:
        which = later("longer") if lengths.effect > 0 else later("shorter")
        many = lengths.longer if lengths.effect > 0 else lengths.pairs - lengths.longer
        share = round(100 * many / lengths.pairs)
        totals.warn("length-bias", which=which, share=share, effect=f"{lengths.effect:+.2f}")
