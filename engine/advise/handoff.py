"""The hand-off to the Train page: a draft of what the advice starts."""

from __future__ import annotations

import math
from typing import Any

from engine.advise.advice import Advice
from engine.advise.facts import TOY_PARAMETERS
from engine.advise.otherwise import method_trade
from engine.advise.ways import Choice, known_recipes, recipe_name_for
from engine.plan import drafts
from engine.spec import settings as spec_settings
from engine.words import t


def draft(
    advice: Advice, *, base: str, dataset: str | None, choice: Choice | None = None, reward_model: str | None = None
) -> drafts.Draft | None:
    """Return the draft that "Use this" opens, or None when nothing of the advice runs today. `choice` is another one of
    the advice, such as a runner-up; `reward_model` the judge for PPO, where one was trained here.

    The recipes know the defaults for a base of each size, so the draft only changes what the facts moved. A toy base
    keeps its recipe's own settings: numbers for real models make no sense on it.
    """
    other = choice
    choice = other or advice.start
    recipe_name = recipe_name_for(choice) if choice is not None else None
    if choice is None or recipe_name is None:
        return None
    recipe = known_recipes()[recipe_name]
    toy = base == "starter" or (advice.facts.base_parameters or math.inf) < TOY_PARAMETERS
    overrides: dict[str, Any] = {
        path: getattr(choice, path)
        for path in ("adapter", "quantize")
        if getattr(choice, path) != getattr(recipe, path)
    }
    for setting in choice.settings:
        default = recipe.default(setting.path, advice.facts.base_parameters)
        usual = default.value if default is not None else None
        # A recipe's numbers are for its own adapter: DPO's rate is ten times too high where every weight moves.
        moved = setting.reason or choice.adapter != recipe.adapter
        if setting.path == "train.replay_share":
            # general rows to mix in come with the starter alone
            if base == "starter" and setting.value > (usual or 0):
                overrides[setting.path] = setting.value
        elif moved and not toy and setting.path in spec_settings.fields() and usual != setting.value:
            overrides[setting.path] = setting.value
    reasons = [advice.headline, *([advice.nearest_reason] if advice.nearest_reason else []), *advice.reasons]
    if other is not None:
        reasons = [t("You chose {choice} instead of the advice.", choice=choice.title), method_trade(choice)]
    if reward_model and choice.objective == "ppo" and "objective_args.reward_model" in spec_settings.fields():
        overrides["objective_args.reward_model"] = reward_model
    return drafts.Draft(
        recipe=recipe_name,
        base=base,
        dataset=dataset,
        overrides=overrides,
        reasons=reasons,
        rules=[] if other is not None else list(advice.rules),
        came_from="advisor",
    )
