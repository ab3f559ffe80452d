"""The general texts that a run is watched on while it trains: a second set, of which no benchmark asks anything, so that
what stops a run or chooses its weights never stands in its report. Reading only; no torch."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from engine.starter import world

TEXTS = Path(__file__).resolve().parent / "watch" / "general.jsonl"
TOY_ROWS = 256


@lru_cache(maxsize=2)
def rows(*, toy: bool) -> tuple[dict[str, Any], ...]:
    """Return the texts as canonical rows, in an order of which every beginning has each language and kind: plain text for
    a real base, questions about its own world for the starter and what was made of it."""
    if not toy:
        told = (msgspec.json.decode(line) for line in TEXTS.read_bytes().splitlines())
        return tuple({"text": one["text"]} for one in told)
    return tuple(
        {
            "prompt": [{"role": "user", "content": one["prompt"]}],
            "completion": [{"role": "assistant", "content": one["completion"]}],
        }
        for one in world.watch_rows(TOY_ROWS)
    )
