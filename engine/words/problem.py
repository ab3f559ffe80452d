"""One thing that is wrong: where, what and what to do, as a rule id and its parameters."""

from __future__ import annotations

import msgspec
from msgspec.structs import force_setattr

from engine.words.rules import rules
from engine.words.text import Text, later, t

# Today's words of every rule, read when the first problem is made. A check makes very many, so it is a plain dictionary.
_words: dict[str, tuple[str, str]] = {}


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong: where, what, and what to do, as a rule id and parameters.

    `line` is the 1-based physical line where the record starts (null in Parquet), `row` the 1-based record,
    `where` the path inside the record or the dotted path of a setting, such as "messages[1].content" or
    "train.batch_size". `words` is what its rule said when the problem was made, what is wrong and what to do, so that
    a stored problem still reads when the rule was reworded; without them it takes today's, or None for a rule that is
    gone.
    """

    rule: str
    severity: str = "error"  # "error" or "warning"
    where: str | None = None
    line: int | None = None
    row: int | None = None
    parameters: dict[str, str | int | float | bool | Text | None] = {}
    words: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if self.words is None:
            try:
                words = _words[self.rule]
            except KeyError:
                words = _words_of(self.rule)
            force_setattr(self, "words", words)

    @property
    def texts(self) -> tuple[Text, Text]:
        """What is wrong and what to do about it, to be read later."""
        if self.words is None:
            unknown = later('this breaks the rule "{rule}", which this version does not know', rule=self.rule)
            return unknown, later("check the file again")
        shown = {"where": self.where or "", **self.parameters}
        return Text(self.words[0], shown), Text(self.words[1], shown)

    @property
    def message(self) -> str:
        """What is wrong, one sentence without the place."""
        return str(self.texts[0])

    @property
    def fix(self) -> str:
        """What to do about it, one sentence."""
        return str(self.texts[1])

    @property
    def line_says(self) -> bool:
        """Whether the line tells where the row is: not in Parquet, nor where several rows share a line."""
        return bool(self.line and (self.row or 0) <= self.line)

    @property
    def sentence(self) -> str:
        """Where, what and what to do in one line: "line 17: messages[1].content is null; add text or ..."."""
        place = t("line {line}: ", line=self.line) if self.line else ""
        if self.row and not self.line_says:
            place = t("row {row}: ", row=self.row)
        return t("{place}{message}; {fix}", place=place, message=self.message, fix=self.fix)


def _words_of(rule: str) -> tuple[str, str] | None:
    if not _words:
        _words.update({name: (one.says, one.do) for name, one in rules().items()})
    return _words.get(rule)
