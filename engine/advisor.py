"""The advisor: facts about data, machine and goal in, one choice out, with its reasons, rules and what would change it.

Pure: it reads nothing but the guide's tables. Precedence where the guide's tables disagree (its contradiction X11):
what fits the memory, then the form of the data, then the number of rows, then preference. It never names a choice
that does not fit or that the data cannot feed; when nothing is left it says so and `advised` is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import msgspec

from engine import drafts, guide
from engine.spec import counts as spec_counts
from engine.spec import recipes
from engine.spec import settings as spec_settings
from engine.words import Problem, t

# --- facts -----------------------------------------------------------------------------------------------------------

DATA_TYPES = (
    "language-modeling",
    "prompt-only",
    "prompt-completion",
    "preference",
    "unpaired-preference",
    "stepwise",
)
GOALS = ("format", "knowledge", "alignment", "continue")
ALIGNMENT_DATA = ("none", "ratings_large", "comparisons", "good_bad")
TOLERANCES = ("low", "medium", "high")

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

# Above this ratio of the two labels KTO's weights are needed: the ICML version of its paper keeps the weighted ratio
# within 1 to 3/2 (arXiv 2402.01306, equation 9). It is what "severely unbalanced" (C10) means here.
SEVERE_IMBALANCE = 1.5
# The guide asks for 10,000 or more labels before PPO (H4).
LARGE_ANNOTATION_ROWS = 10_000
# Up to so many rows count as "few-shot" (G5); the guide gives no number.
FEW_ROWS = 100
# So many rows make rank 16 tight (arXiv 2405.09673, section 4.7, recommends 64 to 256 for much or foreign data).
MANY_ROWS = 50_000
VERY_MANY_ROWS = 100_000
# Below this the recipes bring settings of their own: rates for a toy must not travel to a real model, nor back.
TOY_PARAMETERS = 5e7
# Numbers that depend on the size of a base which is not known are those of a model of this size.
UNKNOWN_PARAMETERS = 3e9


class Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the advice depends on; None means not known. For `gpu_memory_gib` None means that there is no GPU.

    `base_is_tuned`: the base was fine-tuned before and what it learned then should stay, such as run:<id>.
    `alignment_data`: what people have said about answers, beyond the file; see alignment_words().
    """

    rows: int | None = None
    data_type: str | None = None
    good_rows: int | None = None
    bad_rows: int | None = None
    gpu_memory_gib: float | None = None
    base_parameters: float | None = None
    base_is_tuned: bool = False
    goal: Literal["format", "knowledge", "alignment", "continue"] | None = None
    alignment_data: Literal["none", "ratings_large", "comparisons", "good_bad"] | None = None
    has_reward_model: bool = False
    forgetting_tolerance: Literal["low", "medium", "high"] = "medium"
    time_budget_minutes: float | None = None


def alignment_words() -> dict[str, str]:
    """Return the answers to "Have people judged answers of a model?", in words that cannot be misread."""
    return {
        "none": t("No, nobody has judged answers"),
        "good_bad": t("Yes, single answers are marked good or bad"),
        "comparisons": t("Yes, pairs: of two answers to one question, which is better"),
        "ratings_large": t("Yes, ratings or comparisons of more than 10,000 answers"),
    }


def goal_words() -> dict[str, str]:
    """Return the answers to "What should the model learn?"."""
    return {
        "format": t("Answer in a certain form, style or language"),
        "knowledge": t("Know a new subject"),
        "alignment": t("Prefer the answers that people prefer"),
        "continue": t("More, on top of an earlier fine-tuning"),
    }


# Memory of cards as they are sold. GeForce to data centre; 5, 10, 20, 40 and 71 are also slices of a shared card.
_MARKETED_GB = (
    *(1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 71, 80, 94, 96, 128, 141, 144, 180, 192, 256, 288),
)


def marketed_gb(gib: float) -> int:
    """Return the size a card is sold as, from the GiB it reports: 7.6 is 8, 15.7 is 16, 44.5 is 48, 79 is 80.

    A card reports up to a tenth less than its name says, because the driver and error correction keep a part (an L40S of
    48 GB reports 44.5 GiB, a T4 of 16 GB 14.6). A figure that is no card's is rounded up.
    """
    size = next((s for s in _MARKETED_GB if s * 1.01 >= gib), None)
    return size if size is not None and gib >= 0.9 * size else math.ceil(gib)


# --- choices ---------------------------------------------------------------------------------------------------------


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
        return t("{objective} with {adapter}", objective=_objective_title(self.objective), adapter=weights)

    def setting(self, path: str) -> Advised | None:
        """Return the advised setting of a path, if there is one."""
        return next((s for s in self.settings if s.path == path), None)

    def value(self, path: str) -> Any:
        """Return the advised value of a path, or None."""
        setting = self.setting(path)
        return setting.value if setting else None


def _objective_title(objective: str) -> str:
    return {"sft": "SFT", "dpo": "DPO", "kto": "KTO", "ppo": "PPO", "reward": t("Reward model")}[objective]


def _method_title(choice: Choice) -> str:
    if choice.adapter == "full":
        return t("full fine-tuning") if choice.layers == "all" else t("freezing the lower layers")
    names = {("lora", "none"): "LoRA", ("lora", "4bit"): "QLoRA", ("oft", "none"): "OFT", ("oft", "4bit"): "QOFT"}
    return names[(choice.adapter, choice.quantize)]


class TableRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a scenario table: whether it applies to the facts, and why or why not."""

    rule: str
    fired: bool
    reason: str


class Overruled(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that applies and was not followed; `partly` when it was, but not in all it says."""

    rule: str
    why: str
    partly: bool = False


class RunnerUp(msgspec.Struct, frozen=True, kw_only=True):
    """Another choice that fits, and what one gets and gives up with it."""

    choice: Choice
    trade: str


