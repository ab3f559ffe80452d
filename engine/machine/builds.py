"""What the installed torch was built for, read off its version.py without importing it, and whether that fits the driver
and the card."""

from __future__ import annotations

import ast
import ctypes
import importlib.util
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec


class TorchBuild(msgspec.Struct, frozen=True):
    """`cuda` is the version of CUDA it was built with, `hip` that of AMD's ROCm; both empty in a build for processors."""

    version: str = ""
    cuda: str = ""
    hip: str = ""


class Wheels(NamedTuple):
    """A build of torch 2.13 for Linux and Windows: the name of its index, CUDA's version, and the compute capabilities it
    holds code for (pytorch's RELEASE.md, "PyTorch CUDA Support Matrix")."""

    index: str
    cuda: str
    least: float
    most: float


# The first that fits is the one to install. What lies on the package index for Linux is built with 13.0.
WHEELS = (Wheels("cu130", "13.0", 7.5, 12.1), Wheels("cu126", "12.6", 5.0, 9.0))
# The first branch of drivers that runs what was built with any minor version of a CUDA (NVIDIA, "CUDA Compatibility",
# minor version compatibility; Windows needs a later one of the same branch or the next).
LEAST_DRIVER = {13: 580, 12: 525, 11: 450}

Why = Literal["none", "processor", "rocm", "driver", "card"]


class Mismatch(NamedTuple):
    """Why torch does not compute on a card: it is not there, was built for processors or for AMD's cards, wants a newer
    driver, or holds no code for the card. `wheels` is the index of the build to install, "" where none fits the driver;
    `least_driver` the branch it takes then."""

    why: Why
    wheels: str
    least_driver: int


@lru_cache(maxsize=1)
def torch_build() -> TorchBuild | None:
    """Return the torch that a run would import; None where there is none."""
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec("torch")
        if spec is not None and spec.origin:
            return read(Path(spec.origin).with_name("version.py"))
    return None


def read(path: Path) -> TorchBuild | None:
    """Return the build that a version.py of torch tells of; None where it cannot be read."""
    told: dict[str, str] = {}
    try:
        lines = ast.parse(path.read_text("utf-8")).body
    except (OSError, ValueError, SyntaxError):
        return None
    for line in lines:
        targets = (
            line.targets if isinstance(line, ast.Assign) else [line.target] if isinstance(line, ast.AnnAssign) else []
        )
        value = line.value if isinstance(line, ast.Assign | ast.AnnAssign) else None
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                told[target.id] = value.value
    return TorchBuild(told["__version__"], told.get("cuda", ""), told.get("hip", "")) if "__version__" in told else None


def has_code_for(cuda: str, capability: float) -> bool:
    """Whether torch built with that CUDA holds code for a card. What is not in the table, and a card that tells no
    capability, is taken to be fine: the child asks torch itself."""
    wheels = next((one for one in WHEELS if one.cuda == cuda), None)
    return wheels is None or not capability or wheels.least <= capability <= wheels.most


def major(version: str) -> int:
    """Return the first number of a version, 0 where it has none."""
    first = version.partition(".")[0]
    return int(first) if first.isdigit() else 0


def mismatch(build: TorchBuild | None, driver: str, capability: float) -> Mismatch | None:
    """Return why `build` does not compute on a card of that compute capability under that driver, or None."""
    fitting = [one for one in WHEELS if has_code_for(one.cuda, capability)] or [WHEELS[0]]
    wheels = next((one.index for one in fitting if reaches(one.cuda, driver)), "")
    least = min(LEAST_DRIVER[major(one.cuda)] for one in fitting)

    def because(why: Why) -> Mismatch:
        return Mismatch(why, wheels, least)

    if build is None:
        return because("none")
    if not build.cuda:
        return because("rocm" if build.hip else "processor")
    if not reaches(build.cuda, driver) and major(library_version()) < major(build.cuda):
        return because("driver")
    return None if has_code_for(build.cuda, capability) else because("card")


def reaches(cuda: str, driver: str) -> bool:
    """Whether a driver runs what was built with that CUDA; a driver that does not tell its version does."""
    return not major(driver) or major(driver) >= LEAST_DRIVER.get(major(cuda), 0)


@lru_cache(maxsize=1)
def library_version() -> str:
    """Return the CUDA of the driver's library: newer than the driver where NVIDIA's package for forward compatibility is
    installed. cuDriverGetVersion needs no card and starts nothing (CUDA Driver API)."""
    version = ctypes.c_int(0)
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        if library.cuDriverGetVersion(ctypes.byref(version)) == 0:
            return f"{version.value // 1000}.{version.value % 1000 // 10}"
    return ""


def in_code(capability: tuple[int, int], built_for: Iterable[str]) -> bool:
    """Whether a torch whose torch.cuda.get_arch_list() is `built_for` computes on a card: sm_86 runs on 8.6 and 8.9, as on
    any of the same major version that is no older; compute_80 is translated for all that are no older."""
    for name in built_for:
        kind, _, digits = name.partition("_")
        number = "".join(digit for digit in digits if digit.isdigit())
        if not number:
            continue
        has = (int(number[:-1] or 0), int(number[-1]))
        if has <= capability and (kind == "compute" or has[0] == capability[0]):
            return True
    return False
