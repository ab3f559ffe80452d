"""The machine a plan is made for: this one, or one that somebody thinks of buying."""

from __future__ import annotations

from typing import NamedTuple

from engine import machine
from engine.estimate import machine_choices
from engine.machine import Held


class Target(NamedTuple):
    """`device` as machine_choices.py sees it; `card` its name where known. `is_here`: what finished runs took on this
    machine counts. `held`: what other programs have of the card now, which is none of the run's memory."""

    device: machine_choices.Device
    card: str = ""
    is_here: bool = True
    held: Held = Held()

    @property
    def name(self) -> str:
        """The device as estimates and measurements name it: cpu, mps or cuda:0."""
        return "cuda:0" if self.device.name == "cuda" else self.device.name

    @property
    def memory_bytes(self) -> int:
        return self.device.memory_bytes

    @property
    def memory_gib(self) -> float | None:
        """The memory of the whole card; None where there is none."""
        whole_bytes = self.memory_bytes + self.held.mib * 2**20
        return whole_bytes / 2**30 if self.device.name == "cuda" else None


def this_machine() -> Target:
    """Return this machine by what the driver says; the child asks torch instead."""
    facts = machine.facts()
    held = machine.held_by_others(facts.gpus[0] if facts.gpus else None)
    device = machine_choices.Device(
        name=facts.device.partition(":")[0],
        memory_bytes=max(0, facts.device_memory_bytes - held.mib * 2**20),
        bf16=bool(facts.gpus) and facts.gpus[0].capability >= 8,
        unsloth=machine_choices.installed("unsloth"),
        flash_attention=machine_choices.installed("flash_attn"),
        free_bytes=machine.free_bytes(),
    )
    return Target(device, facts.gpus[0].name if facts.gpus else "", held=held)


def of_memory(gpu_memory_gib: float | None) -> Target:
    """Return a machine with a card of so much memory, or without one: this machine where it is such a one, else a card
    that computes in bf16, or this machine's processor."""
    here = this_machine()
    if gpu_memory_gib is None:
        if here.device.name != "cuda":
            return here
        return Target(machine_choices.Device(name="cpu", memory_bytes=machine.facts().memory_mib * 2**20))
    if here.memory_gib is not None and machine.marketed_gb(here.memory_gib) == machine.marketed_gb(gpu_memory_gib):
        return here
    device = machine_choices.Device(name="cuda", memory_bytes=round(gpu_memory_gib * 2**30), bf16=True)
    return Target(device, is_here=False)
