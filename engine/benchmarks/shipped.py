"""The benchmarks that come with Tunebook: the starter's own and the pack beside this file, each a YAML over a JSONL."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import msgspec
import yaml

from engine import starter
from engine.words import t

HERE = Path(__file__).resolve().parent
Kind = Literal["choices", "text", "answers", "harness"]
# The harness's own tasks that are offered by name: their number of questions, and how many examples are usual (methods:
# the Open LLM leaderboard's). gsm8k is generated, not chosen, and is slow.
HARNESS = {"mmlu": 14_042, "hellaswag": 10_042, "arc_challenge": 1_172, "winogrande": 1_267, "gsm8k": 1_319}
# The run's own held-out rows, answered in full and compared by BLEU and ROUGE-L: it takes long, so it is asked for.
HELD_OUT = "held-out-texts"


class Benchmark(msgspec.Struct, frozen=True, kw_only=True):
    """One benchmark. `kind`: choices by likelihood, text by its loss, answers that are written, or a task that the
    harness fetches itself. `template`: whether questions are usually put through the chat template. `size` is the
    number of questions."""

    name: str
    title: str
    about: str
    kind: Kind
    size: int
    template: Literal["chat", "none"] = "none"
    licence: str = ""
    source: str = ""
    path: Path | None = None
    delimiter: str = " "


def starters() -> Benchmark:
    return Benchmark(
        name=starter.BENCHMARK_NAME,
        title=t("toy-world knowledge"),
        about=t("What the starter knows about its toy world, in other words than it was taught."),
        kind="choices",
        size=_lines(starter.BENCHMARK),
        template="chat",
        licence="Apache-2.0",
        path=starter.BENCHMARK,
        delimiter="",
    )


@lru_cache(maxsize=64)
def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


@lru_cache(maxsize=1)
def shipped() -> tuple[Benchmark, ...]:
    found = []
    for data in sorted(HERE.glob("*.jsonl")):
        task = yaml.safe_load(data.with_suffix(".yaml").read_text("utf-8"))
        told = task["metadata"]
        found.append(
            Benchmark(
                name=data.stem,
                title=told["title"],
                about=told["about"],
                kind="text" if task["output_type"] == "loglikelihood_rolling" else "choices",
                size=_lines(data),
                licence=told["licence"],
                source=told["source"],
                path=data,
                delimiter=task.get("target_delimiter", " "),
            )
        )
    return tuple(found)


def pack() -> list[str]:
    """Return the names of the benchmarks that ship with Tunebook."""
    return [one.name for one in shipped()]