class Alternative(msgspec.Struct, frozen=True, kw_only=True):
    """One way to train that the data can feed: whether it fits, and whether this version trains it."""

    choice: Choice
    fits: bool
    runs: bool
    trade: str


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One step of the plan; `now` marks the one that the advice starts, `done` those behind it."""

    title: str
    text: str
    rules: tuple[str, ...] = ()
    now: bool = False
    done: bool = False


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict. `advised` is None when nothing fits or the data feeds nothing; `nearest` is what runs today instead,
    None when the advised one runs or nothing near it does (`nearest_reason` says which)."""

    facts: Facts
    headline: str
    advised: Choice | None
    runs: bool
    nearest: Choice | None
    nearest_reason: str
    tables: dict[str, tuple[TableRow, ...]]
    reasons: tuple[str, ...]
    rules: tuple[str, ...]
    overruled: tuple[Overruled, ...]
    would_change: tuple[str, ...]
    runners_up: tuple[RunnerUp, ...]
    alternatives: tuple[Alternative, ...]
    plan: tuple[Stage, ...]
    confidence: Literal["high", "medium", "low"]
    confidence_reason: str
    replay_share: float
    problems: tuple[Problem, ...] = ()

    @property
    def start(self) -> Choice | None:
        """The choice "Use this" opens: the advised one when it runs, else the nearest."""
        return self.advised if self.runs else self.nearest

    @property
    def fired(self) -> tuple[str, ...]:
        """The rules of the three scenario tables that apply."""
        return tuple(row.rule for rows in self.tables.values() for row in rows if row.fired)


Test = Callable[[Choice], bool]
Need = Callable[[Choice], str]


def runnable_now(choice: Choice) -> bool:
    """Whether a recipe of this version trains this choice on rows of its type."""
    return _recipe_for(choice) is not None


def _recipe_for(choice: Choice) -> str | None:
    """Return the recipe that trains this. Recipes are data, so they are asked.

    An objective's recipe also runs with an adapter it does not name, once a recipe shows that this adapter is built:
    objective and adapter are two axes.
    """
    found = _recipes()
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


def _recipes() -> dict[str, recipes.Recipe]:
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


# --- memory by rule of thumb, for when the caller has no better estimate ----------------------------------------------

# GiB beside weights, gradients and optimizer at one row of 1,024 tokens with gradient checkpointing: the CUDA context,
# one recomputed layer, logits; pairs and labels run two models' logits.
_OVERHEAD_GIB = {"sft": 1.5, "reward": 1.5, "dpo": 2.5, "kto": 2.5, "ppo": 2.5}
# A run should leave a tenth of the card free: fragmentation costs 5 to 15 %.
_USABLE_SHARE = 0.9
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


def _roughly_fits(choice: Choice, facts: Facts) -> bool:
    if facts.gpu_memory_gib is None:
        return True  # main memory is not a fact here; the page's own estimate knows it
    if facts.base_parameters is None:
        # the guide's rule for such a card (C4) stands until the size of the base is known
        return choice.quantize == "4bit" or marketed_gb(facts.gpu_memory_gib) > 8
    return rough_need_gib(choice, facts.base_parameters) <= _USABLE_SHARE * facts.gpu_memory_gib


# --- facts, checked ---------------------------------------------------------------------------------------------------


def _checked(facts: Facts) -> tuple[Facts, list[Problem]]:
    """Return the facts with every impossible one set to "not known", and what was wrong with them."""
    problems: list[Problem] = []
    changes: dict[str, Any] = {}
    numbers = {"rows": 1, "good_rows": 0, "bad_rows": 0, "gpu_memory_gib": None, "base_parameters": None}
    for name, least in {**numbers, "time_budget_minutes": None}.items():
        value = getattr(facts, name)
        if value is None:
            continue
        usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not usable or (value <= 0 if least is None else value < least):
            changes[name] = None
            problems.append(Problem(rule="fact-number", where=name, parameters={"value": str(value)[:40]}))
    words = {"data_type": (DATA_TYPES, None), "goal": (GOALS, None), "alignment_data": (ALIGNMENT_DATA, None)}
    for name, (known, otherwise) in {**words, "forgetting_tolerance": (TOLERANCES, "medium")}.items():
        value = getattr(facts, name)
        if value is not None and value not in known:
            changes[name] = otherwise
            problems.append(
                Problem(rule="fact-word", where=name, parameters={"value": str(value)[:40], "known": ", ".join(known)})
            )
    return msgspec.structs.replace(facts, **changes), problems


def _alignment(facts: Facts) -> str | None:
    """Return what human judgement there is: what was answered, else what the file itself holds."""
    if facts.alignment_data is not None:
        return facts.alignment_data
    if facts.data_type == "preference":
        return "ratings_large" if (facts.rows or 0) > LARGE_ANNOTATION_ROWS else "comparisons"
    return "good_bad" if facts.data_type == "unpaired-preference" else None


def _imbalance(facts: Facts) -> float | None:
    """Return how many times the rarer label the other one is there, or None when the counts are not known."""
    if facts.good_rows is None or facts.bad_rows is None:
        return None
    fewer, more = sorted((facts.good_rows, facts.bad_rows))
    return more / fewer if fewer else (math.inf if more else None)


def _new_domain(facts: Facts) -> bool:
    """Whether the rows are a subject the base does not know: said so, or plain text without another goal."""
    return facts.goal == "knowledge" or (facts.goal is None and facts.data_type == "language-modeling")


def _tuned_again(facts: Facts) -> bool:
    return facts.base_is_tuned or facts.goal == "continue"


# --- the three scenario tables ---------------------------------------------------------------------------------------


def _tables(facts: Facts) -> dict[str, tuple[TableRow, ...]]:
    return {
        "rows": tuple(_rows_row(rule, facts) for rule in guide.table("rows")),
        "memory": tuple(_memory_row(rule, facts) for rule in guide.table("memory")),
        "alignment": tuple(_alignment_row(rule, facts) for rule in guide.table("alignment")),
    }


def _within(value: float, above: float | None, at_most: float | None) -> bool:
    return (above is None or value > above) and (at_most is None or value <= at_most)


def _rows_row(rule: guide.Rule, facts: Facts) -> TableRow:
    condition = rule.condition or guide.Condition()
    if facts.rows is None:
        return TableRow(rule=rule.id, fired=False, reason=t("The number of rows is not known."))
    fired = _within(facts.rows, condition.rows_above, condition.rows_at_most)
    if not fired:
        reason = t("Your file has {rows} rows; {rule} is for {when}.", rows=_count(facts.rows), **_of(rule))
    elif facts.rows == condition.rows_at_most:
        reason = t(
            "Your file has exactly {rows} rows, where two classes meet; ties go to the smaller one, so {rule} applies.",
            rows=_count(facts.rows),
            rule=rule.id,
        )
    else:
        reason = t("Your file has {rows} rows, so {rule} applies.", rows=_count(facts.rows), rule=rule.id)
    return TableRow(rule=rule.id, fired=fired, reason=reason)


