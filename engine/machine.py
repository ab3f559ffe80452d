"""What this machine has, found without torch: processor cores, memory, NVIDIA cards. Pages open in under a second."""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import msgspec
import psutil


class Gpu(msgspec.Struct, frozen=True):
    """`capability` is NVIDIA's compute capability; bf16 arithmetic came with 8.0 (Ampere). `uuid` is the driver's own name
    of the card: the same whatever CUDA_VISIBLE_DEVICES leaves visible."""

    name: str
    memory_mib: int
    capability: float = 8.0
    uuid: str = ""


class MachineFacts(msgspec.Struct, frozen=True):
    """`memory_mib` is main memory; `gpus` are those that CUDA_VISIBLE_DEVICES leaves visible."""

    cores: int
    memory_mib: int
    gpus: tuple[Gpu, ...]
    apple: bool = False  # Apple's own chip, whose GPU shares main memory

    @property
    def device(self) -> str:
        """The kind of device a run takes: cuda:0 with a card, mps on Apple's chips, else cpu. A run sees its own card as
        cuda:0."""
        return "cuda:0" if self.gpus else "mps" if self.apple else "cpu"

    @property
    def slots(self) -> tuple[str, ...]:
        """What runs take turns on: every visible card by its uuid, or the processor."""
        return tuple(gpu.uuid or f"cuda:{n}" for n, gpu in enumerate(self.gpus)) or (self.device,)

    @property
    def device_memory_bytes(self) -> int:
        """The memory of that device: the first card's, else main memory."""
        return (self.gpus[0].memory_mib if self.gpus else self.memory_mib) * 2**20


@lru_cache(maxsize=1)
def facts() -> MachineFacts:
    """Look once per process; nvidia-smi is the driver's own tool and needs no torch."""
    # TUNEBOOK_DEVICE=cpu leaves Apple's GPU out, as an empty CUDA_VISIBLE_DEVICES does NVIDIA's
    apple = sys.platform == "darwin" and platform.machine() == "arm64" and os.environ.get("TUNEBOOK_DEVICE") != "cpu"
    return MachineFacts(os.cpu_count() or 1, psutil.virtual_memory().total // 2**20, _gpus(), apple)


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


def _gpus() -> tuple[Gpu, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.replace("-1", "").strip(", "):
        return ()
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=index,uuid,name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout  # noqa: S603 - a list, no shell
    except (OSError, subprocess.SubprocessError):
        return ()
    found = []
    for line in output.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 5 or not parts[3].isdigit():
            continue
        if visible is None or {parts[0], parts[1]} & {v.strip() for v in visible.split(",")}:
            try:
                capability = float(parts[4])
            except ValueError:  # an old driver does not tell it
                capability = 0.0
            found.append(Gpu(parts[2], int(parts[3]), capability, parts[1]))
    return tuple(found)


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
