"""What a grader is: a typed set of limits that says of one answer whether it is right, from 0 to 1, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import msgspec

from engine.graders import scripts
from engine.words import Problem, t

# How graders grade: one more whenever the same answer would get another grade, so that stored scores are asked anew.
VERSION = 2
# No answer is read further; a model that writes more has not ended.
MOST_CHARACTERS = 20_000
# From which score on an answer is right.
RIGHT = 0.5


class Grade(msgspec.Struct, frozen=True):
    """What an answer is worth, 0 to 1, whether that is right, and the reason in a few words."""

    score: float
    reason: str
    right: bool


class Refused(ValueError):
    """A grader cannot be made. `problems` holds everything that is wrong with it, not only the first."""

    def __init__(self, problems: list[Problem]):
        super().__init__("; ".join(problem.sentence for problem in problems))
        self.problems = problems


class Grader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="name"):
    """Base of all graders; the fields of one are its parameters, with their limits.

    A row may hold `prompt` (text of the last question), `reference`, `choices`, `gold` (index of the right choice) and
    `ended` (whether the answer came to its end mark; absent where unknown). Nothing of it is trusted.
    """

    # Whether it says anything only where the row has a reference.
    compares: ClassVar[bool] = False

    def grade(self, answer: str, row: Mapping[str, Any], *, fresh: bool = False) -> Grade:
        """Return the grade of an answer; whatever it is, in bounded time. `fresh`: one that only says the question again
        is no answer, though it keeps the language, ends and refuses nothing."""
        answer = answer[:MOST_CHARACTERS].strip()
        if fresh and _says_again(answer, text_of(row, "prompt")):
            return Grade(0.0, t("it only says the question again"), right=False)
        score, reason = self.score(answer, row)
        score = min(1.0, max(0.0, score))
        return Grade(score, reason, score >= self.right_score)

    def score(self, answer: str, row: Mapping[str, Any]) -> tuple[float, str]:
        """Return the score of an answer, 0 to 1, and why. Each kind has its own; a Struct cannot be an abstract class."""
        raise NotImplementedError

    @property
    def right_score(self) -> float:
        return RIGHT

    @property
    def reads_within(self) -> bool:
        """Whether a right answer may stand within a longer one, as a number at the end of its calculation."""
        return False

    def faults(self) -> Iterator[Problem]:
        """Yield what is wrong with parameters that are right each by itself."""
        yield from ()

    @property
    def told(self) -> dict[str, Any]:
        """All that decides a grade, as stored scores are keyed by it."""
        return {**msgspec.to_builtins(self), "version": VERSION}


def text_of(row: Mapping[str, Any], name: str) -> str:
    """Return a text of a row, cut; empty where there is none."""
    value = row.get(name)
    return value[:MOST_CHARACTERS].strip() if isinstance(value, str) else ""


def _says_again(answer: str, question: str) -> bool:
    """Whether an answer is the words of the question alone, once or over and over, cut anywhere. A question of few words, as
    a greeting, may be answered by itself."""
    asked, said = scripts.split(question), scripts.split(answer)
    return 4 <= len(asked) <= len(said) and all(word == asked[n % len(asked)] for n, word in enumerate(said))


def fault(rule: str, **parameters: str | int | float) -> Problem:
    return Problem(rule=rule, parameters=dict(parameters))
