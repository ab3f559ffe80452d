"""docs/colab.ipynb: a notebook as the format wants it, whose code is Python and whose commands are ours."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from engine import guard, starter
from engine.cli.parser import app, parser
from engine.estimate import cards
from engine.machine import builds
from engine.spec import recipes
from tests.helpers import PROJECT_DIR

NOTEBOOK: dict[str, Any] = json.loads((PROJECT_DIR / "docs/colab.ipynb").read_text("utf-8"))
CELLS: list[dict[str, Any]] = NOTEBOOK["cells"]
CODE = {cell["id"]: "".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"}
# A line that is the shell's or a magic word's, and not Python.
_SHELL = re.compile(r"^(\s*)[!%](.*)$", re.MULTILINE)
TOOL = "tunebook/.venv/bin/tunebook"


def lists(code: str) -> list[list[str]]:
    """Return the lists of words in code, a name in them as a host's."""
    found = []
    for node in ast.walk(ast.parse(_SHELL.sub(r"\1pass", code))):
        if isinstance(node, ast.List):
            found.append([str(one.value) if isinstance(one, ast.Constant) else "box.example" for one in node.elts])
    return found


def commands() -> list[list[str]]:
    """Return what is given to Tunebook's command in each place."""
    lines = [shlex.split(line[2]) for code in CODE.values() for line in _SHELL.finditer(code)]
    lines += [words for code in CODE.values() for words in lists(code)]
    return [words[1:] for words in lines if words[:1] == [TOOL]]


def test_it_is_a_notebook_of_format_4_5_that_has_not_been_run() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert set(NOTEBOOK) == {"nbformat", "nbformat_minor", "metadata", "cells"}
    assert NOTEBOOK["metadata"]["colab"]["gpuType"] == "T4"
    ids = [cell["id"] for cell in CELLS]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", one) for one in ids)
    for cell in CELLS:
        usual = {"id", "cell_type", "metadata", "source"}
        assert set(cell) == (usual | {"outputs", "execution_count"} if cell["cell_type"] == "code" else usual)
        assert all(isinstance(line, str) and line.endswith("\n") for line in cell["source"][:-1])
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.parametrize("cell", CODE)
def test_every_cell_is_python_or_a_command(cell: str) -> None:
    compile(_SHELL.sub(r"\1pass", CODE[cell]), cell, "exec")


def test_every_command_of_ours_is_one() -> None:
    found = commands()
    assert len(found) == 3
    for words in found:
        arguments = parser().parse_args(words)
        if arguments.function is app:
            assert arguments.share_host == ["box.example"]
            continue
        if words[0] == "advise":
            assert arguments.base_parameters == 7e9
            continue
        assert arguments.recipe in recipes.recipes() and arguments.base == "starter"
        assert arguments.data in {sample.name for sample in starter.SAMPLES}


def test_what_was_fetched_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tunebook").mkdir()
    (tmp_path / "tunebook/pyproject.toml").touch()
    exec(CODE["fetch"], {"SOURCE": "https://nowhere.example/tunebook"})
    monkeypatch.chdir("/")
    with pytest.raises(ModuleNotFoundError, match="google"):
        exec(CODE["fetch"], {"SOURCE": ""})


@pytest.mark.parametrize("driver", ["580.95.05", "550.54.15", "535.104.05"])
def test_it_installs_the_torch_that_runs_on_the_driver_that_is_there(driver: str) -> None:
    told: dict[str, Any] = {"card": f"Tesla T4, {driver}, 15360 MiB"}
    exec(_SHELL.sub(r"\1pass", CODE["install"]), told)
    wheels = next(one for one in builds.WHEELS if one.index == told["wheels"])
    assert builds.mismatch(builds.TorchBuild(cards.TORCH, wheels.cuda), driver, 7.5) is None
    assert f"torch=={cards.TORCH} --index-url https://download.pytorch.org/whl/{{wheels}}" in CODE["install"]


def test_it_reads_the_link_that_the_server_prints_and_installs_what_is_there() -> None:
    (pattern,) = re.findall(r'"tunebook.log", r"(.*?)"\)', CODE["open"])
    printed = f"Log in once with http://a.example:8501{guard.LOGIN_ROUTE}?token=abc-_1 (behind a proxy: its address ..."
    found = re.search(pattern, printed)
    assert found is not None and found[1] == f"{guard.LOGIN_ROUTE}?token=abc-_1"
    assert "Log in once with" in (PROJECT_DIR / "app.py").read_text() and "8501" in CODE["open"]
    for name in ("constraints.txt", "pyproject.toml"):
        assert name in "".join(CODE.values()) and (PROJECT_DIR / name).is_file()
