"""Who holds memory that a run wanted: other programs on its card, and other processes of this machine."""

from __future__ import annotations

import os
import re

import psutil

# As torch writes them when a card is full (c10/cuda/CUDACachingAllocator.cpp; the other processes are asked of NVML):
# "GPU 0 has a total capacity of 15.56 GiB of which 1.37 GiB is free. Process 6680 has 1.81 GiB memory in use. Including
# non-PyTorch memory, this process has 11.21 GiB memory in use."
_AMOUNT = r"([\d.]+) (bytes|KiB|MiB|GiB)"
_TOTAL, _FREE = re.compile(rf"total capac\w+ of {_AMOUNT}"), re.compile(rf"of which {_AMOUNT} is free")
_OTHER, _OWN = (
    re.compile(rf"Process (\d+) has {_AMOUNT} memory in use"),
    re.compile(rf"this process has {_AMOUNT} memory"),
)
_GIB = {"bytes": 1 / 2**30, "KiB": 1 / 2**20, "MiB": 1 / 2**10, "GiB": 1.0}
# "Of the allocated memory 9.46 GiB is allocated by PyTorch, and 1.51 GiB is reserved by PyTorch but unallocated."
_OF_TORCH = re.compile(rf"{_AMOUNT} is (?:allocated|reserved) by PyTorch")
# Less than this is a window or a context of CUDA, whose absence would not have helped.
_LEAST_GIB = 0.5
# Where nobody names them (WSL2, containers), what is neither free nor our own includes the driver's own share.
_LEAST_UNNAMED_GIB = 1.0
_LEAST_SHARE, _MOST_NAMED = 0.05, 3


def of_card(message: str) -> str:
    """Return who else holds memory of a card, in words, by what torch says when it is full; empty where nobody does, or
    nothing is known. Processes that torch names and that are ours to see have their names."""
    others = [(int(pid), _gib(amount, unit)) for pid, amount, unit in _OTHER.findall(message)]
    total, free, own = (pattern.search(message) for pattern in (_TOTAL, _FREE, _OWN))
    if others and own is None:
        return _listed([(gib, f"{gib:.1f} GiB") for gib in _without_own(message, [gib for _, gib in others])])
    named = [(gib, f"{_name(pid)} ({gib:.1f} GiB)") for pid, gib in others if gib >= _LEAST_GIB]
    if named:
        return _listed(named)
    if others or total is None or free is None or own is None:
        return ""
    left = _gib(*total.groups()) - _gib(*free.groups()) - _gib(*own.groups())
    return f"{left:.1f} GiB" if left >= _LEAST_UNNAMED_GIB else ""


def _without_own(message: str, held_gib: list[float]) -> list[float]:
    """Return what the others hold where the driver names processes by numbers from outside of a container: torch does not
    find itself among them then. It is the one that holds just more than what torch says it has taken."""
    taken = sum(_gib(*amount) for amount in _OF_TORCH.findall(message))
    own = min((gib for gib in held_gib if gib >= 0.99 * taken), default=max(held_gib))
    held_gib.remove(own)
    return [gib for gib in held_gib if gib >= _LEAST_GIB]


def of_main_memory() -> str:
    """Return which other processes of this machine hold most of its memory, in words; empty where none holds much."""
    most = psutil.virtual_memory().total
    found = []
    for process in psutil.process_iter(["name", "memory_info"]):
        told = process.info  # pyright: ignore[reportAttributeAccessIssue] - psutil sets it while it iterates
        held = told["memory_info"].rss if told["memory_info"] else 0
        if process.pid != os.getpid() and held >= _LEAST_SHARE * most:
            found.append((held / 2**30, f"{told['name']} ({held / 2**30:.1f} GiB)"))
    return _listed(found)


def _listed(found: list[tuple[float, str]]) -> str:
    return ", ".join(words for _, words in sorted(found, reverse=True)[:_MOST_NAMED])


def _gib(amount: str, unit: str) -> float:
    return float(amount) * _GIB[unit]


def _name(pid: int) -> str:
    try:
        return f"{psutil.Process(pid).name()}, {pid}"
    except psutil.Error:  # of another user, or outside of this container
        return str(pid)
