"""Build llama.cpp and lay it out where engine/gguf/llama_cpp.py finds it: its converter, libraries, server and bindings.
`make gguf`; minutes on two cores.

The source is the pinned package of llama-cpp-python (requirements-gguf.txt), which holds llama.cpp whole. Nothing else is
downloaded but cmake and ninja, from the package index, where the machine has none.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from engine.gguf import llama_cpp
from engine.processes import PROJECT_DIR

REQUIREMENTS = PROJECT_DIR / "requirements-gguf.txt"
# No program but these two is built; no web page of the server's, which cmake would download; no TLS, no curl.
TARGETS = ("llama", "llama-server")
SETTINGS = {
    "CMAKE_BUILD_TYPE": "Release", "BUILD_SHARED_LIBS": "ON", "LLAMA_CURL": "OFF", "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_TESTS": "OFF", "LLAMA_BUILD_EXAMPLES": "OFF", "LLAMA_BUILD_UI": "OFF", "LLAMA_USE_PREBUILT_UI": "OFF",
    "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
}  # fmt: skip
# Programs and libraries find each other beside them, wherever the folder lies.
_BESIDE = "@loader_path;@loader_path/../lib" if sys.platform == "darwin" else "$ORIGIN;$ORIGIN/../lib"
_LIBRARIES = "*.dylib" if sys.platform == "darwin" else "*.so*"
# Where a virtual machine names AMX and does not run it, a quantised file ends the process (llama.cpp 0.5.0, SIGILL).
_WITHOUT_AMX = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")
_NO_COMPILER = (
    "Building llama.cpp needs a compiler for C++, and this machine has none. Install one and start again: "
    "apt install build-essential (Debian, Ubuntu), dnf install gcc-c++ (Fedora), xcode-select --install (Mac)."
)


def source(folder: Path) -> Path:
    """Return the unpacked source package, downloaded into `folder` and compared with its hash."""
    _pip("download", "--no-deps", "--no-binary", ":all:", "-r", str(REQUIREMENTS), "-d", str(folder))
    package = next(folder.glob("*.tar.gz"))
    with tarfile.open(package) as archive:
        archive.extractall(folder, filter="data")
    return folder / package.name.removesuffix(".tar.gz")


def build(sources: Path, folder: Path) -> Path:
    """Build in `folder` and return where the programs and libraries lie. Ends the process where there is no compiler, or
    what is built does not compile."""
    names = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    compiler = next((path for name in names if name and (path := shutil.which(name))), None)
    if compiler is None:
        raise SystemExit(_NO_COMPILER)
    tools = _tools(folder.parent / "tools")
    more = {"CMAKE_INSTALL_RPATH": _BESIDE}
    if _takes(compiler, *_WITHOUT_AMX):
        more |= {"CMAKE_C_FLAGS": " ".join(_WITHOUT_AMX), "CMAKE_CXX_FLAGS": " ".join(_WITHOUT_AMX)}
    settings = [f"-D{name}={value}" for name, value in {**SETTINGS, **more}.items()]
    _run("cmake", "-G", "Ninja", "-S", str(sources / "vendor" / "llama.cpp"), "-B", str(folder), *settings, path=tools)
    _run("cmake", "--build", str(folder), "--target", *TARGETS, path=tools)
    return folder / "bin"


def _takes(compiler: str, *flags: str) -> bool:
    """Whether a compiler knows flags: those of x86 are unknown to others, and to old ones."""
    done = subprocess.run([compiler, *flags, "-E", "-x", "c++", os.devnull], capture_output=True)  # noqa: S603 - a list
    return done.returncode == 0


def lay_out(sources: Path, built: Path, target: Path) -> None:
    """Put what is needed of llama.cpp into the folder `target`, in place of what lay there."""
    llama = sources / "vendor" / "llama.cpp"
    beside = target.with_name(f"{target.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    for name in ("bin", "lib"):
        (beside / name).mkdir(parents=True)
    shutil.copy2(built / "llama-server", beside / "bin")
    for library in built.glob(_LIBRARIES):
        shutil.copy2(library, beside / "lib", follow_symlinks=False)
    for name in ("conversion", "gguf-py"):
        shutil.copytree(llama / name, beside / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(
        sources / "llama_cpp", beside / "python" / "llama_cpp", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("convert_hf_to_gguf.py", "LICENSE"):
        shutil.copy2(llama / name, beside)
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)


def _tools(folder: Path) -> str:
    """Return the PATH on which cmake and ninja are found: the machine's, or the package index's in an environment of their
    own."""
    path = os.environ.get("PATH", "")
    lacking = [name for name in ("cmake", "ninja") if shutil.which(name) is None]
    if not lacking:
        return path
    _run(sys.executable, "-m", "venv", str(folder))
    _run(str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *lacking)
    return f"{folder / 'bin'}{os.pathsep}{path}"


def _pip(*words: str) -> None:
    _run(sys.executable, "-m", "pip", words[0], "--quiet", *words[1:])


def _run(*words: str, path: str | None = None) -> None:
    settings = {**os.environ, "PATH": path} if path else None
    if subprocess.run(words, env=settings).returncode:  # noqa: S603 - a list, no shell
        raise SystemExit(f"This failed, and llama.cpp was not built: {' '.join(words[:6])}")


def main() -> None:
    """Build and lay out, unless that is done already; or lay out a build that is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sources", type=Path, help="the unpacked source package, instead of downloading it")
    parser.add_argument("--built", type=Path, help="where it was built already")
    parser.add_argument("--to", type=Path, default=llama_cpp.built_at(), help="the folder to fill (%(default)s)")
    asked = parser.parse_args()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="llama.cpp-") as scratch:
        sources = asked.sources or source(Path(scratch))
        built = asked.built or build(sources, Path(scratch) / "build")
        lay_out(sources, built, asked.to)
    print(f"llama.cpp lies in {asked.to}; that took {(time.monotonic() - began_s) / 60:.1f} minutes.")


if __name__ == "__main__":
    main()
