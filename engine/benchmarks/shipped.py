"""The benchmarks that come with Tunebook: the starter's own and the pack beside this file, each a YAML over a JSONL."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import msgspec
import yaml

from engine import starter
from engine.words import t

HERE = Path(__file__).resolve().parent
Kind = Literal["choices", "text", "answers", "graded", "harness"]
# What the harness calls each kind of task that is shipped.
_KINDS: dict[str, Kind] = {
    "multiple_choice": "choices", "loglikelihood_rolling": "text", "generate_until": "graded",
}  # fmt: skip
# The harness's own tasks that are offered by name: their number of questions, and how many examples are usual (methods:
# the Open LLM leaderboard's). Answers to those in WRITTEN are written, of so many tokens at most, which is slow; those in
# NEEDS are offered where these packages of the harness's own extras are installed.
HARNESS = {
    "mmlu": 14_042, "hellaswag": 10_042, "arc_challenge": 1_172, "winogrande": 1_267, "gsm8k": 1_319, "ifeval": 541,
}  # fmt: skip
WRITTEN = {"gsm8k": 256, "ifeval": 1280}
NEEDS = {"ifeval": ("langdetect", "immutabledict")}
# Those that ask what a model does, and not what it knows.
BEHAVIOUR = ("ifeval",)
# The run's own held-out rows, answered in full and compared by BLEU and ROUGE-L: it takes long, so it is asked for.
HELD_OUT = "held-out-texts"


class Benchmark(msgspec.Struct, frozen=True, kw_only=True):
    """One benchmark. `kind`: choices by likelihood, text by its loss, answers that are written and compared, or written
    and graded, or a task that the harness fetches itself. `template`: whether questions are usually put through the chat
    template. `size` is the number of questions, `most_tokens` how long a written answer may become."""

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
    most_tokens: int = 0


def missing(name: str) -> list[str]:
    """Return the packages that one of the harness's tasks needs and that are not installed."""
    return [package for package in NEEDS.get(name, ()) if find_spec(package) is None]


def harness() -> list[Benchmark]:
    """Return the harness's own tasks that can be asked here."""
    about = t("A task of lm-evaluation-harness, from the Hugging Face hub.")
    return [
        Benchmark(
            name=name, title=name, about=about, kind="harness", size=size, most_tokens=WRITTEN.get(name, 0),
            template="chat" if name == "ifeval" else "none",
        )
        for name, size in HARNESS.items() if not missing(name)
    ]  # fmt: skip


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
        told, kind = task["metadata"], _KINDS[task["output_type"]]
        found.append(
            Benchmark(
                name=data.stem,
                title=told["title"],
                about=told["about"],
                kind=kind,
                size=_lines(data),
                template="chat" if kind == "graded" else "none",
                licence=told["licence"],
                source=told["source"],
                path=data,
                delimiter=task.get("target_delimiter", " "),
                most_tokens=task.get("generation_kwargs", {}).get("max_gen_toks", 0),
            )
        )
    return tuple(found)


def pack() -> list[str]:
    """Return the names of the benchmarks that ship with Tunebook."""
    return [one.name for one in shipped()]
