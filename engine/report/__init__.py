"""What a run gained and what it lost, from its items alone.

items.read_items reads what was asked; paired.compare_run turns it into lines of figures, verdicts.judge says what they
mean, headline.summary says it in a headline and three sentences; frontier weighs runs against each other; blind is for
answers that nothing scores.
"""

from typing import TYPE_CHECKING

from engine._faces import lazily

if TYPE_CHECKING:
    from engine.report.items import Item
    from engine.report.paired import Comparison
else:
    __getattr__ = lazily(__name__, items="Item", paired="Comparison")

__all__ = [
    "Comparison",
    "Item",
    "about",
    "blind",
    "files",
    "frontier",
    "headline",
    "items",
    "paired",
    "questions",
    "statistics",
    "verdicts",
]