def _memory_row(rule: guide.Rule, facts: Facts) -> TableRow:
    condition = rule.condition or guide.Condition()
    if facts.gpu_memory_gib is None:
        return TableRow(rule=rule.id, fired=False, reason=t("There is no GPU, so no rule about GPU memory applies."))
    size = marketed_gb(facts.gpu_memory_gib)
    fired = _within(size, condition.memory_above_gb, condition.memory_at_most_gb)
    if not fired:
        reason = t("Your card has {gb} GB; {rule} is for {when}.", gb=size, **_of(rule))
    elif size == condition.memory_at_most_gb:
        reason = t(
            "Your card has {gb} GB, where two classes meet; ties go to the smaller one, so {rule} applies.",
            gb=size,
            rule=rule.id,
        )
    else:
        reason = t("Your card has {gb} GB, so {rule} applies.", gb=size, rule=rule.id)
    return TableRow(rule=rule.id, fired=fired, reason=reason)


def _alignment_row(rule: guide.Rule, facts: Facts) -> TableRow:
    condition = rule.condition or guide.Condition()
    kind = _alignment(facts)
    if kind is None:
        return TableRow(rule=rule.id, fired=False, reason=t("It is not known whether people have judged answers."))
    if kind not in condition.alignment:
        said = t("You have {found}; {rule} is for {when}.", found=_judgement(kind), **_of(rule))
        return TableRow(rule=rule.id, fired=False, reason=said)
    if condition.imbalance_above is None:
        reason = t("You have {found}, so {rule} applies.", found=_judgement(kind), rule=rule.id)
        return TableRow(rule=rule.id, fired=True, reason=reason)
    imbalance = _imbalance(facts)
    if imbalance is None:
        reason = t(
            "You have good/bad labels, and only these can be unbalanced, so {rule} applies; how many of each is not known.",
            rule=rule.id,
        )
        return TableRow(rule=rule.id, fired=True, reason=reason)
    counts = {"good": _count(facts.good_rows), "bad": _count(facts.bad_rows), "rule": rule.id}
    fired = imbalance > condition.imbalance_above
    if fired:
        reason = t("Your labels are {good} good and {bad} bad, so {rule} applies.", **counts)
    else:
        reason = t("Your labels are {good} good and {bad} bad, which is no severe imbalance ({rule}).", **counts)
    return TableRow(rule=rule.id, fired=fired, reason=reason)


def _of(rule: guide.Rule) -> dict[str, str]:
    return {"rule": rule.id, "when": t(rule.when)}


def _judgement(kind: str) -> str:
    return {
        "none": t("no judgements of answers"),
        "ratings_large": t("very many human ratings"),
        "comparisons": t("comparisons of answers"),
        "good_bad": t("good/bad labels"),
    }[kind]


def _count(number: float | None) -> str:
    return f"{number:,.0f}" if number is not None else "?"


def _billions(parameters: float) -> str:
    """Return a size as people say it: 7B, 1.5B, 360M."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters >= unit:
            return f"{parameters / unit:.2g}{letter}" if parameters < 10 * unit else f"{parameters / unit:.0f}{letter}"
    return f"{parameters:.0f}"


# --- the candidates ---------------------------------------------------------------------------------------------------


def _objectives(facts: Facts) -> tuple[str, ...]:
    """Return what the data can feed, the usual one first. Without a file, what the stated judgements would feed."""
    if facts.data_type == "prompt-only":
        return FEEDS["prompt-only"] if facts.has_reward_model else ()
    if facts.data_type is not None:
        return FEEDS[facts.data_type]
    kind = _alignment(facts)
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
    if rows > VERY_MANY_ROWS and _new_domain(facts):
        rank, reason = 256, t("rank 256 learns a large new subject almost as well as full fine-tuning")
    elif rows > MANY_ROWS or (_new_domain(facts) and rows > LARGE_ANNOTATION_ROWS):
        rank, reason = 64, t("rank 64, because rank 16 is tight for this much or this new material")
    if facts.forgetting_tolerance == "low" or _tuned_again(facts):
        rank, reason = max(8, rank // 2), t("half the usual rank, because a lower rank forgets less")
    return rank, reason


def _ranked(facts: Facts) -> list[Choice]:
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
    if _tuned_again(facts):
        return (_OFT, _LORA, _QOFT, _QLORA, _FREEZE, _FULL)
    many = facts.rows is not None and facts.rows > VERY_MANY_ROWS
    if many and _new_domain(facts) and facts.forgetting_tolerance != "low":
        return (_FULL, _LORA, _OFT, _FREEZE, _QLORA, _QOFT)
    return (_LORA, _OFT, _QLORA, _QOFT, _FREEZE, _FULL)


def _settings(choice: Choice, facts: Facts, rank: int, rank_reason: str) -> tuple[Advised, ...]:
    """Return the settings of a choice: those of the guide's rules that stand for it, moved where the facts ask."""
    parameters = facts.base_parameters or UNKNOWN_PARAMETERS
    found: dict[str, Advised] = {}
    about = {"objective": choice.objective, "adapter": choice.adapter, "recipe": choice.recipe}
    for rule, s in guide.settings():
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
    return 0.01 if facts.forgetting_tolerance == "high" and not _tuned_again(facts) else 0.05


# --- the verdict ------------------------------------------------------------------------------------------------------


