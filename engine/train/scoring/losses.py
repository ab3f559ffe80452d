"""Score rows by the loss of their trained tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.render import Encoded
from engine.render.encode import IGNORED
from engine.report import Item
from engine.train.scoring.harness import sha
from engine.train.scoring.likelihood import Reader
from engine.train.scoring.trees import Wanted
from engine.train.tokenize import encode


def score_loss(model: Any, tokenizer: Any, rows: list[tuple[str, str, dict[str, Any]]], max_length: int) -> list[Item]:
    """Return an item per (id, family, canonical row): the log-likelihood (nats) of its trained tokens and their number."""
    coded = [(name, family, encode(row, tokenizer, max_length)) for name, family, row in rows]
    coded = [entry for entry in coded if entry[2].trained_tokens]
    found = likelihoods(model, [one for _, _, one in coded])
    return [
        Item(
            item=name, family=family, prompt_sha=sha(",".join(map(str, one.input_ids))), loglikelihoods=[likelihood],
            tokens=one.trained_tokens,
        )
        for (name, family, one), likelihood in zip(coded, found, strict=True)
    ]  # fmt: skip


def likelihoods(model: Any, coded: Sequence[Encoded]) -> list[float]:
    """Return the log-likelihood (nats) of the trained tokens of each row. The model is asked in eval mode."""
    # nothing comes before the first token, so that its likelihood is not asked for
    targets = [[at for at, label in enumerate(one.labels) if at and label != IGNORED] for one in coded]
    wanted = [Wanted(tuple(one.input_ids), places) for one, places in zip(coded, targets, strict=True)]
    told = [0.0] * len(coded)
    for found in Reader(model).read(wanted):
        for number, answers in found.items():
            told[number] = sum(likely for likely, _ in answers)
    return told
