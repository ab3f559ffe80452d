"""General rows that a base writes itself before it is trained, to be mixed in against forgetting.

Rows of the data a model was first trained on would be best and are seldom to be had; what the model writes itself does
nearly as well (self-generated replay, arXiv 2605.26097). It is drawn at temperature 1, so that it follows the base's own
distribution: at the start such rows pull the weights nowhere, later they pull them back. A model that chats answers short
questions; one that only continues text writes from its beginning-of-text token.

The rows are kept in evals/<key>/replay.jsonl, by weights and questions, for all runs on that base. Writing them may take
no longer than a run allows (train.replay_budget_s): how many there are then hangs on the machine, once; later runs read the
same rows. Within one run none comes twice: a row seen again is learned by heart and protects nothing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from engine.models import Base
from engine.render import Encoded, template
from engine.render.encode import IGNORED
from engine.train import parts
from engine.train.scoring import keys
from engine.train.tokenize import coder_of, render, stops, until_end
from engine.workspace import Unreadable, Workspace, decoded, write_atomically

# More rows cost minutes on a small machine, and a card's memory holds keys and values of so many at once.
MOST_WRITTEN = 512
MOST_NEW_TOKENS = 96
BATCH, BATCH_ON_CARD = 16, 64
# A row that was broken off when the time was over teaches something if it has so many tokens.
LEAST_TOKENS = 8

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
    """A written row: its token ids, how many of them were given, what it says, and whether the time ended in it."""

    input_ids: list[int]
    given: int
    text: str
    broken_off: bool = False


def chats(tokenizer: Any) -> bool:
    """Whether the base brought a chat template of its own (tokenize.py gives one to a base that has none)."""
    return not template.is_plain(tokenizer.chat_template)


class Writing:
    """How long writing may go on and who hears of it: `budget_s` seconds, without end where it is None. `told` hears how
    many rows there are, of how many, and the seconds left."""

    def __init__(
        self, stop: Callable[[], bool], budget_s: float | None = None,
        told: Callable[[int, int, float | None], None] | None = None,
    ):  # fmt: skip
        self._stop, self._told = stop, told
        self._began_s = time.monotonic()
        self._until_s = None if budget_s is None else self._began_s + budget_s

    def is_over(self) -> bool:
        return self._stop() or (self._until_s is not None and time.monotonic() >= self._until_s)

    def after(self, done: float, before: int, wanted: int) -> bool:
        """Say how far it is (tell), and return whether it is over."""
        self.tell(done, before, wanted)
        return self.is_over()

    def tell(self, done: float, before: int, wanted: int) -> None:
        """Say that there are so many rows, `before` of which were there from the start; part of a row counts."""
        if self._told is None:
            return
        now_s = time.monotonic()
        left_s = (wanted - done) * (now_s - self._began_s) / (done - before) if done > before else None
        if self._until_s is not None:
            left_s = min(self._until_s - now_s, left_s or self._until_s - now_s)
        self._told(int(done), wanted, None if left_s is None else max(0.0, left_s))


def from_base(
    model: Any, tokenizer: Any, base: Base, form: str, count: int, workspace: Workspace, stop: Callable[[], bool], *,
    budget_s: float | None = None, told: Callable[[int, int, float | None], None] | None = None, reads_only: bool = False,
) -> list[Encoded]:  # fmt: skip
    """Return at most `count` (and MOST_WRITTEN) rows written by the untouched base, from the cache as far as it goes; fewer
    where `budget_s` seconds end first. `reads_only`: take what is there and write nothing.

    A batch that begins with row n is drawn from seed n, and is kept as soon as it is written. A row that the end of the
    time breaks off is kept as it is, like one that comes to MOST_NEW_TOKENS. What is in hand when a stop is asked for is
    not kept, and nothing is returned: the caller ends the run.
    """
    wanted = min(count, MOST_WRITTEN)
    ends = coder_of(tokenizer).stops
    settings = [
        keys.weights_key(base, workspace), form, "replay", 1, tokenizer.chat_template, questions(), MOST_NEW_TOKENS, ends,
    ]  # fmt: skip
    key = hashlib.sha256(json.dumps(settings).encode("utf-8", "surrogatepass")).hexdigest()
    path = workspace.eval_dir(key) / "replay.jsonl"
    kept = _read(path)
    if len(kept) < wanted and not reads_only:
        given, writing, before, most = _given(tokenizer), Writing(stop, budget_s, told), len(kept), _at_once(model)
        while len(kept) < wanted and not writing.is_over():
            start, size = len(kept), min(most, wanted - len(kept))
            batch = [given[(start + place) % len(given)] for place in range(size)]

            def is_over(share: float, start: int = start, size: int = size) -> bool:
                return writing.after(start + share * size, before, wanted)

            written = _write(model, tokenizer, batch, start, is_over)
            if stop():
                return []
            kept += [row for row in written if len(row.input_ids) >= row.given + LEAST_TOKENS or not row.broken_off]
            writing.tell(len(kept), before, wanted)
            _keep(path, kept)
        if stop():
            return []
    return [
        Encoded(row.input_ids, [IGNORED] * row.given + row.input_ids[row.given :], False)
        for row in kept[:wanted]
        if len(row.input_ids) > max(1, row.given)
    ]


def _at_once(model: Any) -> int:
    """Return how many rows are written at once: as many keys and values as half of a card's free memory holds."""
    if model.device.type != "cuda":
        return BATCH
    config = model.config.get_text_config()
    heads = parts.count(config, "num_key_value_heads") or config.num_attention_heads
    size = parts.count(config, "head_dim") or config.hidden_size // config.num_attention_heads
    held = 2 * config.num_hidden_layers * heads * size * model.dtype.itemsize * 2 * MOST_NEW_TOKENS
    held += 4 * 4 * config.vocab_size  # the logits of one step, sorted and summed up, in fp32
    return max(BATCH // 4, min(BATCH_ON_CARD, torch.cuda.mem_get_info(model.device)[0] // 2 // held))


def _keep(path: Path, kept: list[_Kept]) -> None:
    """Write the rows, unless another run on this base has written more of them meanwhile: the seeds make them the same."""
    if len(_read(path)) < len(kept):
        write_atomically(path, b"".join(msgspec.json.encode(row) + b"\n" for row in kept))


def _read(path: Path) -> list[_Kept]:
    try:
        return [decoded(line, _Kept) for line in path.read_bytes().splitlines()]
    except (OSError, Unreadable):
        return []


def _given(tokenizer: Any) -> list[list[int]]:
    """Return the token ids that each row begins with."""
    if chats(tokenizer):
        asked = [render(tokenizer, [{"role": "user", "content": one}]) for one in questions()]
        return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in asked]
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [[first if first is not None else 0]]


