"""The ways to train that some facts allow, the best first, each with its settings and the rules behind them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec

from engine.advise import guide as advise_guide
from engine.advise.facts import (
    LARGE_ANNOTATION_ROWS,
    MANY_ROWS,
    UNKNOWN_PARAMETERS,
    VERY_MANY_ROWS,
    Facts,
    alignment,
    marketed_gb,
    new_domain,
    tuned_again,
)
from engine.spec import counts as spec_counts
from engine.spec import recipes
from engine.words import t

# Which objectives rows of a type can feed, the first the usual one (TRL 1.12, dataset formats). Prompts alone feed PPO
# only together with a reward model; step labels feed none of ours.
FEEDS: dict[str, tuple[str, ...]] = {
    "language-modeling": ("sft",),
    "prompt-completion": ("sft",),
    "preference": ("dpo", "reward"),
    "unpaired-preference": ("kto",),
    "prompt-only": ("ppo",),
    "stepwise": (),
}


class Advised(msgspec.Struct, frozen=True, kw_only=True):
    """One setting: the value, its usual range, and the guide's rule behind it with the guide's own value if it differs.

    `reason` is set when the facts moved the value away from the usual one; these go into a draft.
    """

    path: str
    value: Any
    low: float | None = None
    high: float | None = None
    rule: str = ""
    guide: str | None = None
    reason: str = ""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """A way to train: objective x adapter, quantised or not, on which layers, for rows of a type."""

    recipe: str
    objective: str
    adapter: str
    quantize: str = "none"
    layers: str = "all"
    data_type: str | None = None
    settings: tuple[Advised, ...] = ()

    @property
    def parts(self) -> frozenset[str]:
        """The names under which the guide's rules may speak for this choice."""
        names = {self.recipe, self.adapter}
        if self.quantize == "4bit":
            names.add({"lora": "qlora", "oft": "qoft"}[self.adapter])
        if self.layers != "all":
            names -= {"full"}
        return frozenset(names)

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two choices the same kind of run; the finer settings aside."""
        return self.objective, self.adapter, self.quantize, self.layers, self.value("adapter_args.rank")

    @property
    def title(self) -> str:
        """The name a person knows it by: "QLoRA", "DPO with LoRA"."""
        weights = _method_title(self)
        if self.objective == "sft":
            return weights
        return t("{objective} with {adapter}", objective=objective_title(self.objective), adapter=weights)

    def setting(self, path: str) -> Advised | None:
        """Return the advised setting of a path, if there is one."""
        return next((s for s in self.settings if s.path == path), None)

    def value(self, path: str) -> Any:
        """Return the advised value of a path, or None."""
        setting = self.setting(path)
        return setting.value if setting else None


def objective_title(objective: str) -> str:
    return {"sft": "SFT", "dpo": "DPO", "kto": "KTO", "ppo": "PPO", "reward": t("Reward model")}[objective]


def _method_title(choice: Choice) -> str:
    if choice.adapter == "full":
        return t("full fine-tuning") if choice.layers == "all" else t("freezing the lower layers")
    names = {("lora", "none"): "LoRA", ("lora", "4bit"): "QLoRA", ("oft", "none"): "OFT", ("oft", "4bit"): "QOFT"}
    return names[(choice.adapter, choice.quantize)]


Test = Callable[[Choice], bool]
Need = Callable[[Choice], str]


def runnable_now(choice: Choice) -> bool:
    """Whether a recipe of this version trains this choice on rows of its type."""
    return recipe_name_for(choice) is not None


def recipe_name_for(choice: Choice) -> str | None:
    """Return the recipe that trains this. Recipes are data, so they are asked.

    An objective's recipe also runs with an adapter it does not name, once a recipe shows that this adapter is built:
    objective and adapter are two axes.
    """
    found = known_recipes()
    taught = {
        name: recipe
        for name, recipe in found.items()
        if recipe.objective == choice.objective and (choice.data_type is None or choice.data_type in recipe.data_types)
    }
    # where several recipes freeze layers, the one that freezes these
    for name in sorted(taught, key=lambda name: (name != choice.recipe, _layers_of(taught[name]) != choice.layers)):
        if _weights_of(taught[name]) == (choice.adapter, choice.quantize, choice.layers != "all"):
            return name
    built = {_weights_of(recipe) for recipe in found.values()}
    if choice.objective != "sft" and (choice.adapter, choice.quantize, choice.layers != "all") in built:
        return next(iter(taught), None)
    return None


def known_recipes() -> dict[str, recipes.Recipe]:
    """Return the recipes, read again when a file of the folder changed: one piece of advice asks dozens of times."""
    return _read_recipes(tuple((p.name, p.stat().st_mtime_ns) for p in sorted(recipes.RECIPES_DIR.glob("*.yaml"))))


@lru_cache(maxsize=2)
def _read_recipes(_stamp: tuple[tuple[str, int], ...]) -> dict[str, recipes.Recipe]:
    return recipes.recipes()


def _weights_of(recipe: recipes.Recipe) -> tuple[str, str, bool]:
    """Return which weights a recipe trains: adapter, quantisation, and whether layers are frozen."""
    return recipe.adapter, recipe.quantize, _layers_of(recipe) != "all"


def _layers_of(recipe: recipes.Recipe) -> Any:
    layers = recipe.defaults.get("layers")
    return "all" if layers is None else layers.value


# GiB beside weights, gradients and optimizer at one row of 1,024 tokens with gradient checkpointing: the CUDA context,
# one recomputed layer, logits; pairs and labels run two models' logits.
_OVERHEAD_GIB = {"sft": 1.5, "reward": 1.5, "dpo": 2.5, "kto": 2.5, "ppo": 2.5}
# A run should leave a tenth of the card free: fragmentation costs 5 to 15 %.
USABLE_SHARE = 0.9
# LoRA's trained parameters per unit of rank on every linear layer of Llama-2-7B; other sizes go with the width times the
# depth, which is the power 2/3 of the parameters.
_LORA_7B_PER_RANK, _LLAMA_7B = 2_498_560, 6.74e9


def rough_need_gib(choice: Choice, parameters: float) -> float:
    """Return the least memory of a choice on a base, by rule of thumb: 16 bytes for each trained parameter (weights,
    gradients and Adam in 32 bits), 2 for each frozen one, 0.6 when quantised to 4 bits.

    Checked against LLaMA-Factory's table (7B: full 120 GB, LoRA 16, QLoRA 6). PPO counts a reward model of the base's
    size and a value head on the policy; TRL 1.12's separate value model would add 8 bytes a parameter. DPO, KTO and PPO
    of all weights hold a frozen copy as the reference.
    """
    if choice.adapter == "full":
        frozen_share = 0.5 if choice.layers != "all" else 0.0
        held = (16 * (1 - frozen_share) + 4 * frozen_share) * parameters
        held += 2 * parameters if choice.objective in ("dpo", "kto", "ppo") else 0
    else:
        rank = choice.value("adapter_args.rank") or 16
        trained = rank * _LORA_7B_PER_RANK * (parameters / _LLAMA_7B) ** (2 / 3)
        held = (0.6 if choice.quantize == "4bit" else 2) * parameters + 16 * trained
    if choice.objective == "ppo":
        held += 2 * parameters
    return held / 2**30 + _OVERHEAD_GIB[choice.objective]


def roughly_fits(choice: Choice, facts: Facts) -> bool:
    if facts.gpu_memory_gib is None:
        return True  # main memory is not a fact here; the page's own estimate knows it
    if facts.base_parameters is None:
        # the guide's rule for such a card (C4) stands until the size of the base is known
        return choice.quantize == "4bit" or marketed_gb(facts.gpu_memory_gib) > 8
    return rough_need_gib(choice, facts.base_parameters) <= USABLE_SHARE * facts.gpu_memory_gib


def _objectives(facts: Facts) -> tuple[str, ...]:
    """Return what the data can feed, the usual one first. Without a file, what the stated judgements would feed."""
    if facts.data_type == "prompt-only":
        return FEEDS["prompt-only"] if facts.has_reward_model else ()
    if facts.data_type is not None:
        return FEEDS[facts.data_type]
    kind = alignment(facts)
    if facts.has_reward_model and (facts.goal == "alignment" or kind == "ratings_large"):
        return ("ppo",)
    if kind in ("comparisons", "ratings_large"):
        return ("dpo", "reward")
    return ("kto",) if kind == "good_bad" else ("sft",)


def _rank(facts: Facts, objective: str) -> tuple[int, str]:
    """Return LoRA's rank and, where the facts moved it, why."""
    if objective != "sft":
        return 8, ""
    rows = facts.rows or 0
    rank, reason = 16, ""
    if rows > VERY_MANY_ROWS and new_domain(facts):
        rank, reason = 256, t("rank 256 learns a large new subject almost as well as full fine-tuning")
    elif rows > MANY_ROWS or (new_domain(facts) and rows > LARGE_ANNOTATION_ROWS):
        rank, reason = 64, t("rank 64, because rank 16 is tight for this much or this new material")
    if facts.forgetting_tolerance == "low" or tuned_again(facts):
        rank, reason = max(8, rank // 2), t("half the usual rank, because a lower rank forgets less")
    return rank, reason


def ranked(facts: Facts) -> list[Choice]:
    """Return every choice the data can feed, the best first, whether it fits or not."""
    found: list[Choice] = []
    for objective in _objectives(facts):
        for recipe, adapter, quantize, layers in _order(facts, objective):
            if quantize == "4bit" and facts.gpu_memory_gib is None:
                continue  # on a processor 4 bits are slower and nothing is short of GPU memory
            rank, reason = _rank(facts, objective)
            # where the memory has no room for a high rank, a lower one comes before another method
            for smaller in (rank, *(r for r in (64, 16) if r < rank and adapter == "lora")):
                choice = Choice(
                    recipe=recipe if objective == "sft" else objective,
                    objective=objective,
                    adapter=adapter,
                    quantize=quantize,
                    layers=layers,
                    data_type=facts.data_type,
                )
                settings = _settings(choice, facts, smaller, reason)
                found.append(msgspec.structs.replace(choice, settings=settings))
    return found


_FULL = ("full", "full", "none", "all")
_LORA = ("lora", "lora", "none", "all")
_QLORA = ("qlora", "lora", "4bit", "all")
_OFT = ("oft", "oft", "none", "all")
_QOFT = ("qoft", "oft", "4bit", "all")
_FREEZE = ("freeze", "full", "none", "bottom_frozen:0.5")


def _order(facts: Facts, objective: str) -> tuple[tuple[str, str, str, str], ...]:
    """Return the adapters in order of preference: (recipe for SFT, adapter, quantize, layers)."""
    if objective != "sft":
        return (_LORA, _OFT, _QLORA, _QOFT, _FULL)
    if tuned_again(facts):
        return (_OFT, _LORA, _QOFT, _QLORA, _FREEZE, _FULL)
    many = facts.rows is not None and facts.rows > VERY_MANY_ROWS
    if many and new_domain(facts) and facts.forgetting_tolerance != "low":
        return (_FULL, _LORA, _OFT, _FREEZE, _QLORA, _QOFT)
    return (_LORA, _OFT, _QLORA, _QOFT, _FREEZE, _FULL)


def _settings(choice: Choice, facts: Facts, rank: int, rank_reason: str) -> tuple[Advised, ...]:
    """Return the settings of a choice: those of the guide's rules that stand for it, moved where the facts ask."""
    parameters = facts.base_parameters or UNKNOWN_PARAMETERS
    found: dict[str, Advised] = {}
    about = {"objective": choice.objective, "adapter": choice.adapter, "recipe": choice.recipe}
    for rule, s in advise_guide.settings():
        if s.stands_for(**about, parameters=parameters):
            found[s.path] = Advised(path=s.path, value=s.value, low=s.low, high=s.high, rule=rule.id, guide=s.guide)

    def move(path: str, value: Any, reason: str) -> None:
        usual = found.get(path, Advised(path=path, value=None))
        if usual.value != value:
            low, high = usual.low, usual.high
            if low is not None and high is not None:  # the range shown always holds the value
                low, high = min(low, value), max(high, value)
            found[path] = msgspec.structs.replace(usual, value=value, low=low, high=high, reason=reason)

    if choice.adapter == "lora":
        move("adapter_args.rank", rank, rank_reason)
        move("adapter_args.alpha", 2 * rank, t("twice the rank"))
    rate = found.get("train.learning_rate")
    if rate is not None and choice.objective == "sft":
        if choice.adapter == "lora" and rank >= 128:
            move(rate.path, rate.value / 2, t("half the usual rate, because high ranks are unstable at higher rates"))
        elif facts.forgetting_tolerance == "low" and rate.low is not None:
            move(rate.path, rate.low, t("the lower end, because a lower rate forgets less"))
    if choice.objective == "sft":
        move("train.replay_share", _replay_share(facts), t("how much may be forgotten decides how much is mixed in"))
    if choice.objective == "kto" and facts.good_rows and facts.bad_rows:
        weights = spec_counts.kto_weights(facts.good_rows, facts.bad_rows)
        move("objective_args.weights", list(weights), t("the rarer label counts more, so that both weigh the same"))
    if _is_tight(msgspec.structs.replace(choice, settings=tuple(found.values())), facts):
        move("train.gradient_checkpointing", True, t("saves memory where the card is nearly full"))
        if marketed_gb(facts.gpu_memory_gib or 0) <= 8:
            # KTO compares the rows of a batch, so its batch holds at least 4 (kto_trainer.py of TRL 1.12)
            batch = 4 if choice.objective == "kto" else 1
            rows_a_step = found["effective_batch"].value if "effective_batch" in found else 16
            reason = t("few rows at a time on a small card, many passes a step")
            move("train.batch_size", batch, reason)
            move("train.accumulation", max(1, rows_a_step // batch), reason)
    return tuple(found.values())


def _is_tight(choice: Choice, facts: Facts) -> bool:
    """Whether the card is small for this choice: more than half of it is taken before the batch grows."""
    if facts.gpu_memory_gib is None:
        return False
    if facts.base_parameters is None:
        return marketed_gb(facts.gpu_memory_gib) <= 16
    return rough_need_gib(choice, facts.base_parameters) > facts.gpu_memory_gib / 2


def _replay_share(facts: Facts) -> float:
    """Return the share of general rows to mix in: 1 to 10 % stop most forgetting (arXiv 2502.06042)."""
    if facts.forgetting_tolerance == "low":
        return 0.1
    return 0.01 if facts.forgetting_tolerance == "high" and not tuned_again(facts) else 0.05


def named(choice: Choice, *, capital: bool = False) -> str:
    """Return the title with LoRA's rank, which tells two choices of one method apart."""
    title = choice.title[0].upper() + choice.title[1:] if capital else choice.title
    rank = choice.value("adapter_args.rank")
    return title if rank is None else t("{choice} of rank {rank}", choice=title, rank=rank)


def recipe_for(choice: Choice) -> recipes.Recipe | None:
    """Return the recipe that trains a choice, or None when this version has none."""
    name = recipe_name_for(choice)
    return known_recipes()[name] if name is not None else None
