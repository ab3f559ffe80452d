"""Where llama.cpp is found, and how `make gguf` lays out what it builds."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from engine.gguf import llama_cpp
from engine.processes import PROJECT_DIR
from tools import llama_cpp as building


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """The package of llama-cpp-python, unpacked: what is taken of it, and some of what is not."""
    llama = tmp_path / "package" / "vendor" / "llama.cpp"
    for name in ("conversion/base.py", "gguf-py/gguf/gguf.py", "convert_hf_to_gguf.py", "LICENSE", "src/llama.cpp"):
        (llama / name).parent.mkdir(parents=True, exist_ok=True)
        (llama / name).write_text(name)
    (tmp_path / "package" / "llama_cpp").mkdir()
    (tmp_path / "package" / "llama_cpp" / "llama_cpp.py").write_text("the bindings")
    return tmp_path / "package"


@pytest.fixture
def built(tmp_path: Path) -> Path:
    folder = tmp_path / "build" / "bin"
    folder.mkdir(parents=True)
    (folder / "llama-server").write_text("#!/bin/sh\n")
    (folder / "libllama.so.0").write_text("a library")
    (folder / "libllama.so").symlink_to("libllama.so.0")
    (folder / "libllama.dylib").write_text("a library")
    return folder


def test_what_is_laid_out_is_found_whole_and_replaces_what_lay_there(sources, built, tmp_path, monkeypatch):
    monkeypatch.delenv(llama_cpp.NAMED_BY, raising=False)
    target = tmp_path / "llama.cpp"
    for _ in range(2):
        building.lay_out(sources, built, target)
        (target / "lib" / "left over").touch()
    building.lay_out(sources, built, target)
    there = llama_cpp.found(str(target))
    assert there is not None and None not in there and there.server == target / "bin" / "llama-server"
    assert (target / "python" / "llama_cpp" / "llama_cpp.py").read_text() == "the bindings"
    assert not (target / "lib" / "left over").exists() and not (target / "src").exists()
    assert sorted(path.name for path in tmp_path.iterdir() if "llama" in path.name) == ["llama.cpp"]


def test_a_folder_named_by_the_environment_comes_before_what_was_built(tmp_path, monkeypatch):
    (tmp_path / "convert_hf_to_gguf.py").touch()
    monkeypatch.setenv(llama_cpp.NAMED_BY, str(tmp_path))
    there = llama_cpp.found()
    assert there is not None and there.folder == tmp_path and there[2:] == (None, None, None)
    assert llama_cpp.found(str(tmp_path / "nothing")) is None


def test_a_machine_without_a_compiler_is_told_what_to_install(sources, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SystemExit, match=r"needs a compiler for C.+, and this machine has none.*build-essential"):
        building.build(sources, tmp_path / "build")


def test_the_build_downloads_nothing_and_names_nothing_of_this_machine():
    off = ("LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_UI", "LLAMA_USE_PREBUILT_UI")
    assert {building.SETTINGS[name] for name in off} == {"OFF"}
    assert building.SETTINGS["CMAKE_BUILD_WITH_INSTALL_RPATH"] == "ON" and os.sep not in building._BESIDE.replace(
        "/../lib", ""
    )


def test_the_source_package_is_pinned_by_its_hash():
    (line,) = [one for one in building.REQUIREMENTS.read_text().splitlines() if not one.startswith("#")]
    assert re.fullmatch(r"llama-cpp-python==[\d.]+ --hash=sha256:[0-9a-f]{64}", line)
    assert building.REQUIREMENTS.parent == PROJECT_DIR
