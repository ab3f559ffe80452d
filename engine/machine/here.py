"""Processor, memory and cards of this machine. Pages open in under a second: nothing here needs torch."""

from __future__ import annotations

import math
import os
import platform
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import msgspec
import psutil

from engine.machine import nvidia
from engine.machine.builds import has_code_for, torch_build
from engine.machine.nvidia import Gpu

# Cards with so much of the best one's memory are one kind: what fits on the best fits on each.
ALIKE = 0.9
# bf16 arithmetic came with this compute capability.
LEAST_BF16 = 8.0


class MachineFacts(msgspec.Struct, frozen=True):
    """`memory_mib` is main memory. `gpus` are the cards that runs take, alike, the best kind that is visible; `other_gpus`
    are there and not used: they have less memory, no bf16 beside one that has, or torch holds no code for them. `driver` is
    its version, `trouble` what keeps it from naming its cards. `amd`: the architectures of AMD's cards, of which runs take
    none."""

    cores: int
    memory_mib: int
    gpus: tuple[Gpu, ...]
    apple: bool = False  # Apple's own chip, whose GPU shares main memory
    other_gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    trouble: str = ""
    amd: tuple[str, ...] = ()

    @property
    def device(self) -> str:
        """The kind of device a run takes: cuda:0 with a card, mps on Apple's chips, else cpu. A run sees its own card as
        cuda:0."""
        return "cuda:0" if self.gpus else "mps" if self.apple else "cpu"

    @property
    def slots(self) -> tuple[str, ...]:
        """What runs take turns on: every card that they may take by its uuid, or the processor."""
        return tuple(gpu.uuid or f"cuda:{n}" for n, gpu in enumerate(self.gpus)) or (self.device,)

    @property
    def device_memory_bytes(self) -> int:
        """The memory of that device: of the smallest card that a run may take, else main memory."""
        return min([gpu.memory_mib for gpu in self.gpus] or [self.memory_mib]) * 2**20


@lru_cache(maxsize=1)
def facts() -> MachineFacts:
    """Look once per process."""
    cores, memory_mib = os.cpu_count() or 1, psutil.virtual_memory().total // 2**20
    if os.environ.get("TUNEBOOK_DEVICE") == "cpu":
        return MachineFacts(cores, memory_mib, ())
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None and not named.replace("-1", "").strip(", "):
        return MachineFacts(cores, memory_mib, (), apple)
    said = nvidia.ask()
    cards = nvidia.visible(said.cards, named, os.environ.get("CUDA_DEVICE_ORDER", ""))
    trouble = said.trouble
    if said.cards and not cards:
        trouble = f"CUDA_VISIBLE_DEVICES={named} names none of its cards"
    taken, left = alike(cards)
    return MachineFacts(cores, memory_mib, taken, apple, left, said.driver, trouble, amd_cards())


def amd_cards(nodes: Path = Path("/sys/class/kfd/kfd/topology/nodes")) -> tuple[str, ...]:
    """Return the architectures of AMD's cards, such as gfx1100, as Linux's driver lists them for computing: processors are
    nodes there too, without a version (kernel, drivers/gpu/drm/amd/amdkfd/kfd_topology.c)."""
    found = []
    for file in sorted(nodes.glob("*/properties")):
        with suppress(OSError, ValueError):
            told = dict(line.split() for line in file.read_text("utf-8").splitlines())
            version = int(told.get("gfx_target_version", 0))  # two digits each: 110000 is 11.0.0, 90010 is 9.0.a
            if version:
                found.append(f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}")
    return tuple(found)


def alike(cards: tuple[Gpu, ...]) -> tuple[tuple[Gpu, ...], tuple[Gpu, ...]]:
    """Return the cards that runs take, and the others. The best has code in the installed torch, then bf16, then the most
    memory; with it go those that hold nearly as much and compute in bf16 where it does, so that a plan made for the best is
    right on each."""
    if not cards:
        return (), ()
    build = torch_build()
    cuda = build.cuda if build is not None else ""

    def rank(gpu: Gpu) -> tuple[bool, bool, int]:
        return has_code_for(cuda, gpu.capability), gpu.capability >= LEAST_BF16, gpu.memory_mib

    best = max(cards, key=rank)
    kind = rank(best)
    taken = [gpu for gpu in cards if rank(gpu)[:2] == kind[:2] and gpu.memory_mib >= ALIKE * best.memory_mib]
    taken.sort(key=lambda gpu: gpu is not best)
    return tuple(taken), tuple(gpu for gpu in cards if gpu not in taken)


def free_bytes() -> int:
    """Return how much main memory is free now, within what a container may use (cgroup v2; files it only keeps in memory
    count as free, as they do in psutil's figure)."""
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        most, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        told = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, max(0, most - used + int(told.get("inactive_file", 0))))
    return free


# Memory of cards as they are sold. GeForce to data centre; 5, 10, 20, 40 and 71 are also slices of a shared card.
_MARKETED_GB = (
    *(1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 71, 80, 94, 96, 128, 141, 144, 180, 192, 256, 288),
)


def marketed_gb(gib: float) -> int:
    """Return the size a card is sold as, from the GiB it reports: 7.6 is 8, 15.7 is 16, 44.5 is 48, 79 is 80.

    A card reports up to a tenth less than its name says, because the driver and error correction keep a part (an L40S of
    48 GB reports 44.5 GiB, a T4 of 16 GB 14.6). A figure that is no card's is rounded up.
    """
    size = next((s for s in _MARKETED_GB if s * 1.01 >= gib), None)
    return size if size is not None and gib >= 0.9 * size else math.ceil(gib)
