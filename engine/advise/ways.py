"""The ways to train that some facts allow, the best first, each with its settings and the rules behind them."""

from __future__ import annotations

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
    new_domain,
    tuned_again,
)
from engine.spec import OBJECTIVES, objectives, recipes
from engine.spec import counts as spec_counts
from engine.words import t


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


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """A way to train: objective x adapter, quantised or not, on which layers, for rows of a type. `recipe` is what the
    guide calls it, `trained_by` the recipe that trains it."""

    recipe: str
    objective: str
    adapter: str
    quantize: str = "none"
    layers: str = "all"
    data_type: str | None = None
    trained_by: str = ""
    settings: tuple[Advised, ...] = ()

    @property
    def parts(self) -> frozenset[str]:
        """The names under which the guide's rules may speak for this way."""
        names = {self.recipe, self.adapter}
        if self.quantize == "4bit":
            names.add({"lora": "qlora", "oft": "qoft"}[self.adapter])
        if self.layers != "all":
            names -= {"full"}
        return frozenset(names)

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two ways the same kind of run; the finer settings aside."""
        return self.objective, self.adapter, self.quantize, self.layers, self.value("adapter_args.rank")

    @property
    def title(self) -> str:
        """The name a person knows it by: "QLoRA", "DPO with LoRA"."""
        weights = _method_title(self)
        if self.objective == "sft":
            return weights
        return t("{objective} with {adapter}", objective=OBJECTIVES[self.objective].title, adapter=weights)

    def setting(self, path: str) -> Advised | None:
        """Return the advised setting of a path, if there is one."""
        return next((s for s in self.settings if s.path == path), None)

    def with_batch(self, rows: int, passes: int) -> Way:
        """Return the way with so many rows at a time and passes a step, because more do not fit."""
        reason = t("few rows at a time, many passes a step: more do not fit")
        moved = {"train.batch_size": rows, "train.accumulation": passes}
        kept = [one for one in self.settings if one.path not in moved]
        new = [
            msgspec.structs.replace(self.setting(path) or Advised(path=path, value=value), value=value, reason=reason)
            for path, value in moved.items()
        ]
        return msgspec.structs.replace(self, settings=(*kept, *new))

    def with_length(self, tokens: int) -> Way:
        """Return the way with rows of at most so many tokens, because longer ones do not fit."""
        path, reason = "train.max_length", t("shorter rows: longer ones do not fit")
        usual = self.setting(path) or Advised(path=path, value=tokens)
        kept = [one for one in self.settings if one.path != path]
        return msgspec.structs.replace(
            self, settings=(*kept, msgspec.structs.replace(usual, value=tokens, low=None, high=None, reason=reason))
        )

    def value(self, path: str) -> Any:
        """Return the advised value of a path, or None."""
        setting = self.setting(path)
        return setting.value if setting else None


def _method_title(way: Way) -> str:
    if way.adapter == "full":
        return t("full fine-tuning") if way.layers == "all" else t("freezing the lower layers")
    names = {("lora", "none"): "LoRA", ("lora", "4bit"): "QLoRA", ("oft", "none"): "OFT", ("oft", "4bit"): "QOFT"}
    return names[(way.adapter, way.quantize)]


def recipe_name_for(way: Way) -> str | None:
    """Return the recipe that trains this. Recipes are data, so they are asked.

    An objective's recipe also runs with an adapter it does not name, once a recipe shows that this adapter is built:
    objective and adapter are two axes.
    """
    found = recipes.recipes()
    taught = {
        name: recipe
        for name, recipe in found.items()
        if recipe.objective == way.objective and (way.data_type is None or way.data_type in recipe.data_types)
    }
    # where several recipes freeze layers, the one that freezes these
    for name in sorted(taught, key=lambda name: (name != way.recipe, _layers_of(taught[name]) != way.layers)):
        if _weights_of(taught[name]) == (way.adapter, way.quantize, way.layers != "all"):
            return name
    built = {_weights_of(recipe) for recipe in found.values()}
    if way.objective != "sft" and (way.adapter, way.quantize, way.layers != "all") in built:
        return next(iter(taught), None)
    return None


def _weights_of(recipe: recipes.Recipe) -> tuple[str, str, bool]:
    """Return which weights a recipe trains: adapter, quantisation, and whether layers are frozen."""
    return recipe.adapter, recipe.quantize, _layers_of(recipe) != "all"


def _layers_of(recipe: recipes.Recipe) -> Any:
    layers = recipe.defaults.get("layers")
    return "all" if layers is None else layers.value


def _objectives(facts: Facts) -> list[str]:
    """Return what the data can feed, the usual one first. Without a file, what the stated judgements would feed."""
    kind = alignment(facts)
    if facts.data_type is not None:
        data_type = facts.data_type
    elif facts.has_reward_model and (facts.goal == "alignment" or kind == "ratings_large"):
        data_type = "prompt-only"
    elif kind in ("comparisons", "ratings_large"):
        data_type = "preference"
    else:
        data_type = "unpaired-preference" if kind == "good_bad" else "prompt-completion"
    fed = objectives.feeds(data_type)
    return [name for name in fed if facts.has_reward_model or not OBJECTIVES[name].needs_judge]


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


def ranked(facts: Facts) -> list[Way]:
    """Return every way the data can feed and a recipe trains, the best first, whether it fits or not."""
    found: list[Way] = []
    for objective in _objectives(facts):
        for recipe, adapter, quantize, layers in _order(facts, objective):
            if quantize == "4bit" and facts.gpu_memory_gib is None:
                continue  # on a processor 4 bits are slower and nothing is short of GPU memory
            rank, reason = _rank(facts, objective)
            # where the memory has no room for a high rank, a lower one comes before another method
            for smaller in (rank, *(r for r in (64, 16) if r < rank and adapter == "lora")):
                way = Way(
                    recipe=recipe if objective == "sft" else objective,
                    objective=objective,
                    adapter=adapter,
                    quantize=quantize,
                    layers=layers,
                    data_type=facts.data_type,
                )
                trained_by = recipe_name_for(way)
                if trained_by is None:
                    continue
                settings = _settings(way, facts, smaller, reason)
                found.append(msgspec.structs.replace(way, settings=settings, trained_by=trained_by))
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


def _settings(way: Way, facts: Facts, rank: int, rank_reason: str) -> tuple[Advised, ...]:
    """Return the settings of a way: those of the guide's rules that stand for it, moved where the facts ask."""
    parameters = facts.base_parameters or UNKNOWN_PARAMETERS
    found: dict[str, Advised] = {}
    about = {"objective": way.objective, "adapter": way.adapter, "recipe": way.recipe}
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

    if way.adapter == "lora":
        move("adapter_args.rank", rank, rank_reason)
        move("adapter_args.alpha", 2 * rank, t("twice the rank"))
    rate = found.get("train.learning_rate")
    if rate is not None and way.objective == "sft":
        if way.adapter == "lora" and rank >= 128:
            move(rate.path, rate.value / 2, t("half the usual rate, because high ranks are unstable at higher rates"))
        elif facts.forgetting_tolerance == "low" and rate.low is not None:
            move(rate.path, rate.low, t("the lower end, because a lower rate forgets less"))
    if way.objective == "sft":
        move("train.replay_share", _replay_share(facts), t("how much may be forgotten decides how much is mixed in"))
    if way.objective == "kto" and facts.good_rows and facts.bad_rows:
        weights = spec_counts.kto_weights(facts.good_rows, facts.bad_rows)
        move("objective_args.weights", list(weights), t("the rarer label counts more, so that both weigh the same"))
    return tuple(found.values())


def _replay_share(facts: Facts) -> float:
    """Return the share of general rows to mix in: 1 to 10 % stop most forgetting (arXiv 2502.06042)."""
    if facts.forgetting_tolerance == "low":
        return 0.1
    return 0.01 if facts.forgetting_tolerance == "high" and not tuned_again(facts) else 0.05


def named(way: Way, *, capital: bool = False) -> str:
    """Return the title with LoRA's rank, which tells two ways of one method apart."""
    title = way.title[0].upper() + way.title[1:] if capital else way.title
    rank = way.value("adapter_args.rank")
    return title if rank is None else t("{choice} of rank {rank}", choice=title, rank=rank)


def recipe_for(way: Way) -> recipes.Recipe:
    """Return the recipe that trains a way of `ranked`."""
    return recipes.recipes()[way.trained_by]
