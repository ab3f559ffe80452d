"""Every text a person reads, engine and pages alike.

t("{n} rows", n=3) says it in the language of whoever reads; later(...) keeps it until then; Problem names a rule, and
the rule's sentences, of which rules.rules() has all, say what is wrong and what to do.
"""

from typing import TYPE_CHECKING

from engine._faces import lazily

if TYPE_CHECKING:
    from engine.words.problem import Problem
    from engine.words.text import (
        Text,
        environment_language,
        joined,
        language,
        language_of,
        languages,
        later,
        set_language,
        t,
    )
else:
    __getattr__ = lazily(
        __name__,
        problem="Problem",
        text="environment_language joined language language_of languages later set_language t Text",
    )

__all__ = [
    "Problem",
    "Text",
    "environment_language",
    "joined",
    "language",
    "language_of",
    "languages",
    "later",
    "rules",
    "set_language",
    "t",
]
