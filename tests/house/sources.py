"""The Python of the project, parsed once for all scans: files, and what each of them imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from engine import processes

PROJECT = processes.PROJECT_DIR
OURS = ("app", "bench", "engine", "pages", "recipes", "tests", "tools")


def sources(*places: str) -> list[Path]:
    """Return the Python files of folders and files of the project."""
    found = []
    for place in places:
        path = PROJECT / place
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return found


def name_of(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def module_of(path: Path) -> str:
    """Return the dotted name of a file; a package is called by its folder."""
    return path.relative_to(PROJECT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes(), str(path))


def imports(path: Path) -> Iterator[tuple[int, str, ast.AST]]:
    """Yield line, full name and node of everything a file imports, wherever in the file; relative names resolved."""
    package = path.relative_to(PROJECT).with_suffix("").parts
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, node
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: -node.level]) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}", node
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            given = [*node.args[:1], *(one.value for one in node.keywords if one.arg == "name")]
            if called in ("import_module", "__import__") and given and isinstance(given[0], ast.Constant):
                yield node.lineno, str(given[0].value), node


def reached(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and full name of everything a file reaches by attributes of what it imports, as data.making.fill."""
    bound = {}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            bound |= {
                one.asname or one.name.partition(".")[0]: one.name if one.asname else top(one.name)
                for one in node.names
            }
        elif isinstance(node, ast.ImportFrom) and not node.level:
            bound |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            if first in bound and all(part.isidentifier() for part in rest.split(".")):
                yield node.lineno, f"{bound[first]}.{rest}"


def top(name: str) -> str:
    return name.partition(".")[0]


def public_names(path: Path) -> list[str] | None:
    """Return what a face lists in `__all__`, or None when it lists nothing."""
    for node in tree_of(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return None


def calls(path: Path) -> Iterator[ast.Call]:
    yield from (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call))


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


ALL = sources("app.py", "pages", "recipes", "engine")
TRAIN = sources("engine/train")
LIGHT = [path for path in ALL if path not in TRAIN]
ENGINE = [path for path in LIGHT if path.is_relative_to(PROJECT / "engine")]
PAGES = [path for path in LIGHT if path.is_relative_to(PROJECT / "pages")]
