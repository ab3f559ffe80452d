"""The libraries that compute, imported without what no training of ours uses.

Optional packages that happen to be installed are probed for by transformers and peft and imported for functions that
nothing here calls: scikit-learn for assisted decoding, parts of scipy for object detection, bitsandbytes for bases in few
bits. Together they take half as long as torch itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from engine.models import bases
from engine.spec import RunSpec
from engine.workspace import Workspace

# Wanted by what is imported here only, each for something that is not called. Whoever asks later, such as a tracker or a
# task of the harness, gets them.
UNUSED = ("sklearn", "scipy")
# Wanted again whenever an adapter is laid on: left out for as long as this process lives.
QUANTIZERS = ("bitsandbytes",)


def wants_quantizers(spec: RunSpec, workspace: Workspace, optimizer: str = "adamw") -> bool:
    """Whether a run may hold a base in few bits, or its optimizer's moments. What an earlier run lies on is not looked up:
    it may."""
    if spec.kind not in ("train", "probe") or spec.quantize != "none" or optimizer != "adamw":
        return True
    base = bases.describe(spec.base.ref, workspace, spec.base.revision)
    return base.kind == "run" or base.stored is not None


def without_quantizers() -> bool:
    """Whether the libraries were loaded here without what holds a base in few bits."""
    return any(name in sys.modules and sys.modules[name] is None for name in QUANTIZERS)


@contextmanager
def _absent(*names: str) -> Iterator[None]:
    """Let `import name` fail, as where it is not installed: the import system takes None in sys.modules for that."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # pyright: ignore[reportCallIssue, reportArgumentType]
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


def load(*, quantizers: bool) -> dict[str, Any]:
    """Import the libraries that compute and return them by name; `quantizers` says whether bitsandbytes is among them."""
    if not quantizers:
        for name in QUANTIZERS:
            sys.modules.setdefault(name, None)  # pyright: ignore[reportArgumentType]
    with _absent(*UNUSED):
        import numpy
        import peft
        import torch
        import transformers
        import trl
        from transformers import AutoModelForCausalLM, GenerationMixin, Trainer  # noqa: F401 - what probes for them

    return {"torch": torch, "transformers": transformers, "trl": trl, "peft": peft, "numpy": numpy}
