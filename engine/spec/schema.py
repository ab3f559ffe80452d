"""RunSpec: everything a run is, fully resolved, as it stands in spec.json. Frozen; unknown fields are refused.

Two axes, objective and adapter; quantisation and layers are orthogonal to both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from engine.spec.objectives import OBJECTIVES
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
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]
# Every number has a lowest and a highest value: far beyond what anybody means, and far within what memory, a disk, a browser
# and the formulas hold. A number beyond them is a slip or an attack.
LAYERS, ROWS, STEPS, PASSES, TOKENS = 10_000, 10**9, 10**7, 10**4, 2**20
MONTH_S = 30 * 86_400
# Nats of general loss: a rise of 10 is beyond what any model is of use after.
Tolerance = Annotated[float, msgspec.Meta(gt=0, le=10)] | Literal["off", "low", "medium", "high"]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=MONTH_S)]


def _about(title: str, help_text: str, **limits: Any) -> msgspec.Meta:
    return msgspec.Meta(title=title, description=help_text, **limits)


class RecipeRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    sha256: str


class AdapterArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"continues": "continue"}):
    rank: Annotated[
        int,
        _about(
            "Rank",
            "Width of the two LoRA matrices. Higher learns more, needs more memory, forgets more.",
            ge=1,
            le=8192,
        ),
    ] = 16
    alpha: Annotated[
        int,
        _about("Alpha", "LoRA's change is scaled by alpha / rank. Twice the rank is the usual choice.", ge=1, le=2**17),
    ] = 32
    dropout: Annotated[
        float, _about("Dropout", "Share of adapter inputs dropped while training, against overfitting.", ge=0, lt=1)
    ] = 0.0
    block_size: Annotated[int, _about("Block size", "Size of the rotated blocks of OFT.", ge=2, le=2**14)] = 32
    target_modules: Annotated[
        str,
        _about("Target modules", 'Which layers get an adapter: "all-linear", "feed-forward", or as "q_proj,v_proj".'),
    ] = "all-linear"
    # Written `continue` in spec.json and after --set, which is a word of the language here.
    continues: Annotated[
        bool,
        _about(
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
    eval_id: Annotated[str | None, _about("Evaluation data", "A data set that is only scored, never trained on.")] = (
        None
    )
    split_seed: Annotated[int, _about("Split seed", "Decides which rows are held out.", ge=0, le=2**32 - 1)] = 0
    eval_share: Annotated[
        Share,
        _about("Held-out share", "Share of the rows that is kept out of training and scored before and after."),
    ] = 0.1
    most_rows: Annotated[
        int,
        _about(
            "Most rows",
            "Train on so many rows, drawn by the split seed, for a first try; 0 means all.",
            ge=0,
            le=ROWS,
        ),
    ] = 0
    grader: Annotated[
        GraderRef | None,
        _about(
            "Grader", "What says whether an answer to these rows is right, before and after; the data set names it."
        ),
    ] = None


class Train(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    epochs: Annotated[
        float,
        _about(
            "Epochs", "How often the run goes through all rows. More learns more and forgets more.", gt=0, le=PASSES
        ),
    ] = 2.0
    max_steps: Annotated[
        int, _about("Most steps", "Stop after so many steps; 0 means as many as the epochs ask for.", ge=0, le=STEPS)
    ] = 0
    learning_rate: Annotated[
        float,
        _about("Learning rate", "How far each step moves the weights. The setting that matters most.", gt=0, le=1),
    ] = 2e-4
    schedule: Annotated[
        Literal["cosine", "linear", "constant"], _about("Schedule", "How the learning rate falls over the run.")
    ] = "cosine"
    warmup: Annotated[
        float,
        _about("Warm-up", "Share of the steps over which the rate rises from 0; 1 or more is a count.", ge=0, le=STEPS),
    ] = 0.05
    weight_decay: Annotated[float, _about("Weight decay", "Pull of the weights towards 0.", ge=0, lt=1)] = 0.0
    max_grad_norm: Annotated[float, _about("Gradient clip", "Longest gradient a step may use.", gt=0, le=1e9)] = 1.0
    batch_size: Annotated[
        int, _about("Batch size", "Rows per forward pass. Lower it when memory runs out.", ge=1, le=2**16)
    ] = 8
    accumulation: Annotated[
        int, _about("Accumulation", "Forward passes per step: a larger batch without more memory.", ge=1, le=2**16)
    ] = 2
    max_length: Annotated[int, _about("Longest row", "Rows are cut after so many tokens.", ge=8, le=TOKENS)] = 1024
    replay_share: Annotated[
        float, _about("Replay", "Share of general rows mixed in so that the model forgets less.", ge=0, le=0.99)
    ] = 0.0
    replay_data: Annotated[
        str | None,
        _about(
            "Replay data",
            "A data set of general rows to mix in. Without one the base itself writes them before training.",
        ),
    ] = None
    replay_budget_s: Annotated[
        Seconds | None,
        _about(
            "Replay time",
            "Seconds that the base may spend on writing general rows; when they are over, fewer are mixed in. Left open, it "
            "writes until there are enough.",
        ),
    ] = None
    early_stopping: Annotated[
        int,
        _about(
            "Early stopping",
            "Patience: stop after so many evaluations in a row without a lower held-out loss; 0 is off. The best weights "
            "are kept.",
            ge=0,
            le=100,
        ),
    ] = 0
    tolerance: Annotated[
        Tolerance,
        _about(
            "May forget",
            "How much worse the model may get at general text: off, low, medium or high, or nats per token. Watched at each "
            "evaluation, of which there are ten at least; kept is the best within it.",
        ),
    ] = "off"
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
        Annotated[float, msgspec.Meta(gt=0, le=1000)] | None,
        _about("Beta", "How strongly preference training is held to the reference model."),
    ] = None
    keep: Annotated[
        Literal["plain", "entropy", "skip_surprising", "kl"],
        _about(
            "Keep what it knew",
            "How tokens count in supervised fine-tuning: all alike; less where the model is sure of something else; not "
            "where the base finds them surprising; or held to the base's own likelihoods.",
        ),
    ] = "plain"
    weights: Annotated[
        Annotated[list[Annotated[float, msgspec.Meta(ge=0, le=ROWS)]], msgspec.Meta(max_length=LAYERS)] | None,
        _about("Weights", "KTO's weights of answers marked good and marked bad; set from their counts."),
    ] = None
    reward_model: Annotated[
        str | None,
        _about(
            "Reward model",
            "The run that judges answers in PPO, as run:<id>. Unset: one of the same base and rows.",
        ),
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
        float, _about("Temperature", "How freely answers are drawn in PPO; lower tries less.", ge=0.01, le=2)
    ] = 0.7
    ppo_epochs: Annotated[
        int, _about("Passes over each batch of answers", "How often PPO learns from the same answers.", ge=1, le=16)
    ] = 4
    missing_end_penalty: Annotated[
        float,
        _about("Penalty for no end", "Taken off the reward of an answer that does not come to an end.", ge=0, le=1000),
    ] = 1.0


class Evaluate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    benchmarks: Annotated[
        list[str], _about("Benchmarks", "Question sets scored before and after, to see what was forgotten.")
    ] = []
    limit: Annotated[
        int, _about("Most questions", "Questions per benchmark, held-out rows too; 0 means all.", ge=0, le=ROWS)
    ] = 0
    budget_s: Annotated[
        Seconds | None,
        _about(
            "Scoring time",
            "Seconds that scoring may take, base and tuned together: as many questions are asked as fit. Left open, all are "
            "asked.",
        ),
    ] = None
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
        Literal["auto", "bf16", "fp16", "fp32"],
        _about(
            "Precision",
            "The number format of the arithmetic: 16 bits where the device has them (bf16, or fp16 on cards without it), or "
            "32.",
        ),
    ] = "auto"
    weights: Annotated[
        Literal["fp32", "bf16"],
        _about(
            "Weight format",
            "How full fine-tuning holds what it trains: in 32 bits, or in bf16 alone, which takes half the memory and loses "
            "the smallest steps.",
        ),
    ] = "fp32"
    devices: Annotated[int, _about("Devices", "How many GPUs the run may use.", ge=1, le=1024)] = 1
    nodes: Annotated[
        int,
        _about(
            "Machines",
            "How many machines share the run, each with as many devices; all see this folder of runs by the same name. The "
            "run's page says what to start on each of the others.",
            ge=1,
            le=64,
        ),
    ] = 1
    address: Annotated[
        str,
        _about(
            "Address",
            "By what name or address the other machines reach this one; empty: the network's own answer.",
            pattern=r"^([A-Za-z0-9][A-Za-z0-9.:-]*)?$",
        ),
    ] = ""
    port: Annotated[int, _about("Port", "The port by which several machines meet.", ge=1024, le=65535)] = 29500


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
    objective: Annotated[Objective, _about("Objective", "What the run optimises.")] = "sft"
    adapter: Annotated[Adapter, _about("Adapter", "Which weights move: all of them, or a small adapter.")] = "lora"
    adapter_args: AdapterArgs = AdapterArgs()
    quantize: Annotated[Quantize, _about("Quantise", "Hold the frozen base in fewer bits, to save memory.")] = "none"
    layers: Annotated[
        str | Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=LAYERS)]], msgspec.Meta(max_length=LAYERS)],
        _about("Layers", "Which layers train: all, top:0.25, bottom_frozen:0.5, or indices such as [2, 3]."),
    ] = "all"
    train_head: Annotated[bool, _about("Train the head", "Also train the output layer.")] = True
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
