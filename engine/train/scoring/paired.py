"""Base and tuned model asked the same questions in the words of two chat templates, held together again."""

from __future__ import annotations

from pathlib import Path

from engine import events
from engine.report import items
from engine.words import later


def pair(run_dir: Path, log: events.EventLog) -> None:
    """Hold questions together that were put in the words of each model's own template: they are the same questions. Where
    the two count tokens otherwise, a loss per token cannot be compared, and is taken away."""
    for name in items.benchmarks_of(run_dir):
        before, after = (run_dir / "items" / f"{who}-{name}.jsonl" for who in ("base", "tuned"))
        base = {one.item: one for one in items.read_items(before)}
        tuned = items.read_items(after)
        pairs = [(base[one.item], one) for one in tuned if one.item in base]
        if any(one.tokens != other.tokens for one, other in pairs):
            after.unlink()
            told = later("{benchmark} is left out: the two tokenizers count its tokens otherwise.", benchmark=name)
            log.append(events.Log(level="result", text=told))
            continue
        differ = [one for other, one in pairs if one.prompt_sha != other.prompt_sha]
        if not differ:
            continue
        for other, one in pairs:
            one.prompt_sha = other.prompt_sha
        items.write_items(after, tuned)
        told = later("{benchmark}: the text of {n} of {total} questions differs, by the chat template.",
                     benchmark=name, n=len(differ), total=len(pairs))  # fmt: skip
        log.append(events.Log(level="result", text=told))
