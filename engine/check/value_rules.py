"""The rules for one value of a row: a text, a label, a column that the layout knows but does not need."""

from __future__ import annotations

from typing import Any

from engine.check.ledger import Ledger
from engine.read import formats, texts, tool_calls
from engine.words import Text, later, t

# An answer that begins with a question shorter than this may do so by chance.
LEAK_CHARACTERS = 20


class ValueRules:
    """The rules for one value, which stands at `where` in its row. `fields` are those of the layout."""

    def __init__(self, fields: dict[str, str], ledger: Ledger):
        self.fields = fields
        self.error, self.warn = ledger.error, ledger.warn
        self.label_changes: dict[str, int] = {}  # what converting the labels would do, and how often
        self._held: list[Any] = [None, None]
        self.tool_names: frozenset[str] = frozenset()
        self._fault: tool_calls.Malformed | None = None

    def text(self, value: object, where: str) -> str | None:
        """The text of a question or an answer, if there is something to be seen in it."""
        if type(value) is str:
            if (value and value[0] not in texts.INVISIBLE_SET) or not texts.is_blank(value):
                if "\ufffd" in value:
                    self.warn("replacement-character", where)
                return value
            self.error("blank-field", where)
        else:
            self.wrong(value, where, later("text"))
        return None

    def wrong(self, value: object, where: str, wanted: str | Text) -> None:
        """Note that a value is not what is wanted there."""
        if value is None:
            self.error("null-field", where, wanted=wanted)
        else:
            self.error("wrong-type", where, found=texts.kind_of(value), wanted=wanted)

    def label(self, value: object, where: str) -> bool | None:
        if value is True or value is False:
            return value
        if value is None:
            self.error("null-field", where, wanted=later("true or false"))
            return None
        shown = (
            f'"{texts.short(value)}"'
            if isinstance(value, str)
            else (str(value)[:20] if isinstance(value, int | float) else texts.kind_of(value))
        )
        meant = formats.meant_label(value)
        wanted = later("true or false") if meant is None else "true" if meant else "false"
        if meant is not None:
            change = t("{found} becomes {wanted}", found=shown, wanted=wanted)
            # Few: all ways to write the words of the table in upper and lower case.
            self.label_changes[change] = self.label_changes.get(change, 0) + 1
        self.error("label-not-boolean", where, found=shown, wanted=wanted)
        return None

    def leak(self, asked: object, answer: object, where: str) -> None:
        """Warn when an answer begins with its whole question."""
        if not isinstance(asked, str) or not isinstance(answer, str) or not answer.startswith(asked):
            return
        if len(asked) >= LEAK_CHARACTERS and len(answer) > len(asked):
            self.warn("prompt-in-answer", where)

    def _is_good_tools(self, row: dict[str, Any]) -> bool:
        """Check the tools of a row and keep their names. They are worked out again only where they differ from those of the
        row before."""
        columns = [self.fields.get(meaning, "") for meaning in ("tools", "functions")]
        held = [row.get(column) for column in columns]
        if held != self._held:
            self._held, self._fault, self.tool_names = held, None, frozenset()
            try:
                self.tool_names = frozenset(map(tool_calls.name_of, tool_calls.tools_of(*held)))
            except tool_calls.Malformed as fault:
                self._fault = fault
        if self._fault is not None:
            self.error("tools-not-json", columns[self._fault.key == "functions"], reason=self._fault.reason)
        return self._fault is None

    def extras(self, row: dict[str, Any]) -> bool:
        """Check the optional columns that the layout knows and the row has."""
        fields = self.fields
        good = True
        for meaning in ("input", "context", "system", "family"):
            column = fields.get(meaning)
            if column and (value := row.get(column)) is not None and type(value) is not str:
                self.wrong(value, column, later("text"))
                good = False
        good = self._is_good_tools(row) and good
        column = fields.get("history")
        if column and (history := row.get(column)) is not None and not _is_history(history):
            self.wrong(history, column, later("a list of [question, answer] texts"))
            good = False
        column = fields.get("choices")
        if column and (choices := row.get(column)) is not None:
            reason = _choices_fault(choices, row[fields["completion"]])
            if reason:
                self.error("choices-invalid", column, reason=reason)
                good = False
        return good


def _is_history(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in value
    )


def _choices_fault(choices: object, completion: object) -> str | Text | None:
    """Say what is wrong with the choices of a row, or return None."""
    if not isinstance(choices, list):
        return later("this is {found}", found=texts.kind_of(choices))
    if len(choices) < 2:
        return later("there are fewer than two")
    if not all(isinstance(choice, str) for choice in choices):
        return later("one of them is not text")
    if len(set(choices)) < len(choices):
        return later("two of them are the same")
    if completion not in choices:
        return later("the completion is none of them")
    return None
