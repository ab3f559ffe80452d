"""RunSpec: everything a run is, fully resolved, as it stands in spec.json. Frozen; unknown fields are refused.

Two axes, objective and adapter; quantisation and layers are orthogonal to both.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from engine.spec.objectives import OBJECTIVES
from engine.spec.parts import (
    LAYERS,
    PASSES,
    ROWS,
    STEPS,
    TOKENS,
    Evaluate,
    Machine,
    ObjectiveArgs,
    Seconds,
    Share,
    Tolerance,
    about,
)  # fmt: skip
from engine.workspace import MALFORMED, Unreadable, decoded

# Version 2 adds the kind `adopted`, and adapters that are trained on. What version 1 could say means the same in both, so
# its files read as they are.
SCHEMA = 2

if TYPE_CHECKING:
    Objective = str
else:
    Objective = Literal[tuple(OBJECTIVES)]
Adapter = Literal["full", "lora", "oft"]
Quantize = Literal["none", "8bit", "4bit"]


class RecipeRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    sha256: str


class AdapterArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"continues": "continue"}):
    rank: Annotated[
        int,
        about(
            "Rank",
            "Width of the two LoRA matrices. Higher learns more, needs more memory, forgets more.",
            ge=1,
            le=8192,
        ),
    ] = 16
    alpha: Annotated[
        int,
        about("Alpha", "LoRA's change is scaled by alpha / rank. Twice the rank is the usual choice.", ge=1, le=2**17),
    ] = 32
    dropout: Annotated[
        float, about("Dropout", "Share of adapter inputs dropped while training, against overfitting.", ge=0, lt=1)
    ] = 0.0
    block_size: Annotated[int, about("Block size", "Size of the rotated blocks of OFT.", ge=2, le=2**14)] = 32
    target_modules: Annotated[
        str,
        about("Target modules", 'Which layers get an adapter: "all-linear", "feed-forward", or as "q_proj,v_proj".'),
    ] = "all-linear"
    # Written `continue` in spec.json and after --set, which is a word of the language here.
    continues: Annotated[
        bool,
        about(
            "Go on with its adapter",
            "Train the adapter of the earlier run on, instead of merging it first: the base stays in as few bits as it was "
            "held in, and what is made is one adapter on the same base. Its kind, rank and modules are that run's.",
        ),
    ] = False


class BaseRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`revision` is the commit of a hub model, which a run keeps to when its branch moves on."""

    ref: str
    revision: str | None = None

    @property
    def pinned(self) -> str:
        """The ref with its commit, as owner/name@revision: what to start from again."""
        return f"{self.ref}@{self.revision}" if self.revision else self.ref


class GraderRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What says whether an answer is right: the name of a grader and what it is told (engine/graders, which reads both)."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=80)]
    parameters: dict[str, Any] = {}

    def __hash__(self) -> int:
        return hash(msgspec.json.encode(self, order="deterministic"))


class DatasetRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    eval_id: Annotated[str | None, about("Evaluation data", "A data set that is only scored, never trained on.")] = None
    split_seed: Annotated[int, about("Split seed", "Decides which rows are held out.", ge=0, le=2**32 - 1)] = 0
    eval_share: Annotated[
        Share,
        about("Held-out share", "Share of the rows that is kept out of training and scored before and after."),
    ] = 0.1
    most_rows: Annotated[
        int,
        about(
            "Most rows",
            "Train on so many rows, drawn by the split seed, for a first try; 0 means all.",
            ge=0,
            le=ROWS,
        ),
    ] = 0
    grader: Annotated[
        GraderRef | None,
        about("Grader", "What says whether an answer to these rows is right, before and after; the data set names it."),
    ] = None


