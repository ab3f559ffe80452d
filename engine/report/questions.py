"""Single questions, base and tuned side by side: which flipped, what was right, and what each said."""

from __future__ import annotations

from engine.report.items import Item, Joined


def pairs(joined: Joined) -> list[tuple[Item, Item]]:
    """Return the questions that have an answer, each as base and tuned gave it."""
    base = {item.item: item for item in joined.base}
    return [
        (base[after.item], after)
        for after in joined.tuned
        if after.item in base and (after.correct is not None or after.text is not None)
    ]


def flip(before: Item, after: Item) -> str:
    """Return whether a question was "lost" (right, then wrong), or "won" (wrong, then right); nothing of others."""
    if before.correct and after.correct is False:
        return "lost"
    return "won" if after.correct and before.correct is False else ""


def flips(joined: Joined, which: str) -> list[tuple[Item, Item]]:
    """Return the questions that were "lost" or "won", each as base and tuned gave it."""
    return [pair for pair in pairs(joined) if flip(*pair) == which]


def said(item: Item) -> str:
    if item.choice is not None and item.choice < len(item.choices):
        return item.choices[item.choice]
    return item.text or ""


def right(item: Item) -> str:
    return item.choices[item.gold] if item.gold is not None and item.choices else item.reference or ""
