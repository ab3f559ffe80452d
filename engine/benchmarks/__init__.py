"""Benchmarks: what a model is asked before and after, to see what it forgot. Reading and checking only; no torch.

There are the starter's own, a pack that ships with Tunebook (README.md beside this file: sources and licences), the
tasks of lm-evaluation-harness by name when the Hugging Face hub can be reached, and a person's own JSON Lines. Each
shipped one is a task of the harness: a YAML over a JSONL of the same name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from engine import starter
from engine.words import Problem, t
from engine.workspace import Workspace, checked, write_atomically

HERE = Path(__file__).resolve().parent
Kind = Literal["choices", "text", "answers", "harness"]
# The harness's own tasks that are offered by name: their number of questions, and how many examples are usual (methods:
# the Open LLM leaderboard's). gsm8k is generated, not chosen, and is slow.
HARNESS = {"mmlu": 14_042, "hellaswag": 10_042, "arc_challenge": 1_172, "winogrande": 1_267, "gsm8k": 1_319}
# The run's own held-out rows, answered in full and compared by BLEU and ROUGE-L: it takes long, so it is asked for.
HELD_OUT = "held-out-texts"
MOST_BYTES = 50 * 2**20
# Fewer questions than two have no interval at all.
LEAST_ITEMS = 2


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


def _starters() -> Benchmark:
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
def _shipped() -> tuple[Benchmark, ...]:
    found = []
    for path in sorted(HERE.glob("*.yaml")):
        task = yaml.safe_load(path.read_text("utf-8"))
        told, data = task["metadata"], HERE / task["dataset_kwargs"]["data_files"]["test"]
        found.append(
            Benchmark(
                name=path.stem,
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
    return [one.name for one in _shipped()]


def available(workspace: Workspace | None = None) -> list[Benchmark]:
    """Return every benchmark that can be named: the starter's, the pack, a person's own, and the harness's."""
    harness = [
        Benchmark(name=name, title=name, about=t("A task of lm-evaluation-harness, from the Hugging Face hub."),
                  kind="harness", size=size)
        for name, size in HARNESS.items()
    ]  # fmt: skip
    return [_starters(), *_shipped(), *(_own(workspace) if workspace is not None else []), *harness]


def find(name: str, workspace: Workspace | None = None) -> Benchmark | None:
    """Return the benchmark of that name, or None."""
    return next((one for one in available(workspace) if one.name == name), None)


def title(name: str) -> str:
    """Return a benchmark's title; a name that is not known stands for itself."""
    one = find(name)
    return one.title if one is not None else name


class Set(msgspec.Struct, frozen=True, kw_only=True):
    """A choice of benchmarks with so many questions each; 0 means all."""

    name: str
    benchmarks: list[str]
    limit: int = 0


def sets(*, toy: bool) -> dict[str, Set]:
    """Return quick, standard and full for a toy base or a real one. The grammar pairs and general text go first: they
    need no prompt, and show damage earliest. Full fetches the harness's tasks from the hub, for a real base."""
    if toy:
        own = [starter.BENCHMARK_NAME]
        return {
            "quick": Set(name="quick", benchmarks=own, limit=150),
            "standard": Set(name="standard", benchmarks=own),
            "full": Set(name="full", benchmarks=[*own, "general-text"]),
        }
    small = ["general-text", "blimp"]
    return {
        "quick": Set(name="quick", benchmarks=small, limit=200),
        "standard": Set(name="standard", benchmarks=[*small, *(n for n in pack() if n not in small)]),
        "full": Set(
            name="full",
            benchmarks=[*small, *(n for n in pack() if n not in small), "mmlu", "hellaswag", "arc_challenge"],
        ),
    }