class Train(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    epochs: Annotated[
        float,
        about("Epochs", "How often the run goes through all rows. More learns more and forgets more.", gt=0, le=PASSES),
    ] = 2.0
    max_steps: Annotated[
        int, about("Most steps", "Stop after so many steps; 0 means as many as the epochs ask for.", ge=0, le=STEPS)
    ] = 0
    learning_rate: Annotated[
        float,
        about("Learning rate", "How far each step moves the weights. The setting that matters most.", gt=0, le=1),
    ] = 2e-4
    schedule: Annotated[
        Literal["cosine", "linear", "constant"], about("Schedule", "How the learning rate falls over the run.")
    ] = "cosine"
    warmup: Annotated[
        float,
        about("Warm-up", "Share of the steps over which the rate rises from 0; 1 or more is a count.", ge=0, le=STEPS),
    ] = 0.05
    weight_decay: Annotated[float, about("Weight decay", "Pull of the weights towards 0.", ge=0, lt=1)] = 0.0
    max_grad_norm: Annotated[float, about("Gradient clip", "Longest gradient a step may use.", gt=0, le=1e9)] = 1.0
    batch_size: Annotated[
        int, about("Batch size", "Rows per forward pass. Lower it when memory runs out.", ge=1, le=2**16)
    ] = 8
    accumulation: Annotated[
        int, about("Accumulation", "Forward passes per step: a larger batch without more memory.", ge=1, le=2**16)
    ] = 2
    max_length: Annotated[int, about("Longest row", "Rows are cut after so many tokens.", ge=8, le=TOKENS)] = 1024
    replay_share: Annotated[
        float, about("Replay", "Share of general rows mixed in so that the model forgets less.", ge=0, le=0.99)
    ] = 0.0
    replay_data: Annotated[
        str | None,
        about(
            "Replay data",
            "A data set of general rows to mix in. Without one the base itself writes them before training.",
        ),
    ] = None
    replay_budget_s: Annotated[
        Seconds | None,
        about(
            "Replay time",
            "Seconds that the base may spend on writing general rows; when they are over, fewer are mixed in. Left open, it "
            "writes until there are enough.",
        ),
    ] = None
    early_stopping: Annotated[
        int,
        about(
            "Early stopping",
            "Patience: stop after so many evaluations in a row without a lower held-out loss; 0 is off. The best weights "
            "are kept.",
            ge=0,
            le=100,
        ),
    ] = 0
    tolerance: Annotated[
        Tolerance,
        about(
            "May forget",
            "How much worse the model may get at general text: off, low, medium or high, or nats per token. Watched at each "
            "evaluation, of which there are ten at least; kept is the best within it.",
        ),
    ] = "off"
    keep_best: Annotated[
        bool,
        about("Keep the best", "Keep the weights of the evaluation with the lowest held-out loss, not the last ones."),
    ] = False
    evaluations: Annotated[
        int, about("Evaluations", "How often the held-out loss is measured during the run.", ge=1, le=100)
    ] = 5
    gradient_checkpointing: Annotated[
        bool | None,
        about(
            "Gradient checkpointing", "Less memory, about a third slower. Left open, it is on where memory is short."
        ),
    ] = None
    optimizer: Annotated[
        Literal["auto", "adamw", "adamw_8bit"],
        about("Optimizer", "AdamW, or the same with its state in 8 bits, where memory is short."),
    ] = "auto"
    padding_free: Annotated[
        bool | None,
        about("Padding-free", "Rows of a batch end to end instead of filled up. Left open, it is on where that works."),
    ] = None
    seed: Annotated[int, about("Seed", "The same seed, data and machine give the same run.", ge=0, le=2**32 - 1)] = 0
    report_to: Annotated[
        Literal["none", "trackio", "tensorboard", "wandb", "mlflow"],
        about(
            "Tracker",
            "Also send the figures to this tracker, which must be installed; wandb keeps them on its servers.",
        ),
    ] = "none"
    threads: Annotated[int, about("Threads", "Processor threads; 0 means all cores.", ge=0, le=1024)] = 0


class Adopted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model that was tuned elsewhere: the folder it was copied from, the sha256 of what was taken of it, and the tool
    that wrote it, as far as its files say."""

    path: str
    sha256: str
    tool: str = ""


WayPart = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Recover(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model on the way from its base to what a run made: `run` is that run's id, `at` the part of the way, 0 the base and
    1 the run; of intruders, the part of each such dimension that is taken away. Without `at` nothing is kept, and the way
    is scored at `points`."""

    run: str
    way: Literal["scale", "interpolate", "intruders"]
    at: WayPart | None = None
    points: Annotated[list[WayPart], msgspec.Meta(max_length=100)] = []


# Of a model tuned elsewhere these are null in spec.json, as nobody knows them. A RunSpec holds values that say nothing in
# their place, so that whoever reads one need not ask first whether they are there.
_UNKNOWN = {
    "recipe": {"name": "adopted", "sha256": "0" * 64},
    "objective": "sft",
    "dataset": {"id": "", "eval_share": 0.0},
}


class RunSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    schema: Literal[1, 2] = SCHEMA
    kind: Literal["train", "evaluate", "probe", "chat", "sweep", "adopted", "recover"] = "train"
    recipe: RecipeRef
    objective: Annotated[Objective, about("Objective", "What the run optimises.")] = "sft"
    adapter: Annotated[Adapter, about("Adapter", "Which weights move: all of them, or a small adapter.")] = "lora"
    adapter_args: AdapterArgs = AdapterArgs()
    quantize: Annotated[Quantize, about("Quantise", "Hold the frozen base in fewer bits, to save memory.")] = "none"
    layers: Annotated[
        str | Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=LAYERS)]], msgspec.Meta(max_length=LAYERS)],
        about("Layers", "Which layers train: all, top:0.25, bottom_frozen:0.5, or indices such as [2, 3]."),
    ] = "all"
    train_head: Annotated[bool, about("Train the head", "Also train the output layer.")] = True
    base: BaseRef
    dataset: DatasetRef
    train: Train = Train()
    objective_args: ObjectiveArgs = ObjectiveArgs()
    evaluate: Evaluate = Evaluate()
    machine: Machine = Machine()
    adopted: Adopted | None = None
    # A recover run is else as the run it goes back from: same base, rows and questions.
    recover: Recover | None = None
    # What a chat template that writes the date takes for today, as 2026-01-31: fixed at the start, so that base and tuned
    # are asked alike on whatever day they are. None: of a run from before this was kept.
    day: Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")] | None = None

    @property
    def base_form(self) -> str:
        """How the weights of the base are held, which its scores belong to: in fewer bits, and under an adapter of an
        earlier run that was not merged into them."""
        return f"{self.quantize}, unmerged" if self.adapter_args.continues else self.quantize


