"""How a grader is made of its name and parameters, by these rules alone: everything wrong is said at once."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec

from engine.graders import form, manner, matching, patterns, preset_files
from engine.graders.grade import RIGHT, Grader, Refused
from engine.spec import schema, settings
from engine.words import Problem, t

MOST_PARTS, MOST_DEPTH = 30, 3


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One grader of a sum, and how much it weighs."""

    grader: Grader
    weight: float = 1.0


class Sum(Grader, frozen=True, tag="sum"):
    """Several graders together: their scores by weight. Right from a score on; from 1: only where every one is."""

    parts: list[Part]
    right_from: Annotated[float, msgspec.Meta(gt=0, le=1)] = RIGHT

    def score(self, answer: str, row: Mapping[str, Any]) -> tuple[float, str]:
        grades = [(part.weight, part.grader.grade(answer, row)) for part in self.parts]
        whole = sum(weight for weight, _ in grades)
        score = sum(weight * grade.score for weight, grade in grades) / whole
        # Thirds do not add up to one; and what is right in every part is right.
        if all(grade.score == 1 for _, grade in grades):
            score = 1.0
        missed = [grade.reason for _, grade in grades if not grade.right]
        return score, "; ".join(missed[:3]) or t("as wanted")

    @property
    def right_score(self) -> float:
        return self.right_from

    @property
    def reads_within(self) -> bool:
        return any(part.grader.reads_within for part in self.parts)


_KINDS: dict[str, type[Grader]] = {
    str(kind.__struct_config__.tag): kind
    for kind in (
        matching.Exact, matching.Number, matching.Choice, patterns.Expression, patterns.Json, form.Length, form.Count,
        form.Mentions, form.Edges, form.Case, manner.Ends, manner.Script, manner.Refusal, Sum,
    )
}  # fmt: skip


def make(ref: schema.GraderRef) -> Grader:
    """Return the grader that a reference names: a kind with parameters, or a preset with some of its own set otherwise.
    Raises Refused, with everything that is wrong."""
    problems: list[Problem] = []
    made = _made(ref.name, ref.parameters, problems, "", [MOST_PARTS], MOST_DEPTH)
    if problems or made is None:
        raise Refused(problems)
    return made


def names() -> list[str]:
    """Return what a grader can be called: every preset, then every kind."""
    return [*(preset.id for preset in preset_files.presets()), *_KINDS]


def _made(
    name: Any, parameters: Any, problems: list[Problem], place: str, left: list[int], depth: int
) -> Grader | None:
    """Make one grader; `place` is where it stands in a sum, `left` counts how many more a sum may have."""

    def wrong(rule: str, where: str = "", **told: str | int | float) -> None:
        problems.append(
            Problem(rule=rule, where=f"{place}{where}" or None, parameters={"name": str(name)[:80], **told})
        )

    preset = preset_files.find(name)
    if preset is not None:
        name, given = preset.name, parameters if isinstance(parameters, dict) else {}
        parameters = {**preset.parameters, **given}
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        wrong("grader-unknown", known=", ".join(names()))
        return None
    if not isinstance(parameters, dict):
        wrong("grader-parameters")
        return None
    before, values = len(problems), {}
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for key in parameters:
        if key not in fields:
            wrong("grader-parameter-unknown", str(key)[:60], parameter=str(key)[:60], known=", ".join(fields) or "-")
    for key, field in fields.items():
        if key not in parameters:
            if field.required:
                wrong("grader-parameter-missing", key, parameter=key)
        elif kind is Sum and key == "parts":
            values[key] = _parts(parameters[key], problems, place, left, depth, wrong)
        else:
            try:
                values[key] = msgspec.convert(parameters[key], field.type)
            except (msgspec.ValidationError, RecursionError):
                wanted = settings.wanted(settings.field_of(key, field.type))
                wrong("grader-parameter", key, parameter=key, value=reprlib.repr(parameters[key])[:60], reason=wanted)
    if len(problems) > before:
        return None
    made = kind(**values)
    problems += (msgspec.structs.replace(one, where=place.rstrip(".") or None) for one in made.faults())
    return made if len(problems) == before else None


def _parts(
    told: Any, problems: list[Problem], place: str, left: list[int], depth: int, wrong: Any
) -> list[Part]:  # fmt: skip
    """Make the graders of a sum: not too many, nor sums in sums without end, each with a weight above 0."""
    if not isinstance(told, list) or not told:
        wrong(
            "grader-parameter", "parts", parameter="parts", value=reprlib.repr(told)[:60], reason=t("it takes a list")
        )
        return []
    left[0] -= len(told)
    if left[0] < 0 or depth <= 1:
        wrong("grader-sum", most=MOST_PARTS, depth=MOST_DEPTH)
        return []
    return list(_each(told, problems, place, left, depth, wrong))


def _each(
    told: list[Any], problems: list[Problem], place: str, left: list[int], depth: int, wrong: Any
) -> Iterator[Part]:
    for number, part in enumerate(told):
        where = f"parts[{number}]"
        if not isinstance(part, dict) or "name" not in part or set(part) - {"name", "parameters", "weight"}:
            wrong("grader-part", where)
            continue
        weight = part.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 1_000:
            wrong("grader-weight", where, weight=reprlib.repr(weight)[:60])
            continue
        made = _made(part["name"], part.get("parameters", {}), problems, f"{place}{where}.", left, depth - 1)
        if made is not None:
            yield Part(made, float(weight))
