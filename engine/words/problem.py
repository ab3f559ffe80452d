"""One thing that is wrong: where, what and what to do, as a rule id and its parameters."""

from __future__ import annotations

import msgspec

from engine.words.rules import rules
from engine.words.text import Text, t


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong: where, what, and what to do, as a rule id and parameters.

    `line` is the 1-based physical line where the record starts (null in Parquet), `row` the 1-based record,
    `where` the path inside the record or the dotted path of a setting, such as "messages[1].content" or
    "train.batch_size".
    """

    rule: str
    severity: str = "error"  # "error" or "warning"
    where: str | None = None
    line: int | None = None
    row: int | None = None
    parameters: dict[str, str | int | float | bool | Text | None] = {}

    @property
    def texts(self) -> tuple[Text, Text]:
        """What is wrong and what to do about it, to be read later."""
        rule = rules()[self.rule]
        shown = {"where": self.where or "", **self.parameters}
        return Text(rule.says, shown), Text(rule.do, shown)

    @property
    def message(self) -> str:
        """What is wrong, one sentence without the place."""
        return str(self.texts[0])

    @property
    def fix(self) -> str:
        """What to do about it, one sentence."""
        return str(self.texts[1])

    @property
    def sentence(self) -> str:
        """Where, what and what to do in one line: "line 17: messages[1].content is null; add text or ..."."""
        place = t("line {line}: ", line=self.line) if self.line else ""
        if not place and self.row:
            place = t("row {row}: ", row=self.row)
        return t("{place}{message}; {fix}", place=place, message=self.message, fix=self.fix)
