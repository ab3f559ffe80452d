"""The files of the starter: model, manifest, benchmark, samples. Nothing is read when this is imported."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

import msgspec

HERE = Path(__file__).resolve().parent
MODEL_DIR = HERE / "model"
BENCHMARK = HERE / "benchmark.jsonl"
SAMPLES_DIR = HERE / "samples"
MANIFEST = HERE / "manifest.json"
BENCHMARK_NAME = "toy-world"


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One sample dataset. `type` is what its rows are for, in the names TRL gives to kinds of data."""

    name: str
    title: str
    description: str
    file: Path
    eval_file: Path | None = None
    type: str


def _sample(name: str, kind: str, title: str, description: str, has_evaluation: bool = False) -> Sample:
    return Sample(
        name=name,
        title=title,
        description=description,
        file=SAMPLES_DIR / f"{name}.jsonl",
        eval_file=SAMPLES_DIR / f"{name}.eval.jsonl" if has_evaluation else None,
        type=kind,
    )


SAMPLES: tuple[Sample, ...] = (
    _sample(
        "new-facts",
        "prompt-completion",
        "New facts",
        "48 invented facts, each asked in five ways. The evaluation file asks for the same facts in other words.",
        has_evaluation=True,
    ),
    _sample(
        "answer-format",
        "prompt-completion",
        "Answer format",
        "Questions the starter can already answer, with answers in a strict JSON form. It learns the form.",
    ),
    _sample(
        "preference-pairs",
        "preference",
        "Preference pairs",
        "For each question a better and a worse answer: full, right sentences are preferred.",
    ),
    _sample(
        "good-bad",
        "unpaired-preference",
        "Good and bad answers",
        "Single answers marked good or bad, four good ones to each bad one.",
    ),
    _sample(
        "mixed-answers",
        "prompt-completion",
        "Mixed answers",
        "Right answers, half of them full sentences, half a bare word. The first stage of SFT, reward model and PPO.",
    ),
    _sample(
        "ppo-prompts",
        "prompt-only",
        "Prompts for PPO",
        "Questions alone. The model writes answers and a reward model scores them.",
    ),
)


def sample(name: str) -> Sample:
    """Return the sample called `name`. Raises KeyError with the names there are."""
    for one in SAMPLES:
        if one.name == name:
            return one
    raise KeyError(f"no sample {name!r}; there are {', '.join(s.name for s in SAMPLES)}")


@lru_cache(maxsize=1)
def manifest() -> dict:
    """Return what the starter was built from: seed, versions, sha256 of each file, scores."""
    return json.loads(MANIFEST.read_text("utf-8"))


def verify() -> list[str]:
    """Return one sentence for each shipped file that is missing or differs from the manifest; empty is well."""
    problems = []
    for name, expected in manifest()["sha256"].items():
        path = HERE / name
        if not path.is_file():
            problems.append(f"{name} is missing.")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            problems.append(f"{name} differs from the one the manifest describes.")
    return problems
