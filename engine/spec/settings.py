"""The dotted paths of a spec: what may be set, and how a text from a form or the command line becomes a value."""

from __future__ import annotations

import json
import reprlib
import types
import typing
from contextlib import suppress
from functools import lru_cache
from typing import Any, Literal

import msgspec
import yaml

from engine.spec.objectives import OBJECTIVES
from engine.spec.schema import RunSpec, value_at
from engine.words import Problem, t


class Field(typing.NamedTuple):
    """One dotted path of the spec: its type, title, help and limits, as the form and --set need them."""

    path: str
    type: Any
    title: str
    help: str
    limits: dict[str, float]
    choices: tuple[str, ...]
    pattern: str = ""


# Settings that name a data set; an empty text means none.
NAMES_DATA = ("dataset.eval_id", "train.replay_data")
_FIXED = {
    "schema", "kind", "day", "recipe.name", "recipe.sha256", "base.ref", "base.revision", "dataset.id", "adopted", "recover",
}  # fmt: skip


# So many characters of a value are shown: a list of modules may be as long as its file.
MOST_WORDS = 60


@lru_cache(maxsize=1)
def fields() -> dict[str, Field]:
    """Return every dotted path that may be set, in the order of the spec."""
    found: dict[str, Field] = {}

    def walk(struct: type, prefix: str) -> None:
        hints = typing.get_type_hints(struct, include_extras=True)
        for field in msgspec.structs.fields(struct):
            annotation, path = hints[field.name], f"{prefix}{field.encode_name}"
            plain = typing.get_args(annotation)[0] if _metas(annotation) else annotation
            if isinstance(plain, type) and issubclass(plain, msgspec.Struct):
                walk(plain, f"{path}.")
            elif path not in _FIXED:
                found[path] = field_of(path, annotation)

    walk(RunSpec, "")
    return found


def field_of(path: str, annotation: Any) -> Field:
    """Return what the annotation of a struct's field says of it; its title is its last name where it has none."""
    metas = _metas(annotation)
    plain = typing.get_args(annotation)[0] if metas else annotation
    metas = [*metas, *_within(plain)]
    limits = {k: v for m in metas for k in ("ge", "gt", "le", "lt") if (v := getattr(m, k)) is not None}
    title = next((m.title for m in metas if m.title), path.rpartition(".")[2])
    help_text = next((m.description for m in metas if m.description), "")
    choices = typing.get_args(plain) if typing.get_origin(plain) is Literal else ()
    pattern = next((m.pattern for m in metas if m.pattern), "")
    return Field(path, annotation, title, help_text, limits, choices, pattern)


def _metas(annotation: Any) -> list[msgspec.Meta]:
    return [meta for meta in getattr(annotation, "__metadata__", ()) if isinstance(meta, msgspec.Meta)]


def _within(annotation: Any) -> list[msgspec.Meta]:
    """Return the limits of what may be left open, and of the members of a list."""
    members = typing.get_args(annotation)
    return [meta for member in members for meta in [*_metas(member), *_within(member)]]


def _without_optional(annotation: Any) -> Any:
    plain = typing.get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
    if typing.get_origin(plain) in (types.UnionType, typing.Union):
        members = [a for a in typing.get_args(plain) if a is not type(None)]
        return _without_optional(members[0]) if len(members) == 1 else plain
    return plain


def parse_setting(text: str) -> tuple[str, Any] | Problem:
    """Turn "train.epochs=3" into its path and value, or say what is wrong with it."""
    path, equals, value = text.partition("=")
    field = fields().get(path.strip())
    if not equals or field is None:
        return Problem(rule="setting-unknown", where=path.strip()[:80])
    if _without_optional(field.type) is str:
        return field.path, value
    try:
        # JSON first: to YAML 1.1, 1e-05 is a text
        return field.path, json.loads(value, parse_constant=str)
    except (ValueError, RecursionError):
        pass
    try:
        loaded = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        # ValueError: 2020-99-99 is a date to YAML, 0b_ a number
        loaded = value
    if isinstance(loaded, bool) and _without_optional(field.type) is not bool:
        loaded = value  # to YAML 1.1, off and no are false
    return field.path, loaded


