"""OBJECTIVES: all that pages, plans, estimates, exports and reports need to know of what a run can optimise, in one table.

To add one: an entry here, a file of its name in engine/train/objectives/ (the code), and a recipe in recipes/.
"""

from __future__ import annotations

from functools import reduce

import msgspec

from engine.words import Text, later, t

ADAPTERS = ("full", "lora", "oft")
QUANTIZE = ("none", "8bit", "4bit")
# Below, preferences hardly hold the model to its reference; above, they hardly move it. The guide's 0.5 to 1.0 is inside.
LEAST_BETA, MOST_BETA = 0.001, 1.0
# PPO shows each answer to the model so often (PPOConfig of TRL 1.12, num_ppo_epochs; arXiv 1707.06347, algorithm 1).
PPO_EPOCHS = 4


class Objective(msgspec.Struct, frozen=True, kw_only=True):
    """What follows from an objective outside of its own code.

    What it reads and learns from: `data_types`, the usual kind first; `weighs_labels`: good and bad rows have weights;
    `replays`: general rows can be mixed in; `writes_answers`: rows are questions, which the model answers while it
    trains; `needs_judge`: a reward model says how good they are; `is_judge`: it makes that, scores and no text.

    What it takes: `texts_per_row` go through the model; `trained_passes` of the trained model forward and backward and
    `other_passes` forward alone for each token (estimate/duration.py); `chunks_logits`: its loss takes few tokens at a time;
    `least_batch` rows are compared with each other; `padding_free`: rows can be laid end to end; `shares_devices`:
    several devices learn the same as one, which was tried; `unsloth_adapters`: with which Unsloth was run here.

    What is said of it: `goal`, what a person wants who takes it, which groups the recipes; `usual_beta`, how closely a run
    is held to its reference when nothing else is said (None: nothing holds it); `loss_unit`; `loss_falls`: the loss says
    how it goes; `is_scored_on_its_way`: points along a run can be scored.
    """

    name: str
    label: str
    method: str
    goal: str
    data_types: tuple[str, ...]
    weighs_labels: bool = False
    replays: bool = False
    writes_answers: bool = False
    needs_judge: bool = False
    is_judge: bool = False
    texts_per_row: int = 1
    trained_passes: int = 1
    other_passes: int = 0
    chunks_logits: bool = False
    least_batch: int = 1
    padding_free: bool = False
    shares_devices: bool = False
    unsloth_adapters: tuple[str, ...] = ()
    usual_beta: float | None = None
    loss_unit: str = "loss"
    loss_falls: bool = True
    is_scored_on_its_way: bool = True

    @property
    def title(self) -> str:
        """What a person calls it."""
        return t(self.label)

    @property
    def has_reference(self) -> bool:
        """Whether the model is compared with what it was at the start."""
        return self.usual_beta is not None


OBJECTIVES: dict[str, Objective] = {
    one.name: one
    for one in (
        Objective(
            name="sft",
            label="SFT",
            method="supervised fine-tuning",
            goal="Answer as your rows do",
            data_types=("prompt-completion", "language-modeling"),
            replays=True,
            chunks_logits=True,
            padding_free=True,
            shares_devices=True,
            loss_unit="nats per token",
            unsloth_adapters=("full", "lora"),
        ),
        Objective(
            name="dpo",
            label="DPO",
            method="DPO",
            goal="Prefer the better answers",
            data_types=("preference",),
            usual_beta=0.1,  # arXiv 2305.18290, appendix B; DPOConfig of TRL 1.12
            texts_per_row=2,
            trained_passes=2,  # two answers, and the reference's pass over both
            other_passes=2,
            unsloth_adapters=("lora",),
        ),
        Objective(
            name="kto",
            label="KTO",
            method="KTO",
            goal="Prefer the better answers",
            data_types=("unpaired-preference",),
            weighs_labels=True,
            usual_beta=0.1,  # arXiv 2402.01306, section 4.3; KTOConfig of TRL 1.12
            other_passes=3,  # the policy on mismatched answers, the reference on both
            least_batch=4,  # the answers of a batch are compared with each other; kto_trainer.py of TRL 1.12 refuses 1
            unsloth_adapters=("lora",),
        ),
        Objective(
            name="reward",
            label="Reward model",
            method="reward model",
            goal="Judge answers, and learn from the judge",
            data_types=("preference",),
            texts_per_row=2,
            trained_passes=2,
            is_judge=True,
            is_scored_on_its_way=False,
        ),
        Objective(
            name="ppo",
            label="PPO",
            method="PPO",
            goal="Judge answers, and learn from the judge",
            data_types=("prompt-only",),
            usual_beta=0.05,  # PPOConfig of TRL 1.12 (kl_coef); arXiv 2203.02155, appendix C.4, takes 0.02
            trained_passes=PPO_EPOCHS,
            other_passes=3,  # the reply is read by three more models
            loss_falls=False,
            is_scored_on_its_way=False,
            writes_answers=True,
            needs_judge=True,
        ),
    )
}


def rows_words(*data_types: str | None) -> Text:
    """Return what rows of a type, or of one of several, are in words."""
    words = {
        "prompt-completion": later("questions with answers"),
        "language-modeling": later("plain texts or conversations"),
        "preference": later("pairs of a better and a worse answer"),
        "unpaired-preference": later("single answers marked good or bad"),
        "prompt-only": later("questions alone"),
        "stepwise": later("answers with a label for each step"),
    }
    found = [words.get(one or "", later("rows of another kind")) for one in data_types]
    return reduce(lambda one, other: later("{one}, or {other}", one=one, other=other), found)


def feeds(data_type: str | None) -> tuple[str, ...]:
    """Return which objectives rows of a type can feed, the usual one first (TRL 1.12, dataset formats). Step labels feed
    none of ours."""
    return tuple(one.name for one in OBJECTIVES.values() if data_type in one.data_types)
