"""General rows that a base writes itself before it is trained, to be mixed in against forgetting.

Rows of the data a model was first trained on would be best and are seldom to be had; what the model writes itself does
nearly as well (self-generated replay, arXiv 2605.26097). It is drawn at temperature 1, so that it follows the base's own
distribution: at the start such rows pull the weights nowhere, later they pull them back. A model that chats answers short
questions; one that only continues text writes from its beginning-of-text token.

The rows are kept in evals/<key>/replay.jsonl, by weights and questions, for all runs on that base.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from engine.models import Base
from engine.render import Encoded, template
from engine.render.encode import IGNORED
from engine.train.scoring import keys
from engine.train.tokenize import coder_of, render, stops, until_end
from engine.workspace import Workspace, write_atomically

# More rows cost minutes on a small machine; beyond them they come again.
MOST_WRITTEN = 512
MOST_NEW_TOKENS = 96
BATCH = 16

SUBJECTS = (
    "the water cycle", "bread", "the Moon", "a good night's sleep", "photosynthesis", "chess", "bees", "earthquakes",
    "the printing press", "vaccines", "coffee", "rainbows", "money", "the alphabet", "glass", "volcanoes",
    "the human heart", "bicycles", "maps", "salt", "music", "friendship", "trees in cities", "batteries", "the calendar",
    "cooking rice", "swimming", "libraries", "the speed of light", "democracy", "dogs", "computers",
)  # fmt: skip
FORMS = (
    "Explain {subject} in two sentences.",
    "Write a short poem about {subject}.",
    "What should a child know about {subject}?",
    "Name three facts about {subject}.",
    "Give me one question and its answer about {subject}.",
    "Tell a short story in which {subject} matters.",
    "What do people often get wrong about {subject}?",
    "List some words that have to do with {subject}.",
)


def questions() -> list[str]:
    """Return the short general questions, in an order that changes both subject and form."""
    pairs = [(form, subject) for number in range(len(FORMS)) for form, subject in _round(number)]
    return [form.format(subject=subject) for form, subject in pairs]


def _round(number: int) -> list[tuple[str, str]]:
    return [(FORMS[(number + place) % len(FORMS)], subject) for place, subject in enumerate(SUBJECTS)]


class _Kept(msgspec.Struct):
    """A written row: its token ids, how many of them were given, and what it says."""

    input_ids: list[int]
    given: int
    text: str


def chats(tokenizer: Any) -> bool:
    """Whether the base brought a chat template of its own (tokenize.py gives one to a base that has none)."""
    return not template.is_plain(tokenizer.chat_template)


def from_base(
    model: Any, tokenizer: Any, base: Base, form: str, count: int, workspace: Workspace,
    stop: Callable[[], bool],
) -> list[Encoded]:  # fmt: skip
    """Return at most `count` (and MOST_WRITTEN) rows written by the untouched base, from the cache as far as it goes.

    Batch number n is drawn from seed n, so that more rows later are the same rows and some more. What was written when a
    stop is asked for is not kept: the caller ends the run.
    """
    wanted = min(count, MOST_WRITTEN)
    ends = coder_of(tokenizer).stops
    settings = [
        keys.weights_key(base, workspace), form, "replay", 1, tokenizer.chat_template, questions(), MOST_NEW_TOKENS, ends,
    ]  # fmt: skip
    key = hashlib.sha256(json.dumps(settings).encode("utf-8", "surrogatepass")).hexdigest()
    path = workspace.eval_dir(key) / "replay.jsonl"
    kept = _read(path)
    if len(kept) < wanted:
        given = _given(tokenizer)
        kept = kept[: len(kept) // BATCH * BATCH]
        while len(kept) < wanted:
            start = len(kept)
            if stop():
                return []
            batch = [given[(start + place) % len(given)] for place in range(BATCH)]
            kept += _write(model, tokenizer, batch, seed=start // BATCH)
        write_atomically(path, b"".join(msgspec.json.encode(row) + b"\n" for row in kept))
    return [
        Encoded(row.input_ids, [IGNORED] * row.given + row.input_ids[row.given :], False)
        for row in kept[:wanted]
        if len(row.input_ids) > max(1, row.given)
    ]


def _read(path: Path) -> list[_Kept]:
    try:
        return [msgspec.json.decode(line, type=_Kept) for line in path.read_bytes().splitlines()]
    except (OSError, msgspec.MsgspecError):
        return []


def _given(tokenizer: Any) -> list[list[int]]:
    """Return the token ids that each row begins with."""
    if chats(tokenizer):
        asked = [render(tokenizer, [{"role": "user", "content": one}]) for one in questions()]
        return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in asked]
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [[first if first is not None else 0]]


@torch.no_grad()
def _write(model: Any, tokenizer: Any, given: list[list[int]], seed: int) -> list[_Kept]:
    """Return one row for each beginning: what the model writes after it, up to its end-of-text token."""
    width = max(map(len, given))
    padding = tokenizer.pad_token_id
    ids = torch.tensor([[padding] * (width - len(one)) + one for one in given], device=model.device)
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in given], device=model.device)
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        out = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=MOST_NEW_TOKENS, do_sample=True, temperature=1.0, top_k=0,
            top_p=1.0, pad_token_id=padding, eos_token_id=stops(tokenizer),
        )  # fmt: skip
    model.train(was_training)
    rows = []
    for one, written in zip(given, out[:, width:].tolist(), strict=True):
        written = until_end(tokenizer, written)
        rows.append(_Kept([*one, *written], len(one) if chats(tokenizer) else 0, tokenizer.decode([*one, *written])))
    return rows
