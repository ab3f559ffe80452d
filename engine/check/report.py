"""What a check found: counts, the first problems, what would mend them; and how it is printed."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import msgspec

from engine.check import groups
from engine.check import notes as check_notes
from engine.read import texts
from engine.words import Problem, t

# Goes up with every change of what is found or of the rows that training reads.
CHECKER_VERSION = 5


class DatasetError(Exception):
    """A file or dataset that cannot be read, stored or changed. `problem` has the sentence for a person."""

    def __init__(self, problem: Problem):
        super().__init__(problem.sentence)
        self.problem = problem


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a check found. The first eleven fields and the rendered problems are what `tunebook check --json` prints."""

    file: str
    container: str | None  # jsonl, json, json-seq, csv, each also as .gz, parquet, or None: no data
    layout: str | None
    type: str | None  # one of formats.TYPES
    conversational: bool
    rows: int  # all records, bad ones included
    bad_rows: int  # rows with at least one error
    errors: dict[str, int]  # rule -> how often
    warnings: dict[str, int]
    problems: tuple[Problem, ...]  # the first 1,000; errors have precedence
    problems_file: str | None = None  # JSON Lines with all of them, where there are more
    checker_version: int = CHECKER_VERSION
    bytes: int = 0
    columns: tuple[str, ...] = ()
    label_counts: dict[str, int] | None = None  # {"true", "false"} over the good rows
    target_characters: int = 0  # characters of the good rows that are trained on; tool calls not counted
    sharegpt: bool = False
    label_changes: dict[str, int] = {}  # what converting the labels would do, and in how many places
    plain_text: bool = False  # no rows, but text that could be trained on
    rows_with: dict[str, int] = {}  # rule -> in how many rows it is broken; none of a whole file

    @property
    def trainable(self) -> bool:
        """True when a recipe can be run on the file as it is."""
        return bool(self.type and self.type != "stepwise" and self.rows and not self.errors)

    @property
    def kind(self) -> str | None:
        """What the rows are to a person and to the advisor: the type, but "texts" and "conversations" apart, which are
        one type to a trainer. All of a text is learned, of a conversation only its answers."""
        return kind_of(self.type, self.conversational)

    @property
    def outdated(self) -> bool:
        """True when an earlier version of the check made it: today's may find more, or less."""
        return self.checker_version < CHECKER_VERSION

    @property
    def problem_count(self) -> int:
        return sum(self.errors.values()) + sum(self.warnings.values())

    @property
    def whole_file_problem(self) -> Problem | None:
        """The first error that is about the file and not about one row."""
        for problem in self.problems:
            if problem.line is None and problem.row is None and problem.severity == "error":
                return problem
        return None

    @property
    def notes(self) -> list[str]:
        """What is worth knowing of the file and is no problem, a sentence each."""
        return check_notes.notes(self.layout, self.kind, self.columns) if self.rows else []

    @property
    def sentence(self) -> str:
        """The outcome in one line."""
        if self.whole_file_problem:
            return t("Cannot be trained on: {problem}", problem=self.whole_file_problem.sentence)
        one, many = _KINDS.get(self.kind or "", ("1 row", "{rows} rows"))
        counted = t(one) if self.rows == 1 else t(many, rows=f"{self.rows:,}")
        if self.bad_rows == self.rows:
            return t("{counted}, none without errors: correct the file before training", counted=counted)
        if self.bad_rows:
            return t(
                "{counted}, {bad} with errors: correct or drop these rows before training",
                counted=counted,
                bad=f"{self.bad_rows:,}",
            )
        if self.type == "stepwise":
            return t("{counted}; no recipe trains on step labels yet", counted=counted)
        if self.label_counts and self.type == "unpaired-preference":
            marks = {"good": f"{self.label_counts.get('true', 0):,}", "bad": f"{self.label_counts.get('false', 0):,}"}
            return t("{counted}, ready to train on: {good} marked good, {bad} marked bad", counted=counted, **marks)
        return t("{counted}, ready to train on", counted=counted)

    def lines(self) -> list[str]:
        """The report for a terminal: a header, one line for each problem, or for many of one rule, and what
        is worth knowing besides."""
        return [f"{texts.short(self.file, 200)}: {self.sentence}", *groups.printed(self), *self.notes]

    def to_json(self) -> dict[str, Any]:
        """What `tunebook check --json` prints."""
        data = msgspec.to_builtins(self)
        data["problems"] = [problem_to_json(problem) for problem in self.problems]
        return {name: data[name] for name in _PRINTED}


_PRINTED = ("file", "container", "layout", "type", "conversational", "rows", "bad_rows", "errors", "warnings", "problems",
            "problems_file")  # fmt: skip

_KINDS = {
    "texts": ("1 text", "{rows} texts"),
    "conversations": ("1 conversation", "{rows} conversations"),
    "prompt-only": ("1 question without an answer", "{rows} questions without answers"),
    "prompt-completion": ("1 question with its answer", "{rows} questions with answers"),
    "preference": ("1 pair of a better and a worse answer", "{rows} pairs of a better and a worse answer"),
    "unpaired-preference": ("1 answer with a label", "{rows} answers with labels"),
    "stepwise": ("1 answer with a label for each step", "{rows} answers with a label for each step"),
}


def kind_of(data_type: str | None, conversational: bool) -> str | None:
    """What rows of a type are: "texts" or "conversations" for language-modeling, else the type itself."""
    if data_type != "language-modeling":
        return data_type
    return "conversations" if conversational else "texts"


def problem_to_json(problem: Problem) -> dict[str, Any]:
    """One problem as the JSON contract has it, in the language chosen now."""
    return {
        "severity": problem.severity,
        "line": problem.line,
        "row": problem.row,
        "rule": problem.rule,
        "where": problem.where,
        "message": problem.message,
        "fix": problem.fix,
    }


def os_problem(error: OSError, path: Path | str) -> Problem:
    """The problem that tells a person what an OSError about `path` means."""
    rule = {
        "FileNotFoundError": "file-missing",
        "IsADirectoryError": "file-is-folder",
        "NotAFile": "file-not-ordinary",
        "PermissionError": "file-no-permission",
    }.get(type(error).__name__, "file-unreadable")
    # pyarrow gives the number only in its text.
    if error.errno in _DISK_FULL or "[errno 28]" in str(error).lower():
        rule = "disk-full"
    if error.errno == errno.EROFS:
        rule = "disk-read-only"
    reason = error.strerror or texts.short(str(error), 200) or type(error).__name__
    return Problem(rule=rule, parameters={"path": texts.short(str(path), 200), "reason": reason})


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def in_file(problem: Problem) -> tuple[int, int]:
    return problem.line or 0, problem.row or 0
