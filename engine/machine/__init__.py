"""What this machine has, found without torch: processor cores, memory, cards, and which torch is installed.

facts() says which device runs take and which cards are there beside it; held_by_others(gpu) what other programs hold of a
card now; torch_build() what the installed torch was built for, and mismatch(...) why it does not see a card.
"""

from engine.machine.builds import Mismatch, TorchBuild, in_code, mismatch, torch_build
from engine.machine.here import Gpu, MachineFacts, facts, free_bytes, marketed_gb
from engine.machine.use import Held, held_by_others

__all__ = [
    "Gpu",
    "Held",
    "MachineFacts",
    "Mismatch",
    "TorchBuild",
    "facts",
    "free_bytes",
    "held_by_others",
    "in_code",
    "marketed_gb",
    "mismatch",
    "torch_build",
]
