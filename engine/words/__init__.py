"""Every text a person reads, engine and pages alike.

t("{n} rows", n=3) says it in the language of whoever reads; later(...) keeps it until then; Problem names a rule, and
the rule's sentences say what is wrong and what to do.
"""

from typing import TYPE_CHECKING

from engine._faces import lazily

if TYPE_CHECKING:
    from engine.words.problem import Problem
    from engine.words.rules import CHECK_HELP, RULES
    from engine.words.text import Text, environment_language, language, language_of, languages, later, set_language, t
else:
    __getattr__ = lazily(
        __name__,
        problem="Problem",
        rules="CHECK_HELP RULES",
        text="environment_language language language_of languages later set_language t Text",
    )

__all__ = [
    "CHECK_HELP",
    "RULES",
    "Problem",
    "Text",
    "environment_language",
    "language",
    "language_of",
    "languages",
    "later",
    "set_language",
    "t",
]
