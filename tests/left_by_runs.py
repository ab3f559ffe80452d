"""What a finished run leaves behind, where nothing was trained: the files of an adapter, the answers of a judge."""

from __future__ import annotations

import shutil
from pathlib import Path

from engine import starter
from engine.report import Item, items


def leave_adapter(run_dir: Path) -> None:
    """Put an adapter's files into a run, with the starter's tokenizer and weights that nobody reads."""
    (run_dir / "adapter").mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(starter.MODEL_DIR / name, run_dir / "adapter" / name)
    shutil.copy(starter.MODEL_DIR / "model.safetensors", run_dir / "adapter" / "adapter_model.safetensors")


def leave_verdicts(run_dir: Path, right: int) -> None:
    """Let a run's judge be right on so many of ten unseen pairs, its base on five."""
    for side, hits in (("base", 5), ("tuned", right)):
        found = [
            Item(item=str(n), family=family, prompt_sha="s", gold=0, choices=["a", "b"],
                 rewards=[1.0, 0.0] if n < hits else [0.0, 1.0], correct=n < hits)
            for family, numbers in ((items.SEEN, range(10, 12)), (items.UNSEEN, range(10)))
            for n in numbers
        ]  # fmt: skip
        items.write_items(run_dir / "items" / f"{side}-{items.REWARD}.jsonl", found)
