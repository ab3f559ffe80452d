"""The wall: who may import what. Pages open in a second, and a crash of the training libraries takes no page down."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.house.sources import (
    ALL,
    ENGINE,
    LIGHT,
    PROJECT,
    TRAIN,
    called,
    calls,
    imports,
    module_of,
    name_of,
    sources,
    top,
    tree_of,
)

HEAVY = {
    "torch", "transformers", "trl", "peft", "unsloth", "unsloth_zoo", "datasets", "lm_eval", "accelerate",
    "bitsandbytes",
}  # fmt: skip


def imported(paths: Iterable[Path], *packages: str) -> list[str]:
    """Return where any of these packages is imported, as file:line name."""
    return [
        f"{name_of(path)}:{line} {name}" for path in paths for line, name, _ in imports(path) if top(name) in packages
    ]


def placed(paths: Iterable[Path]) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call with its place, as file:line."""
    for path in paths:
        for node in calls(path):
            yield f"{name_of(path)}:{node.lineno}", node


def test_the_scan_sees_the_project():
    assert len(LIGHT) > 20
    assert len(TRAIN) > 5
    assert imported(TRAIN, "torch")


def test_only_the_child_imports_the_training_libraries():
    assert imported(LIGHT, *HEAVY) == []


def test_the_engine_never_imports_streamlit():
    assert imported([*ENGINE, *TRAIN], "streamlit") == []


def test_the_engine_does_not_know_the_pages():
    assert imported([*ENGINE, *TRAIN], "pages", "app") == []


def test_the_child_is_reached_as_a_process_alone():
    assert [
        f"{name_of(path)}:{line}"
        for path in LIGHT
        for line, name, _ in imports(path)
        if f"{name}.".startswith("engine.train.")
    ] == []


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
    assert imported(ALL, "tests") == []


def test_importing_the_whole_engine_brings_neither_torch_nor_streamlit():
    names = sorted(module_of(path) for path in ENGINE if path.name != "__main__.py")
    code = f"import sys, importlib\nfor name in {names!r}: importlib.import_module(name)\n"
    code += f"print(*sorted({HEAVY | {'streamlit'}!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


# --- what is never done -----------------------------------------------------------------------------------------------
def through_a_shell(node: ast.Call) -> bool:
    if any(k.arg == "shell" and ast.unparse(k.value) != "False" for k in node.keywords):
        return True
    name = called(node)
    if name in ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"):
        return True
    starts = name in {f"subprocess.{one}" for one in ("Popen", "run", "check_call", "check_output", "call")}
    return starts and isinstance(node.args[0], ast.Constant | ast.JoinedStr)


def test_no_process_is_started_through_a_shell():
    assert [place for place, node in placed(ALL) if through_a_shell(node)] == []


def test_code_of_a_model_is_never_trusted():
    for path in ALL:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert ast.unparse(node.value) == "False", f"{name_of(path)}:{node.lineno}"
            if isinstance(node, ast.Constant):
                assert node.value != "trust_remote_code", f"{name_of(path)}:{node.lineno}"
    for place, node in placed(ALL):
        if called(node).endswith(".from_config") and "AutoModel" in called(node):
            assert "trust_remote_code" in {word.arg for word in node.keywords}, place


def test_a_model_is_loaded_without_its_code_and_from_safetensors_alone():
    for place, node in placed(path for path in TRAIN if path.name != "build_starter.py"):
        if called(node).startswith("Auto") and called(node).endswith(".from_pretrained"):
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert given.get("trust_remote_code") == "False", place
            if "Model" in called(node):
                assert given.get("use_safetensors") == "True", place


def test_no_pickle_is_opened():
    assert imported(ALL, "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal") == []
    unsafe = {
        "torch.load",
        "pandas.read_pickle",
        "pd.read_pickle",
        "eval",
        "exec",
        "yaml.unsafe_load",
        "yaml.full_load",
    }
    for place, node in placed(ALL):
        assert called(node) not in unsafe, place
        if called(node).rpartition(".")[2] == "load" and called(node).startswith(("np.", "numpy.")):
            assert not [k for k in node.keywords if k.arg == "allow_pickle"], place
        if called(node) == "yaml.load":
            path = PROJECT / place.partition(":")[0]
            assert "SafeLoader" in assigned(path, ast.unparse(node.args[1])), f"{place}: not a safe loader"


def assigned(path: Path, name: str) -> str:
    """Return what a name of a module stands for, as it is written there."""
    for node in tree_of(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.unparse(node.value)
    return name


def test_text_is_never_shown_as_html():
    assert [
        place
        for place, node in placed(ALL)
        for k in node.keywords
        if k.arg == "unsafe_allow_html" and ast.unparse(k.value) != "False"
    ] == []


def test_no_switch_of_the_product_selects_a_fake():
    assert [name_of(path) for path in ALL for word in ("tests.fake", "FAKE_") if word in path.read_text()] == []
