"""What keeps something from starting, in the words of the page: settings by their titles, never by their paths."""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

from engine.spec import settings
from engine.words import Problem, t

_NAMES_WITHOUT_A_DOT = ("quantize", "train_head")


def in_titles(problem: Problem, *, only_what: bool = False) -> str:
    """Return the sentence of a problem, what is wrong and what to do, or `only_what` is wrong where a button does the
    rest; each setting is called as its field is."""
    field = settings.fields().get(problem.where or "")
    if field is not None:
        named = {"where": t(field.title), **problem.parameters}
        problem = msgspec.structs.replace(problem, parameters=named)
    said = problem.message if only_what else problem.sentence
    if (problem.words or ("",))[0][:1].islower():  # begins with a word of ours, not with a name
        said = said[:1].upper() + said[1:]
    return titled(said)


def titled(said: str) -> str:
    """Return a text with each setting called as its field is."""
    return _paths().sub(lambda found: f"“{t(settings.fields()[found[0]].title)}”", said)


@lru_cache(maxsize=1)
def _paths() -> re.Pattern[str]:
    """Every path of a setting that no word of a sentence could be; longer ones first, as train.replay_data_x is none."""
    paths = [path for path in settings.fields() if "." in path or path in _NAMES_WITHOUT_A_DOT]
    names = "|".join(re.escape(path) for path in sorted(paths, key=len, reverse=True))
    return re.compile(rf"(?<![\w.])(?:{names})(?![\w])")
