"""A case: what is to be measured, read from one YAML of bench/measure/cases/ and taken apart into single runs."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml

from engine import starter
from engine.spec import settings

CASES = Path(__file__).parent / "cases"
CONTROL = "general text (control)"


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the folder that --data names, or a sample of the starter with its questions, by the file's sha256, and how
    many of its rows are trained on (0: all)."""

    sha256: str
    rows: int
    licence: str
    file: str = ""
    sample: str = ""
    settings: dict[str, Any] = {}

    @property
    def title(self) -> str:
        return self.sample or self.file


class Way(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way to train among others, by the settings that make it, and the recipes that have it (none: all)."""

    settings: dict[str, Any]
    recipes: list[str] = []


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`grid` gives each recipe the values its settings take in turn. The control trains on general text alone, once for
    each recipe and value: on a base that was rounded, any training heals what the rounding broke, which hides a loss.
    `ways` are held against each other, with each recipe; `notes` say what the figures cannot. With `keeps_runs` what is
    trained stays in the home, to be measured on."""

    title: str
    base: str  # as the picker names it, or a reference
    data: dict[str, Data]
    grid: dict[str, dict[str, list[Any]]]
    settings: dict[str, Any]
    seeds: list[int]
    control: Data | None = None
    ways: dict[str, Way] = {}
    notes: list[str] = []
    keeps_runs: bool = False
    name: str = ""

    @property
    def all_data(self) -> list[str]:
        """The names of its data sets, the control last."""
        return [*self.data, *([CONTROL] if self.control is not None else [])]


class Piece(NamedTuple):
    """One run of a case: its data by name, and all that differs from the recipe's defaults."""

    data: str
    recipe: str
    varied: dict[str, Any]
    seed: int
    settings: dict[str, Any]
    way: str = ""

    @property
    def words(self) -> str:
        varied = [f"{path.rpartition('.')[2]} {value:g}" for path, value in self.varied.items()]
        return ", ".join(filter(None, [self.data, self.recipe, self.way, *varied, f"seed {self.seed}"]))


def read(name: str) -> Case:
    """Return a case by its name. Raises ValueError, which names what is wrong with its file."""
    path = CASES / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"there is no case {name}: {', '.join(sorted(one.stem for one in CASES.glob('*.yaml')))}")
    try:
        case = msgspec.convert(yaml.safe_load(path.read_bytes()), Case)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    groups = [case.settings, *(of(case, one).settings for one in case.all_data), *case.grid.values()]
    groups += [one.settings for one in case.ways.values()]
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
            ways = case.ways or {"": Way({})}
            for name, data, (recipe, varied) in itertools.product(ways, case.all_data, grids.items()):
                if place < len(varied) and recipe in (ways[name].recipes or grids):
                    one, way = of(case, data), ways[name]
                    changed = {**case.settings, **one.settings, **way.settings, **varied[place], "train.seed": seed}
                    changed["dataset.most_rows"] = one.rows
                    found.append(Piece(data, recipe, varied[place], seed, changed, name))
    return found


def _varied(grid: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def of(case: Case, data: str) -> Data:
    """Return a data set of a case by its name."""
    found = case.control if data == CONTROL else case.data[data]
    if found is None:
        raise KeyError(data)
    return found


def file_of(data: Data, folder: Path | None) -> Path:
    """Return the file of a data set. Raises ValueError when it is not there or is another."""
    if not data.sample and folder is None:
        raise ValueError(f"--data must name the folder that has {data.file}")
    path = starter.sample(data.sample).file if data.sample else (folder or Path()) / data.file
    if not path.is_file():
        raise ValueError(f"{data.title} is not in the folder of --data")
    if hashlib.sha256(path.read_bytes()).hexdigest() != data.sha256:
        raise ValueError(f"{data.title} is another file than the case names")
    return path
