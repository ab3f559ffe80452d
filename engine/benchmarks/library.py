"""Every benchmark that can be named, the sets of them, and the questions of one. Reading only; no torch.

There are the starter's own, a pack that ships with Tunebook (README.md: sources and licences), the tasks of
lm-evaluation-harness by name when the Hugging Face hub can be reached, and a person's own JSON Lines.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from engine import starter
from engine.benchmarks import own as benchmarks_own
from engine.benchmarks.own import Graders, Own, check, own_dir
from engine.benchmarks.shipped import BEHAVIOUR, Benchmark, Kind, harness, missing, shipped, starters
from engine.words import Problem, t
from engine.workspace import Workspace, decoded, one_line, write_atomically


def available(workspace: Workspace | None = None) -> list[Benchmark]:
    """Return every benchmark that can be named: the starter's, the pack, a person's own, and the harness's."""
    own = benchmarks_own.own(workspace) if workspace is not None else []
    pack = [msgspec.structs.replace(one, title=t(one.title), about=t(one.about)) for one in shipped()]
    return [starters(), *pack, *own, *harness()]


def unknown(name: str, known: Iterable[str]) -> Problem:
    """Return why no benchmark can be asked by that name: there is none, or what it needs is not installed."""
    where = "evaluate.benchmarks"
    if packages := missing(name):
        return Problem(rule="benchmark-needs", where=where, parameters={"name": name, "packages": " ".join(packages)})
    return Problem(rule="benchmark-unknown", where=where, parameters={"name": name[:80], "names": ", ".join(known)})


def find(name: str, workspace: Workspace | None = None) -> Benchmark | None:
    """Return the benchmark of that name, or None."""
    return next((one for one in available(workspace) if one.name == name), None)


def titles(workspace: Workspace | None = None) -> dict[str, str]:
    """Return every benchmark's name as a person reads it, their own ones too."""
    return {one.name: one.title for one in available(workspace)}


def title(name: str) -> str:
    """Return a benchmark's title; a name that is not known stands for itself."""
    one = find(name)
    return one.title if one is not None else name


def is_behaviour(name: str, workspace: Workspace | None = None) -> bool:
    """Whether a benchmark asks what a model does and not what it knows: its answers are graded, a person's own among them,
    or it is the harness's of instructions that can be verified (ifeval, arXiv 2311.07911)."""
    one = find(name, workspace)
    return name in BEHAVIOUR or (one is not None and one.kind == "graded")


class Set(msgspec.Struct, frozen=True, kw_only=True):
    """A choice of benchmarks with so many questions each; 0 means all."""

    name: str
    benchmarks: list[str]
    limit: int = 0


# Which part of a text's letters are Chinese characters where the text is Chinese: Chinese holds Latin names and digits too.
_CHINESE, _LETTER = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]"), re.compile(r"[^\W\d_]")
_CHINESE_SHARE, _KANA_SHARE = 0.3, 0.05


def language_of(texts: Iterable[str]) -> str | None:
    """Return "zh" where texts are mostly Chinese, else None: what the questions to ask hang on. Japanese, which has Chinese
    characters too, is told by its kana."""
    whole = "".join(texts)
    letters = len(_LETTER.findall(whole))
    kana = len(re.findall(r"[\u3040-\u30ff]", whole))
    chinese = letters and len(_CHINESE.findall(whole)) > _CHINESE_SHARE * letters and kana <= _KANA_SHARE * letters
    return "zh" if chinese else None


def sets(*, toy: bool, language: str | None = None) -> dict[str, Set]:
    """Return quick, standard and full for a toy base or a real one. The grammar pairs and general text go first: they
    need no prompt, and show damage earliest; those in the language of the data before the others. What has to be written
    goes last, since it takes longest; quick has the shortest of it. Full fetches the harness's tasks from the hub, for a
    real base."""
    if toy:
        own = [starter.BENCHMARK_NAME]
        return {
            "quick": Set(name="quick", benchmarks=own, limit=150),
            "standard": Set(name="standard", benchmarks=own),
            "full": Set(name="full", benchmarks=[*own, "general-text"]),
        }
    chinese = ["general-text-zh", "grammar-zh"]
    small = [*(chinese if language == "zh" else []), "general-text", "blimp"]
    others = [one.name for one in sorted(shipped(), key=lambda one: one.kind == "graded") if one.name not in small]
    return {
        "quick": Set(name="quick", benchmarks=[*small, "keeps-language"], limit=200),
        "standard": Set(name="standard", benchmarks=[*small, *others]),
        "full": Set(name="full", benchmarks=[*small, *others, "mmlu", "hellaswag", "arc_challenge"]),
    }


def spread(count: int, most: int) -> list[int]:
    """Return at most so many of `count` places, evenly over all of them; what is sorted by kind keeps its kinds."""
    return list(range(count)) if most >= count else [at * count // most for at in range(most)]


def docs(benchmark: Benchmark, limit: int = 0) -> list[dict[str, Any]]:
    """Return the questions of a benchmark, `limit` of them spread evenly, each with item, family and what is asked:
    question, choices and gold; or contexts, continuation and gold; or text; or question with reference or form; or
    question with grader and most_tokens, which the answer may have.

    The harness's own tasks have none here: they are read when they are scored. Raises OSError, and ValueError
    where a person's own questions are damaged.
    """
    if benchmark.path is None:
        return []
    decoder = msgspec.json.Decoder(dict[str, Any])
    rows = [decoded(line, decoder) for line in benchmark.path.read_bytes().splitlines() if line.strip()]
    rows = [rows[at] for at in spread(len(rows), limit)] if limit else rows
    graded = {"most_tokens": benchmark.most_tokens} if benchmark.kind == "graded" else {}
    return [
        {"family": benchmark.name, **row, **({"question": row["prompt"]} if "prompt" in row else {}), **graded}
        for row in rows
    ]


def examples_and_questions(
    found: list[dict[str, Any]], shots: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the first `shots` questions as worked examples, and the others. Sentences without a question take none, nor
    do questions whose right answers are not written down, and no more than half of a set is given away."""
    shots = min(shots, len(found) // 2) if found and found[0].get("question") and "grader" not in found[0] else 0
    return found[:shots], found[shots:]


def add(workspace: Workspace, data: bytes, name: str, graders: Graders) -> tuple[Benchmark | None, list[Problem]]:
    """Check a person's own questions and keep them. Returns the benchmark, or None when there are errors; nothing is
    kept then, and the file itself is never touched. `graders` as in own.check."""
    rows, problems = check(data, graders)
    if any(problem.severity == "error" for problem in problems):
        return None, problems
    first = rows[0]
    kind: Kind = (
        "choices" if "choices" in first else "graded" if "grader" in first else "text" if "text" in first else "answers"
    )
    content = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    own = f"own-{hashlib.sha256(content).hexdigest()[:16]}"
    folder = own_dir(workspace, own)
    write_atomically(folder / "items.jsonl", content)
    shown = one_line(name, 80) or own
    write_atomically(folder / "meta.json", msgspec.json.encode(Own(name=shown, kind=kind, items=len(rows))))
    return find(own, workspace), problems