def advise(
    facts: Facts, *, runnable: Test, fits: Test | None = None, need: Need | None = None, tight: Test | None = None
) -> Advice:
    """Return the advice for these facts.

    `runnable` says whether this version trains a choice (runnable_now asks the recipes); `fits` whether it fits the
    machine, by the caller's own estimate of memory; without it a rule of thumb decides. `need` says that estimate in
    words, such as "14 to 19 GiB", for the reasons; `tight` whether its upper end is more than there is.
    """
    facts, problems = _checked(facts)

    def may_fit(choice: Choice) -> bool:
        return _roughly_fits(choice, facts) if fits is None else fits(choice)

    ranked = _ranked(facts)
    fitting = [choice for choice in ranked if may_fit(choice)]
    advised = fitting[0] if fitting else None
    runs = advised is not None and runnable(advised)
    nearest, nearest_reason = (None, "") if runs else _nearest(advised, ranked, fitting, runnable, facts)
    tables = _tables(facts)
    fired = [row.rule for rows in tables.values() for row in rows if row.fired]
    confidence, confidence_reason = _confidence(facts, advised, estimated=fits is not None)
    if confidence == "high" and advised is not None and tight is not None and tight(advised):
        confidence, confidence_reason = "medium", t("The memory is tight: keep rows short.")
    return Advice(
        facts=facts,
        headline=_headline(advised, ranked, facts),
        advised=advised,
        runs=runs,
        nearest=nearest,
        nearest_reason=nearest_reason,
        tables=tables,
        reasons=tuple(_reasons(facts, advised, ranked, estimated=fits is not None, need=need)),
        rules=tuple(_speaking(facts, advised, fired)),
        overruled=tuple(_overruled(facts, advised, ranked, fitting, fired)),
        would_change=tuple(_would_change(facts, advised, ranked)),
        runners_up=tuple(_runners_up(advised, fitting, fired)),
        alternatives=tuple(_alternatives(ranked, fitting, runnable)),
        plan=tuple(_plan(facts, advised)),
        confidence=confidence,
        confidence_reason=confidence_reason,
        replay_share=(advised.value("train.replay_share") or 0.0) if advised else 0.0,
        problems=tuple(problems),
    )


def _nearest(
    advised: Choice | None, ranked: list[Choice], fitting: list[Choice], runnable: Test, facts: Facts
) -> tuple[Choice | None, str]:
    """Return the choice most like the advised one that runs and fits, and a sentence about it."""
    if advised is None:
        return None, ""

    def distance(choice: Choice) -> tuple[bool, bool, bool]:
        return choice.adapter != advised.adapter, choice.quantize != advised.quantize, choice.layers != advised.layers

    near = sorted((c for c in ranked if c.objective == advised.objective and runnable(c)), key=distance)
    found = next((c for c in near if c in fitting), None)
    if found is not None:
        return found, t(
            "{advised} is not built yet. The nearest that runs today is {nearest}.",
            advised=advised.title,
            nearest=found.title,
        )
    if near:
        return None, t(
            "{advised} is not built yet, and the nearest that runs, {nearest}, does not fit this machine: choose a smaller "
            "base, or a larger card.",
            advised=advised.title,
            nearest=near[0].title,
        )
    if advised.objective == "sft":
        return None, t("{advised} is not built yet, and nothing near it runs on this data.", advised=advised.title)
    return None, t(
        "{advised} is not built yet, and nothing that is learns from such rows. Questions with answers can be used today.",
        advised=advised.title,
    )


def _headline(advised: Choice | None, ranked: list[Choice], facts: Facts) -> str:
    if advised is not None:
        return t("{choice}.", choice=_named(advised, capital=True))
    if ranked:
        return t("Nothing fits this machine with this base.")
    if facts.data_type == "prompt-only":
        return t("Questions alone train nothing without a reward model or answers.")
    return t("No method of Tunebook learns from rows of this kind.")


def _reasons(
    facts: Facts, advised: Choice | None, ranked: list[Choice], *, estimated: bool, need: Need | None
) -> list[str]:
    """Return why, in the order of precedence: what fits, the form of the data, the rows, preference.

    `estimated`: the caller has an estimate of memory of its own, so the rule of thumb's figures are not named.
    """
    said: list[str] = []
    if facts.gpu_memory_gib is None:
        said.append(t("There is no GPU, so no rule about GPU memory applies."))
        if facts.base_parameters is None:
            said.append(t("The size of the base is not known; on a processor one below 1B is realistic."))
        elif facts.base_parameters >= 1e9:
            said.append(
                t(
                    "On a processor a base of {size} takes days; one below 1B is realistic.",
                    size=_billions(facts.base_parameters),
                )
            )
    if advised is None:
        if ranked:
            said.append(_smallest_need(facts, ranked, estimated, need))
        else:
            said.append(_no_feed(facts))
        return said
    said += _fit_reasons(facts, advised, ranked, estimated, need)
    said.append(_form_reason(facts, advised))
    if advised.objective == "ppo" and not estimated and None not in (facts.gpu_memory_gib, facts.base_parameters):
        said.append(t("PPO's memory counts a reward model as large as the base, and a value head on the model itself."))
    rows = _rows_reason(facts, advised)
    if rows:
        said.append(rows)
    if _tuned_again(facts) and advised.objective == "sft":
        if advised.adapter == "oft":
            said.append(
                t(
                    "The base was tuned before. OFT turns the weights without stretching them, and forgot a little less "
                    "than LoRA in the one independent comparison; measure it here (F6)."
                )
            )
        else:
            said.append(
                t("The base was tuned before, so the run is kept gentle: a low rank and general rows mixed in.")
            )
    if facts.forgetting_tolerance == "low" and advised.objective == "sft":
        said.append(
            t("Little may be forgotten, so a tenth of the rows are general ones and the rate is at its lower end.")
        )
    moved = [s for s in advised.settings if s.reason and s.path == "objective_args.weights"]
    if moved:
        good, bad = moved[0].value
        said.append(
            t(
                "Weights of {good} for good rows and {bad} for bad ones make both labels count alike.",
                good=f"{good:g}",
                bad=f"{bad:g}",
            )
        )
    return said


