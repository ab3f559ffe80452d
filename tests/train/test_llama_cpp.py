"""A GGUF file asked as a model of transformers is. The real llama.cpp is asked where `make gguf` has built it."""

from __future__ import annotations

import ctypes
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import starter
from engine.export import job_runner
from engine.export.job import Job
from engine.quantised import lost, said
from engine.spec import recipes, schema
from engine.train import llama_cpp
from engine.train.scoring import written
from engine.train.scoring.likelihood import Reader, Ways
from engine.train.tokenize import get_ready, render
from engine.workspace import Workspace
from tests.export.test_gguf import RUN

VOCABULARY = 11
_SCALE = 97


class Library:
    """What llama.h keeps of sequences, with its rules: places follow each other, and sequences that share a token have gone
    the same way so far. The logits after a token tell all tokens before it."""

    def __init__(self) -> None:
        self.held: dict[int, list[int]] = {}
        self.read = 0

    def llama_memory_clear(self, _memory: Any, _data: bool) -> None:
        self.held.clear()

    def llama_decode(self, _context: Any, batch: Any) -> int:
        out = []
        for n in range(batch.n_tokens):
            names = batch.seq_id[n][: batch.n_seq_id[n]]
            assert len({tuple(self.held.get(name, [])) for name in names}) == 1
            for name in names:
                assert batch.pos[n] == len(self.held.setdefault(name, []))
                self.held[name].append(batch.token[n])
            self.read += 1
            if batch.logits[n]:
                out.append(told(self.held[names[0]]))
        self.answer = numpy.array(out, dtype=numpy.float32)
        return 0

    def llama_get_logits(self, _context: Any) -> Any:
        return self.answer.ctypes.data_as(ctypes.c_void_p)


def told(tokens: list[int]) -> list[float]:
    seed = 0
    for token in tokens:
        seed = (seed * _SCALE + token + 1) % 1_000_003
    return [float(seed + n) for n in range(VOCABULARY)]


def context(tokens: int = 4096, *, by_position: bool = True) -> Any:
    made = object.__new__(llama_cpp._Context)
    size = llama_cpp.BATCH_TOKENS
    batch = SimpleNamespace(
        n_tokens=0, token=[0] * size, pos=[0] * size, n_seq_id=[0] * size, logits=[0] * size,
        seq_id=[[0] * llama_cpp.MOST_ROWS for _ in range(size)],
    )  # fmt: skip
    made.__dict__.update(
        _library=Library(), _memory=None, _context=None, _batch=batch, _held=[], _by_position=by_position,
        tokens=tokens, vocabulary=VOCABULARY,
    )  # fmt: skip
    return made


def read(one: Any, rows: list[list[int]], kept: int, *, goes_on: bool) -> None:
    """Ask for the last `kept` places of rows, padded on the left, and hold the answers against what each row says."""
    width = max(map(len, rows))
    places = [[width - len(row) + n - (width - kept) for n in range(len(row))] for row in rows]
    out = numpy.zeros((len(rows), kept, VOCABULARY), dtype=numpy.float32)
    one.read(rows, places, out, goes_on=goes_on)
    for row, where, answers in zip(rows, places, out, strict=True):
        for n, at in enumerate(where):
            if at >= 0:
                assert answers[at].tolist() == told(row[: n + 1])


@pytest.mark.parametrize("seed", range(30))
def test_whatever_was_read_before_rows_are_answered_as_if_read_afresh(seed):
    dice, one = random.Random(seed), context(by_position=seed % 5 != 0)
    for _ in range(4):
        stem = [dice.randrange(4) for _ in range(dice.randrange(1, 60))]
        rows = [stem[: dice.randrange(len(stem) + 1)] + [dice.randrange(4) for _ in range(dice.randrange(1, 30))]
                for _ in range(dice.randrange(1, 40))]  # fmt: skip
        if dice.random() < 0.5:
            read(one, rows, max(map(len, rows)), goes_on=False)
        for _ in range(dice.randrange(6)):
            read(one, rows, 1, goes_on=True)
            rows = [[*row, dice.randrange(VOCABULARY)] for row in rows]


