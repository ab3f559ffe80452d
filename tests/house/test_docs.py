"""The README and the settings say what is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from engine import starter
from engine.cli import parser
from engine.spec import recipes
from tests.conftest import ROOT
from tests.house.sources import OURS, sources

README = (ROOT / "README.md").read_text("utf-8")
FOLDERS = [name for name in OURS if (ROOT / name).is_dir()]
CONFIG = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text("utf-8"))


def test_every_command_is_in_the_readme() -> None:
    commands = next(a for a in parser.parser()._actions if a.choices and "check" in a.choices).choices or {}
    for name in commands:
        assert re.search(rf"tunebook {name}|· {name} ", README), name


def test_every_module_the_map_names_is_there() -> None:
    house = README.split("## The map of the house")[1].split("```")[1]
    named = set(re.findall(r"\b\w+\.py\b", house))
    assert (
        sorted(named - {path.name for path in ROOT.glob("*.py")} - {path.name for path in files("engine", "pages")})
        == []
    )
    for name in re.findall(r"^(\w+/)", house, re.MULTILINE):
        assert (ROOT / name).is_dir(), name
    stories = [name for line in house.splitlines() for name in re.findall(r"[├└]─ (\w+)", line)]
    rooms = {path.name for path in (ROOT / "engine").iterdir() if (path / "__init__.py").exists()}
    modules = {path.name for path in (ROOT / "engine").glob("[a-z]*.py")}
    assert rooms <= set(stories) and modules <= named and len(stories) == len(set(stories))


def test_every_file_of_ours_that_a_text_names_is_there() -> None:
    gone = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in [*files(*FOLDERS), *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "Makefile"]
        for name in re.findall(
            rf"(?<![\w/])(?:{'|'.join(FOLDERS)})/[\w/-]+\.(?:py|yaml|toml|md)\b", path.read_text("utf-8")
        )
        if not (ROOT / name).exists()
    }
    assert sorted(gone) == []


def test_what_make_set_up_once_it_does_not_set_up_again() -> None:
    rules = re.findall(r"^(\$\((?:STAMP\w*|VENV)\)\S*):.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text("utf-8"), re.M)
    assert len(rules) >= 5
    assert [target for target, steps in rules if not steps.endswith("\ttouch $@\n")] == []


def files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sources(folder)]


def test_the_default_rates_and_replay_of_the_table_are_the_recipes() -> None:
    toy = float(starter.manifest()["parameters"])
    for name in ("full", "lora"):
        default = recipes.recipes()[name].default("train.replay_share", toy)
        assert default is not None
        assert f"| {name} | {100 * default.value:g} % (default) |" in README


def test_the_picture_of_the_readme_is_there() -> None:
    assert (ROOT / re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)[0]).stat().st_size > 10_000


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("server", "address", "127.0.0.1"),
        ("server", "fileWatcherType", "none"),
        ("server", "maxUploadSize", 1),
        ("server", "enableXsrfProtection", True),
        ("runner", "postScriptGC", False),
        ("browser", "gatherUsageStats", False),
    ],
)
def test_the_server_keeps_to_this_machine_and_tells_nobody(section: str, key: str, value: object) -> None:
    assert CONFIG[section][key] == value


def test_an_installation_without_the_settings_file_gets_the_same_ones() -> None:
    flags: dict[str, list[str]] = {}
    for flag in parser._FLAGS:
        name, value = flag.removeprefix("--").split("=")
        flags.setdefault(name, []).append(value)
    for name, values in flags.items():
        section, key = name.split(".")
        wanted = CONFIG[section][key]
        assert [str(one).lower() for one in (wanted if isinstance(wanted, list) else [wanted])] == values
