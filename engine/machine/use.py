"""What other programs hold of a card now: a display, Ollama, somebody else's training."""

from __future__ import annotations

import os
import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import psutil

from engine.machine import nvidia
from engine.machine.nvidia import Gpu

# A figure is kept so long: a page asks it several times, and nvidia-smi takes up to a second.
KEPT_S = 10.0
# What the driver keeps of a card that nobody uses.
LITTLE_MIB = 64
# Every child of ours that may hold a card is started as `python -m` of a module in this package.
OUR_MODULES = "engine.train"


class Held(NamedTuple):
    """`mib` of a card that are not there for a run, and the `names` of the programs that hold them as far as they can be
    told: a display has none, and in a container other programs are not seen."""

    mib: int = 0
    names: tuple[str, ...] = ()


def held_by_others(gpu: Gpu | None) -> Held:
    """Return what others than Tunebook hold of a card; nothing where that cannot be told apart."""
    if gpu is None or not gpu.uuid or gpu.is_slice or gpu.shares_memory:
        return Held()
    return _asked(int(time.monotonic() // KEPT_S)).get(gpu.uuid, Held())


def forget() -> None:
    """Ask anew next time."""
    _asked.cache_clear()


@lru_cache(maxsize=1)
def _asked(_moment: int) -> dict[str, Held]:
    found = nvidia.tool()
    if found is None:
        return {}
    form = "--format=csv,noheader,nounits"
    cards, trouble = nvidia.run(found, "--query-gpu=uuid,memory.used", form)
    if trouble:
        return {}
    programs = nvidia.table(nvidia.run(found, "--query-compute-apps=gpu_uuid,pid,used_memory,process_name", form)[0])
    return held(nvidia.table(cards), programs, ours())


def ours() -> set[int]:
    """Return the processes of Tunebook, of this user's one queue, that have a card open."""
    found, user = set(), psutil.Process().username()
    for process in psutil.process_iter(["cmdline", "username"]):
        words = (process.info["cmdline"] or []) if process.info["username"] == user else []
        if any(word == OUR_MODULES or word.startswith(f"{OUR_MODULES}.") for word in words) and _has_card(process.pid):
            found.add(process.pid)
    return found


def _has_card(pid: int) -> bool:
    """Whether a process has a card open, as far as that can be seen: in Linux, and that of WSL2 (/dev/dxg)."""
    try:
        return any(
            os.readlink(file).startswith(("/dev/nvidia", "/dev/dxg")) for file in Path(f"/proc/{pid}/fd").iterdir()
        )
    except OSError:
        return not Path("/proc/self/fd").exists()


def held(cards: list[list[str]], programs: list[list[str]], own: set[int]) -> dict[str, Held]:
    """Return by uuid what others hold. `cards`: uuid and used memory; `programs`: uuid, pid, memory, name; all as nvidia-smi
    writes them, sizes in MiB. What the driver keeps for itself (memory.reserved) is not counted as used. Where the part of a
    process of ours is not told, as in a container or on Windows, nothing can be told apart."""
    rows = [row for row in programs if len(row) >= 4 and row[1].isdigit()]
    if own - {int(row[1]) for row in rows if row[2].isdigit()}:
        return {}
    found = {}
    for uuid, used in (row for row in cards if len(row) == 2):
        if not used.isdigit():
            continue
        here = [row for row in rows if row[0] == uuid]
        of_ours = sum(int(row[2]) for row in here if int(row[1]) in own)
        mib = int(used) - of_ours
        if mib > LITTLE_MIB:
            found[uuid] = Held(mib, tuple(sorted({_name(row[3]) for row in here if int(row[1]) not in own})))
    return found


def _name(path: str) -> str:
    """Return the last part of a program's path, of either system's."""
    return path.replace("\\", "/").rpartition("/")[2][:40]
