"""NVIDIA's cards as nvidia-smi, the driver's own tool, names them, and those of them that CUDA_VISIBLE_DEVICES leaves.

Its answers are read as NVIDIA documents them (nvidia-smi(1), MIG User Guide, CUDA C++ Programming Guide, "CUDA Environment
Variables"); none was seen on a card here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil

ASK_S = 10.0
SILENT = "nvidia-smi did not answer"
# Where Windows puts the tool into a Linux of WSL2, which has that folder on its path only in a login shell.
WSL_FOLDER = "/usr/lib/wsl/lib"
# Older drivers know fewer fields and answer none where they do not know one.
FIELDS = (
    ("index", "uuid", "name", "memory.total", "driver_version", "compute_cap", "mig.mode.current"),
    ("index", "uuid", "name", "memory.total", "driver_version"),
)
# What stands for memory where a card has none of its own: one chip with the processor (GB10, Jetson, Grace's smaller
# boards), or one that is cut into slices. A card that has failed says something else.
NO_MEMORY = ("[N/A]", "N/A", "[Not Supported]", "Not Supported")
# A slice reports a little less than its name says: 1g.5gb of an A100 has 4,864 MiB, 3g.20gb 20,096 (MIG User Guide).
SLICE_SHARE = 0.95


class Gpu(msgspec.Struct, frozen=True):
    """`capability` is NVIDIA's compute capability, 0 where the driver does not tell it; bf16 arithmetic came with 8.0
    (Ampere). `uuid` is the driver's own name of the card, the same whatever CUDA_VISIBLE_DEVICES leaves visible; `index` its
    place in nvidia-smi's list. `is_slice`: a part of a card (MIG); `shares_memory`: it has none of its own and takes main
    memory."""

    name: str
    memory_mib: int
    capability: float = 8.0
    uuid: str = ""
    index: int = 0
    is_slice: bool = False
    shares_memory: bool = False


class Answer(NamedTuple):
    """What the driver says. `trouble` is what keeps it from saying more, in the tool's own words or in ours."""

    cards: tuple[Gpu, ...] = ()
    driver: str = ""
    trouble: str = ""


def ask() -> Answer:
    """Return all cards of this machine, a card that is cut into slices as its slices."""
    found = tool()
    if found is None:
        missing = "nvidia-smi was not found, though /dev/nvidiactl is there" if Path("/dev/nvidiactl").exists() else ""
        return Answer(trouble=missing)
    for fields in FIELDS:
        said, trouble = run(found, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")
        if not trouble or trouble.startswith(SILENT):
            break
    if trouble:
        return Answer(trouble=trouble)
    rows = [dict(zip(fields, parts, strict=True)) for parts in table(said) if len(parts) == len(fields)]
    cards = [card for row in rows if (card := _card(row)) is not None]
    cut = {int(row["index"]) for row in rows if _is_cut(row) and row["index"].isdigit()}
    if cut:
        cards = with_slices(cards, cut, run(found, "-L")[0])
    if rows and not cards:
        trouble = f"{rows[0]['name']}: " + ("no slice of it was made (MIG)" if cut else rows[0]["memory.total"])
    return Answer(tuple(cards), rows[0]["driver_version"] if rows else "", trouble)


def tool() -> str | None:
    """Return where nvidia-smi lies."""
    return shutil.which("nvidia-smi", path=os.pathsep.join((os.environ.get("PATH", ""), WSL_FOLDER)))


def run(found: str, *words: str) -> tuple[str, str]:
    """Return what the tool printed, and in a few words why it did not."""
    try:
        # a list, no shell
        asked = subprocess.Popen([found, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # noqa: S603
    except OSError as error:
        return "", f"nvidia-smi: {error.strerror or error}"
    try:
        said, fault = (part.decode("utf-8", "replace") for part in asked.communicate(timeout=ASK_S))
    except subprocess.TimeoutExpired:
        asked.kill()  # and no waiting: in a call of a stuck driver a process does not end
        return "", f"{SILENT} within {ASK_S:g} seconds"
    if asked.returncode:
        # it writes its errors to either
        lines = [line.strip() for line in (said + fault).splitlines() if line.strip()]
        return "", lines[0][:200] if lines else f"nvidia-smi ended with {asked.returncode}"
    return said, ""


def table(said: str) -> list[list[str]]:
    """Return the values of each line of nvidia-smi's table without header and units."""
    return [[part.strip() for part in line.split(",")] for line in said.splitlines() if line.strip()]


def _is_cut(row: dict[str, str]) -> bool:
    return row.get("mig.mode.current") == "Enabled"


def _card(row: dict[str, str]) -> Gpu | None:
    memory = row["memory.total"]
    # of a card that is cut a container may not ask the whole, and takes a slice alone
    known = memory.isdigit() or memory in NO_MEMORY or _is_cut(row)
    if not row["index"].isdigit() or not known:
        return None
    try:
        capability = float(row.get("compute_cap", ""))
    except ValueError:
        capability = 0.0
    mib = int(memory) if memory.isdigit() else psutil.virtual_memory().total // 2**20
    shares = not memory.isdigit()
    return Gpu(row["name"], mib, capability, row["uuid"], int(row["index"]), shares_memory=shares)


_SLICE = re.compile(r"\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (MIG-[^)]+)\)")
_WHOLE = re.compile(r"GPU (\d+): .*\(UUID: GPU-")


def with_slices(cards: list[Gpu], cut: set[int], listed: str) -> list[Gpu]:
    """Return the cards, those with the indices `cut` replaced by their slices as `nvidia-smi -L` lists them: CUDA computes
    on a slice alone there."""
    slices: dict[int, list[Gpu]] = {}
    whole = None
    by_index = {card.index: card for card in cards}
    for line in listed.splitlines():
        if start := _WHOLE.match(line):
            whole = by_index.get(int(start[1]))
        elif (part := _SLICE.match(line)) and whole is not None:
            size = re.search(r"(\d+)gb", part[1])
            mib = int(SLICE_SHARE * 1024 * int(size[1])) if size else 0
            one = Gpu(f"{whole.name} MIG {part[1]}", mib, whole.capability, part[2], whole.index, is_slice=True)
            slices.setdefault(whole.index, []).append(one)
    return [one for card in cards for one in (slices.get(card.index, []) if card.index in cut else [card])]


def visible(cards: tuple[Gpu, ...], named: str | None, order: str = "") -> tuple[Gpu, ...]:
    """Return the cards that CUDA_VISIBLE_DEVICES, given as `named`, leaves, in its order; all of them where it is not set.

    As CUDA reads it: numbers, or uuids of which the beginning is enough; it looks no further than the first that it does
    not know, such as -1. Its number 0 is the fastest card unless CUDA_DEVICE_ORDER, given as `order`, is PCI_BUS_ID, and
    the others stand in the order of the bus, which is that of nvidia-smi.
    """
    if named is None:
        return cards
    numbers = sorted({card.index for card in cards})
    if order != "PCI_BUS_ID" and cards:
        best = max(cards, key=lambda card: (card.capability, card.memory_mib, -card.index)).index
        numbers.sort(key=lambda number: number != best)
    found: list[Gpu] = []
    for word in (part.strip() for part in named.split(",")):
        if word.isdigit():
            number = numbers[int(word)] if int(word) < len(numbers) else None
            meant = [card for card in cards if card.index == number][:1]
        else:
            meant = [card for card in cards if word and card.uuid.startswith(word)]
        if len(meant) != 1:
            break
        found += [card for card in meant if card not in found]
    return tuple(found)
