"""Facts about data, machine and goal in; one choice out, with its reasons, rules and what would change it.

advice.advise(facts, ...) is all of it; guide holds the rules of the written guide, outlook what each way would take,
handoff the draft that "Use this" opens.
"""

from typing import TYPE_CHECKING

from engine._faces import lazily

if TYPE_CHECKING:
    from engine.advise.advice import Advice
    from engine.advise.facts import Facts
else:
    __getattr__ = lazily(__name__, advice="Advice", facts="Facts")

__all__ = ["Advice", "Facts", "advice", "facts", "fits", "guide", "handoff", "otherwise", "outlook", "tables", "ways"]
