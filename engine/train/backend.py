"""What this process runs on, and Unsloth, which must be imported before the libraries it patches.

Nothing here imports transformers, trl or peft: it is asked first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
import torch

from engine import machine
from engine.estimate import cards, machine_choices
from engine.plan import plans, targets
from engine.runs import failures
from engine.spec import RunSpec
from engine.words import Problem, Text, later
from engine.workspace import Workspace


def here() -> machine_choices.Device:
    """Return the device of this process as torch sees it, without what other programs hold of a card. Raises RunRefused
    where the driver names a card and torch does not compute on it."""
    cuda = sees_card()
    memory = psutil.virtual_memory().total
    if cuda:
        held = machine.held_by_others(machine.facts().gpus[0] if machine.facts().gpus else None)
        memory = max(0, torch.cuda.get_device_properties(0).total_memory - held.mib * 2**20)
    return machine_choices.Device(
        name="cuda" if cuda else "mps" if on_apple() else "cpu",
        memory_bytes=memory,
        bf16=cuda and torch.cuda.is_bf16_supported(including_emulation=False),
        unsloth=machine_choices.installed("unsloth"),
        flash_attention=machine_choices.installed("flash_attn"),
        free_bytes=machine.free_bytes(),
    )


def sees_card() -> bool:
    """Whether this process computes on a card. Raises RunRefused where the driver names one and torch does not compute on
    it: the processor, chosen by nobody, would take a hundred times as long."""
    facts = machine.facts()
    if not torch.cuda.is_available():
        if facts.gpus:
            raise failures.RunRefused(cards.refused_by_torch(facts, _why_not()))
        return False
    built_for = torch.cuda.get_arch_list()  # empty in a build for AMD's cards, whose names are others
    if facts.gpus and built_for and not machine.in_code(torch.cuda.get_device_capability(0), built_for):
        raise failures.RunRefused(cards.refused_by_torch(facts, f"it was built for {', '.join(built_for)}"))
    return True


def _why_not() -> str:
    """Return why torch starts no CUDA, in its own words."""
    try:
        torch.cuda.init()
    except Exception as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return "torch.cuda.is_available() is False"


def on_apple() -> bool:
    """Whether the run takes Apple's GPU."""
    return machine.facts().device == "mps" and torch.backends.mps.is_available()


def device_reason() -> Text:
    """Return in words why this device is used."""
    if torch.cuda.is_available():
        return later("{card} was found", card=torch.cuda.get_device_name(0))
    if on_apple():
        return later("Apple's GPU was found")
    return later("no GPU was found")


def decide(spec: RunSpec, workspace: Workspace) -> machine_choices.Chosen:
    """Return what follows from this machine where the spec leaves it open, as the plan of the run said, but for what
    torch sees."""
    return plans.of_spec(workspace, spec, targets.Target(here())).chosen


def import_unsloth(run_dir: Path) -> Any:
    """Import Unsloth and return it. It rewrites transformers, trl and peft as they are imported, so it comes first; what
    it compiles goes into the run's cache. Raises RunRefused when it cannot be loaded."""
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"  # it would fetch a file to be counted
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(run_dir / "cache" / "unsloth")
    try:
        import unsloth  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError, NotImplementedError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise failures.RunRefused(Problem(rule="unsloth-broken", parameters={"reason": reason})) from error
    return unsloth


def rewrote(model: Any) -> bool:
    """Whether Unsloth has put its own forward into a model's class, as it does for all models of a kind in the process."""
    return (getattr(type(model).forward, "__module__", None) or "").startswith("unsloth")


def load_unsloth(source: str, spec: RunSpec, dtype: torch.dtype, *, checkpointing: bool, window_tokens: int) -> Any:
    """Load a base through Unsloth: whole, or in 4 bits. Full fine-tuning holds all weights in `dtype`.

    What is longer than its window it cuts without a word (unsloth 2026.10, models/llama.py, LlamaModel_fast_forward), the
    questions of a benchmark too: `window_tokens` is the longest that anything asks of it."""
    from unsloth import FastLanguageModel  # pyright: ignore[reportMissingImports]

    model, _ = FastLanguageModel.from_pretrained(
        model_name=source,
        revision=spec.base.revision,
        max_seq_length=window_tokens,
        dtype=dtype,
        load_in_4bit=spec.quantize == "4bit",
        full_finetuning=spec.adapter == "full",
        use_gradient_checkpointing="unsloth" if checkpointing else False,
        use_exact_model_name=True,  # else it may fetch its own quantised copy of the same name
        trust_remote_code=False,
    )
    return model


def add_unsloth_lora(model: Any, spec: RunSpec, targets: list[str], layers: list[int] | None, *, checkpointing: bool):
    """Wrap a model loaded by Unsloth in LoRA with its fast kernels. What is saved is a plain peft adapter."""
    from unsloth import FastLanguageModel  # pyright: ignore[reportMissingImports]

    args = spec.adapter_args
    return FastLanguageModel.get_peft_model(
        model,
        r=args.rank,
        lora_alpha=args.alpha,
        lora_dropout=args.dropout,
        target_modules=targets,
        layers_to_transform=layers,
        bias="none",
        use_gradient_checkpointing="unsloth" if checkpointing else False,
        random_state=spec.train.seed,
    )


def back_to_training(model: Any, training: bool) -> None:
    """Put a model back after it wrote answers. Unsloth switches its checkpointing off to write."""
    switch = getattr(model, "for_training", None)
    if training and switch is not None:
        switch()
    model.train(training)
