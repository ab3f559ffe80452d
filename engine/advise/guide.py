"""The guide's rules as data: what it recommends and when, in its own words, and what holds up against the sources.

`recipes/guide/*.yaml` has one file per section of the guide. A rule is never shown without its verdict; the numbers
Tunebook uses in its place stand in `settings`, each in exactly one rule, so that a number has one home.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import msgspec
import yaml

from engine.spec import ranges
from engine.words import t

GUIDE_DIR = ranges.GUIDE_DIR

Verdict = Literal["agree", "incomplete", "disputed", "unproven", "wrong", "outdated", "vendor claim", "contradiction"]
# What each verdict means; the closed set of Verdict, in the order a page lists them.
VERDICTS: dict[str, str] = {
    "agree": "The sources say the same.",
    "incomplete": "Right in direction; something that decides the outcome is missing.",
    "disputed": "The sources disagree, or it holds under narrower conditions than stated.",
    "unproven": "Plausible, with little independent evidence.",
    "wrong": "The sources contradict it.",
    "outdated": "It was right for older versions of the libraries.",
    "vendor claim": "Known from the maker of the tool alone.",
    "contradiction": "Two places of the guide say different things; one had to be chosen.",
}


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When a row of a scenario table applies. A limit itself belongs to the smaller class: above < value <= at_most."""

    rows_above: int | None = None
    rows_at_most: int | None = None
    memory_above_gb: int | None = None  # as the card is sold, not as it reports
    memory_at_most_gb: int | None = None
    alignment: tuple[str, ...] = ()
    imbalance_above: float | None = None  # the more frequent label over the rarer one


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One rule: `when` it applies, what the guide `says` (English), its own `phrase` (Chinese, verbatim; `also` where it
    spans several lines), the `verdict`, the `value_used` instead or the same, and `why`, with the `source`.

    `recommends` names the recipes or adapters it speaks for, so that fired rules can be set against a choice.
    """

    id: str
    when: str
    says: str
    phrase: str
    verdict: Verdict
    value_used: str
    why: str
    source: str
    table: str = ""
    also: tuple[str, ...] = ()
    recommends: tuple[str, ...] = ()
    condition: Condition | None = None
    settings: tuple[ranges.Setting, ...] = ()

    @property
    def phrases(self) -> tuple[str, ...]:
        """Every piece of the guide this rule stands on."""
        return (self.phrase, *self.also)

    @property
    def words(self) -> str:
        """What it says, without codes: a contradiction is told by those of the places it stands in."""
        return t("Two places of the guide say different things") if self.verdict == "contradiction" else t(self.says)

    @property
    def spoken(self) -> str:
        """Its phrases in one line, to be read."""
        return " … ".join(map(without_marks, self.phrases))


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    title: str
    table: str
    rules: list[Rule]


def without_marks(phrase: str) -> str:
    """Return a phrase of the guide without the asterisks that set words bold there."""
    return phrase.replace("**", "")


class GuideError(ValueError):
    """A file of the guide's tables that cannot be used; the text names the file and what is wrong."""


def load_section(path: Path) -> tuple[str, list[Rule]]:
    """Read one file: its title and its rules; a rule without a table of its own belongs to the file's.

    Raises GuideError for bad YAML, unknown fields and verdicts outside the closed set.
    """
    try:
        section = msgspec.convert(yaml.load(path.read_bytes(), _Loader), _Section)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, msgspec.ValidationError, RecursionError) as error:
        raise GuideError(f"{path.name}: {error}") from error
    return section.title, [msgspec.structs.replace(rule, table=rule.table or section.table) for rule in section.rules]


# the same safe loader, in C where PyYAML was built with it: ten times faster
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@lru_cache(maxsize=1)
def rules() -> dict[str, Rule]:
    """Return every rule by id, in the order of the guide's numbering. Read once per process."""
    found: dict[str, Rule] = {}
    for path in sorted(GUIDE_DIR.glob("*.yaml")):
        for rule in load_section(path)[1]:
            if rule.id in found:
                raise GuideError(f"{path.name}: {rule.id} is there twice")
            found[rule.id] = rule
    return dict(sorted(found.items(), key=lambda item: (item[0][0], int(item[0][1:]))))


@lru_cache(maxsize=64)
def _table(name: str) -> tuple[Rule, ...]:
    return tuple(rule for rule in rules().values() if rule.table == name)


def table(name: str) -> list[Rule]:
    """Return the rules of one table: rows, memory and alignment are the scenario tables, the others the sections."""
    return list(_table(name))


@lru_cache(maxsize=1)
def settings() -> tuple[tuple[Rule, ranges.Setting], ...]:
    """Return every setting that stands in a rule, with its rule."""
    return tuple((rule, setting) for rule in rules().values() for setting in rule.settings)


@lru_cache(maxsize=1)
def _titles() -> dict[str, str]:
    titles = {}
    for path in sorted(GUIDE_DIR.glob("*.yaml")):
        title, section = load_section(path)
        titles[section[0].id[0]] = (path.stem, title)
    return dict(titles[letter] for letter in sorted(titles))


def tables() -> dict[str, str]:
    """Return every section's table name and title, in the order of the guide's numbering."""
    return dict(_titles())
