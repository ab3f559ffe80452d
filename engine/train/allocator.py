"""What the C library does with freed memory: mallopt(3) of glibc, while a run's child is alive and before it loads.

By itself glibc raises the size from which blocks come from the kernel, up to 32 MiB, as such blocks are freed; larger ones
are got and given back in each step, a page fault for every 4 KiB of them. Setting any of these numbers ends that raising.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

# Numbers of malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
# Blocks from this size on are given back when they are freed: of a Llama of 51 million parameters, 4 rows of 512 tokens,
# training took half the memory (1.26 instead of 2.52 GB above the libraries, LoRA).
LARGE_BLOCK_BYTES = 2**20
# Kept: no block comes from the kernel by itself, and none goes back (-1, mallopt(3)); got in pieces of 64 MiB.
_NEVER, _PIECE_BYTES = -1, 2**26
# Where somebody has said already what is to be done, it is.
SAID = (
    *("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"),
    "LD_PRELOAD",
)


def settle(blocks: str) -> None:
    """Let freed blocks be "kept", or "returned"; anything else leaves glibc as it is."""
    if sys.platform != "linux" or any(name in os.environ for name in SAID):
        return
    chosen = {
        "kept": ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _PIECE_BYTES)),
        "returned": ((_MMAP_THRESHOLD, LARGE_BLOCK_BYTES),),
    }.get(blocks, ())
    with suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL(None)
        for name, value in chosen:
            library.mallopt(name, value)