def test_what_rows_share_is_read_once_and_what_was_read_is_not_read_again():
    one = context()
    rows = [[1, 2, 3, 4, 5, n] for n in range(4)]
    read(one, rows, 6, goes_on=False)
    assert one._library.read == 5 + 4
    read(one, rows, 1, goes_on=True)
    before = one._library.read
    read(one, [[*row, 7] for row in rows], 1, goes_on=True)
    assert one._library.read - before == 4


def test_more_rows_than_stand_side_by_side_are_read_in_portions():
    read(context(), [[n % 7, n // 7, 3] for n in range(3 * llama_cpp.MOST_ROWS)], 3, goes_on=True)
    read(context(tokens=64), [[n % 7, n // 7, *range(8)] for n in range(40)], 1, goes_on=True)


# --- the real one -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The starter whole, and a file of 16 bits that llama.cpp's converter made of it."""
    if llama_cpp.bindings() is None:
        pytest.skip("llama.cpp is not built here: make gguf")
    workspace = Workspace(tmp_path_factory.mktemp("llama") / "home")
    spec, _ = recipes.resolve(
        recipes.recipes()["full"], base="starter", revision=None, parameters=None, dataset_id="", overrides={}
    )
    run_dir = workspace.run_dir(RUN)
    run_dir.mkdir(parents=True)
    (run_dir / "spec.json").write_bytes(schema.encode(spec))
    shutil.copytree(starter.MODEL_DIR, run_dir / "model")
    yield run_dir / "model", Path(job_runner.run(workspace, RUN, Job(what="gguf", quantization="f16")))


@pytest.fixture(scope="module")
def both(made: tuple[Path, Path]) -> Iterator[tuple[Any, Any, Any]]:
    """The starter in transformers, the same as a GGUF file, and its tokenizer."""
    folder, file = made
    tokenizer = AutoTokenizer.from_pretrained(folder)
    get_ready(tokenizer, folder, None)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = llama_cpp.GgufModel(file, folder, 8192)
    yield AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), model, tokenizer
    model.close()


PROMPTS = ["What is the capital of France?", "What is 2 plus 3?", "Hello.", "What is the opposite of hot, and of high?"]


def test_logits_in_sixteen_bits_are_near_those_of_fp32_whatever_is_padding(both):
    reference, file, tokenizer = both
    texts = tokenizer(PROMPTS, padding=True, padding_side="left", return_tensors="pt")
    plain = [tokenizer(text, return_tensors="pt").input_ids for text in PROMPTS]
    padded = file(**texts).logits
    for at, ids in enumerate(plain):
        alone, wanted = file(input_ids=ids).logits[0], reference(input_ids=ids).logits[0]
        assert (alone - wanted).abs().max() < 0.01 * wanted.abs().max()
        assert (padded[at, -ids.shape[1] :] - alone).abs().max() < 1e-3 * wanted.abs().max()


def test_it_writes_what_transformers_writes(both):
    reference, file, tokenizer = both
    asked = [render(tokenizer, [{"role": "user", "content": text}]) for text in PROMPTS]
    assert written.answer(file, tokenizer, asked, 24) == written.answer(reference, tokenizer, asked, 24)


def test_a_reader_asks_it_plainly_and_finds_its_likelihoods(both):
    reference, file, tokenizer = both
    question = tuple(tokenizer("The capital of France is").input_ids)
    asked = [(question, tuple(tokenizer(text).input_ids)) for text in (" Paris", " Rome", " a dog", " red")]
    found = [
        {key: one for some in Reader(model).answers(asked) for key, one in some.items()} for model in (reference, file)
    ]
    assert all(abs(found[0][one][0] - found[1][one][0]) < 0.02 for one in asked)
    assert Reader(file).ways([]) == Ways()


def test_it_is_asked_plainly_or_not_at_all(both):
    _, file, _ = both
    with pytest.raises(ValueError, match="plainly"):
        file(input_ids=torch.ones(1, 3, dtype=torch.long), attention_mask=torch.ones(1, 1, 3, 3))


def test_a_run_that_was_never_scored_has_its_answers_compared(made):
    one = lost.read(made[1])
    assert one is not None and one.lost.failure is None
    assert one.lost.same is not None and one.lost.same.n == 20 and one.lost.same.is_rounding
    assert "This run was never scored, so that nothing but greedy answers is compared." in said.notes(one)