def wanted(field: Field) -> str:
    """Return in words what a setting takes."""
    plain = _without_optional(field.type)
    kinds = {int: t("a whole number"), float: t("a number"), bool: t("true or false"), str: t("text")}
    kind = kinds.get(plain, t("a list")) if not field.choices else t("one of: {names}", names=", ".join(field.choices))
    if field.path == "layers":
        kind = t("all, top:0.25, bottom_frozen:0.5 or a list such as [2, 3]")
    if field.path == "train.tolerance":
        kind = t("off, low, medium, high or a number of nats")
    if field.path == "dataset.grader":
        kind = t("a grader as JSON, with its name and parameters")
    if field.path == "machine.address":
        kind = t("a name or an address such as 192.168.1.10")
    bounds = {"ge": t("at least"), "gt": t("above"), "le": t("at most"), "lt": t("below")}
    limits = [f"{bounds[name]} {value:,.12g}" for name, value in field.limits.items()]
    return t("it takes {kind}", kind=", ".join([kind, *limits]))


def choice_words(path: str) -> dict[Any, str]:
    """Return what the choices of a setting are called, where their own names say little."""
    left_open = {None: t("as the machine needs it"), True: t("on"), False: t("off")}
    words: dict[str, dict[Any, str]] = {
        "objective": {name: one.title for name, one in OBJECTIVES.items()},
        "adapter": {"full": t("full fine-tuning"), "lora": "LoRA", "oft": "OFT"},
        "quantize": {"none": t("none"), "8bit": t("8 bits"), "4bit": t("4 bits")},
        "layers": {"all": t("all")},
        "train.tolerance": {"off": t("off"), "low": t("little"), "medium": t("some"), "high": t("much")},
        "train.gradient_checkpointing": left_open,
        "train.padding_free": left_open,
        "train.max_steps": {0: t("as the epochs ask")},
        "train.early_stopping": {0: t("off")},
        "train.threads": {0: t("all cores")},
        "train.replay_data": {None: t("written by the base, or the starter's own")},
        "train.optimizer": {"auto": t("as the machine needs it"), "adamw": "AdamW", "adamw_8bit": t("AdamW in 8 bits")},
        "objective_args.keep": {
            "plain": t("not at all"), "kl": t("hold it to the base"),
            "entropy": t("learn less where it is sure of something else"),
            "skip_surprising": t("leave out what surprises the base"),
        },
        "dataset.most_rows": {0: t("all")},
        "evaluate.limit": {0: t("all")},
        "evaluate.along": {0: t("none")},
        "evaluate.template": {"auto": t("as is usual for the benchmark"), "chat": t("chat template")},
        "adapter_args.target_modules": {"all-linear": t("all linear layers"), "feed-forward": t("feed-forward layers")},
        "machine.backend": {"auto": t("as the machine needs it"), "plain": "transformers + peft", "unsloth": "Unsloth"},
        "machine.precision": {"auto": t("as the machine needs it")},
    }  # fmt: skip
    return words.get(path, {})


def value_words(path: str, value: Any) -> str:
    """Return a setting's value as Train says it: "much" for a tolerance of "high", "none" for what is left open."""
    with suppress(TypeError):  # a list has no name
        named = choice_words(path).get(value)
        if named is not None:
            return named
    if value is None or value in ("", []):
        return t("none")
    if isinstance(value, bool):
        return t("yes") if value else t("no")
    if isinstance(value, float):
        return f"{value:g}"
    told = ", ".join(map(str, value)) if isinstance(value, list) else str(getattr(value, "name", value))  # of a grader
    return told if len(told) <= MOST_WORDS else told[: MOST_WORDS - 1] + "…"


def convert_setting(path: str, value: Any) -> Any | Problem:
    """Return `value` as the type of `path`, or a Problem that says what the setting takes."""
    try:
        # strict=False lets "3" stand for 3, as it comes from a form or a command line
        converted = msgspec.convert(value, fields()[path].type, strict=not isinstance(value, str | int))
        if isinstance(converted, float):
            converted += 0.0  # there is one zero
        return None if converted == "" and path in (*NAMES_DATA, "objective_args.reward_model") else converted
    except msgspec.ValidationError:
        reason = wanted(fields()[path])
    try:
        # reprlib: a few characters of YAML can stand for more text than memory holds
        shown = value if isinstance(value, str) else reprlib.repr(value)
    except ValueError:  # a number of more digits than Python writes down
        shown = "…"
    return Problem(rule="setting-value", where=path, parameters={"value": shown[:60], "reason": reason})


def problems(spec: RunSpec) -> list[Problem]:
    """Return what of a spec lies beyond the limits of its setting, however it was put together."""
    found = (convert_setting(path, value_at(spec, path)) for path in fields())
    return [one for one in found if isinstance(one, Problem)]
