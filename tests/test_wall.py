"""The wall: who may import what. Pages open in a second, and a crash of the training libraries takes no page down."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
HEAVY = {
    "torch", "transformers", "trl", "peft", "unsloth", "unsloth_zoo", "datasets", "lm_eval", "accelerate",
    "bitsandbytes",
}  # fmt: skip
OURS = {"app", "engine", "pages", "recipes"}


def sources(*places: str) -> list[Path]:
    """Return the Python files of folders and files of the project."""
    found = []
    for place in places:
        path = PROJECT / place
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return found


def name_of(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


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
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value, node


def top(name: str) -> str:
    return name.partition(".")[0]


ALL = sources("app.py", "pages", "recipes", "engine")
TRAIN = sources("engine/train")
LIGHT = [path for path in ALL if path not in TRAIN]
ENGINE = [path for path in LIGHT if path.is_relative_to(PROJECT / "engine")]


def test_the_scan_sees_the_project():
    assert len(LIGHT) > 20
    assert len(TRAIN) > 5
    assert any(top(name) == "torch" for path in TRAIN for _, name, _ in imports(path))


@pytest.mark.parametrize("path", LIGHT, ids=name_of)
def test_only_the_child_imports_the_training_libraries(path):
    assert [f"line {line}: {name}" for line, name, _ in imports(path) if top(name) in HEAVY] == []


@pytest.mark.parametrize("path", [*ENGINE, *TRAIN], ids=name_of)
def test_the_engine_never_imports_streamlit(path):
    assert [f"line {line}" for line, name, _ in imports(path) if top(name) == "streamlit"] == []


@pytest.mark.parametrize("path", [*ENGINE, *TRAIN], ids=name_of)
def test_the_engine_does_not_know_the_pages(path):
    assert [f"line {line}: {name}" for line, name, _ in imports(path) if top(name) in ("pages", "app")] == []


@pytest.mark.parametrize("path", LIGHT, ids=name_of)
def test_the_child_is_reached_as_a_process_alone(path):
    assert [f"line {line}" for line, name, _ in imports(path) if f"{name}.".startswith("engine.train.")] == []


def test_recipes_are_data():
    assert [name_of(path) for path in sources("recipes")] == ["recipes/__init__.py"]
    code = [n for n in tree_of(PROJECT / "recipes" / "__init__.py").body if not isinstance(n, ast.Expr)]
    assert code == []
    strange = [
        name_of(path)
        for path in (PROJECT / "recipes").rglob("*")
        if path.is_file() and path.suffix not in (".yaml", ".py", ".pyc")
    ]
    assert strange == []


def test_nothing_imports_tests():
    assert [name_of(path) for path in ALL for _, name, _ in imports(path) if top(name) == "tests"] == []


def modules_of_the_engine() -> list[str]:
    names = [path.relative_to(PROJECT).with_suffix("").as_posix().replace("/", ".") for path in ENGINE]
    return sorted(name.removesuffix(".__init__") for name in names if not name.endswith("__main__"))


def test_importing_the_whole_engine_brings_neither_torch_nor_streamlit():
    code = f"import sys, importlib\nfor name in {modules_of_the_engine()!r}: importlib.import_module(name)\n"
    code += f"print(*sorted({HEAVY | {'streamlit'}!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


# --- what is never done -----------------------------------------------------------------------------------------------
def calls(path: Path) -> Iterator[ast.Call]:
    yield from (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call))


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_no_process_is_started_through_a_shell(path):
    for node in calls(path):
        assert not any(k.arg == "shell" and ast.unparse(k.value) != "False" for k in node.keywords), node.lineno
        assert called(node) not in ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput")
        if called(node).rpartition(".")[2] in ("Popen", "run", "check_call", "check_output", "call") and called(
            node
        ).startswith("subprocess."):
            assert not isinstance(node.args[0], ast.Constant | ast.JoinedStr), f"line {node.lineno}: not a list"


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_code_of_a_model_is_never_trusted(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert ast.unparse(node.value) == "False", node.lineno
        if isinstance(node, ast.Constant):
            assert node.value != "trust_remote_code", node.lineno
    assert not [n for n in calls(path) if called(n).endswith(".from_config") and "AutoModel" in called(n)]


@pytest.mark.parametrize("path", [p for p in TRAIN if p.name != "build_starter.py"], ids=name_of)
def test_a_model_is_loaded_without_its_code_and_from_safetensors_alone(path):
    for node in calls(path):
        if called(node).startswith("Auto") and called(node).endswith(".from_pretrained"):
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert given.get("trust_remote_code") == "False", node.lineno
            if "Model" in called(node):
                assert given.get("use_safetensors") == "True", node.lineno


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_no_pickle_is_opened(path):
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    assert [f"line {line}: {name}" for line, name, _ in imports(path) if top(name) in unsafe] == []
    for node in calls(path):
        assert called(node) not in ("torch.load", "pandas.read_pickle", "pd.read_pickle", "eval", "exec"), node.lineno
        if called(node).rpartition(".")[2] == "load" and called(node).startswith(("np.", "numpy.")):
            assert not [k for k in node.keywords if k.arg == "allow_pickle"], node.lineno
        assert called(node) not in ("yaml.unsafe_load", "yaml.full_load"), node.lineno
        if called(node) == "yaml.load":
            assert "SafeLoader" in assigned(path, ast.unparse(node.args[1])), f"line {node.lineno}: not a safe loader"


def assigned(path: Path, name: str) -> str:
    """Return what a name of a module stands for, as it is written there."""
    for node in tree_of(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.unparse(node.value)
    return name


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_text_is_never_shown_as_html(path):
    for node in calls(path):
        assert not [k for k in node.keywords if k.arg == "unsafe_allow_html" and ast.unparse(k.value) != "False"]


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_no_switch_of_the_product_selects_a_fake(path):
    text = path.read_text()
    assert "tests.fake" not in text
    assert "FAKE_" not in text
