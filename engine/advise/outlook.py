"""What each alternative of an advice would take: memory by parts and time, both as ranges."""

from __future__ import annotations

import msgspec

from engine import machine
from engine.advise import advice as advise_advice
from engine.advise import facts as advise_facts
from engine.advise import fits as advise_fits
from engine.advise import ways
from engine.estimate import duration, measured
from engine.estimate import memory as estimate_memory
from engine.models import shapes
from engine.workspace import Workspace

# Tokens of a row when no data is there to count: a question with a short answer.
USUAL_ROW_TOKENS = 300.0


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """One alternative: its memory at the least it can be run with, and its time at the settings advised. `memory` has no
    parts, and `time` is None, where too little is known."""

    title: str
    recipe: str
    fits: bool
    runs: bool
    trade: str
    memory: estimate_memory.Estimate
    low_bytes: int | None
    high_bytes: int | None
    time: duration.Time | None


def of(
    advice: advise_advice.Advice,
    shape: shapes.Shape | None,
    workspace: Workspace,
    *,
    row_tokens: float | None,
    dataset: str = "",
) -> list[Outlook]:
    """Return an outlook for every alternative of an advice, in the order of preference."""
    facts = advice.facts
    device = "cpu" if facts.gpu_memory_gib is None else "cuda:0"
    gpus = machine.facts().gpus
    own_card = bool(gpus) and facts.gpu_memory_gib is not None and (
        advise_facts.marketed_gb(gpus[0].memory_mib / 1024) == advise_facts.marketed_gb(facts.gpu_memory_gib))  # fmt: skip
    known = measured.read(workspace) if device == machine.facts().device else []
    found = []
    for one in advice.alternatives:
        setup = advise_fits.setup_of_choice(one.choice)
        memory = estimate_memory.estimate(shape, setup, device=device)
        time = None
        if facts.rows:
            time = duration.estimate(
                shape,
                _as_advised(one.choice, setup, facts),
                _job(one.choice, facts, row_tokens or USUAL_ROW_TOKENS, dataset),
                device=device,
                known=known,
                card=gpus[0].name if own_card else "",
                memory_gib=facts.gpu_memory_gib,
            )
        found.append(
            Outlook(
                title=one.choice.title,
                recipe=one.choice.recipe,
                fits=one.fits,
                runs=one.runs,
                trade=one.trade,
                memory=memory,
                low_bytes=memory.low_bytes if memory.parts else None,
                high_bytes=memory.high_bytes if memory.parts else None,
                time=time,
            )
        )
    return found


def _value(choice: ways.Choice, facts: advise_facts.Facts, path: str, otherwise: float) -> float:
    """Return a setting as a run would have it: a toy goes by its recipe, a real base by the advice."""
    recipe = ways.recipe_for(choice)
    default = recipe.default(path, facts.base_parameters) if recipe is not None else None
    usual = default.value if default is not None else None
    toy = (facts.base_parameters or advise_facts.TOY_PARAMETERS) < advise_facts.TOY_PARAMETERS
    order = (usual, choice.value(path)) if toy else (choice.value(path), usual)
    return next((value for value in order if value is not None), otherwise)


def _as_advised(choice: ways.Choice, setup: estimate_memory.Setup, facts: advise_facts.Facts) -> estimate_memory.Setup:
    checkpointing = bool(_value(choice, facts, "train.gradient_checkpointing", False))
    return msgspec.structs.replace(setup, gradient_checkpointing=checkpointing)


def _job(choice: ways.Choice, facts: advise_facts.Facts, row_tokens: float, dataset: str) -> duration.Job:
    toy = (facts.base_parameters or advise_facts.TOY_PARAMETERS) < advise_facts.TOY_PARAMETERS
    batch = _value(choice, facts, "train.batch_size", 8) * _value(choice, facts, "train.accumulation", 2)
    per_step = max(1, round(batch if toy else choice.value("effective_batch") or batch))
    rows = facts.rows or 0
    steps = max(1, round(_value(choice, facts, "train.epochs", 2) * rows / per_step))
    threads = round(_value(choice, facts, "train.threads", 0)) or machine.facts().cores
    longest = _value(choice, facts, "train.max_length", 1024)
    return duration.Job(
        steps=steps,
        rows_per_step=per_step,
        row_tokens=min(row_tokens, longest),
        held_out=min(1000, rows // 10),
        threads=threads,
        dataset=dataset,
    )
