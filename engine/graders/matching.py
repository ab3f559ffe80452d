"""Graders that hold an answer against the right one: the same words, the same number, the same choice."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import regex

from engine.graders import scripts
from engine.graders.grade import Grader, fault, text_of
from engine.words import Problem, t

Mark = Annotated[str, msgspec.Meta(max_length=80)]
Answers = Annotated[list[Annotated[str, msgspec.Meta(min_length=1, max_length=2_000)]], msgspec.Meta(max_length=100)]
# What stands around an answer and is no part of it; signs of numbers are.
_AROUND = " \t\r\n.,;:!?…\"'`*_()[]{}。，；：！？、“”‘’「」『』（）【】"
_SHOWN = 60


def plain(text: str, *, case: bool = False, around: bool = False) -> str:
    """Return a text as it is compared: full-width forms as plain ones, white space as one space, and, unless they are
    to count, without its capitals and without the marks around it."""
    text = " ".join(unicodedata.normalize("NFKC", text).split())
    if not case:
        text = text.casefold()
    return text if around else text.strip(_AROUND) or text


def after_mark(text: str, mark: str) -> str:
    """Return what follows the last mark; all of it where there is none."""
    return text.rpartition(mark)[2] if mark else text


def inside(words: str, text: str) -> int:
    """Return how often words stand in a text as whole words; where words have no spaces between them, anywhere."""
    found, at = 0, text.find(words) if words else -1
    while at >= 0:
        end = at + len(words)
        found += not (_goes_on(text[at - 1 : at], words[0]) or _goes_on(words[-1], text[end : end + 1]))
        at = text.find(words, end)
    return found


def _goes_on(one: str, other: str) -> bool:
    """Whether a word goes on from a letter to the next."""
    return one.isalnum() and other.isalnum() and not scripts.is_unspaced(one) and not scripts.is_unspaced(other)


class Exact(Grader, frozen=True, tag="exact"):
    """The same words as the right answer."""

    compares: ClassVar[bool] = True
    case: bool = False
    around: bool = False
    inside: bool = False
    after: Mark = ""
    answers: Answers = msgspec.field(default_factory=list)

    def score(self, answer: str, row: Mapping[str, Any]) -> tuple[float, str]:
        right = self.answers or [after_mark(text_of(row, "reference"), self.after)]
        right = [one for one in (self._plain(one) for one in right) if one]
        if not right:
            return 0.0, t("there is no right answer to compare with")
        said = self._plain(after_mark(answer, self.after))
        same = any(inside(one, said) if self.inside else said == one for one in right)
        wanted = right[0][:_SHOWN]
        return (1.0, t("as wanted")) if same else (0.0, t("wanted: {right}", right=wanted))

    @property
    def reads_within(self) -> bool:
        return self.inside or bool(self.after)

    def _plain(self, text: str) -> str:
        return plain(text, case=self.case, around=self.around)


_SIGNS = str.maketrans({"−": "-", "–": "-", "'": ",", "’": ","})
# What stands between thousands, before NFKC makes plain spaces of it; LaTeX writes {,}.
_BETWEEN_THOUSANDS = regex.compile(r"(?<=\d)(?:[\u00a0\u2009\u202f]|\{,\})(?=\d{3}(?!\d))")
# ½ and its like, of which NFKC would make digits without a space before them
_VULGAR = regex.compile(r"\s?[\u00bc-\u00be\u2150-\u215e\u2189]")
_FRACTION = regex.compile(r"\\[dt]?frac\s*\{\s*(-?[\d.,]{1,40})\s*\}\s*\{\s*([\d.,]{1,40})\s*\}")
_NUMBER = regex.compile(
    r"(?<![\d.])(?P<sign>(?:(?<![\w)\]])[-+]|负)\s?)?(?:[$€£¥]\s?)?(?P<percent>百分之)?"
    r"(?:(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?P<part>\.\d+)?|(?P<part>\.\d+))(?P<power>[eE][-+]?\d{1,3}(?!\w))?"
    r"(?:(?P<space>\s?)(?:(?P<top>\d{1,9})\s?)?/\s?(?P<below>\d{1,9})(?![\d/]))?(?P<after>\s?(?:%|percent\b|[万億亿]))?"
)
_TIMES = {"万": 1e4, "亿": 1e8, "億": 1e8}


def numbers(text: str, decimal: str = ".") -> list[tuple[float, bool]]:
    """Return the numbers of a text in their order, each with whether it is a share of a hundred. Read are signs,
    thousands separators, fractions (3/4, 1 1/2, LaTeX's), percent, powers of ten as 1e5, full-width digits, 万 and 亿."""
    text = _VULGAR.sub(lambda one: f" {unicodedata.normalize('NFKC', one[0].strip())}".replace("⁄", "/"), text)
    text = unicodedata.normalize("NFKC", _BETWEEN_THOUSANDS.sub(",", text)).translate(_SIGNS)
    if decimal == ",":
        text = text.translate({ord("."): ",", ord(","): "."})
    text = _FRACTION.sub(r" \1/\2 ", text)
    found = []
    for one in _NUMBER.finditer(text):
        value = _value(one)
        if value is not None and math.isfinite(value):
            after = (one["after"] or "").strip()
            found.append((value * _TIMES.get(after, 1), bool(one["percent"]) or after in ("%", "percent")))
    return found


def _value(one: regex.Match[str]) -> float | None:
    value = float(f"{(one['whole'] or '0').replace(',', '')}{one['part'] or ''}{one['power'] or ''}")
    if one["below"] is not None:
        below = int(one["below"])
        if below == 0:
            return None
        # 1 3/4 has its whole number apart; in 3/4 that is what stands above
        value = value + int(one["top"]) / below if one["top"] is not None else value / below
    return -value if (one["sign"] or "").startswith(("-", "负")) else value


class Number(Grader, frozen=True, tag="number"):
    """The right number, within a tolerance: the last one of an answer."""

    compares: ClassVar[bool] = True
    absolute: Annotated[float, msgspec.Meta(ge=0, le=1e12)] = 0.0
    relative: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1e-6
    take: Literal["last", "first", "only"] = "last"
    after: Mark = ""
    decimal: Literal[".", ","] = "."
    answer: Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)] | None = None

    def score(self, answer: str, row: Mapping[str, Any]) -> tuple[float, str]:
        right = (self.answer, False) if self.answer is not None else self._taken(text_of(row, "reference"), "last")
        if right is None:
            return 0.0, t("there is no right number to compare with")
        said = self._taken(answer, self.take)
        if said is None:
            return 0.0, t("the answer has no number") if self.take != "only" else t("the answer is not one number")
        wanted = f"{right[0]:.10g}" + (" %" if right[1] else "")
        same = self._same(said[0], right[0]) or (
            said[1] != right[1] and self._same(*(value / 100 if share else value for value, share in (said, right)))
        )
        return (1.0, t("as wanted")) if same else (0.0, t("wanted: {right}", right=wanted))

    @property
    def reads_within(self) -> bool:
        return self.take != "only"

    def _taken(self, text: str, take: str) -> tuple[float, bool] | None:
        found = numbers(after_mark(text, self.after), self.decimal)
        if not found or (take == "only" and len(found) > 1):
            return None
        return found[0] if take == "first" else found[-1]

    def _same(self, one: float, other: float) -> bool:
        return math.isclose(one, other, rel_tol=self.relative, abs_tol=self.absolute)


