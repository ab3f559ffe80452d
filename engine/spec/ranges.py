"""Which values of a setting are known to work: the ranges of the guide's rules and of the recipes, each with its source.

A recipe's own range for bases of a size comes first, such as what was measured on the starter; else the range of the
guide's rule that stands for such a run. Where neither gives one, nothing is known and nothing is said.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
import yaml

from engine.spec import recipes
from engine.spec.schema import RunSpec, value_at

GUIDE_DIR = recipes.RECIPES_DIR / "guide"
# What decides whether a run learns or breaks. How much is mixed in and how many rows a step has are choices, not mistakes.
WATCHED = (
    "train.learning_rate", "objective_args.beta", "train.epochs", "adapter_args.rank", "adapter_args.alpha",
    "adapter_args.dropout", "adapter_args.block_size", "train.warmup", "train.weight_decay",
)  # fmt: skip
# Of a base that is nowhere to be asked: a size that most have.
UNKNOWN_PARAMETERS = 7e9


class Setting(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What Tunebook uses for one setting where a rule of the guide speaks of it, and for which choices.

    `path` is a dotted path of the spec, or `effective_batch`: rows per optimizer step, batch size x accumulation.
    Empty lists mean all. `guide` is the guide's own value when it differs.
    """

    path: str
    value: Any
    low: float | None = None
    high: float | None = None
    guide: str | None = None
    objectives: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    at_least_parameters: float = 0
    below_parameters: float = float("inf")

    def stands_for(self, *, objective: str, adapter: str, recipe: str, parameters: float) -> bool:
        """Whether this is the value for such a run on a base of so many parameters."""
        return (
            (not self.objectives or objective in self.objectives)
            and (not self.adapters or adapter in self.adapters)
            and (not self.recipes or recipe in self.recipes)
            and self.at_least_parameters <= parameters < self.below_parameters
        )


class Range(NamedTuple):
    """What is known to work for a setting in a run: from `low` to `high`, `usual` among it, by `source`."""

    path: str
    low: float
    high: float
    usual: Any
    source: str

    def holds(self, value: float) -> bool:
        """Whether a value lies in it. Rounding is no step outside."""
        return self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)


# the same safe loader, in C where PyYAML was built with it: ten times faster
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Rule(msgspec.Struct, frozen=True):
    """What of a rule of the guide is needed here; engine/advise/guide.py reads and checks all of it."""

    source: str
    settings: tuple[Setting, ...] = ()


class _Section(msgspec.Struct, frozen=True):
    rules: tuple[_Rule, ...]


@lru_cache(maxsize=1)
def _of_the_guide() -> tuple[tuple[Setting, str], ...]:
    found = []
    for path in sorted(GUIDE_DIR.glob("*.yaml")):
        section = msgspec.convert(yaml.load(path.read_bytes(), _Loader), _Section)  # noqa: S506 - a safe loader
        found += [(one, rule.source) for rule in section.rules for one in rule.settings if one.low is not None]
    return tuple(found)


def of(spec: RunSpec, recipe: recipes.Recipe, parameters: float | None) -> list[Range]:
    """Return what is known of the settings of such a run on a base of so many parameters."""
    found = []
    for path in WATCHED:
        default = recipe.default(path, parameters, spec.adapter)
        if default is not None and default.range is not None:
            found.append(Range(path, default.range.low, default.range.high, default.value, default.range.source))
            continue
        for one, source in _of_the_guide():
            stands = one.path == path and one.stands_for(
                objective=spec.objective, adapter=spec.adapter, recipe=spec.recipe.name,
                parameters=UNKNOWN_PARAMETERS if parameters is None else parameters,
            )  # fmt: skip
            if stands and one.low is not None and one.high is not None:
                usual = default.value if default is not None and one.low <= default.value <= one.high else one.value
                found.append(Range(path, one.low, one.high, usual, source))
                break
    return found


def outside(spec: RunSpec, recipe: recipes.Recipe, parameters: float | None) -> list[tuple[Range, float]]:
    """Return the ranges that the settings of a run lie outside of, each with the value that does. An adapter that is
    trained on is as it was made, and a warm-up of 1 or more is a count of steps, which no range is for."""
    found = []
    for one in of(spec, recipe, parameters):
        value = value_at(spec, one.path)
        is_taken = one.path.startswith("adapter_args.") and spec.adapter_args.continues
        is_count = one.path == "train.warmup" and value >= 1
        if value is not None and not (is_taken or is_count or one.holds(value)):
            found.append((one, value))
    return found


def is_usual(spec: RunSpec, parameters: float | None) -> bool:
    """Whether no setting of a run lies outside of what is known to work. Of a recipe that is gone nothing is known."""
    recipe = recipes.recipes().get(spec.recipe.name)
    return recipe is None or not outside(spec, recipe, parameters)
