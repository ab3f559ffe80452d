"""What is odd about the texts themselves: marks of a chat template, placeholders, what looks personal.

Looking at every text of every row would cost as much as reading the file. So each row is first searched as bytes for
what could be meant (row_flags), and in large files only where scan.py has a hit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from engine.read import formats, texts, turns
from engine.words import later

ANGLE, AT, HASH, DIGITS, SECRET, MARK, PATH, LONG = 1, 2, 4, 8, 16, 32, 64, 128
ALL = 255
# What Excel keeps of a cell, in UTF-16 units (its documented limit).
CELL_UNITS = 32_767

SPECIAL = re.compile(
    r"<\|[A-Za-z0-9_ -]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:pad|unk|bos|eos)>"
    r"|### (?:Instruction|Input|Response):|<｜[^<>｜]{1,40}｜>|<(?:extra_id|reserved|SPECIAL)_\d{1,4}>"
)
# Marks that begin a turn: a text with one is a whole conversation as a template writes it.
TURN = re.compile(
    r"<\|(?:im_start|start_header_id|header_start|start_of_role|turn|START_OF_TURN_TOKEN|user|assistant|human|prompter)\|>"
    r"|<\|(?:im_user|im_assistant|start)\|>|\[INST\]|<start_of_turn>|### (?:Instruction|Response):|<｜(?:User|Assistant)｜>"
    r"|<extra_id_1>"
)
THINK = re.compile(r"<(/?)(think|thinking)>")
# C:\temp written with single backslashes: what follows the drive has become a control character. A line break there is
# common in other texts ("C:" as the name of an option), so a second sign of a path is asked for.
_PATH_AFTER = r"[^\s\"'<>|*?:]*(?:[\\\t\r\n\b\f][a-z_][^\s\"'<>|*?:]*)*(?:\.[A-Za-z0-9]{1,5}\b|\\)"
DRIVE = re.compile(
    rf"(?<![A-Za-z0-9])[C-Zc-e]:(?:[\b\f][\w]|\t[a-z_]|[\r\n](?={_PATH_AFTER})[a-z_]|[\r\n](?:ew|epos|eports?|eleases?|oot)\b)"
)
_DRIVE_BYTES = re.compile(rb"[C-Zc-e]:\\[tnrbf]")
PLACEHOLDER = re.compile(r"\{\{\s*[\w .-]{1,60}\s*\}\}")
EMAIL = re.compile(r"[\w.+-]{1,64}@(?!example\.)[\w-]{1,63}(?:\.[\w-]{2,63}){1,4}")
KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b|\b(?:gh[pos]|hf)_[A-Za-z0-9]{30,}"
    r"|\bxox[bp]-[A-Za-z0-9-]{20,}|\bgithub_pat_\w{30,}|\bsk-[A-Za-z0-9_-]{20,}|\bAIza[\w-]{35}"
)
CARD = re.compile(r"(?<![\d.])(?:\d[ -]?){12,18}\d(?!\d)")

# Digits, and what may stand between groups of them, become "0", so that a number is one long run.
_DIGITS = bytes(0x30 if chr(byte) in "0123456789 -" else 1 for byte in range(256))
_LONG_NUMBER = b"0" * 13
_PLAIN_ESCAPE = re.compile(rb"\\u00[2-7]")


def is_card_number(text: str) -> bool:
    """True for 13 to 19 digits that pass the check sum of card numbers and begin as cards do."""
    digits = [int(character) for character in text if character.isdigit()]
    if not 13 <= len(digits) <= 19 or digits[0] not in (3, 4, 5, 6) or len(set(digits)) < 2:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def row_flags(raw: bytes) -> int:
    """What a record may hold, by its bytes. Whatever counts here must be a hit in scan.py."""
    found = 0
    if b"<" in raw:
        found |= ANGLE
    if b"@" in raw:
        found |= AT
    if b"#" in raw and b"### " in raw:
        found |= HASH
    if b"{{" in raw or b"INST]" in raw:
        found |= MARK
    if _LONG_NUMBER in raw.translate(_DIGITS):
        found |= DIGITS
    if (
        (b"-" in raw and (b"sk-" in raw or b"xox" in raw or b"-----B" in raw))
        or (b"_" in raw and (b"gh" in raw or b"hf_" in raw))
        or b"AKIA" in raw
        or b"AIza" in raw
    ):
        found |= SECRET
    if b":\\" in raw and _DRIVE_BYTES.search(raw):
        found |= PATH
    if len(raw) >= CELL_UNITS:
        found |= LONG
    if b"\\u00" in raw and _PLAIN_ESCAPE.search(raw):
        found |= ALL  # an escape may stand for any character of the marks above
    return found


THINKING = 1 << 21  # beside the flags of a row, for what was said of it


def is_unclosed(text: str) -> bool:
    """Whether the last mark of reasoning in a text opens it."""
    marks = THINK.findall(text)
    return bool(marks) and not marks[-1][0]


def is_cell_long(text: str) -> bool:
    """Whether a text is as long as the longest that Excel keeps in a cell, which counts in UTF-16."""
    return CELL_UNITS // 2 < len(text) <= CELL_UNITS and len(text.encode("utf-16-le")) == 2 * CELL_UNITS


# Meanings of columns that have no text to look at.
_NO_TEXTS = ("label", "family", "tools", "functions", "choices", "winner")


class ContentRules:
    """Looks at the texts of one row; warns once a rule and row."""

    def __init__(self, reading: formats.Reading, warn: Callable[..., None]):
        self.warn = warn
        self.columns = [c for m, c in reading.layout.fields.items() if m not in _NO_TEXTS]
        self.content_key = reading.style.content_key
        self.whole_text = reading.layout.fields.get("text")
        self.questions = [reading.layout.fields.get(meaning) for meaning in ("prompt", "input", "system")]
        self.roles, self.role_key = reading.style.roles, reading.style.role_key

    def look(self, row: dict[str, Any], flags: int) -> None:
        special = 1 << 20 if flags & (ANGLE | HASH | MARK) else 0
        said = 0
        for where, text in self._texts(row):
            if special & ~said and (match := SPECIAL.search(text)):
                turn = TURN.search(text) if where == self.whole_text else None
                self.warn("templated-text" if turn else "special-token", where, found=texts.short((turn or match)[0]))
                said |= special
            if flags & ANGLE and not said & THINKING and is_unclosed(text) and self._is_answer(row, where):
                self.warn("unclosed-think", where)
                said |= THINKING
            if flags & PATH & ~said and (match := DRIVE.search(text)):
                self.warn("drive-letter", where, found=match[0].encode("unicode_escape").decode())
                said |= PATH
            if flags & LONG & ~said and is_cell_long(text):
                self.warn("cell-cut", where, limit=CELL_UNITS)
                said |= LONG
            if flags & MARK & ~said and (match := PLACEHOLDER.search(text)):
                self.warn("placeholder", where, found=texts.short(match[0]))
                said |= MARK
            if flags & AT & ~said and EMAIL.search(text):
                self.warn("personal-data", where, found=later("an e-mail address"))
                said |= AT
            if flags & SECRET & ~said and KEY.search(text):
                self.warn("personal-data", where, found=later("a key or password"))
                said |= SECRET
            if flags & DIGITS & ~said and any(is_card_number(m[0]) for m in CARD.finditer(text)):
                self.warn("personal-data", where, found=later("a card number"))
                said |= DIGITS

    def _is_answer(self, row: dict[str, Any], where: str) -> bool:
        """Whether the text at a place is an answer or a whole text: no question, nor what another turn says."""
        if where in self.questions:
            return False  # there a template may open it for the answer
        column, _, rest = where.partition("[")
        if not rest.endswith(self.content_key):
            return True
        message = row[column][int(rest.partition("]")[0])]
        return self.roles.get(message.get(self.role_key)) == "assistant"

    def _texts(self, row: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """Every text of a row that is read or trained, with its place."""
        for column in self.columns:
            value = row.get(column)
            if isinstance(value, str):
                yield column, value
            elif isinstance(value, dict):
                yield from self._content(value, column)
            elif isinstance(value, list):
                for index, part in enumerate(value):
                    if isinstance(part, dict):
                        yield from self._content(part, f"{column}[{index}]")
                    elif isinstance(part, str):
                        yield f"{column}[{index}]", part

    def _content(self, message: dict[str, Any], where: str) -> Iterator[tuple[str, str]]:
        content = message.get(self.content_key)
        if isinstance(content, str):
            yield f"{where}.{self.content_key}", content
        elif isinstance(content, list):
            for part in content:
                text = turns.part_text(part)
                if isinstance(text, str):
                    yield f"{where}.{self.content_key}", text
