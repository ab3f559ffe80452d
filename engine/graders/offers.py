"""Which graders fit the rows of a data set, and whether one finds the right answers of the rows right."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from engine.graders import matching, scripts
from engine.graders.grade import Grader, Refused, text_of
from engine.graders.making import make
from engine.graders.patterns import schema_faults
from engine.spec.schema import GraderRef
from engine.words import Problem, Text, later

# So many rows say which graders fit, and are tried before a run, for so long; of those that fail so many are named.
MOST_TRIED, MOST_TRIAL_S, MOST_NAMED = 200, 2.0, 10
# Nearly all of the rows: what a few do otherwise is a slip in them.
NEARLY_ALL = 0.9
# Right answers of so many words can be met word for word; so few different ones over many rows are labels.
SHORT_WORDS, MOST_LABELS, LABEL_ROWS = 8, 6, 20


class Trial(msgspec.Struct, frozen=True):
    """How a grader finds the right answers of rows: `right` of `tried`, and those it finds wrong, as (line, reason).
    `slow`: its time was over before the rows were."""

    tried: int
    right: int
    failed: tuple[tuple[int, str], ...] = ()
    slow: bool = False

    @property
    def lines(self) -> str:
        """The lines of the first rows that fail, as a person reads them."""
        more = ", …" if self.tried - self.right > MOST_NAMED else ""
        return ", ".join(str(line) for line, _ in self.failed[:MOST_NAMED]) + more

    def problem(self, name: str) -> Problem | None:
        """Return why a grader cannot be used on these rows: it takes too long, there is no answer to try, or most fail."""
        if self.slow:
            told = {"name": name, "seconds": MOST_TRIAL_S, "n": self.tried}
            return Problem(rule="grader-slow", parameters=told)
        if not self.tried:
            return Problem(rule="grader-no-answers", parameters={"name": name})
        if 2 * self.right >= self.tried:
            return None
        figures = {"name": name, "wrong": self.tried - self.right, "tried": self.tried, "lines": self.lines}
        return Problem(rule="grader-references", parameters={**figures, "reason": self.failed[0][1]})

    @property
    def says(self) -> Text:
        """How many of the right answers pass, and the lines of the others."""
        if self.right == self.tried:
            return later("all {n} right answers that were tried pass", n=self.tried)
        return later(
            "{n} of {tried} right answers pass, not those of lines {lines}",
            n=self.right, tried=self.tried, lines=self.lines,
        )  # fmt: skip


class Offer(msgspec.Struct, frozen=True):
    """A grader that fits rows: what to name it by, why, and how it finds their right answers."""

    ref: GraderRef
    why: Text
    trial: Trial


def as_asked(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a canonical row as graders read it, with the `turns` before its last answer; None where it has no answer."""
    whole = [*(row.get("prompt") or ()), *row["completion"]] if row.get("completion") else row.get("messages") or ()
    if not isinstance(whole, list) or len(whole) < 2 or whole[-1].get("role") != "assistant":
        return None
    reference = whole[-1].get("content")
    if not isinstance(reference, str) or not reference.strip():
        return None
    asked: dict[str, Any] = {"turns": whole[:-1], "prompt": whole[-2].get("content") or "", "reference": reference}
    if row.get("choices"):
        asked["choices"] = list(row["choices"])
        if reference in asked["choices"]:
            asked["gold"] = asked["choices"].index(reference)
    return asked


def trial(grader: Grader, rows: Iterable[Mapping[str, Any]]) -> Trial:
    """Grade the right answers of canonical rows, each as if it were an answer that came to its end."""
    right, failed, tried, began_s = 0, [], 0, time.process_time()
    for number, row in enumerate(rows, 1):
        asked = as_asked(row)
        if asked is None:
            continue
        if tried == MOST_TRIED:
            break
        if time.process_time() - began_s > MOST_TRIAL_S:
            return Trial(tried, right, tuple(failed), slow=True)
        tried += 1
        grade = grader.grade(asked["reference"], {**asked, "ended": True})
        right += grade.right
        if not grade.right and len(failed) < MOST_NAMED:
            failed.append((row.get("line") or number, grade.reason))
    return Trial(tried, right, tuple(failed))


def offer(rows: Sequence[Mapping[str, Any]]) -> list[Offer]:
    """Return the graders that fit canonical rows, the one that says most first; each finds nearly all right answers
    right. Nothing where the rows have no answers."""
    asked = [one for one in (as_asked(row) for row in rows[:MOST_TRIED]) if one is not None]
    found = []
    for ref, why in _fitting(asked) if asked else ():
        try:
            tried = trial(make(ref), rows)
        except Refused:  # made of the rows: a schema of theirs can be too large
            continue
        if tried.right >= NEARLY_ALL * tried.tried:
            found.append(Offer(ref, why, tried))
    return found


def _fitting(asked: list[dict[str, Any]]) -> Iterable[tuple[GraderRef, Text]]:
    references = [text_of(one, "reference") for one in asked]
    if _share(len(one.get("choices") or ()) > 1 for one in asked) >= NEARLY_ALL:
        yield GraderRef("right-choice"), later("the rows have choices")
    if (labels := _labels(references)) is not None:
        why = later("the {rows} right answers are {n} different ones", rows=len(references), n=len(labels))
        yield GraderRef("right-choice", {"choices": labels}), why
    if _share("####" in one for one in references) >= NEARLY_ALL:
        yield GraderRef("marked-number"), later("the right answers end in #### and a number")
    values = [_json(one) for one in references]
    if _share(isinstance(value, dict | list) for value in values) >= NEARLY_ALL:
        yield GraderRef("same-json"), later("the right answers are JSON")
        yield from _json_form(values)
    words = [scripts.words(one) for one in references]
    short = statistics.median(words) <= SHORT_WORDS
    if _share(len(matching.numbers(one)) == 1 for one in references) >= NEARLY_ALL and short:
        yield GraderRef("last-number"), later("the right answers are numbers")
    if short:
        yield GraderRef("same-words"), later("the right answers are short")
        yield GraderRef("holds-the-words"), later("the right answers are short, and may stand in a sentence")
    else:
        yield GraderRef("comes-to-an-end"), later("the right answers are long: this says only whether answers end")
    yield GraderRef("keeps-the-language"), later("this says only in which script answers are")


def _share(flags: Iterable[bool]) -> float:
    told = list(flags)
    return sum(told) / len(told)


def _labels(references: list[str]) -> list[str] | None:
    """Return the few answers that many rows have, which are labels; None where they are none."""
    told = dict.fromkeys(references)
    few = 2 <= len(told) <= MOST_LABELS and len(references) >= max(LABEL_ROWS, 5 * len(told))
    if not few or len({matching.plain(one) for one in told}) < len(told):
        return None
    return sorted(told) if max(map(scripts.words, told)) <= SHORT_WORDS else None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


_TYPES = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}


def _json_form(values: list[Any]) -> Iterable[tuple[GraderRef, Text]]:
    """The keys that all objects have, each with the type it has in all of them."""
    objects = [value for value in values if isinstance(value, dict)]
    keys = sorted(set(objects[0]).intersection(*objects[1:])) if len(objects) == len(values) else []
    typed = {}
    for key in keys:
        kinds = {_TYPES.get(type(value[key]), "") for value in objects}
        typed[key] = {"type": kinds.pop()} if len(kinds) == 1 and "" not in kinds else {}
    schema = {"type": "object", "required": keys, "properties": typed}
    if keys and not list(schema_faults(schema)):
        why = later("the right answers are JSON with the same keys: {keys}", keys=", ".join(keys)[:80])
        yield GraderRef("valid-json", {"schema": schema}), why
