"""A case: what is to be measured, read from one YAML of bench/measure/cases/ and taken apart into single runs."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml

from engine.spec import settings

CASES = Path(__file__).parent / "cases"
CONTROL = "general text (control)"


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the folder that --data names, by its sha256, and how many of its rows are trained on."""

    file: str
    sha256: str
    rows: int
    licence: str
    settings: dict[str, Any] = {}


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`grid` gives each recipe the values its settings take in turn. The control trains on general text alone, once for
    each recipe and value: on a base that was rounded, any training heals what the rounding broke, which hides a loss."""

    title: str
    base: str  # as the picker names it, or a reference
    data: dict[str, Data]
    control: Data
    grid: dict[str, dict[str, list[Any]]]
    settings: dict[str, Any]
    seeds: list[int]
    name: str = ""


class Piece(NamedTuple):
    """One run of a case: its data by name, and all that differs from the recipe's defaults."""

    data: str
    recipe: str
    varied: dict[str, Any]
    seed: int
    settings: dict[str, Any]

    @property
    def words(self) -> str:
        varied = ", ".join(f"{path.rpartition('.')[2]} {value:g}" for path, value in self.varied.items())
        return f"{self.data}, {self.recipe}, {varied}, seed {self.seed}"


def read(name: str) -> Case:
    """Return a case by its name. Raises ValueError, which names what is wrong with its file."""
    path = CASES / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"there is no case {name}: {', '.join(sorted(one.stem for one in CASES.glob('*.yaml')))}")
    try:
        case = msgspec.convert(yaml.safe_load(path.read_bytes()), Case)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    groups = [case.settings, case.control.settings, *(one.settings for one in case.data.values()), *case.grid.values()]
    unknown = sorted({path for group in groups for path in group} - set(settings.fields()))
    if unknown:
        raise ValueError(f"{path.name}: not a setting: {', '.join(unknown)}")
    return msgspec.structs.replace(case, name=name)


def pieces(case: Case) -> list[Piece]:
    """Return the runs of a case, in an order that gives every data set and recipe some before any has all."""
    found = []
    for seed in case.seeds:
        grids = {recipe: _varied(grid) for recipe, grid in case.grid.items()}
        for place in range(max(map(len, grids.values()))):
            for data, (recipe, varied) in itertools.product([*case.data, CONTROL], grids.items()):
                if place < len(varied):
                    one = case.control if data == CONTROL else case.data[data]
                    changed = {**case.settings, **one.settings, **varied[place], "train.seed": seed}
                    found.append(Piece(data, recipe, varied[place], seed, {**changed, "dataset.most_rows": one.rows}))
    return found


def _varied(grid: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def of(case: Case, data: str) -> Data:
    """Return a data set of a case by its name."""
    return case.control if data == CONTROL else case.data[data]


def file_of(data: Data, folder: Path) -> Path:
    """Return the file of a data set. Raises ValueError when it is not there or is another."""
    path = folder / data.file
    if not path.is_file():
        raise ValueError(f"{data.file} is not in the folder of --data")
    if hashlib.sha256(path.read_bytes()).hexdigest() != data.sha256:
        raise ValueError(f"{data.file} is another file than the case names")
    return path
