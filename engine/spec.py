"""RunSpec: everything a run is, in one frozen, fully resolved file (spec.json), and the recipes it is made from.

A training run is objective x adapter, with quantize and layers beside them, so that a new combination needs no new code.
A recipe is one YAML in recipes/: these fields as defaults, each with its source and, where the guide differs, the
guide's own value. `--set` and the pages change exactly the dotted paths listed by fields().
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import reprlib
import types
import typing
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml

from engine.words import Problem, t

RECIPES_DIR = Path(__file__).resolve().parents[1] / "recipes"
SCHEMA = 1

Objective = Literal["sft", "dpo", "kto", "reward", "ppo"]
Adapter = Literal["full", "lora", "oft"]
Quantize = Literal["none", "8bit", "4bit"]
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]


def _about(title: str, help_text: str, **limits: Any) -> msgspec.Meta:
    return msgspec.Meta(title=title, description=help_text, **limits)


class RecipeRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    sha256: str


class AdapterArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rank: Annotated[
        int,
        _about("Rank", "Width of the two LoRA matrices. Higher learns more, needs more memory, forgets more.", ge=1),
    ] = 16
    alpha: Annotated[
        int, _about("Alpha", "LoRA's change is scaled by alpha / rank. Twice the rank is the usual choice.", ge=1)
    ] = 32
    dropout: Annotated[
        float, _about("Dropout", "Share of adapter inputs dropped while training, against overfitting.", ge=0, lt=1)
    ] = 0.0
    block_size: Annotated[int, _about("Block size", "Size of the rotated blocks of OFT.", ge=2)] = 32
    target_modules: Annotated[
        str,
        _about("Target modules", 'Which linear layers get an adapter: "all-linear" or names such as "q_proj,v_proj".'),
    ] = "all-linear"


class BaseRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`revision` is the commit of a hub model, which a run keeps to when its branch moves on."""

    ref: str
    revision: str | None = None

    @property
    def pinned(self) -> str:
        """The ref with its commit, as owner/name@revision: what to start from again."""
        return f"{self.ref}@{self.revision}" if self.revision else self.ref


class DatasetRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    eval_id: Annotated[str | None, _about("Evaluation data", "A data set that is only scored, never trained on.")] = (
        None
    )
    split_seed: Annotated[int, _about("Split seed", "Decides which rows are held out.", ge=0)] = 0
    eval_share: Annotated[
        Share,
        _about("Held-out share", "Share of the rows that is kept out of training and scored before and after."),
    ] = 0.1
    most_rows: Annotated[
        int, _about("Most rows", "Train on so many rows, drawn by the split seed, for a first try; 0 means all.", ge=0)
    ] = 0


