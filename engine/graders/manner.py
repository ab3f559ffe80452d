"""Graders of the manner of an answer: it comes to its end, keeps the language of the question, refuses or does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import msgspec
import regex

from engine.graders import scripts
from engine.graders.grade import Grader, fault, text_of
from engine.words import Problem, t

# A refusal says so at its beginning; further on its words are those of a story or of a warning.
_REFUSAL_CHARACTERS = 300


class Ends(Grader, frozen=True, tag="ends"):
    """The answer came to its end by itself, within the tokens it had, and says something."""

    def score(self, answer: str, row: Mapping[str, Any]) -> tuple[float, str]:
        ended = row.get("ended")
        if not answer:
            return 0.0, t("it is empty")
        if not isinstance(ended, bool):
            return 0.0, t("it is not known whether it ended")
        return (1.0, t("it ended")) if ended else (0.0, t("it did not end"))


class Script(Grader, frozen=True, tag="script"):
    """Most of the answer is in the script of a language, or else of the question. Languages of one script are not told
    apart."""

    language: Annotated[str, msgspec.Meta(max_length=8)] = ""
    least_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.6

    def score(self, answer: str, row: Mapping[str, Any]) -> tuple[float, str]:
        if not answer:
            return 0.0, t("it is empty")
        wanted = scripts.SCRIPTS.get(self.language) or scripts.scripts_of(text_of(row, "prompt"))
        found = scripts.shares(answer)
        if not found or not wanted:
            return 1.0, t("it has no letters of any language") if not found else t("the question has no letters")
        share = sum(found.get(script, 0.0) for script in wanted)
        # Japanese has Chinese characters too; Chinese has no kana
        is_japanese = found.get("Hiragana", 0) + found.get("Katakana", 0) > 0.1
        if wanted == scripts.SCRIPTS["zh"] and is_japanese:
            share = 0.0
        return float(share >= self.least_share), t(
            "{percent} % of it is in {scripts}", percent=f"{100 * share:.0f}", scripts=", ".join(wanted)
        )

    def faults(self) -> Iterator[Problem]:
        if self.language and self.language not in scripts.SCRIPTS:
            yield fault("grader-language", language=self.language, known=", ".join(scripts.SCRIPTS))


class Refusal(Grader, frozen=True, tag="refusal"):
    """The answer refuses, or with `wanted: false` does not; told by common phrases in English and Chinese."""

    wanted: bool = True

    def score(self, answer: str, row: Mapping[str, Any]) -> tuple[float, str]:
        if not answer:
            return 0.0, t("it is empty")
        found = _phrases().search(answer.replace("’", "'")[:_REFUSAL_CHARACTERS])
        reason = t("it refuses: “{words}”", words=found[0][:60]) if found else t("it does not refuse")
        return float((found is not None) == self.wanted), reason


@lru_cache(maxsize=1)
def _phrases() -> regex.Pattern[str]:
    """Return the phrases by which answers refuse (refusals.yaml): each of its beginnings with each of its verbs."""
    import yaml

    told = yaml.safe_load((Path(__file__).parent / "refusals.yaml").read_bytes())
    joined = {name: "|".join(regex.escape(one, special_only=True) for one in told[name]) for name in told}
    spaced = rf"\b(?:{joined['beginnings']})\s(?:{joined['between']}\s)?(?:{joined['verbs']})\b"
    unspaced = rf"(?:{joined['beginnings_zh']})(?:{joined['between_zh']})?(?:{joined['verbs_zh']})"
    return regex.compile(rf"{spaced}|\b(?:{joined['whole']})|{unspaced}|(?:{joined['whole_zh']})", regex.IGNORECASE)