def _smallest_need(facts: Facts, ranked: list[Choice], estimated: bool, need: Need | None) -> str:
    if need is not None and facts.base_parameters is not None:
        least = min(ranked, key=lambda choice: rough_need_gib(choice, facts.base_parameters or 0))
        return t(
            "Even {choice}, the smallest way to train a base of {size}, needs {need}; {memory}.",
            choice=least.title,
            size=_billions(facts.base_parameters),
            need=need(least),
            memory=_memory(facts),
        )
    if estimated or facts.base_parameters is None or facts.gpu_memory_gib is None:
        return t("None of the methods fits, by the estimate of memory.")
    least = min(ranked, key=lambda choice: rough_need_gib(choice, facts.base_parameters or 0))
    return t(
        "Even {choice}, the smallest way to train a base of {size}, needs about {need} GB; of the card's {gb} "
        "a tenth stays free.",
        choice=least.title,
        size=_billions(facts.base_parameters),
        need=math.ceil(rough_need_gib(least, facts.base_parameters)),
        gb=marketed_gb(facts.gpu_memory_gib),
    )


def _no_feed(facts: Facts) -> str:
    if facts.data_type == "prompt-only":
        return t(
            "Your rows are questions without answers. PPO learns from these, but only with a reward model as the judge."
        )
    return t("Your rows mark single steps of answers; no method here learns from these.")


def _memory(facts: Facts) -> str:
    if facts.gpu_memory_gib is None:
        return t("a tenth of this machine's memory stays free")
    return t("the card has {gb} GB, of which a tenth stays free", gb=marketed_gb(facts.gpu_memory_gib))


# Other ways to hold every weight than ours, which is 32 bits with Adam: bytes a parameter (LLaMA-Factory's table).
_PURE_BF16_BYTES, _ADAM_8BIT_BYTES = 8, 6


def _full_otherwise(facts: Facts) -> str:
    """Return what full fine-tuning would take by ways that are not built."""
    size = facts.base_parameters or 0
    return t(
        "Held in 16 bits alone, full fine-tuning of {size} takes about {bf16} GB, and about {adam} with an 8-bit "
        "optimizer; neither is built here.",
        size=_billions(size),
        bf16=round(_PURE_BF16_BYTES * size / 1e9),
        adam=round(_ADAM_8BIT_BYTES * size / 1e9),
    )


def _fit_reasons(facts: Facts, advised: Choice, ranked: list[Choice], estimated: bool, need: Need | None) -> list[str]:
    """Return what the memory decided: what fits, and which better choice it ruled out."""
    better = next(iter(ranked[: ranked.index(advised)]), None)
    if need is not None and facts.base_parameters is not None:
        words = {"choice": _named(advised, capital=True), "size": _billions(facts.base_parameters)}
        said = [
            t(
                "{choice} of a base of {size} needs {need} at the least; {memory}.",
                need=need(advised),
                memory=_memory(facts),
                **words,
            )
        ]
        if better is not None:
            text = t(
                "{better} comes first for such data, but needs {need}, which does not fit.",
                better=_named(better, capital=True),
                need=need(better),
            )
            said.insert(0, text)
            if better.adapter == "full" and better.layers == "all":
                said.append(_full_otherwise(facts))
        return said
    if estimated:
        if better is None:
            return [t("{choice} fits this machine, by the estimate of memory.", choice=_named(advised, capital=True))]
        return [
            t(
                "{better} comes first for such data, but does not fit this machine by the memory estimate; {choice} does.",
                better=_named(better, capital=True),
                choice=_named(advised),
            )
        ]
    if facts.gpu_memory_gib is None:
        return []
    size = marketed_gb(facts.gpu_memory_gib)
    if facts.base_parameters is None:
        return [t("The size of the base is not known, so the card of {gb} GB alone decided what fits.", gb=size)]
    said = []
    if better is not None:
        said.append(
            t(
                "{better} comes first for such data, but a base of {size} would need about {need} GB; of the card's "
                "{gb} a tenth stays free.",
                better=_named(better, capital=True),
                size=_billions(facts.base_parameters),
                need=math.ceil(rough_need_gib(better, facts.base_parameters)),
                gb=size,
            )
        )
    said.append(
        t(
            "{choice} of a base of {size} needs about {need} GB at the least, and the card has {gb} GB.",
            choice=_named(advised, capital=True),
            size=_billions(facts.base_parameters),
            need=math.ceil(rough_need_gib(advised, facts.base_parameters)),
            gb=size,
        )
    )
    return said


def _form_reason(facts: Facts, advised: Choice) -> str:
    if facts.data_type is None:
        return t(
            "No file is chosen yet; rows for {objective} are assumed.", objective=_objective_title(advised.objective)
        )
    return {
        "language-modeling": t("Your rows are plain text, so every word of them is learned (SFT)."),
        "prompt-completion": t("Your rows are questions with answers, so the answers are learned (SFT)."),
        "preference": t(
            "Your rows are pairs of a better and a worse answer, which DPO learns from without a reward model."
        ),
        "unpaired-preference": t("Your rows are single answers marked good or bad, which is the form KTO learns from."),
        "prompt-only": t("Your rows are questions alone and you have a reward model, which together feed PPO."),
    }[facts.data_type]


def _rows_reason(facts: Facts, advised: Choice) -> str:
    if facts.rows is None:
        return ""
    rows = _count(facts.rows)
    if advised.objective == "ppo":
        return t("PPO makes its own answers, so {rows} questions can be used again and again.", rows=rows)
    if advised.objective != "sft":
        return t("{rows} judged rows are learned gently: a small adapter, a low rate, one pass.", rows=rows)
    if facts.rows <= FEW_ROWS:
        return t("{rows} rows are very few: the model learns a form from them, hardly new facts.", rows=rows)
    if facts.rows <= LARGE_ANNOTATION_ROWS:
        return t("{rows} rows are enough for an adapter and too few to move every weight safely.", rows=rows)
    if facts.rows <= VERY_MANY_ROWS:
        return t("{rows} rows are what an adapter holds well.", rows=rows)
    if _new_domain(facts):
        return t(
            "{rows} rows of a new subject are what full fine-tuning is for, and a high-rank adapter comes close.",
            rows=rows,
        )
    return t(
        "{rows} rows are many, but for instructions an adapter of rank 64 or more learns as much as all weights.",
        rows=rows,
    )


