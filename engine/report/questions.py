"""Single questions, base and tuned side by side: which flipped, what was right, and what each said."""

from __future__ import annotations

from engine.report import items
from engine.workspace import Workspace


def pairs(workspace: Workspace, holder: str, benchmark: str) -> list[tuple[items.Item, items.Item]]:
    """Return the questions that have an answer, each as base and tuned gave it."""
    folder = workspace.run_dir(holder) / "items"
    base = {item.item: item for item in items.read_items(folder / f"base-{benchmark}.jsonl")}
    return [
        (base[after.item], after)
        for after in items.read_items(folder / f"tuned-{benchmark}.jsonl")
        if after.item in base and (after.correct is not None or after.text is not None)
    ]


def flip(before: items.Item, after: items.Item) -> str:
    if before.correct and after.correct is False:
        return "lost"
    return "learned" if after.correct and before.correct is False else ""


def said(item: items.Item) -> str:
    if item.choice is not None and item.choice < len(item.choices):
        return item.choices[item.choice]
    return item.text or ""


def right(item: items.Item) -> str:
    return item.choices[item.gold] if item.gold is not None and item.choices else item.reference or ""
