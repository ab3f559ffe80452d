"""Problems of one rule as a group: how often, a heading that is true of all of them, and the places as ranges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from engine.words import Problem, rules, t

# So many lines that are alike say more than one line with their places.
MOST_ALIKE = 10
RANGES_SHOWN = 12


class Found(Protocol):
    """What a report has to say of its problems."""

    @property
    def errors(self) -> dict[str, int]: ...
    @property
    def warnings(self) -> dict[str, int]: ...
    @property
    def rows_with(self) -> dict[str, int]: ...
    @property
    def problems(self) -> tuple[Problem, ...]: ...
    @property
    def whole_file_problem(self) -> Problem | None: ...


class Group(NamedTuple):
    """The problems of one rule and severity: how many there are, and those that the report holds."""

    rule: str
    severity: str
    count: int
    problems: tuple[Problem, ...]
    rows: int = 0  # in how many rows it is broken; none for what is about the whole file

    @property
    def title(self) -> str:
        """The group in one line, with how many rows it is about, or the place of the only one."""
        known = rules.rules().get(self.rule)
        if self.rows > 1 and known is not None and known.rows:
            return t(known.rows, n=f"{self.rows:,}")
        if self.rows == 1 and self.problems:
            return t("{place}: {what}", place=places(self.problems[:1]), what=self.heading)
        return self.heading if self.count == 1 else t("{n} × {what}", n=f"{self.count:,}", what=self.heading)

    @property
    def heading(self) -> str:
        """What is true of all of them: the sentence where it is the same for all, else what the rule is about."""
        messages = {problem.message for problem in self.problems}
        varies = any("{" in (problem.words or ("{",))[0] for problem in self.problems[:1])
        if len(messages) == 1 and (not varies or len(self.problems) == self.count):
            return messages.pop()
        return _about(self.rule) or next(iter(messages), self.rule)

    @property
    def places(self) -> str:
        """The lines, or the rows where lines say nothing, as ranges: "lines 2-40, 57"."""
        return places(self.problems)


def grouped(report: Found) -> list[Group]:
    """Return the groups of a report: errors first, then the most frequent first, of as many the one that is met first in
    the file. What is wrong with the whole file and stands in its sentence is left out."""
    found: list[Group] = []
    for severity, counts in (("error", report.errors), ("warning", report.warnings)):
        of_one: list[Group] = []
        for rule, count in counts.items():
            held = tuple(p for p in report.problems if p.rule == rule and p.severity == severity)
            if not held or held[0] is not report.whole_file_problem:
                rows = report.rows_with.get(rule) or len({p.row for p in held if p.row})
                of_one.append(Group(rule, severity, count, held, rows))
        found += sorted(of_one, key=lambda one: (-one.count, min((p.row or 0 for p in one.problems), default=0)))
    return found


def places(problems: Iterable[Problem]) -> str:
    """Return where problems are, as ranges; nothing for those of a whole file."""
    problems = list(problems)
    by_row = any(p.row and not p.line_says for p in problems)
    lines = {p.line for p in problems if p.line and not by_row}
    rows = {p.row for p in problems if p.row and by_row}
    if len(lines) == 1 or (not lines and len(rows) == 1):
        return t("line {line}", line=f"{min(lines):,}") if lines else t("row {row}", row=f"{min(rows):,}")
    if lines:
        return t("lines {ranges}", ranges=_ranges(sorted(lines)))
    return t("rows {ranges}", ranges=_ranges(sorted(rows))) if rows else ""


def printed(report: Found) -> list[str]:
    """Return a line for each problem in the order of the file; many of one rule are one line that names their places,
    with the first of them as an example."""
    groups = grouped(report)
    many = {(group.rule, group.severity): group for group in groups if group.count > MOST_ALIKE}
    shown: list[str] = []
    for problem in report.problems:
        if problem is report.whole_file_problem:  # it is in the header
            continue
        group = many.get((problem.rule, problem.severity))
        mark = t("warning: ") if problem.severity == "warning" else ""
        if group is None:
            shown.append(mark + problem.sentence)
        elif problem is group.problems[0]:
            shown += [_in_one_line(group), "  " + t("the first: {sentence}", sentence=problem.sentence)]
    return shown + [_in_one_line(group) for group in groups if not group.problems]


def _in_one_line(group: Group) -> str:
    more = group.count - len(group.problems)
    mark = t("warning: ") if group.severity == "warning" else ""
    text = mark + group.title
    if not group.places:
        return text
    if more:
        return t("{text}: {places} and {more} more", text=text, places=group.places, more=f"{more:,}")
    return t("{text}: {places}", text=text, places=group.places)


def _about(rule: str) -> str:
    """Return what a rule is about: its line of help, without whether it is an error."""
    known = rules.rules().get(rule)
    if known is None or not known.help:
        return ""
    text = t(known.help)
    for stop in (". ", "。"):
        before, _, after = text.partition(stop)
        if after and len(before) < 40:
            return after.rstrip(".。")
    return text.rstrip(".。")


def _ranges(numbers: list[int]) -> str:
    shown = [f"{a:,}" if a == b else f"{a:,}-{b:,}" for a, b in _runs(numbers)]
    return ", ".join(shown[:RANGES_SHOWN]) + (" …" if len(shown) > RANGES_SHOWN else "")


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    start = last = numbers[0]
    for number in numbers[1:]:
        if number != last + 1:
            yield start, last
            start = number
        last = number
    yield start, last