def _speaking(facts: Facts, advised: Choice | None, fired: list[str]) -> list[str]:
    """Return the rules that speak for the choice: fired rows of the tables first, then the rest of the guide."""
    if advised is None:
        return []
    rules = guide.rules()
    found = [rule for rule in fired if advised.parts & set(rules[rule].recommends)]
    size = marketed_gb(facts.gpu_memory_gib) if facts.gpu_memory_gib is not None else None
    imbalance = _imbalance(facts)
    sft = advised.objective == "sft"
    speaks = {
        "A2": sft and facts.goal == "format",
        "A3": sft and facts.goal == "knowledge",
        "A4": not sft,
        "D1": sft,
        "F6": sft and advised.adapter == "oft" and _tuned_again(facts),
        "H2": advised.objective in ("ppo", "reward"),
        "I1": advised.objective == "dpo",
        "J5": advised.objective == "kto" and imbalance is not None and imbalance > SEVERE_IMBALANCE,
        "J8": advised.objective == "kto",
        "L2": len(_plan(facts, advised)) > 1,
        "L5": size is not None and size <= 8 and advised.quantize == "4bit",
        "L6": size == 16 and advised.adapter == "lora" and advised.quantize == "none",
        "L7": size == 80 and advised.adapter == "full",
        "L9": bool(advised.value("train.replay_share")),
        "M5": advised.objective in ("dpo", "kto", "ppo"),
        "N1": size is not None and size <= 8 and advised.quantize == "4bit",
        "N3": advised.objective == "dpo",
        "N4": advised.objective == "kto" and imbalance is not None and imbalance > SEVERE_IMBALANCE,
        "N5": sft and (facts.rows or 0) > 1000,
        # how the guide's contradictions were decided, where they touch these facts
        "X6": facts.rows in (LARGE_ANNOTATION_ROWS, VERY_MANY_ROWS) or size in (8, 16, 80),
        "X11": any(not advised.parts & set(rules[rule].recommends) for rule in fired),
    }
    return [*found, *(rule for rule, speaking in speaks.items() if speaking)]


def _overruled(
    facts: Facts, advised: Choice | None, ranked: list[Choice], fitting: list[Choice], fired: list[str]
) -> list[Overruled]:
    """Return the rules that apply and were not followed, or only in part, each with the reason."""
    rules = guide.rules()
    found: list[Overruled] = []
    for rule in fired:
        if advised is None:
            why = t("Nothing it recommends fits.") if ranked else t("The data cannot feed what it recommends.")
            found.append(Overruled(rule=rule, why=why))
        elif not advised.parts & set(rules[rule].recommends):
            found.append(Overruled(rule=rule, why=_why_not(facts, advised, rules[rule], ranked, fitting)))
        else:
            part = _why_in_part(facts, advised, rule)
            if part:
                found.append(Overruled(rule=rule, why=part, partly=True))
    if advised is not None:
        if _tuned_again(facts) and advised.objective == "sft" and advised.adapter != "oft":
            found.append(Overruled(rule="F6", why=t("OFT does not fit this machine with this base.")))
        if advised.objective == "sft" and 0 < (facts.rows or 0) <= FEW_ROWS and advised.layers == "all":
            found.append(Overruled(rule="G5", why=t(rules["G5"].why)))
        # the harmful numbers of the guide are named wherever they would apply
        found += [
            Overruled(rule=rule, why=t(rules[rule].why))
            for rule, objective in (("I5", "dpo"), ("J9", "kto"))
            if objective == advised.objective
        ]
    return found


def _why_not(facts: Facts, advised: Choice, rule: guide.Rule, ranked: list[Choice], fitting: list[Choice]) -> str:
    wanted = set(rule.recommends)
    if rule.table == "alignment":
        if advised.objective == "sft":
            return t("Your rows hold answers to learn. Judged answers come after this run, as the plan says.")
        if "ppo" in wanted:
            return t("PPO needs a reward model, which there is not; the comparisons feed DPO directly.")
        return t("The form of your rows decides, and it feeds {choice}.", choice=advised.title)
    asked = [choice for choice in ranked if choice.parts & wanted]
    if asked and not any(choice in fitting for choice in asked):
        return t("What fits comes first: {choice} does not fit this machine with this base.", choice=asked[0].title)
    if wanted == {"qlora"}:
        return t("This base fits without being held in 4 bits, and each step is faster so.")
    if advised.adapter == "oft" and _tuned_again(facts):
        return t("The base was tuned before, which speaks for OFT (F6); of LoRA's advice the small adapter stays.")
    return t(rule.why)


def _why_in_part(facts: Facts, advised: Choice, rule: str) -> str:
    """Return which part of a followed rule was left out: freezing on top of an adapter, preference data from nothing."""
    said = []
    if rule in ("C2", "C3", "C5") and advised.adapter != "full":
        said.append(t("Freezing is left out: an adapter leaves every weight of the base as it is."))
    if rule == "C3" and advised.objective == "sft":
        said.append(t("DPO and KTO are left for later: few rows do not make comparisons or labels."))
    return " ".join(said)


_TRADES: dict[str, Callable[[], str]] = {
    "full": lambda: t("Learns the most and forgets the most; about 16 bytes of memory for every parameter."),
    "freeze": lambda: t(
        "Trains the upper half of the layers only: between an adapter and full fine-tuning in all things."
    ),
    "lora": lambda: t(
        "The best known way: many tools read it, and it forgets less than full fine-tuning, not nothing."
    ),
    "qlora": lambda: t("A quarter of the memory for the base itself; each step is up to two and a half times slower."),
    "oft": lambda: t(
        "May forget a little less than LoRA, which is thinly tested; about a quarter slower, fewer tools read it."
    ),
    "qoft": lambda: t("OFT on a base of 4 bits: little memory, as fast as QLoRA, few tools read it."),
}


def _trade(choice: Choice, advised: Choice) -> str:
    if choice.objective == "reward":
        return t("Makes a judge of answers instead of a better model: the first half of the way to PPO.")
    if (choice.adapter, choice.quantize) == (advised.adapter, advised.quantize):
        return t("A lower rank: less memory and less forgetting, and less room to learn.")
    return method_trade(choice)


