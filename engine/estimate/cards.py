"""What is said of the cards of this machine: which one runs take and why, which are left out, what others hold of it, and
what to install where torch does not see it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from engine import machine
from engine.estimate import memory
from engine.words import Problem, Text, later, t

# The version of torch that Tunebook is installed with (constraints.txt).
TORCH = "2.13.0"
# Where a problem of the machine itself lies, rather than in a setting.
WHERE = "machine"
# What is said for each reason why torch does not compute on a card.
RULES: dict[str, str] = {
    "none": "driver-torch-none", "processor": "driver-torch-processor", "rocm": "driver-torch-rocm",
    "driver": "driver-torch-driver", "card": "driver-torch-card",
}  # fmt: skip


def device_reason(facts: machine.MachineFacts) -> str:
    """Return why runs take the device they take."""
    if facts.gpus:
        return t("Runs use {card}: an NVIDIA card comes first. TUNEBOOK_DEVICE=cpu takes the processor instead.",
                 card=facts.gpus[0].name)  # fmt: skip
    if facts.apple:
        return t("Runs use Apple's GPU, which shares main memory. TUNEBOOK_DEVICE=cpu takes the processor instead.")
    if facts.amd:
        return t("Runs use the processor: cards of AMD ({cards}) are not used in this version, whatever torch is installed.",
                 cards=", ".join(facts.amd))  # fmt: skip
    if facts.trouble:
        return t("Runs use the processor: NVIDIA's driver names no card. It says: {trouble}", trouble=facts.trouble)
    return t("Runs use the processor: no NVIDIA card and no Apple GPU was found.")


def more(facts: machine.MachineFacts) -> Iterator[str]:
    """Yield what else is to be known of the cards: those that runs leave alone, and what others hold."""
    if facts.apple and not facts.gpus:
        yield t(
            "On Apple's GPU: every recipe in 32 bits, OFT with its rotations solved on the processor, Chat, scoring and "
            "exports. Not there: bases in 4 or 8 bits, and Unsloth and FlashAttention, which are made for NVIDIA's cards. "
            "This is what the libraries say; nobody has run it on a Mac yet."
        )
    for gpu in facts.other_gpus:
        yield t(
            "{card} ({have}) is left alone: a run is planned for one kind of card, and the other one has more memory, or "
            "computes what this one does not. CUDA_VISIBLE_DEVICES={uuid} takes it instead.",
            card=gpu.name, have=memory.size_words(gpu.memory_mib * 2**20), uuid=gpu.uuid or gpu.index,
        )  # fmt: skip
    if facts.gpus and facts.gpus[0].shares_memory:
        yield t("The card has no memory of its own: it takes main memory.")
    sentence = held_words(machine.held_by_others(facts.gpus[0] if facts.gpus else None))
    if sentence:
        yield sentence


def held_words(held: machine.Held) -> str:
    """Return what others hold of the card, in words; "" where they hold nothing."""
    if not held.mib:
        return ""
    size = memory.size_words(held.mib * 2**20)
    if held.names:
        return t("Other programs hold {size} of the card ({names}); a run could have it when they end.",
                 size=size, names=", ".join(held.names))  # fmt: skip
    return t("Other programs or a display hold {size} of the card.", size=size)


def unseen(facts: machine.MachineFacts) -> Problem | None:
    """Return what is wrong where the driver names a card and the installed torch is not built to compute on it, with what
    to install; None where nothing is known to be wrong."""
    card = facts.gpus[0] if facts.gpus else None
    build = machine.torch_build()
    found = machine.mismatch(build, facts.driver, card.capability) if card is not None else None
    if card is None or found is None:
        return None
    parameters: dict[str, Any] = {"card": card.name, "remedy": _remedy(found)}
    if found.why == "driver" and build is not None:
        parameters |= {"driver": facts.driver, "cuda": build.cuda}
    elif found.why != "none" and build is not None:
        parameters |= {"build": build.version}
    return Problem(rule=RULES[found.why], where=WHERE, parameters=parameters)


def refused_by_torch(facts: machine.MachineFacts, reason: str) -> Problem:
    """Return what is wrong where torch was asked for the card that the driver names and does not compute on it. `reason` is
    torch's own, used where driver, card and build seem to fit."""
    card = facts.gpus[0].name if facts.gpus else ""
    told = Problem(rule="driver-torch-refuses", where=WHERE, parameters={"card": card, "reason": reason[:200]})
    return unseen(facts) or told


def _remedy(found: machine.Mismatch) -> Text:
    if not found.wheels:
        return later("update NVIDIA's driver to {least} or newer", least=found.least_driver)
    command = f"{sys.executable} -m pip install torch=={TORCH}+{found.wheels}"
    command += f" --index-url https://download.pytorch.org/whl/{found.wheels}"
    return later("stop Tunebook, run {command}, and start it again", command=command)
