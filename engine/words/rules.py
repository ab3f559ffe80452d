"""The rules: what is wrong, what to do about it, and a line of help for those of the check.

They stand in sentences.yaml beside the package that raises them. A new rule is an entry there, a new package a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import msgspec

ENGINE = Path(__file__).resolve().parents[1]

Sentence = Annotated[str, msgspec.Meta(min_length=1)]


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a rule says, as texts to be looked up. `help` is for `tunebook check --rules`; `rows` is what is true of
    several rows that break it, of which there are {n}."""

    says: Sentence
    do: Sentence
    help: str = ""
    rows: str = ""


@lru_cache(maxsize=1)
def rules() -> Mapping[str, Rule]:
    """Return every rule by its id."""
    return read(ENGINE)


def read(folder: Path) -> dict[str, Rule]:
    """Read the rules of a folder and of the packages in it. Raises ValueError, with the files, when one stands twice or
    lacks a sentence."""
    import yaml  # most of what can raise a rule never does

    found: dict[str, Rule] = {}
    homes: dict[str, Path] = {}
    for path in sorted([*folder.glob("sentences.yaml"), *folder.glob("*/sentences.yaml")]):
        content = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - safe ones
        for rule, entry in content.items():
            if rule in found:
                raise ValueError(f"the rule {rule} stands in {homes[rule]} and in {path}")
            try:
                found[rule] = msgspec.convert(entry, Rule)
            except msgspec.ValidationError as error:
                raise ValueError(f"{path}: the rule {rule}: {error}") from error
            homes[rule] = path
    return found
