"""Graders of the form of an answer, the kind of instruction that can be verified (as IFEval's, arXiv 2311.07911): how long
it is, what stands in it and how often, how it begins and ends, its capitals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec
import regex

from engine.graders import scripts
from engine.graders.grade import Grader, fault, text_of
from engine.graders.matching import inside, plain
from engine.words import Problem, t

Bound = Annotated[int, msgspec.Meta(ge=0, le=20_000)]
Words = Annotated[
    list[Annotated[str, msgspec.Meta(min_length=1, max_length=200)]], msgspec.Meta(min_length=1, max_length=50)
]
Edge = Annotated[str, msgspec.Meta(max_length=500)]


def _within(found: int, least: int, most: int | None, what: str) -> tuple[float, str]:
    """Return the score and reason for something of which there may be so many."""
    reason = t("{what}: {n}", what=what, n=found)
    return float(found >= least and (most is None or found <= most)), reason


def _bounds(least: int, most: int | None) -> Iterator[Problem]:
    if most is not None and least > most:
        yield fault("grader-bounds", least=least, most=most)


class Length(Grader, frozen=True, tag="length"):
    """So many words, characters, sentences, paragraphs or lines. In scripts without spaces a character is a word."""

    unit: Literal["words", "characters", "sentences", "paragraphs", "lines"] = "words"
    least: Bound = 1
    most: Bound | None = None

    def score(self, answer: str, row: Mapping[str, Any]) -> tuple[float, str]:
        found = {
            "words": scripts.words,
            "characters": len,
            "sentences": scripts.sentences,
            "paragraphs": lambda text: len(scripts.paragraphs(text)),
            "lines": lambda text: sum(1 for line in text.splitlines() if line.strip()),
        }[self.unit](answer)
        return _within(found, self.least, self.most, _unit_words()[self.unit])

    def faults(self) -> Iterator[Problem]:
        yield from _bounds(self.least, self.most)


def _unit_words() -> dict[str, str]:
    return {"words": t("words"), "characters": t("characters"), "sentences": t("sentences"),
            "paragraphs": t("paragraphs"), "lines": t("lines")}  # fmt: skip


_MARKS = {
    "bullets": regex.compile(r"^[ \t]*[-*•·][ \t]+\S", regex.MULTILINE),
    "numbered": regex.compile(r"^[ \t]*\d{1,3}[.)、．）]", regex.MULTILINE),
    "headings": regex.compile(r"^#{1,6}[ \t]+\S", regex.MULTILINE),
    "placeholders": regex.compile(r"\[[^\[\]\n]{1,80}\]"),
    "highlights": regex.compile(r"\*{1,2}[^*\s](?:[^*\n]{0,300}[^*\s])?\*{1,2}"),
    "capital words": regex.compile(r"(?<!\p{L})\p{Lu}{2,}(?!\p{L})"),
    "commas": regex.compile(r"[,，、]"),
    "questions": regex.compile(r"[?？]"),
    "exclamations": regex.compile(r"[!！]"),
    "digits": regex.compile(r"\d"),
}


class Count(Grader, frozen=True, tag="count"):
    """So many bullets, numbered points, headings, [placeholders], *highlights*, words in capitals, or marks."""

    of: Literal[
        "bullets", "numbered", "headings", "placeholders", "highlights", "capital words", "commas", "questions",
        "exclamations", "digits",
    ]  # fmt: skip
    least: Bound = 1
    most: Bound | None = None

    def score(self, answer: str, row: Mapping[str, Any]) -> tuple[float, str]:
        names = {
            "bullets": t("bullets"), "numbered": t("numbered points"), "headings": t("headings"),
            "placeholders": t("placeholders"), "highlights": t("highlights"), "capital words": t("words in capitals"),
            "commas": t("commas"), "questions": t("question marks"), "exclamations": t("exclamation marks"),
            "digits": t("digits"),
        }  # fmt: skip
        return _within(sum(1 for _ in _MARKS[self.of].finditer(answer)), self.least, self.most, names[self.of])

    def faults(self) -> Iterator[Problem]:
        yield from _bounds(self.least, self.most)


class Mentions(Grader, frozen=True, tag="mentions"):
    """Words that an answer must hold, or may not (most: 0). Each of them so often, or with `together` all of them."""

    words: Words
    least: Bound = 1
    most: Bound | None = None
    together: bool = False
    case: bool = False
    parts: bool = False

    def score(self, answer: str, row: Mapping[str, Any]) -> tuple[float, str]:
        least = 0 if self.most == 0 else self.least
        text = plain(answer, case=self.case, around=True)
        counts = {word: self._times(plain(word, case=self.case, around=True), text) for word in self.words}
        if self.together:
            return _within(sum(counts.values()), least, self.most, ", ".join(self.words)[:60])
        for word, found in counts.items():
            score, reason = _within(found, least, self.most, f"“{word[:40]}”")
            if not score:
                return score, reason
        return 1.0, t("as wanted")

    def _times(self, word: str, text: str) -> int:
        return text.count(word) if self.parts else inside(word, text)

    def faults(self) -> Iterator[Problem]:
        yield from _bounds(self.least, self.most or None)


class Edges(Grader, frozen=True, tag="edges"):
    """How an answer begins and ends: with these words, with the question said again, in quotation marks."""

    starts: Edge = ""
    ends: Edge = ""
    paragraph: Annotated[int, msgspec.Meta(ge=0, le=50)] = 0
    repeats: bool = False
    quoted: bool = False
    case: bool = False

    def score(self, answer: str, row: Mapping[str, Any]) -> tuple[float, str]:
        if self.paragraph:
            parts = scripts.paragraphs(answer)
            answer = parts[self.paragraph - 1] if self.paragraph <= len(parts) else ""
        text = self._plain(answer)
        if self.quoted and not (len(text) > 1 and text[0] in '"“「«『' and text[-1] in '"”」»』'):
            return 0.0, t("it does not stand in quotation marks")
        if self.repeats and not (text_of(row, "prompt") and text.startswith(self._plain(text_of(row, "prompt")))):
            return 0.0, t("it does not begin with the question")
        if not text.startswith(self._plain(self.starts)):
            return 0.0, t("it does not begin with “{words}”", words=self.starts[:60])
        if not text.endswith(self._plain(self.ends)):
            return 0.0, t("it does not end with “{words}”", words=self.ends[:60])
        return 1.0, t("as wanted")

    def _plain(self, text: str) -> str:
        return plain(text, case=self.case, around=True)

    def faults(self) -> Iterator[Problem]:
        if not (self.starts or self.ends or self.repeats or self.quoted):
            yield fault("grader-edges")


class Case(Grader, frozen=True, tag="case"):
    """All letters that can be are small, or capitals."""

    letters: Literal["lower", "upper"]
    least_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0

    def score(self, answer: str, row: Mapping[str, Any]) -> tuple[float, str]:
        cased = [one for one in answer if one.lower() != one.upper()]
        if not cased:
            return 0.0, t("it has no letters with capitals")
        right = sum(one.islower() if self.letters == "lower" else one.isupper() for one in cased) / len(cased)
        return float(right >= self.least_share), t("{percent} % of its letters are so", percent=f"{100 * right:.0f}")
