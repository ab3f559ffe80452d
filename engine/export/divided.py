"""Configurations of Accelerate that divide a model over cards, beside the TRL script: FSDP2 and DeepSpeed ZeRO-3.

Tunebook itself gives each card the whole base; a larger one is trained by these. Keys are those of accelerate 1.15
(utils/dataclasses.py, commands/config/config_args.py) and values those that TRL 1.12 ships for its own scripts
(trl/accelerate_configs/fsdp2.yaml, zero3.yaml). They were read there, not run: Accelerate divides on no processor.
"""

from __future__ import annotations

from typing import Any

from engine.export import portable_recipe
from engine.export.portable_recipe import PortableRecipe
from engine.spec import counts

FSDP2, DEEPSPEED = "fsdp2.yaml", "deepspeed-zero3.yaml"
_UNTESTED = "untested: written from the sources of Accelerate and TRL, and run on no card so far"


def files(recipe: PortableRecipe) -> dict[str, str]:
    """Return both configurations, under the names of their files."""
    fsdp = {
        # the script asks for checkpointing itself
        "fsdp_activation_checkpointing": False,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_cpu_ram_efficient_loading": True,
        "fsdp_offload_params": False,
        "fsdp_reshard_after_forward": True,
        "fsdp_state_dict_type": "FULL_STATE_DICT",
        "fsdp_version": 2,
    }
    deepspeed = {
        "deepspeed_multinode_launcher": "standard",
        "offload_optimizer_device": "none",
        "offload_param_device": "none",
        "zero3_init_flag": True,
        "zero3_save_16bit_model": True,
        "zero_stage": 3,
    }
    return {
        FSDP2: _file(recipe, FSDP2, "FSDP2", {"distributed_type": "FSDP", "fsdp_config": fsdp}, []),
        DEEPSPEED: _file(
            recipe, DEEPSPEED, "DeepSpeed ZeRO-3", {"distributed_type": "DEEPSPEED", "deepspeed_config": deepspeed},
            ["pip install deepspeed      # it is no part of Tunebook"],
            # transformers 5.17 (quantizer_bnb_4bit.py, update_device_map) takes no other place for it there
            "each card takes the whole base in 4 bits before it is divided: a larger one needs FSDP2",
        ),
    }  # fmt: skip


def _file(
    recipe: PortableRecipe, name: str, title: str, settings: dict[str, Any], before: list[str], in_4_bits: str = ""
) -> str:
    processes, machines = _places(recipe)
    differences = [
        _UNTESTED,
        "each step takes as many times the rows as there are cards: divide the accumulation by them",
    ]
    if recipe.spec.quantize == "4bit" and in_4_bits:
        differences.append(in_4_bits)
    if recipe.spec.quantize == "8bit":
        differences.append("a base in 8 bits cannot be divided: take 4 bits, or none")
    head = portable_recipe.head(
        recipe, f"Accelerate's configuration to divide the model by {title}, for the TRL script beside it,",
        [*before, *_launch(name, processes, machines)], differences,
    )  # fmt: skip
    common = {
        "machine_rank": 0, "main_training_function": "main", "mixed_precision": "bf16", "num_machines": machines,
        "num_processes": processes, "rdzv_backend": "static", "same_network": True, "use_cpu": False,
    }  # fmt: skip
    whole = {"compute_environment": "LOCAL_MACHINE", "debug": False, "downcast_bf16": "no", **settings, **common}
    return portable_recipe.as_yaml(head, whole)


def _places(recipe: PortableRecipe) -> tuple[int, int]:
    """Return over how many cards, of how many machines, the run was to go; two at least."""
    return max(2, counts.processes(recipe.spec)), recipe.spec.machine.nodes


def _launch(name: str, processes: int, machines: int) -> list[str]:
    line = f"accelerate launch --config_file {name}"
    if machines == 1:
        return [f"{line} --num_processes {processes} train.py      # as many as there are cards"]
    meet = "--main_process_ip ADDRESS-OF-THE-FIRST --main_process_port 29500"
    return [f"{line} --machine_rank {rank} {meet} train.py      # on machine {rank + 1}" for rank in range(machines)]
