"""The model class that lm-evaluation-harness asks: its own, with what questions share computed once.

The harness 0.4.13 reads a question anew for each of its choices, and turns the logits of every token into
probabilities, the question's too. Tasks, metrics, windows, and how texts become tokens, stay the harness's; how likely
tokens are is computed by likelihood.py.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from lm_eval.models import huggingface
from peft import PeftModel

from engine.train.scoring.likelihood import Answer, Asked, Reader
from engine.workspace import Unreadable, decoded

_HFLM: Any = huggingface.HFLM  # whose decorators hide its types


class Stopped(Exception):
    """A stop was asked for while the harness was scoring."""


class Answered:
    """What was answered, one request a line as it comes, so that after a kill none is computed twice."""

    def __init__(self, path: Path, key: str, on_share: Callable[[float, bool], None], stop: Callable[[], bool]):
        """Go on with a file that belongs to the same key. `on_share` hears what share of the requests is done, and
        whether that was done just now."""
        self._on_share, self._stop = on_share, stop
        self._known: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        good = 0
        for line in (path.read_bytes() if path.is_file() else b"").splitlines(keepends=True):
            try:
                name, value = decoded(line, tuple[str, Any])
            except Unreadable:
                break  # cut off by a kill
            if not line.endswith(b"\n") or (not good and value != key):
                break
            self._known[name] = value
            good += len(line)
        self._file = path.open("ab", buffering=0)
        self._file.truncate(good)
        if not good:
            self.add({"key": key})

    def __len__(self) -> int:
        return len(self._known) - 1  # without the key

    def close(self) -> None:
        self._file.close()

    def get(self, name: str) -> Any:
        return self._known.get(name)

    def add(self, found: dict[str, Any]) -> None:
        self._known |= found
        self._file.write(b"".join(msgspec.json.encode(pair) + b"\n" for pair in found.items()))

    def tell(self, done: int, total: int, *, fresh: bool = True) -> None:
        """Say how much is done. Raises Stopped when that is asked for."""
        self._on_share(done / max(1, total), fresh)
        if self._stop():
            raise Stopped


def _name(*parts: Any) -> str:
    """Return what a request is called in Answered."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]


@contextmanager
def _left_as_it_is(model: Any) -> Iterator[None]:
    """Let nobody tie a model's output layer to its embedding anew: the harness does (huggingface.py, __init__), which gives
    the one what an adapter made of the other, or fails where an adapter is on both."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    inner.tie_weights = lambda *_, **__: None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del inner.tie_weights


class SharedContextLM(_HFLM):
    """A model in memory, as the harness asks it. With `answered`, answers are kept on disk as they come."""

    def __init__(
        self, model: Any, tokenizer: Any, max_length: int, *, bos: bool | None = None, answered: Answered | None = None
    ):
        """`bos`: whether questions begin with the start mark; None leaves that to the tokenizer, as for text without a
        chat template."""
        for noisy in ("lm_eval", "lm_eval.api.task", "lm_eval.models.huggingface"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        # The batch size is that of written answers and of windows of a text; likelihoods are batched by memory.
        rows = 64 if model.device.type == "cpu" else 16
        with _left_as_it_is(model):
            super().__init__(
                pretrained=model, tokenizer=tokenizer, batch_size=rows, max_length=max_length, add_bos_token=bos
            )
        # No progress bars: they fill a log file with fragments.
        for name in ("loglikelihood", "loglikelihood_rolling"):
            setattr(self, name, partial(getattr(self, name), disable_tqdm=True))
        self._answered = answered
        self._reader = Reader(model)

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        """Return an answer to each request (texts or None, context ids, continuation ids). What is longer than the window
        is cut from the left, as the harness does it."""
        asked: list[Asked] = []
        for _, context, continuation in requests:
            whole = tuple([*context, *continuation][-(self.max_length + 1) :])
            end = len(whole) - len(continuation)
            asked.append((whole[:end], whole[end:]))
        new = list(dict.fromkeys(asked))
        found: dict[Asked, Answer] = {}
        names: dict[Asked, str] = {}
        if self._answered is not None:
            names = {one: _name("likelihood", *one) for one in new}
            kept = {one: self._answered.get(name) for one, name in names.items()}
            found = {one: (float(answer[0]), bool(answer[1])) for one, answer in kept.items() if answer is not None}
            self._answered.tell(len(found), len(new), fresh=False)
        found |= {one: (0.0, True) for one in new if not one[1]}  # nothing is certain to follow
        for answers in self._reader.answers([one for one in new if one not in found]):
            found |= answers
            if self._answered is not None:
                self._answered.add({names[one]: answer for one, answer in answers.items()})
                self._answered.tell(len(found), len(new))
        return [found[one] for one in asked]

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes for each request, by the harness's own code, a batch at a time."""
        names = [_name("written", *one.args) for one in requests]
        found: dict[str, str] = {}
        if self._answered is not None:
            found = {name: text for name in names if (text := self._answered.get(name)) is not None}
            self._answered.tell(len(found), len(set(names)), fresh=False)
        left = [pair for pair in dict(zip(names, requests, strict=True)).items() if pair[0] not in found]
        left.sort(key=lambda pair: -len(pair[1].args[0]))
        for start in range(0, len(left), int(self.batch_size)):
            batch = left[start : start + int(self.batch_size)]
            texts = super().generate_until([one for _, one in batch], disable_tqdm=True)
            written = dict(zip((name for name, _ in batch), texts, strict=True))
            found |= written
            if self._answered is not None:
                self._answered.add(written)
                self._answered.tell(len(found), len(set(names)))
        return [found[name] for name in names]