def _alternatives(ranked: list[Choice], fitting: list[Choice], runnable: Test) -> list[Alternative]:
    """Return every way the data can feed, one of each method: the highest rank that fits, else the lowest."""
    found: dict[Any, Choice] = {}
    for choice in ranked:
        kind = (choice.objective, choice.adapter, choice.quantize, choice.layers)
        if choice.objective != ranked[0].objective and choice.adapter != "lora":
            continue  # of the data's other uses, the usual way is enough
        if choice.objective != ranked[0].objective and choice.quantize != "none":
            continue
        if kind not in found or found[kind] not in fitting:
            found[kind] = choice
    return [
        Alternative(choice=choice, fits=choice in fitting, runs=runnable(choice), trade=method_trade(choice))
        for choice in found.values()
    ]


def method_trade(choice: Choice) -> str:
    """Return what one gets and gives up with a method."""
    method = {"full": "freeze" if choice.layers != "all" else "full", "lora": "lora", "oft": "oft"}[choice.adapter]
    return _TRADES["q" + method if choice.quantize == "4bit" else method]()


def _runners_up(advised: Choice | None, fitting: list[Choice], fired: list[str]) -> list[RunnerUp]:
    """Return three other choices that fit, one of each method, those first that a fired rule of the guide asks for."""
    if advised is None:
        return []
    seen, found = {(advised.objective, advised.adapter, advised.quantize, advised.layers)}, []
    asked = {name for rule in fired for name in guide.rules()[rule].recommends} - advised.parts
    for choice in sorted(fitting, key=lambda choice: not choice.parts & asked):
        kind = (choice.objective, choice.adapter, choice.quantize, choice.layers)
        if kind not in seen and (choice.objective == advised.objective or choice.adapter == "lora"):
            seen.add(kind)
            found.append(RunnerUp(choice=choice, trade=_trade(choice, advised)))
    return found[:3]


def _would_change(facts: Facts, advised: Choice | None, ranked: list[Choice]) -> list[str]:
    """Return what would lead to other advice, found by asking again with one fact changed."""

    def other(**changes: Any) -> Choice | None:
        """Return the advice by the rule of thumb when these facts change."""
        changed = msgspec.structs.replace(facts, **changes)
        return next((c for c in _ranked(changed) if _roughly_fits(c, changed)), None)

    said: list[str] = []
    seen = {advised.key if advised else None, (same := other()) and same.key}

    def ask(sentence: Callable[[str], str], **changes: Any) -> None:
        choice = other(**changes)
        if choice is not None and choice.key not in seen:
            seen.add(choice.key)
            said.append(sentence(_named(choice)))

    sft = facts.data_type in (None, "language-modeling", "prompt-completion")
    if facts.gpu_memory_gib is not None and facts.base_parameters is not None:
        have = marketed_gb(facts.gpu_memory_gib)
        for size in (s for s in (12, 16, 24, 32, 48, 80, 96, 141, 192) if s > have):
            ask(lambda c, s=size: t("With a card of {gb} GB: {choice}.", gb=s, choice=c), gpu_memory_gib=float(size))
    if advised is None and ranked and facts.gpu_memory_gib is not None and facts.base_parameters is not None:
        said.append(_largest_base(facts, ranked))
    if sft and facts.rows is not None:
        for rows in (r for r in (MANY_ROWS, VERY_MANY_ROWS) if facts.rows <= r):
            words = _count(rows)
            ask(lambda c, w=words: t("With more than {rows} rows: {choice}.", rows=w, choice=c), rows=rows + 1)
        ask(
            lambda c: t("With more than 100,000 rows of a subject that is new to the base: {choice}.", choice=c),
            rows=VERY_MANY_ROWS + 1,
            goal="knowledge",
            forgetting_tolerance="medium",
        )
    if sft and not _tuned_again(facts):
        ask(lambda c: t("If the base was tuned before and should keep that: {choice}.", choice=c), base_is_tuned=True)
    if facts.data_type != "preference":
        ask(
            lambda c: t("With pairs of a better and a worse answer: {choice}.", choice=c),
            data_type="preference",
            alignment_data=None,
        )
    if facts.data_type != "unpaired-preference":
        ask(
            lambda c: t("With single answers marked good or bad: {choice}.", choice=c),
            data_type="unpaired-preference",
            alignment_data=None,
        )
    if facts.data_type == "prompt-only" or _alignment(facts) == "ratings_large" or facts.goal == "alignment":
        ask(
            lambda c: t("With a reward model and questions: {choice}.", choice=c),
            data_type="prompt-only",
            has_reward_model=True,
        )
    if not sft:
        ask(lambda c: t("With questions and good answers: {choice}.", choice=c), data_type="prompt-completion")
    if facts.forgetting_tolerance != "low" and sft:
        ask(lambda c: t("If hardly anything may be forgotten: {choice}.", choice=c), forgetting_tolerance="low")
    return said


def _named(choice: Choice, *, capital: bool = False) -> str:
    """Return the title with LoRA's rank, which tells two choices of one method apart."""
    title = choice.title[0].upper() + choice.title[1:] if capital else choice.title
    rank = choice.value("adapter_args.rank")
    return title if rank is None else t("{choice} of rank {rank}", choice=title, rank=rank)


def _largest_base(facts: Facts, ranked: list[Choice]) -> str:
    """Return how large a base the card takes, by the rule of thumb turned round."""
    sizes = (32e9, 24e9, 14e9, 8e9, 7e9, 4e9, 3e9, 1.5e9, 1e9, 5e8, 1e8)
    for size in sizes:
        smaller = msgspec.structs.replace(facts, base_parameters=size)
        fits = next((choice for choice in ranked if _roughly_fits(choice, smaller)), None)
        if fits is not None and size < (facts.base_parameters or 0):
            return t("With a base of {size}: {choice}.", size=_billions(size), choice=fits.title)
    return t("With a much smaller base, such as the starter, or a larger card.")