def docs(benchmark: Benchmark, limit: int = 0) -> list[dict[str, Any]]:
    """Return the questions of a benchmark, `limit` of them spread evenly, each with item, family and what is asked:
    question, choices and gold; or contexts, continuation and gold; or text; or question with reference or form.

    The harness's own tasks have none here: they are read when they are scored.
    """
    if benchmark.path is None:
        return []
    rows = [json.loads(line) for line in benchmark.path.read_text("utf-8").split("\n") if line.strip()]
    rows = rows[:: max(1, len(rows) // limit)][:limit] if limit else rows
    return [
        {"family": benchmark.name, **row, **({"question": row["prompt"]} if "prompt" in row else {})} for row in rows
    ]


def examples_and_questions(
    found: list[dict[str, Any]], shots: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the first `shots` questions as worked examples, and the others. Sentences without a question take none,
    and no more than half of a set is given away."""
    shots = min(shots, len(found) // 2) if found and found[0].get("question") else 0
    return found[:shots], found[shots:]


# --- a person's own ---------------------------------------------------------------------------------------------------


class Own(msgspec.Struct, kw_only=True):
    """What is stored beside a person's own questions."""

    name: str
    kind: Kind
    items: int


def check(data: bytes) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Return the questions of a JSON Lines file and everything that is wrong with it, each with its line.

    A row is {question, choices, answer} (answer: the number of the right choice from 0, or its text), {question,
    reference} (the model writes, and is compared by BLEU, ROUGE-L and exact words), {question, form} (does the answer
    have a form?) or {text} (how surprising is it?). `family` groups rows, `passage` is text that several share.
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
    if "choices" in row:
        return "choices"
    if "form" in row:
        return "form"
    return "text" if "text" in row and "question" not in row else "reference"


def _row_problems(row: dict[str, Any], line: int) -> Iterator[Problem]:
    def problem(rule: str, where: str, **parameters: str | int) -> Problem:
        return Problem(rule=rule, where=where, line=line, parameters=dict(parameters))

    names = ", ".join(map(str, row))[:80]
    wanted = ("text",) if _kind_of(row) == "text" else ("question",)
    for name in (*wanted, *(n for n in ("passage", "family") if n in row)):
        if name not in row:
            yield problem("missing-field", name, found=names)
        elif not isinstance(row[name], str):
            yield problem("wrong-type", name, found=type(row[name]).__name__, wanted=t("a text"))
        elif not row[name].strip():
            yield problem("blank-field", name)
    if "form" in row:
        reason = form_problem(row["form"])
        if reason:
            yield problem("bench-form", "form", reason=reason)
    elif "choices" in row:
        yield from _choice_problems(row, problem, names)
    elif "text" in wanted:
        return
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
    kept = {name: row[name] for name in ("text", "choices", "reference", "form") if name in row}
    passage, question = row.get("passage"), row.get("question")
    found = {"item": f"row-{index + 1}", **kept}
    if row.get("family"):
        found["family"] = row["family"]
    if question is not None:
        found["question"] = f"{passage}\n\n{question}" if passage else question
    if passage:
        found["cluster"] = hashlib.sha256(passage.encode()).hexdigest()[:16]
    if "choices" in row:
        found["gold"] = _gold(row)
    return found


def add(workspace: Workspace, data: bytes, name: str) -> tuple[Benchmark | None, list[Problem]]:
    """Check a person's own questions and keep them. Returns the benchmark, or None when there are errors; nothing is
    kept then, and the file itself is never touched."""
    rows, problems = check(data)
    if any(problem.severity == "error" for problem in problems):
        return None, problems
    kind: Kind = "choices" if "choices" in rows[0] else "text" if "text" in rows[0] else "answers"
    content = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    own = f"own-{hashlib.sha256(content).hexdigest()[:16]}"
    folder = _own_dir(workspace, own)
    write_atomically(folder / "items.jsonl", content)
    shown = " ".join(name.split())[:80] or own
    write_atomically(folder / "meta.json", msgspec.json.encode(Own(name=shown, kind=kind, items=len(rows))))
    return find(own, workspace), problems


def _own_dir(workspace: Workspace, name: str) -> Path:
    return workspace.root / "benchmarks" / checked(name)


def _own(workspace: Workspace) -> list[Benchmark]:
    found = []
    for path in sorted((workspace.root / "benchmarks").glob("own-*/meta.json")):
        try:
            own = msgspec.json.decode(path.read_bytes(), type=Own)
        except (OSError, msgspec.MsgspecError):
            continue
        found.append(
            Benchmark(
                name=path.parent.name, title=own.name, about=t("Your own questions."), kind=own.kind, size=own.items,
                template="none" if own.kind == "text" else "chat", path=path.parent / "items.jsonl", delimiter="",
            )
        )  # fmt: skip
    return found


# --- the form of an answer --------------------------------------------------------------------------------------------


def form_problem(form: Any) -> str:
    """Return what is wrong with a form, or nothing. A form is "json", {"schema": a JSON Schema}, {"regex": a pattern
    that the whole answer must match} or {"choices": [the only answers there are]}."""
    if form == "json":
        return ""
    if not isinstance(form, dict) or len(form) != 1:
        return t('it must be "json", or an object with one of schema, regex and choices')
    if "regex" in form:
        try:
            re.compile(form["regex"])
        except (re.error, TypeError, RecursionError, OverflowError) as error:
            return t("the regular expression cannot be read: {reason}", reason=str(error)[:80])
        return ""
    if "choices" in form:
        whole = isinstance(form["choices"], list) and form["choices"]
        return (
            "" if whole and all(isinstance(x, str) for x in form["choices"]) else t("choices must be a list of texts")
        )
    if "schema" in form:
        import jsonschema

        try:
            jsonschema.Draft202012Validator.check_schema(form["schema"])
        except (jsonschema.SchemaError, TypeError, RecursionError) as error:
            return t("the schema cannot be used: {reason}", reason=str(error).splitlines()[0][:80])
        return ""
    return t('it must be "json", or an object with one of schema, regex and choices')


def has_form(text: str, form: Any) -> bool:
    """Whether an answer has the form asked for (form_problem). References out of a schema are never fetched."""
    text = text.strip()
    if isinstance(form, dict) and "regex" in form:
        return re.fullmatch(form["regex"], text[:10_000]) is not None
    if isinstance(form, dict) and "choices" in form:
        return text in form["choices"]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if form == "json":
        return True
    import jsonschema
    import referencing
    import referencing.exceptions

    validator = jsonschema.Draft202012Validator(form["schema"], registry=referencing.Registry())
    try:
        return bool(validator.is_valid(value))
    except (referencing.exceptions.Unresolvable, RecursionError):
        return False


def form_of(references: list[str]) -> Any:
    """Return the form that the right answers of a data set have in common: the JSON they all are, with the keys they all
    have; None when they are free text."""
    values = []
    for reference in references:
        try:
            values.append(json.loads(reference))
        except (ValueError, RecursionError):
            return None
    if not values or not all(isinstance(value, dict | list) for value in values):
        return None
    if not all(isinstance(value, dict) for value in values):
        return "json"
    keys = set(values[0]).intersection(*values[1:])
    return {"schema": {"type": "object", "required": sorted(keys)}}


# --- how long it takes ------------------------------------------------------------------------------------------------


class Speed(msgspec.Struct, kw_only=True):
    """One measurement: so many seconds for so many questions of a benchmark, by a base on a device."""

    device: str
    base: str
    benchmark: str
    items: int
    seconds: float
    parameters: int | None = None
    characters: int = 0


def _speeds_path(workspace: Workspace) -> Path:
    return workspace.root / "evals" / "speeds.jsonl"


def note_speed(workspace: Workspace, speed: Speed) -> None:
    """Keep a measurement, for the estimates of later runs."""
    path = _speeds_path(workspace)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(msgspec.json.encode(speed) + b"\n")


def speeds(workspace: Workspace) -> list[Speed]:
    """Return all measurements, oldest first."""
    found = []
    try:
        lines = _speeds_path(workspace).read_bytes().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            found.append(msgspec.json.decode(line, type=Speed))
        except msgspec.MsgspecError:
            continue  # a line that was cut off
    return found


def characters(asked: list[dict[str, Any]]) -> int:
    """Return how many characters a model reads for these questions: each choice is read after the whole question."""
    total = 0
    for doc in asked:
        choices = doc.get("choices") or doc.get("contexts") or [doc.get("reference") or ""]
        question = len(doc.get("question") or doc.get("text") or doc.get("continuation") or "")
        total += sum(question + len(one) for one in choices)
    return total


def seconds(
    workspace: Workspace, device: str, base: str, parameters: int | None, names: list[str], limit: int = 0
) -> float | None:
    """Return the estimated seconds of scoring one model on benchmarks, from what was measured on this device: the same
    base and benchmark by questions; else the same base, or one of another size in proportion, by characters. None when
    nothing was measured that says anything."""
    measured = [s for s in speeds(workspace) if s.device == device and s.seconds > 0][::-1]
    total = 0.0
    for name in names:
        one = find(name, workspace)
        if one is None:
            return None
        n = min(one.size, limit) if limit else one.size
        same = next((s for s in measured if s.base == base and s.benchmark == name and s.items), None)
        if same is not None:
            total += same.seconds * n / same.items
            continue
        read = characters(docs(one, limit))
        near = next((s for s in measured if s.base == base and s.characters), None)
        scale = 1.0
        if near is None and parameters:
            near = next((s for s in measured if s.parameters and s.characters), None)
            scale = parameters / near.parameters if near is not None and near.parameters else 1.0
        if near is None or not read:
            return None
        total += near.seconds / near.characters * read * scale
    return total
