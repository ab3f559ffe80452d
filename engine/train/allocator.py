"""What becomes of freed memory: on a processor by the C library, mallopt(3) of glibc, while a run's child is alive and
before it loads; on a card by torch, which keeps it.

By itself glibc raises the size from which blocks come from the kernel, up to 32 MiB, as such blocks are freed; larger ones
are got and given back in each step, a page fault for every 4 KiB of them. Setting any of these numbers ends that raising.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import shutil
import sys
from contextlib import suppress
from pathlib import Path

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


# --- on a card -----------------------------------------------------------------------------------------------------------

# What torch reads of its allocator as that is first used, and what it was called before.
TORCH_SETTING, SAID_TO_TORCH = "PYTORCH_ALLOC_CONF", ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
# On boards where the driver has no virtual memory to give (unsloth_zoo 2026.10, __init__.py, which says of whom it heard).
_TEGRA = Path("/etc/nv_tegra_release")


def let_segments_grow() -> None:
    """Let torch's blocks on an NVIDIA card grow where they lie, so that rows of another length find room in what was freed:
    pieces between blocks of fixed size are what a long run dies of. Before a card is first used, which is when torch reads
    it; not in WSL, where the driver fails at it."""
    is_wsl = "microsoft" in platform.release().lower()
    if sys.platform != "linux" or is_wsl or _TEGRA.exists() or any(name in os.environ for name in SAID_TO_TORCH):
        return
    if shutil.which("nvidia-smi"):  # the driver's own tool; which cards this process may use is not said yet
        os.environ[TORCH_SETTING] = "expandable_segments:True"


def give_back() -> None:
    """Give what is no longer used back to the card: what torch keeps for the next step counts as taken there, also for what
    comes after the training, which looks how much is free."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