class Train(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    epochs: Annotated[
        float, _about("Epochs", "How often the run goes through all rows. More learns more and forgets more.", gt=0)
    ] = 2.0
    max_steps: Annotated[
        int, _about("Most steps", "Stop after so many steps; 0 means as many as the epochs ask for.", ge=0)
    ] = 0
    learning_rate: Annotated[
        float,
        _about("Learning rate", "How far each step moves the weights. The setting that matters most.", gt=0, le=1),
    ] = 2e-4
    schedule: Annotated[
        Literal["cosine", "linear", "constant"], _about("Schedule", "How the learning rate falls over the run.")
    ] = "cosine"
    warmup: Annotated[
        float, _about("Warm-up", "Share of the steps over which the rate rises from 0; 1 or more is a count.", ge=0)
    ] = 0.05
    weight_decay: Annotated[float, _about("Weight decay", "Pull of the weights towards 0.", ge=0, lt=1)] = 0.0
    max_grad_norm: Annotated[float, _about("Gradient clip", "Longest gradient a step may use.", gt=0)] = 1.0
    batch_size: Annotated[int, _about("Batch size", "Rows per forward pass. Lower it when memory runs out.", ge=1)] = 8
    accumulation: Annotated[
        int, _about("Accumulation", "Forward passes per step: a larger batch without more memory.", ge=1)
    ] = 2
    max_length: Annotated[int, _about("Longest row", "Rows are cut after so many tokens.", ge=8)] = 1024
    replay_share: Annotated[
        Share, _about("Replay", "Share of general rows mixed in so that the model forgets less.")
    ] = 0.0
    replay_data: Annotated[
        str | None,
        _about(
            "Replay data",
            "A data set of general rows to mix in. Without one the base itself writes them before training.",
        ),
    ] = None
    early_stopping: Annotated[
        int,
        _about(
            "Early stopping",
            "Patience: stop after so many evaluations in a row without a lower held-out loss; 0 is off. The best weights "
            "are kept.",
            ge=0,
        ),
    ] = 0
    keep_best: Annotated[
        bool,
        _about("Keep the best", "Keep the weights of the evaluation with the lowest held-out loss, not the last ones."),
    ] = False
    evaluations: Annotated[
        int, _about("Evaluations", "How often the held-out loss is measured during the run.", ge=1, le=100)
    ] = 5
    gradient_checkpointing: Annotated[
        bool | None,
        _about(
            "Gradient checkpointing", "Less memory, about a third slower. Left open, it is on where memory is short."
        ),
    ] = None
    optimizer: Annotated[
        Literal["auto", "adamw", "adamw_8bit"],
        _about("Optimizer", "AdamW, or the same with its state in 8 bits, where memory is short."),
    ] = "auto"
    padding_free: Annotated[
        bool | None,
        _about(
            "Padding-free", "Rows of a batch end to end instead of filled up. Left open, it is on where that works."
        ),
    ] = None
    seed: Annotated[int, _about("Seed", "The same seed, data and machine give the same run.", ge=0, le=2**32 - 1)] = 0
    report_to: Annotated[
        Literal["none", "trackio", "tensorboard", "wandb", "mlflow"],
        _about(
            "Tracker",
            "Also send the figures to this tracker, which must be installed; wandb keeps them on its servers.",
        ),
    ] = "none"
    threads: Annotated[int, _about("Threads", "Processor threads; 0 means all cores.", ge=0, le=1024)] = 0


class ObjectiveArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    beta: Annotated[
        Annotated[float, msgspec.Meta(gt=0)] | None,
        _about("Beta", "How strongly preference training is held to the reference model."),
    ] = None
    weights: Annotated[
        list[float] | None, _about("Weights", "KTO's weights of good and of bad rows; set from their counts.")
    ] = None
    reward_model: Annotated[
        str | None,
        _about("Reward model", "The run that judges answers in PPO, as run:<id>. Unset: your newest one that fits."),
    ] = None
    least_reward_accuracy: Annotated[
        float,
        _about(
            "Least accuracy of the reward model",
            "PPO refuses a reward model that judges fewer of the pairs it has not seen as the person did. Chance is 0.5.",
            ge=0,
            le=1,
        ),
    ] = 0.65
    answer_tokens: Annotated[
        int, _about("Longest answer", "PPO lets the model write at most so many tokens.", ge=1, le=4096)
    ] = 53
    temperature: Annotated[
        float, _about("Temperature", "How freely answers are drawn in PPO; lower tries less.", gt=0, le=2)
    ] = 0.7
    ppo_epochs: Annotated[
        int, _about("Passes over each batch of answers", "How often PPO learns from the same answers.", ge=1, le=16)
    ] = 4
    missing_end_penalty: Annotated[
        float, _about("Penalty for no end", "Taken off the reward of an answer that does not come to an end.", ge=0)
    ] = 1.0


class Evaluate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    benchmarks: Annotated[
        list[str], _about("Benchmarks", "Question sets scored before and after, to see what was forgotten.")
    ] = []
    limit: Annotated[int, _about("Most questions", "Questions per benchmark; 0 means all.", ge=0)] = 0
    shots: Annotated[
        int, _about("Examples", "Worked examples before each question; the same for base and tuned.", ge=0, le=50)
    ] = 0
    template: Annotated[
        Literal["auto", "chat", "none"],
        _about("Template", "Put questions through the chat template, or not; auto: as is usual for the benchmark."),
    ] = "auto"
    along: Annotated[
        int,
        _about(
            "Points on the way",
            "Score the model so many times during the run too, to see what it gains and loses step by step; 0 is off. Each "
            "takes as long as scoring once. Not for reward models and PPO.",
            ge=0,
            le=50,
        ),
    ] = 0
    against: Annotated[
        str, _about("Compare with", "The base of an evaluation; empty where a base is only scored by itself.")
    ] = ""


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    backend: Annotated[
        Literal["auto", "unsloth", "plain"], _about("Backend", "Unsloth where there is a GPU, or plain transformers.")
    ] = "auto"
    precision: Annotated[
        Literal["auto", "bf16", "fp32"],
        _about("Precision", "The number format of the arithmetic: 16 bits where the device has them, or 32."),
    ] = "auto"
    devices: Annotated[int, _about("Devices", "How many GPUs the run may use.", ge=1)] = 1


class RunSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    schema: Literal[1] = SCHEMA
    kind: Literal["train", "evaluate", "probe", "chat", "sweep"] = "train"
    recipe: RecipeRef
    objective: Annotated[Objective, _about("Objective", "What the run optimises.")] = "sft"
    adapter: Annotated[Adapter, _about("Adapter", "Which weights move: all of them, or a small adapter.")] = "lora"
    adapter_args: AdapterArgs = AdapterArgs()
    quantize: Annotated[Quantize, _about("Quantise", "Hold the frozen base in fewer bits, to save memory.")] = "none"
    layers: Annotated[
        str | list[int],
        _about("Layers", "Which layers train: all, top:0.25, bottom_frozen:0.5, or indices such as [2, 3]."),
    ] = "all"
    train_head: Annotated[bool, _about("Train the head", "Also train the output layer.")] = True
    base: BaseRef
    dataset: DatasetRef
    train: Train = Train()
    objective_args: ObjectiveArgs = ObjectiveArgs()
    evaluate: Evaluate = Evaluate()
    machine: Machine = Machine()


class Field(typing.NamedTuple):
    """One dotted path of the spec: its type, title, help and limits, as the form and --set need them."""

    path: str
    type: Any
    title: str
    help: str
    limits: dict[str, float]
    choices: tuple[str, ...]


# Settings that name a data set; an empty text means none.
NAMES_DATA = ("dataset.eval_id", "train.replay_data")
_FIXED = {"schema", "kind", "recipe.name", "recipe.sha256", "base.ref", "base.revision", "dataset.id"}


@lru_cache(maxsize=1)
def fields() -> dict[str, Field]:
    """Return every dotted path that may be set, in the order of the spec."""
    found: dict[str, Field] = {}

    def walk(struct: type, prefix: str) -> None:
        for name, annotation in typing.get_type_hints(struct, include_extras=True).items():
            path = f"{prefix}{name}"
            metas = [m for m in getattr(annotation, "__metadata__", ()) if isinstance(m, msgspec.Meta)]
            plain = typing.get_args(annotation)[0] if metas else annotation
            if isinstance(plain, type) and issubclass(plain, msgspec.Struct):
                walk(plain, f"{path}.")
            elif path not in _FIXED:
                limits = {k: v for m in metas for k in ("ge", "gt", "le", "lt") if (v := getattr(m, k)) is not None}
                title = next((m.title for m in metas if m.title), name)
                help_text = next((m.description for m in metas if m.description), "")
                choices = typing.get_args(plain) if typing.get_origin(plain) is Literal else ()
                found[path] = Field(path, annotation, title, help_text, limits, choices)

    walk(RunSpec, "")
    return found


class Default(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A recipe's value for one path, where it comes from, and what the guide says when that differs."""

    value: Any
    source: str
    guide: str | None = None  # the guide's own value, with the id of its rule


class Size(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Other defaults for bases of a size: rates for a toy must not travel to a real model, nor back."""

    title: str
    set: dict[str, Default]
    at_least_parameters: float = 0
    below_parameters: float = float("inf")


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One YAML of recipes/: when to use it, defaults with sources, the guide's rules it stands on."""

    title: str
    when: str
    trade: str
    objective: Objective
    adapter: Adapter
    data_types: list[str]
    sample: str
    basic: Annotated[list[str], msgspec.Meta(max_length=6)]
    defaults: dict[str, Default]
    guide_rules: list[str]
    quantize: Quantize = "none"
    needs: str | None = None  # the recipe whose finished run this one stands on, such as a reward model
    sizes: list[Size] = []
    adapters: dict[Adapter, dict[str, Default]] = {}  # other defaults with an adapter that is not the recipe's own
    name: str = ""
    sha256: str = ""

    def default(self, path: str, parameters: float | None, adapter: str | None = None) -> Default | None:
        """Return the default of `path` for a base of so many parameters (None: unknown, the general default) and an
        adapter (None: the recipe's own). A toy's rates, measured, hold for every adapter."""
        if parameters is not None:
            for size in self.sizes:
                if size.at_least_parameters <= parameters < size.below_parameters and path in size.set:
                    return size.set[path]
        if adapter is not None and adapter != self.adapter:
            for name, group in self.adapters.items():
                if name == adapter and path in group:
                    return group[path]
        return self.defaults.get(path)


class RecipeError(ValueError):
    """A recipe file that cannot be used; the text names the file and what is wrong."""


def load_recipe(path: Path) -> Recipe:
    """Read one recipe file. Raises RecipeError for bad YAML, unknown fields and unknown or ill-typed paths."""
    return _recipe(path.name, path.read_bytes())


# the same safe loader, in C where PyYAML was built with it: ten times faster
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@lru_cache(maxsize=256)  # pages ask for all recipes several times a click; a changed file is other content
def _recipe(file: str, data: bytes) -> Recipe:
    path = Path(file)
    try:
        recipe = msgspec.convert(yaml.load(data, _Loader), Recipe)  # noqa: S506 - a safe loader
        groups = [recipe.defaults, *(size.set for size in recipe.sizes), *recipe.adapters.values()]
        paths = {*recipe.basic, *(path for group in groups for path in group)}
        unknown = sorted(paths - set(fields()))
        if unknown:
            raise RecipeError(f"{path.name}: not a setting: {', '.join(unknown)}")
        for group in groups:
            for name, default in group.items():
                msgspec.convert(default.value, fields()[name].type)
    except RecipeError:
        raise
    except (yaml.YAMLError, msgspec.ValidationError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path.name}: {error}") from error
    return msgspec.structs.replace(recipe, name=path.stem, sha256=hashlib.sha256(data).hexdigest())


def recipes() -> dict[str, Recipe]:
    """Return all recipes of the folder by name; adding one is dropping a file there."""
    return {path.stem: load_recipe(path) for path in sorted(RECIPES_DIR.glob("*.yaml"))}


def _without_optional(annotation: Any) -> Any:
    plain = typing.get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
    if typing.get_origin(plain) in (types.UnionType, typing.Union):
        members = [a for a in typing.get_args(plain) if a is not type(None)]
        return members[0] if len(members) == 1 else plain
    return plain


def parse_setting(text: str) -> tuple[str, Any] | Problem:
    """Turn "train.epochs=3" into its path and value, or say what is wrong with it."""
    path, equals, value = text.partition("=")
    field = fields().get(path.strip())
    if not equals or field is None:
        return Problem(rule="setting-unknown", where=path.strip()[:80])
    if _without_optional(field.type) is str:
        return field.path, value
    try:
        # JSON first: to YAML 1.1, 1e-05 is a text
        return field.path, json.loads(value, parse_constant=str)
    except (ValueError, RecursionError):
        pass
    try:
        loaded = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        # ValueError: 2020-99-99 is a date to YAML, 0b_ a number
        loaded = value
    return field.path, loaded


def _wanted(field: Field) -> str:
    """Return in words what a setting takes."""
    plain = _without_optional(field.type)
    kinds = {int: t("a whole number"), float: t("a number"), bool: t("true or false"), str: t("text")}
    kind = kinds.get(plain, t("a list")) if not field.choices else t("one of: {names}", names=", ".join(field.choices))
    if field.path == "layers":
        kind = t("all, top:0.25, bottom_frozen:0.5 or a list such as [2, 3]")
    bounds = {"ge": t("at least"), "gt": t("above"), "le": t("at most"), "lt": t("below")}
    limits = [f"{bounds[name]} {value:g}" for name, value in field.limits.items()]
    return t("it takes {kind}", kind=", ".join([kind, *limits]))


def convert_setting(path: str, value: Any) -> Any | Problem:
    """Return `value` as the type of `path`, or a Problem that says what the setting takes."""
    try:
        # strict=False lets "3" stand for 3, as it comes from a form or a command line
        converted = msgspec.convert(value, fields()[path].type, strict=not isinstance(value, str | int))
        numbers = converted if isinstance(converted, list) else [converted]
        if not any(isinstance(number, float) and math.isinf(number) for number in numbers):
            return None if converted == "" and path in (*NAMES_DATA, "objective_args.reward_model") else converted
        reason = t("it must be finite")
    except msgspec.ValidationError:
        reason = _wanted(fields()[path])
    # reprlib: a few characters of YAML can stand for more text than memory holds
    shown = value if isinstance(value, str) else reprlib.repr(value)
    return Problem(rule="setting-value", where=path, parameters={"value": shown[:60], "reason": reason})


def resolve(
    recipe: Recipe,
    *,
    base: str,
    revision: str | None,
    parameters: float | None,
    dataset_id: str,
    overrides: dict[str, Any],
) -> tuple[RunSpec, list[Problem]]:
    """Return the spec of a recipe on a base and a data set, with overrides by dotted path, and all settings that
    are wrong (these keep their default). `parameters` chooses the defaults of the base's size."""
    problems: list[Problem] = []
    tree: dict[str, Any] = {
        "recipe": {"name": recipe.name, "sha256": recipe.sha256},
        "objective": recipe.objective,
        "adapter": recipe.adapter,
        "quantize": recipe.quantize,
        "base": {"ref": base, "revision": revision},
        "dataset": {"id": dataset_id},
    }

    def put(path: str, value: Any) -> None:
        *parents, leaf = path.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = value

    adapter = overrides.get("adapter")
    for path in fields():
        default = recipe.default(path, parameters, adapter if isinstance(adapter, str) else None)
        if default is not None:
            put(path, default.value)
    for path, value in overrides.items():
        if path not in fields():
            problems.append(Problem(rule="setting-unknown", where=str(path)[:80]))
            continue
        converted = convert_setting(path, value)
        if isinstance(converted, Problem):
            problems.append(converted)
        else:
            put(path, converted)
    train = tree.setdefault("train", {})
    if not train.get("threads"):
        train["threads"] = os.cpu_count() or 1
    return msgspec.convert(tree, RunSpec), problems


def value_at(spec: RunSpec, path: str) -> Any:
    """Return the value of a dotted path."""
    node: Any = spec
    for part in path.split("."):
        node = getattr(node, part)
    return node


def encode(spec: RunSpec) -> bytes:
    """Return spec.json."""
    return msgspec.json.format(msgspec.json.encode(spec), indent=2)


def decode(data: bytes) -> RunSpec:
    """Read spec.json; unknown fields and wrong types are refused with the path. Raises msgspec.ValidationError."""
    return msgspec.json.decode(data, type=RunSpec)


# Good answers with their weight over bad ones with theirs: inside both ranges that KTO's paper has given, 1 to 4/3
# (arXiv 2402.01306 version 1, equation 8) and 1 to 3/2 (its ICML version, equation 9).
KTO_RATIO = 1.15


def kto_weights(good_rows: int, bad_rows: int) -> tuple[float, float]:
    """Return KTO's weights of good and of bad rows: one of them is 1, and good x weight over bad x weight is 1.15.

    TRL 1.12 warns outside 1 to 4/3 (kto_trainer.py; arXiv 2402.01306 version 1, equation 8).
    """
    if good_rows < bad_rows:
        return round(KTO_RATIO * bad_rows / good_rows, 3), 1.0
    return 1.0, round(good_rows / (KTO_RATIO * bad_rows), 3)


def layer_indices(layers: str | list[int], depth: int) -> list[int] | None:
    """Return the trained layers of a model `depth` layers deep, or None for all of them.

    `top:0.25` is the last quarter, `bottom_frozen:0.5` all but the first half; at least one layer trains.
    Raises ValueError when the text has no such form or an index lies outside.
    """
    if layers == "all":
        return None
    if isinstance(layers, list):
        if not layers or any(not 0 <= index < depth for index in layers):
            raise ValueError(f"layers are numbered 0 to {depth - 1}")
        return sorted(set(layers))
    kind, _, number = layers.partition(":")
    try:
        share = float(number)
    except ValueError:
        share = -1.0
    if kind not in ("top", "bottom_frozen") or not 0 < share < 1:
        raise ValueError("write all, top:0.25, bottom_frozen:0.5 or a list such as [2, 3]")
    count = max(1, round(depth * (share if kind == "top" else 1 - share)))
    return list(range(depth - count, depth))


def optimizer_steps(train: Train, rows: int) -> int:
    """Return the optimizer steps of a run over `rows` rows of the user's, counted as transformers' Trainer counts
    them: the last batch of a pass may be short. With replay the epochs are laid out as one pass (engine/train/sft.py).
    """
    if train.max_steps:
        return train.max_steps
    if train.replay_share:
        passes, length = 1.0, rows_with_replay(train, rows)
    else:
        passes, length = train.epochs, rows
    per_pass = math.ceil(math.ceil(length / train.batch_size) / train.accumulation)
    return max(1, math.ceil(passes * per_pass))


def share_of_step(spec: RunSpec) -> tuple[int, int]:
    """Return the batch size and the passes of each of a run's processes. Together they take as many rows a step as one
    would, so that rates and numbers of steps keep their meaning. Raises ValueError when a step cannot be shared."""
    train, devices = spec.train, spec.machine.devices
    if train.accumulation % devices == 0:
        return train.batch_size, train.accumulation // devices
    if train.batch_size % devices == 0:
        return train.batch_size // devices, train.accumulation
    raise ValueError(f"{train.batch_size} x {train.accumulation} rows cannot be shared by {devices}")


def rows_with_replay(train: Train, rows: int) -> int:
    """Return how many rows, the user's and general ones, all epochs of a run with replay have together."""
    return max(1, round(train.epochs * (rows + replayed_rows(train, rows))))


def replayed_rows(train: Train, rows: int) -> int:
    """Return how many general rows make up the replay share of an epoch beside `rows` rows of the user's."""
    return round(rows * train.replay_share / (1 - train.replay_share))