_LETTER = regex.compile(
    r"^\(?(?P<alone>[A-Z])\)?[.:：、]?$|^\(?(?P<first>[A-Z])[).:：、](?=\s|\p{L})|\\boxed\{\(?(?P<boxed>[A-Z])\)?\}"
    r"|(?:(?i:answer|option|choice)|答案|[选選][项項]|选择|選擇|[选選])\W{0,4}(?:is\b|[是为為])?\W{0,4}"
    r"(?P<named>[A-Z])(?![\p{Latin}'’])(?P<article>(?<=A)\s+\p{Ll})?"
)


class Choice(Grader, frozen=True, tag="choice"):
    """The right one of the choices, by its words or its letter. Without a right one, any of them."""

    choices: Answers = msgspec.field(default_factory=list)
    letters: bool = True

    def score(self, answer: str, row: Mapping[str, Any]) -> tuple[float, str]:
        given = row.get("choices")
        choices = self.choices or [one for one in given or [] if isinstance(one, str)][:100]
        if not choices:
            return 0.0, t("there are no choices")
        said = chosen(answer, choices, self.letters)
        if said is None:
            return 0.0, t("it names none of the choices, or several")
        right = _gold(row, choices, self.letters)
        if right is None:
            # a row with a right answer that is no choice tells nothing
            return (0.0, t("the right answer is none of the choices")) if text_of(row, "reference") else (
                1.0, t("one of the choices"))  # fmt: skip
        return (1.0, t("as wanted")) if said == right else (0.0, t("wanted: {right}", right=choices[right][:_SHOWN]))

    @property
    def reads_within(self) -> bool:
        return True

    def faults(self) -> Iterator[Problem]:
        told = [plain(one) for one in self.choices]
        if len(told) == 1 or len(set(told)) < len(told):
            yield fault("grader-choices")


def _gold(row: Mapping[str, Any], choices: list[str], letters: bool) -> int | None:
    gold = row.get("gold")
    if isinstance(gold, int) and not isinstance(gold, bool) and 0 <= gold < len(choices):
        return gold
    reference = text_of(row, "reference")
    return chosen(reference, choices, letters) if reference else None


def chosen(answer: str, choices: list[str], letters: bool = True) -> int | None:
    """Return the number of the choice that an answer names, None where it names none or several."""
    told, said = [plain(one) for one in choices], plain(answer)
    if said in told:
        return told.index(said)
    if letters and (letter := _LETTER.search(unicodedata.normalize("NFKC", answer).replace("*", "").strip())):
        number = ord(letter["alone"] or letter["first"] or letter["boxed"] or letter["named"]) - ord("A")
        # "The answer is A cat": a letter, or the word before the choice?
        words = _worded(said, told) if letter["article"] else None
        if number < len(choices):
            return number if words is None else words
    return _worded(said, told)


def _worded(said: str, told: list[str]) -> int | None:
    """Return the number of the one choice whose words stand in an answer."""
    named, rest = [], said
    # the longest first, and taken away: "not sure" also holds "sure"
    for number in sorted(range(len(told)), key=lambda n: -len(told[n])):
        if inside(told[number], rest):
            named.append(number)
            rest = rest.replace(told[number], "\0")
    return named[0] if len(named) == 1 else None