class _Until(StoppingCriteria):
    """Ends the writing of a batch; asked after every token, and tells which share of the tokens is written."""

    def __init__(self, width: int, is_over: Callable[[float], bool]):
        self._width, self._is_over, self.ended = width, is_over, False

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self.ended = self._is_over((input_ids.shape[1] - self._width) / MOST_NEW_TOKENS)
        return torch.full((input_ids.shape[0],), self.ended, device=input_ids.device, dtype=torch.bool)


@torch.no_grad()
def _write(
    model: Any,
    tokenizer: Any,
    given: list[list[int]],
    seed: int,
    is_over: Callable[[float], bool] = lambda share: False,
) -> list[_Kept]:
    """Return one row for each beginning: what the model writes after it, up to its end-of-text token. `is_over` is asked
    after each token, with the share of the tokens that is written, whether to leave off."""
    width = max(map(len, given))
    padding = tokenizer.pad_token_id
    ids = torch.tensor([[padding] * (width - len(one)) + one for one in given], device=model.device)
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in given], device=model.device)
    was_training, until = model.training, _Until(width, is_over)
    model.eval()
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        out = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=MOST_NEW_TOKENS, do_sample=True, temperature=1.0, top_k=0,
            top_p=1.0, pad_token_id=padding, eos_token_id=stops(tokenizer), stopping_criteria=StoppingCriteriaList([until]),
        )  # fmt: skip
    model.train(was_training)
    rows = []
    for one, answer in zip(given, out[:, width:].tolist(), strict=True):
        written = until_end(tokenizer, answer)
        broken_off = until.ended and len(written) == len(answer) and not set(written[-1:]) & set(stops(tokenizer) or ())
        text = tokenizer.decode([*one, *written])
        rows.append(_Kept([*one, *written], len(one) if chats(tokenizer) else 0, text, broken_off))
    return rows
