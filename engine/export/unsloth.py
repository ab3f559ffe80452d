"""A run's recipe as a script for Unsloth 2026.10: that for TRL, with Unsloth imported before all that it rewrites. Nothing
here imports it."""

from __future__ import annotations

from engine.estimate import machine_choices
from engine.export import trl
from engine.export.portable_recipe import PortableRecipe, cannot
from engine.spec import OBJECTIVES
from engine.words import t

TITLE = "Unsloth"


def files(recipe: PortableRecipe) -> dict[str, str]:
    """Return the script, under the name of its file. Raises NotExportable where Unsloth does not train so."""
    run_spec, remedy = recipe.spec, t("take the TRL script instead")
    if run_spec.adapter not in OBJECTIVES[run_spec.objective].unsloth_adapters or run_spec.quantize == "8bit":
        reason = t("it does SFT, and DPO and KTO with LoRA, on a base in 16 or 4 bits")
        raise cannot(TITLE, reason, remedy)
    if recipe.shape is not None and recipe.shape.layout not in machine_choices.UNSLOTH_LAYOUTS:
        reason = t("it has no fast path for this kind of model ({layout})", layout=recipe.shape.layout)
        raise cannot(TITLE, reason, remedy)
    return {"train.py": trl.script(recipe, by_unsloth=True)}