def value_at(spec: RunSpec, path: str) -> Any:
    """Return the value of a dotted path."""
    node: Any = spec
    for part in path.split("."):
        node = getattr(node, attribute(type(node), part))
    return node


# All paths of many runs are asked for at once, and msgspec works its answer out anew each time.
@lru_cache(maxsize=1024)
def attribute(struct: type, written: str) -> str:
    """Return what a field of a struct is called in Python that is written otherwise in JSON."""
    return next((f.name for f in msgspec.structs.fields(struct) if f.encode_name == written), written)


def adopted(**fields: Any) -> RunSpec:
    """Return the spec of a model that was tuned elsewhere: what nobody knows of its training is left out."""
    return msgspec.convert({**_UNKNOWN, "kind": "adopted", **fields}, RunSpec)


def told(spec: RunSpec) -> dict[str, Any]:
    """Return a spec as spec.json holds it: what is not known of a model tuned elsewhere is None or left out."""
    found: dict[str, Any] = msgspec.to_builtins(spec)
    for name in ("adopted", "recover"):
        if found[name] is None:
            del found[name]  # of its kind alone
    if spec.kind == "adopted":
        found |= {"recipe": None, "objective": None}
        found["train"] = {"max_length": spec.train.max_length, "threads": spec.train.threads}  # how it is asked
        found["adapter_args"].pop("dropout")
        for name in ("objective_args", "layers", "train_head"):
            found.pop(name)
        if not (spec.dataset.id or spec.dataset.eval_id):
            found["dataset"] = None
    return found


def encode(spec: RunSpec) -> bytes:
    """Return spec.json."""
    return msgspec.json.format(msgspec.json.encode(told(spec)), indent=2)


def decode(data: bytes) -> RunSpec:
    """Read spec.json; unknown fields and wrong types are refused with the path. Raises Unreadable."""
    found = decoded(data, object)
    if isinstance(found, dict) and found.get("kind") == "adopted":
        found |= {name: value for name, value in _UNKNOWN.items() if found.get(name) is None}
    try:
        return msgspec.convert(found, RunSpec)
    except MALFORMED as error:
        raise Unreadable(str(error)) from error
