"""A nvidia-smi that says what a driver would: its answers are those of nvidia-smi(1) and of NVIDIA's guides."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from engine import machine
from engine.machine import builds, here, use
from engine.machine.builds import TorchBuild

TOOL = """#!{python}
import json, sys
told = json.load(open({told!r}))
word = sys.argv[1]
if told.get("fails"):
    print(told["fails"])
    sys.exit(9)
if word == "-L":
    print(told["listed"])
elif word.startswith("--query-gpu="):
    fields = word.partition("=")[2].split(",")
    unknown = [field for field in fields if field not in told["fields"]]
    if unknown:
        print(f'Field "{{unknown[0]}}" is not a valid field to query.')
        sys.exit(2)
    for card in told["cards"]:
        print(", ".join(str(card[field]) for field in fields))
elif word.startswith("--query-compute-apps="):
    fields = word.partition("=")[2].split(",")
    for program in told.get("programs", []):
        print(", ".join(str(program[field]) for field in fields))
"""
FIELDS = (
    "index", "uuid", "name", "memory.total", "memory.used", "driver_version", "compute_cap", "mig.mode.current",
)  # fmt: skip


def a_card(index: int, name: str, mib: Any, capability: Any, **more: Any) -> dict[str, Any]:
    """Return a card as nvidia-smi knows it, by its fields."""
    usual = {"driver_version": "580.95.05", "mig.mode.current": "[N/A]", "memory.used": 3}
    told = {"index": index, "uuid": f"GPU-{index}abc-def", "name": name, "memory.total": mib, "compute_cap": capability}
    return {**usual, **told, **{field.replace("__", "."): value for field, value in more.items()}}


def driver(
    monkeypatch: pytest.MonkeyPatch, place: Path, *cards: dict[str, Any], torch: TorchBuild | None = None, **more: Any
) -> None:
    """Put a nvidia-smi on the path that names these cards, and say which torch is installed."""
    told = {"cards": cards, "fields": FIELDS, **more}
    (place / "told.json").write_text(json.dumps(told))
    tool = place / "nvidia-smi"
    tool.write_text(TOOL.format(python=sys.executable, told=str(place / "told.json")))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("TUNEBOOK_DEVICE", raising=False)
    build = torch or TorchBuild("2.13.0", "13.0")
    for module in (machine, here, builds):
        monkeypatch.setattr(module, "torch_build", lambda: build)
    monkeypatch.setattr(builds, "library_version", lambda: "")
    use.forget()
    monkeypatch.setattr(machine, "facts", here.facts.__wrapped__)
