"""Facts about data, machine and goal in; one way out, with its reasons, rules and what would change it.

for_data.for_data(workspace, base=..., data=..., said=...) is all of it: an Advice, and the Case it is on, which holds a
plan of every way; guide has the rules of the written guide, handoff the draft that "Use this" opens.
"""

from typing import TYPE_CHECKING

from engine._faces import lazily

if TYPE_CHECKING:
    from engine.advise.advice import Advice
    from engine.advise.alternatives import Alternative
    from engine.advise.case import Case
    from engine.advise.facts import Facts
else:
    __getattr__ = lazily(__name__, advice="Advice", alternatives="Alternative", case="Case", facts="Facts")

__all__ = ["Advice", "Alternative", "Case", "Facts", "advice", "alternatives", "case", "facts", "for_data", "guide",
           "handoff", "tables"]  # fmt: skip