def _plan(facts: Facts, advised: Choice | None) -> list[Stage]:
    """Return the stages from here to the goal: first the answers, then the preferences (L2)."""
    kind = _alignment(facts)
    stages: list[Stage] = []
    if advised is None:
        if facts.data_type == "prompt-only":
            stages.append(
                Stage(
                    title=t("Answers"),
                    text=t("Write a good answer to each question and train on these (SFT)."),
                    rules=("D2",),
                )
            )
            stages.append(
                Stage(
                    title=t("Preferences"),
                    text=t("Or let people compare answers of the model: pairs feed DPO, and a reward model for PPO."),
                    rules=("H2", "I1"),
                )
            )
        return stages
    if advised.objective == "sft":
        hurried = facts.time_budget_minutes is not None and facts.time_budget_minutes <= 60
        if facts.rows is not None and facts.rows > 1000:
            text = t("Try 1,000 rows first and look at the answers; then take all {rows}.", rows=_count(facts.rows))
            if hurried:
                text = t(
                    "With {minutes} minutes, train on 1,000 rows and look at the answers.",
                    minutes=_count(facts.time_budget_minutes),
                )
            stages.append(Stage(title=t("Try"), text=text, rules=("N5", "O9")))
        text = t("{choice} on your rows.", choice=_named(advised, capital=True))
        stages.append(Stage(title=t("Learn"), text=text, rules=("L2",), now=True))
        text = t("Compare with the base: what it learned on rows it has not seen, and what it forgot.")
        stages.append(Stage(title=t("Measure"), text=text, rules=("L8", "M6", "M7")))
        later = _later(facts, kind)
        if later is not None:
            stages.append(later)
        return stages
    text = t("SFT on questions with good answers, so that the model can do the task at all.")
    stages.append(Stage(title=t("Learn"), text=text, rules=("L2", "X10"), done=_tuned_again(facts)))
    if advised.objective == "ppo":
        text = t("A reward model, trained on comparisons, judges the answers.")
        stages.append(Stage(title=t("Judge"), text=text, rules=("H2",), done=facts.has_reward_model))
    text = t("{choice} on your rows, starting from that model.", choice=_named(advised, capital=True))
    stages.append(Stage(title=t("Align"), text=text, rules=("L2",), now=True))
    text = t("Compare with the model before: are the answers better, and what was forgotten?")
    stages.append(Stage(title=t("Measure"), text=text, rules=("L8", "M6", "M7")))
    return stages


def _later(facts: Facts, kind: str | None) -> Stage | None:
    title = t("Align")
    if facts.has_reward_model:
        return Stage(title=title, text=t("Then PPO with your reward model, on questions alone."), rules=("H2", "N3"))
    if kind == "ratings_large":
        text = t(
            "Then DPO on the comparisons; or train a reward model on them and go on with PPO, which costs far more."
        )
        return Stage(title=title, text=text, rules=("C8", "N3"))
    if kind == "comparisons":
        return Stage(title=title, text=t("Then DPO on the comparisons, starting from this run."), rules=("C9", "L2"))
    if kind == "good_bad":
        return Stage(
            title=title, text=t("Then KTO on the good/bad labels, starting from this run."), rules=("C10", "L2")
        )
    if facts.goal == "alignment":
        text = t("Then let people compare or mark answers of this model; comparisons feed DPO, good/bad labels KTO.")
        return Stage(title=title, text=text, rules=("A4", "L2"))
    return None


def _confidence(
    facts: Facts, advised: Choice | None, *, estimated: bool
) -> tuple[Literal["high", "medium", "low"], str]:
    """Return how sure the advice is: each fact that is missing, and thin evidence, make it less so."""
    if advised is None:
        return "high", t("This follows from the facts alone.")
    missing = []
    if facts.data_type is None:
        missing.append(t("the form of the data"))
    if facts.rows is None and advised.objective == "sft":
        missing.append(t("the number of rows"))
    if facts.base_parameters is None:
        missing.append(t("the size of the base"))
    if advised.objective == "kto" and _imbalance(facts) is None:
        missing.append(t("how many labels are good and bad"))
    if missing:
        listed = ", ".join(missing)
        level = "low" if len(missing) > 1 or facts.data_type is None else "medium"
        return level, t("Not known: {missing}.", missing=listed)
    if advised.adapter == "oft":
        return "medium", t("OFT's lead over LoRA rests on little evidence; the runner-up may do as well.")
    if advised.objective == "ppo":
        return "medium", t("PPO is hard to tune: it fails silently when the reward model is weak.")
    if _new_domain(facts) and (facts.rows or 0) > VERY_MANY_ROWS:
        return "medium", t("Full fine-tuning and high ranks are close here, and the sources disagree.")
    if facts.gpu_memory_gib is None and (facts.base_parameters or 0) >= 1e9:
        return "low", t("The method is right, but a processor is too slow for a base of this size.")
    if not estimated and facts.gpu_memory_gib is not None and facts.base_parameters is not None:
        spare = _USABLE_SHARE * facts.gpu_memory_gib - rough_need_gib(advised, facts.base_parameters)
        if spare < 0.1 * facts.gpu_memory_gib:
            return "medium", t("The memory is tight: keep rows short.")
    return "high", t("The sources and the guide agree on this for such data.")


class Mentioned(NamedTuple):
    """A way the guide names in passing, for which there is no recipe: the rule that names it, and what we think of it."""

    title: str
    rule: str
    verdict: str


def mentioned() -> list[Mentioned]:
    """Return the ways that the guide only mentions, each with a verdict."""
    return [
        Mentioned(
            t("Prefix tuning"),
            "K2",
            t(
                "Not built. It learns vectors in front of every row, which take room in the window and cannot be merged; "
                "LoRA learns more with as few weights (arXiv 2101.00190 against 2106.09685, table 4)."
            ),
        ),
        Mentioned(
            t("The embedding trained beside LoRA (modules_to_save)"),
            "G7",
            t(
                "Not built. It trains and saves a whole copy of the embedding, often more weights than the adapter; only "
                "new tokens need it (peft 0.21, LoraConfig.modules_to_save and trainable_token_indices)."
            ),
        ),
        Mentioned(
            t("Several tasks side by side (multi-task)"),
            "C7",
            t(
                "No recipe of its own is needed: put the rows of all tasks into one file, or train one adapter for each "
                "task on the same base. Spare memory alone is no reason for it."
            ),
        ),
    ]


# --- the hand-off to the Train page ------------------------------------------------------------------------------------


def recipe_for(choice: Choice) -> recipes.Recipe | None:
    """Return the recipe that trains a choice, or None when this version has none."""
    name = _recipe_for(choice)
    return _recipes()[name] if name is not None else None


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
    recipe_name = _recipe_for(choice) if choice is not None else None
    if choice is None or recipe_name is None:
        return None
    recipe = _recipes()[recipe_name]
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
