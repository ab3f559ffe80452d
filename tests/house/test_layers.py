"""The floors of the house: who may import whom, through which face, and how large a file or function may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.house.sources import PROJECT, imports, module_of, name_of, public_names, reached, sources, tree_of

# A package imports its own files and packages on floors below it, and these through their faces.
FLOORS = (
    ("in_line",),
    ("words", "workspace", "machine", "processes", "starter"),
    ("spec", "events", "limits", "guard", "looker", "benchmarks", "read", "gguf"),
    ("graders", "render", "models", "report"),
    ("check", "estimate", "brought"),
    ("data", "spare", "peers"),
    ("runs",),
    ("plan", "chat", "visitors", "remote", "quantised"),
    ("advise", "forgetting", "export", "damaged"),
    ("serve",),
    ("room",),
    ("cli", "worker", "train"),
    ("waiting",),
)
MOST_LINES, MOST_FUNCTION_LINES, MOST_NAMES = 450, 60, 12
# Functions that may be longer, each with its reason; at most five.
LONG_FUNCTIONS: dict[str, str] = {}
# What was so when the rule came; only ever shorter.
KNOWN = Path(__file__).with_name("known.txt")

FLOOR_OF = {package: number for number, floor in enumerate(FLOORS, 1) for package in floor}
SCANNED = sources("app.py", "pages", "engine", "bench")


def package_of(module: str) -> str:
    """Return the package a module belongs to: what stands below engine, or one of those above all floors."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] if first == "engine" else first


def floor_of(module: str) -> int:
    """Return the floor of a module; pages, app and bench stand above all."""
    if module.partition(".")[0] != "engine":
        return len(FLOORS) + 1
    return FLOOR_OF.get(package_of(module), 0)


@cache
def face(package: str) -> list[str] | None:
    """Return the names of the face of a package, given by its full name; None for a single file, which is its own."""
    path = PROJECT.joinpath(*package.split("."), "__init__.py")
    return (public_names(path) or []) if path.exists() else None


def is_public(name: str) -> bool:
    """Whether each part of a full name is named by the face of the package it lies in."""
    parts = name.split(".")
    for number in range(2, len(parts)):
        names = face(".".join(parts[:number]))
        if names is None:
            return True
        if parts[number] not in names:
            return False
    return True


@cache
def modules() -> dict[str, Path]:
    return {module_of(path): path for path in SCANNED}


def home_of(name: str) -> str:
    """Return the module that an imported full name lies in: itself, or what it is a name of."""
    return name if name in modules() else name.rpartition(".")[0]


def wrong_imports() -> Iterator[str]:
    """Yield every import from a floor that is not below, past a face, or of another file's private name."""
    for path in SCANNED:
        here = module_of(path)
        named = {name for _, name, _ in imports(path)}
        # a module that is reached by attributes is imported as much as one that is named
        named |= {name for _, name in reached(path) if name in modules()}
        for name in sorted(named):
            there = home_of(name)
            last = name.rpartition(".")[2]
            if (
                last.startswith("_")
                and not last.startswith("__")
                and name not in modules()
                and there in set(modules()) - {here}
            ):
                yield f"{name_of(path)} imports {name}, which is private"
            if not name.startswith("engine.") or there == "engine" or package_of(there) == package_of(here):
                continue
            if floor_of(there) >= floor_of(here):
                yield f"{name_of(path)} imports {name}: floor {floor_of(here)} from floor {floor_of(there)}"
            if not is_public(name):
                yield f"{name_of(path)} imports {name} past its face"


def circles() -> Iterator[str]:
    """Yield every file that reaches itself through imports, lazy ones too."""
    graph = {
        module: {home_of(name) for _, name, _ in imports(path)} & set(modules()) - {module}
        for module, path in modules().items()
    }
    for module in graph:
        seen, todo = set(), list(graph[module])
        while todo:
            one = todo.pop()
            if one not in seen:
                seen.add(one)
                todo += graph[one]
        if module in seen:
            yield f"{name_of(modules()[module])} stands in a circle of imports"


def too_large() -> Iterator[str]:
    """Yield every file and function that is too long, and every face that is too wide."""
    for path in SCANNED:
        if len(path.read_text("utf-8").splitlines()) > MOST_LINES:
            yield f"{name_of(path)} has over {MOST_LINES} lines"
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                place = f"{name_of(path)}: {node.name}"
                if (node.end_lineno or 0) - node.lineno >= MOST_FUNCTION_LINES and place not in LONG_FUNCTIONS:
                    yield f"{place} has over {MOST_FUNCTION_LINES} lines"
    for package in FLOOR_OF:
        if len(face(f"engine.{package}") or []) > MOST_NAMES:
            yield f"engine/{package} shows over {MOST_NAMES} names"


def test_everything_in_the_engine_stands_on_a_floor():
    found = {package_of(module) for module in modules() if module.startswith("engine.")}
    assert found - {"_faces"} <= set(FLOOR_OF)


def test_a_face_names_what_is_there_and_loads_nothing():
    """Each name of a face can be imported; the faces alone bring no library that takes time."""
    faces = [f"engine.{path.parent.name}" for path in sorted((PROJECT / "engine").glob("*/__init__.py"))]
    light = [name for name in faces if name != "engine.train"]  # whose modules import torch
    code = f"""
import importlib, sys
for name in {faces!r}: importlib.import_module(name)
print(sorted({{"numpy", "pandas", "pyarrow", "scipy", "torch", "yaml"}} & set(sys.modules)))
for face in {light!r}:
    for name in sys.modules[face].__all__: exec(f"from {{face}} import {{name}}")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_house_has_no_new_fault():
    found = sorted({*wrong_imports(), *circles(), *too_large()})
    known = KNOWN.read_text("utf-8").splitlines()
    assert [one for one in found if one not in known] == []
    assert [one for one in known if one not in found] == [], "mended: take it from the list"


def test_few_functions_may_be_longer():
    assert len(LONG_FUNCTIONS) <= 5
