"""The catalogues of the interface: find every message, bring the .po files up to date, compile them. `make messages`.

A message is the first argument of t(), later() or say(), a text of one of the tables below that is looked up later, a
sentence of a rule, or a text of a recipe or of the guide's rules. They stand in the order of the files, without line
numbers, so that two people can add messages without a conflict. What is no longer used is dropped; what is new is left
empty and named.

    python -m tools.messages                  update and compile every catalogue, and name what lacks a translation
    python -m tools.messages --missing        print that as one JSON object, English -> ""
    python -m tools.messages --fill FILE      take translations from such an object, then update and compile
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import re
import string
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

from engine import processes

ROOT = processes.PROJECT_DIR
LOCALES = ROOT / "engine" / "words" / "locales"
LOOKED_UP = {"t", "later", "say", "words.t", "words.later", "_ui.say"}
# Keys of a YAML whose texts a person reads. The guide's own Chinese words (phrase, also) are shown as they stand.
RECIPE_KEYS = {"title", "about", "when", "trade", "says", "value_used", "why", "source", "guide", "measured"}
PACK_KEYS = {"title", "about"}
EARLIER = "said by a rule of an earlier version"
RULE_KEYS = {"says", "do", "help", "rows"}
# the same safe loader, in C where PyYAML was built with it: ten times faster
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Always the same, so that a catalogue changes only where a message does.
DATE = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def _in_code(path: Path) -> Iterator[str]:
    """Yield the literal texts a file looks up, from top to bottom."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    for node in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
        name = ast.unparse(node.func)
        if name not in LOOKED_UP:
            continue
        if node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
            yield node.args[0].value


def _in_tables() -> Iterator[tuple[str, str]]:
    """Yield file and text of the tables whose texts are looked up when they are shown."""
    from engine import starter
    from engine.check import report
    from engine.read import source
    from engine.spec import OBJECTIVES, settings

    for field in settings.fields().values():
        yield from (("engine/spec/settings.py", text) for text in (field.title, field.help))
    for objective in OBJECTIVES.values():
        yield from (
            ("engine/spec/objectives.py", text) for text in (objective.label, objective.goal, objective.loss_unit)
        )
    for sample in starter.SAMPLES:
        yield from (("engine/starter/stored.py", text) for text in (sample.title, sample.description))
    for texts in [("1 row", "{rows} rows"), *report._KINDS.values()]:
        yield from (("engine/check/report.py", text) for text in texts)
    for _, what in (*source._MAGIC, *source._OFFICE):
        yield "engine/read/source.py", what


def _under(value: Any, keys: set[str]) -> Iterator[str]:
    """Yield the texts that stand under one of `keys`, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in keys and isinstance(inner, str):
                yield inner
            else:
                yield from _under(inner, keys)
    elif isinstance(value, list):
        for inner in value:
            yield from _under(inner, keys)


def _in_data() -> Iterator[tuple[str, str]]:
    """Yield file and text of the rules of the engine, of the recipes and the guide, and of the pack of benchmarks."""
    kinds = (
        ("engine/**/sentences.yaml", RULE_KEYS), ("recipes/**/*.yaml", RECIPE_KEYS), ("engine/benchmarks/*.yaml", PACK_KEYS),
    )  # fmt: skip
    for files, keys in kinds:
        for path in sorted(ROOT.glob(files)):
            content = yaml.load(path.read_bytes(), LOADER)  # noqa: S506 - a safe loader
            for text in _under(content, keys):
                yield path.relative_to(ROOT).as_posix(), text


@lru_cache(maxsize=1)
def messages() -> dict[str, list[tuple[str, int]]]:
    """Return every message with the files it is in and its place in each."""
    code = [*ROOT.glob("pages/*.py"), *ROOT.glob("engine/**/*.py")]
    found: dict[str, list[tuple[str, int]]] = {}
    pairs = [(path.relative_to(ROOT).as_posix(), text) for path in sorted(code) for text in _in_code(path)]
    for place, (file, text) in enumerate([*pairs, *_in_tables(), *_in_data()], 1):
        places = found.setdefault(text, [])
        if text and file not in {name for name, _ in places}:
            places.append((file, place))
    return {text: places for text, places in found.items() if text}


def placeholders(text: str) -> list[str]:
    """Return the {names} of a text, sorted; none where braces are no placeholders."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
    except ValueError:  # a brace that is text
        return []
    return sorted({re.split(r"[.\[]", name)[0] for name in names})


def catalogue_paths() -> list[Path]:
    """Return the catalogue of every language."""
    return sorted(LOCALES.glob("*/LC_MESSAGES/tunebook.po"))


def read(path: Path) -> dict[str, str]:
    """Return the translations of a .po file that are there, by their English text."""
    with path.open("rb") as file:
        catalogue = read_po(file)
    return {str(message.id): str(message.string) for message in catalogue if message.id and message.string}


def earlier(path: Path) -> dict[str, str]:
    """Return what rules said before they were reworded or went, with its translation: a stored report keeps those words."""
    if not path.stat().st_size:
        return {}
    with path.open("rb") as file:
        catalogue = read_po(file)
    now = messages()
    return {
        str(one.id): str(one.string)
        for one in catalogue
        if one.id and one.string and str(one.id) not in now
        and (EARLIER in one.auto_comments or any(place.endswith("sentences.yaml") for place, _ in one.locations))
    }  # fmt: skip


def update(path: Path, known: dict[str, str]) -> list[str]:
    """Write a catalogue of all messages with the translations that are known, compiled beside it. Returns those
    messages that lack one."""
    language = path.parents[1].name
    catalogue = Catalog(
        locale=language, domain="tunebook", project="Tunebook", version="1", copyright_holder="Tunebook",
        msgid_bugs_address="", creation_date=DATE, revision_date=DATE, fuzzy=False,
        header_comment="# Tunebook's interface. Made by `make messages`; fill in what is empty, then run it again.",
    )  # fmt: skip
    missing = []
    for text, said in earlier(path).items():
        catalogue.add(text, said, auto_comments=[EARLIER]).flags.clear()
    for text, places in messages().items():
        message = catalogue.add(text, known.get(text, ""), locations=places)
        message.flags.clear()  # a "%" is a percent sign here
        if not known.get(text):
            missing.append(text)
    with path.open("wb") as file:
        write_po(file, catalogue, width=120, sort_by_file=True, include_lineno=False)
    with path.with_suffix(".mo").open("wb") as file:
        write_mo(file, catalogue)
    return missing


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.messages", description="The catalogues of the interface.")
    parser.add_argument("--missing", action="store_true", help="print what lacks a translation as a JSON object")
    parser.add_argument("--fill", type=Path, metavar="FILE", help="a JSON object, English -> translation")
    arguments = parser.parse_args(argv)
    given = json.loads(arguments.fill.read_text(encoding="utf-8")) if arguments.fill else {}
    wrong = [text for text, said in given.items() if said and placeholders(text) != placeholders(said)]
    if wrong:
        sys.exit("\n".join(["The placeholders differ:", *wrong]))
    for path in catalogue_paths():
        missing = update(path, {**(read(path) if path.stat().st_size else {}), **given})
        if arguments.missing:
            print(json.dumps(dict.fromkeys(missing, ""), ensure_ascii=False, indent=1))
            continue
        print(f"{path.relative_to(ROOT)}: {len(messages())} messages, {len(missing)} without a translation")
        for text in missing:
            print(f"  {text!r}")


if __name__ == "__main__":
    main()
