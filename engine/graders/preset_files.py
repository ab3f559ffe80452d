"""Presets: graders with a title and settings, read from recipes/graders/*.yaml; a person adds one by dropping a file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import msgspec

from engine.words import t

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "graders"


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An answer, and the row it answers."""

    answer: str
    row: dict[str, Any] = {}


class Examples(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Answers that a preset finds right, and answers that it does not."""

    right: Annotated[list[Example], msgspec.Meta(min_length=1)]
    wrong: Annotated[list[Example], msgspec.Meta(min_length=1)]


class Preset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A grader with a title: `id` is its file's name and what a data set names, `name` the kind of grader."""

    id: str = ""
    title: str
    about: str
    name: str
    parameters: dict[str, Any] = {}
    source: str
    examples: Examples

    @property
    def shown(self) -> str:
        """Its title in the language of whoever reads."""
        return t(self.title)


@lru_cache(maxsize=1)
def presets() -> tuple[Preset, ...]:
    """Return every preset, by its file's name. Raises ValueError, with the file, where one cannot be read."""
    import yaml

    found = []
    for path in sorted(FOLDER.glob("*.yaml")):
        try:
            made = msgspec.convert(yaml.safe_load(path.read_bytes()), Preset)
        except (yaml.YAMLError, msgspec.ValidationError) as error:
            raise ValueError(f"{path.name}: {error}") from error
        found.append(msgspec.structs.replace(made, id=path.stem))
    return tuple(found)


def find(name: Any) -> Preset | None:
    """Return the preset of a name, None where there is none."""
    return next((preset for preset in presets() if preset.id == name), None)
