"""A person's own questions: checked line by line, and kept in the workspace."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from engine.benchmarks.forms import form_problem
from engine.benchmarks.shipped import Benchmark, Kind
from engine.words import Problem, t
from engine.workspace import Unreadable, Workspace, checked, decoded, find_struct

MOST_BYTES = 50 * 2**20
# Fewer questions than two have no interval at all.
LEAST_ITEMS = 2
# How long a graded answer may become: a grader does not say how long it expects one to be.
GRADED_TOKENS = 256
# What says what is wrong with a grader that a row names: graders lie above this package.
Graders = Callable[[Any], list[Problem]]


class Own(msgspec.Struct, kw_only=True):
    """What is stored beside a person's own questions."""

    name: str
    kind: Kind
    items: int


def check(data: bytes, graders: Graders) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Return the questions of a JSON Lines file and everything that is wrong with it, each with its line.

    A row is {question, choices, answer} (answer: the number of the right choice from 0, or its text), {question,
    reference} (the model writes, and is compared by BLEU, ROUGE-L and exact words), {question, form} (does the answer
    have a form?), {question, grader} (is it right by a grader, which `graders` looks at; a reference may stand beside it)
    or {text} (how surprising is it?). `family` groups rows, `passage` is text that several share.
    """
    rows: list[dict[str, Any]] = []
    problems: list[Problem] = []
    first: str | None = None
    seen: dict[str, int] = {}
    if len(data) > MOST_BYTES:
        return [], [Problem(rule="bench-too-large", parameters={"limit_mib": MOST_BYTES >> 20})]
    for line, raw in enumerate(data.split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw.decode("utf-8-sig"))
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeError:
            problems.append(Problem(rule="bench-encoding", line=line))
            continue
        except (ValueError, RecursionError) as error:
            remedy = t("correct the line or delete it")
            problems.append(
                Problem(rule="not-json", line=line, parameters={"reason": str(error)[:80], "remedy": remedy})
            )
            continue
        if not isinstance(row, dict):
            problems.append(Problem(rule="not-object", line=line, parameters={"found": type(row).__name__}))
            continue
        found = list(_row_problems(row, line))
        if "grader" in row:
            found += [msgspec.structs.replace(one, line=line) for one in graders(row["grader"])]
        kind = _kind_of(row)
        if not found and first is not None and kind != first:
            found = [Problem(rule="bench-mixed", line=line, parameters={"found": kind, "wanted": first})]
        if found:
            problems += found
            continue
        first = first or kind
        asked = json.dumps([row.get("passage"), row.get("question"), row.get("text")], ensure_ascii=False)
        if asked in seen:
            problems.append(
                Problem(rule="bench-twice", severity="warning", line=line, parameters={"first": seen[asked]})
            )
            continue
        seen[asked] = line
        rows.append(_canonical(row, len(rows)))
    errors = [p for p in problems if p.severity == "error"]
    if len(rows) < LEAST_ITEMS and not errors:
        problems.append(Problem(rule="bench-one-item", parameters={"n": len(rows)}))
    return rows, problems


def _kind_of(row: dict[str, Any]) -> str:
    for kind in ("grader", "choices", "form"):
        if kind in row:
            return kind
    return "text" if "text" in row and "question" not in row else "reference"


def _row_problems(row: dict[str, Any], line: int) -> Iterator[Problem]:
    def problem(rule: str, where: str, **parameters: str | int) -> Problem:
        return Problem(rule=rule, where=where, line=line, parameters=dict(parameters))

    names = ", ".join(map(str, row))[:80]
    wanted = ("text",) if _kind_of(row) == "text" else ("question",)
    beside = ("passage", "family", "reference") if "grader" in row else ("passage", "family")
    for name in (*wanted, *(n for n in beside if n in row)):
        if name not in row:
            yield problem("missing-field", name, found=names)
        elif not isinstance(row[name], str):
            yield problem("wrong-type", name, found=type(row[name]).__name__, wanted=t("a text"))
        elif not row[name].strip():
            yield problem("blank-field", name)
    if "grader" in row or "text" in wanted:
        return
    if "form" in row:
        reason = form_problem(row["form"])
        if reason:
            yield problem("bench-form", "form", reason=reason)
    elif "choices" in row:
        yield from _choice_problems(row, problem, names)
    elif "answer" in row:
        yield problem("missing-field", "choices", found=names)
    elif not isinstance(row.get("reference"), str) or not row["reference"].strip():
        yield problem("bench-kind", "question", found=names)


def _choice_problems(row: dict[str, Any], problem: Any, names: str) -> Iterator[Problem]:
    choices = row["choices"]
    texts = isinstance(choices, list) and all(isinstance(one, str) and one.strip() for one in choices)
    if not texts or len(choices) < 2 or len(set(choices)) < len(choices):
        reason = t("it has {n}", n=len(choices)) if texts else t("it is no list of texts")
        reason = t("two of them are the same") if texts and len(choices) >= 2 else reason
        yield problem("bench-choices", "choices", reason=reason)
        return
    if "answer" not in row:
        yield problem("missing-field", "answer", found=names)
    elif _gold(row) is None:
        shown = json.dumps(row["answer"], ensure_ascii=False)[:60]
        yield problem("bench-answer", "answer", answer=shown, n=len(choices), last=len(choices) - 1)


def _gold(row: dict[str, Any]) -> int | None:
    answer, choices = row["answer"], row["choices"]
    if isinstance(answer, str):
        return choices.index(answer) if answer in choices else None
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    return None


def _canonical(row: dict[str, Any], index: int) -> dict[str, Any]:
    fields = ("reference", "grader") if "grader" in row else ("text", "choices", "reference", "form")
    kept = {name: row[name] for name in fields if name in row}
    passage, question = row.get("passage"), row.get("question")
    found = {"item": f"row-{index + 1}", **kept}
    if row.get("family"):
        found["family"] = row["family"]
    if question is not None:
        found["question"] = f"{passage}\n\n{question}" if passage else question
    if passage:
        found["cluster"] = hashlib.sha256(passage.encode()).hexdigest()[:16]
    if "choices" in kept:
        found["gold"] = _gold(row)
    return found


def own_dir(workspace: Workspace, name: str) -> Path:
    return workspace.root / "benchmarks" / checked(name)


def own(workspace: Workspace) -> list[Benchmark]:
    """Return a person's own questions; those that cannot be read are listed by unreadable()."""
    found = []
    for folder in _folders(workspace):
        own = _read(folder)
        if own is None:
            continue
        found.append(
            Benchmark(
                name=folder.name, title=own.name, about=t("Your own questions."), kind=own.kind, size=own.items,
                template="none" if own.kind == "text" else "chat", path=folder / "items.jsonl", delimiter="",
                most_tokens=GRADED_TOKENS if own.kind == "graded" else 0,
            )
        )  # fmt: skip
    return found


def unreadable(workspace: Workspace) -> dict[Path, Problem]:
    """Return the folders of a person's own questions that cannot be read, each with the reason."""
    return {folder: Problem(rule="bench-damaged") for folder in _folders(workspace) if _read(folder) is None}


def _folders(workspace: Workspace) -> list[Path]:
    return sorted((workspace.root / "benchmarks").glob("own-*"))


def _read(folder: Path) -> Own | None:
    """Return what is stored beside questions that are all there, as far as their number and the last of them tell."""
    found, path = find_struct(folder / "meta.json", Own), folder / "items.jsonl"
    try:
        seen = path.stat()
        whole = found is not None and _are_whole(str(path), seen.st_ctime_ns, seen.st_size, found.items)
    except OSError:
        return None
    return found if whole else None


@lru_cache(maxsize=64)  # a page asks at every click, and a file may have 50 MiB
def _are_whole(path: str, _changed: int, _size: int, items: int) -> bool:
    lines = Path(path).read_bytes().splitlines()
    if len(lines) != items:
        return False
    try:
        decoded(lines[-1], dict[str, Any])
    except (Unreadable, IndexError):
        return False
    return True
