"""GGUF files: what a header says, what is refused and why, and how each rule of llama.cpp splits a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.gguf import headers, tokenizers
from engine.models import bases
from engine.workspace import Workspace
from tests.gguf import files


def rule(path: Path | str, workspace: Workspace) -> str:
    """The one rule a file breaks, whose sentence has every gap filled."""
    (problem,) = bases.describe(str(path), workspace).problems
    assert problem.where == "base" and "{" not in problem.sentence
    return problem.rule


# --- headers ---------------------------------------------------------------------------------------------------------
def test_a_header_says_what_the_file_holds(tmp_path: Path) -> None:
    header = headers.read(files.small(tmp_path / "Some-1B.Q4_1.gguf"))
    assert (header.architecture, header.parameters, header.kind, header.rounded_bits) == ("llama", 64, "Q4_1", 4)
    assert header.name == "Some-1B" and tokenizers.tokens(header) == ["<|end|>", "a", "b"]
    assert header.problem() is None and tokenizers.problem(header) is None


def test_a_file_that_differs_from_another_in_one_tensor_alone_is_another(tmp_path: Path) -> None:
    tensors = [("output.weight", (32, 2), 3), ("blk.0.attn_q.weight", (32, 2), 3)]
    data = bytearray(files.header(files.SOUND, tensors, 3 << 20))
    (tmp_path / "base.gguf").write_bytes(data)
    data[len(data) - (3 << 20) + 7] ^= 1
    (tmp_path / "tuned.gguf").write_bytes(data)
    assert headers.read(tmp_path / "base.gguf").key != headers.read(tmp_path / "tuned.gguf").key


@pytest.mark.parametrize(("kind", "bits"), [(0, None), (1, None), (30, None), (2, 4), (8, 8)])
def test_16_and_32_bit_weights_are_not_rounded(tmp_path: Path, kind: int, bits: int | None) -> None:
    assert headers.read(files.small(tmp_path / "a.gguf", kind=kind, data=256)).rounded_bits == bits


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("a-Q4_K_M", "a"),
        ("b.IQ3_XXS", "b"),
        ("c-f16", "c"),
        ("d.BF16", "d"),
        ("e-Q8_0", "e"),
        ("Qwen3-0.6B", "Qwen3-0.6B"),
    ],
)
def test_a_name_loses_the_type_of_its_numbers(tmp_path: Path, name: str, plain: str) -> None:
    assert headers.read(files.small(tmp_path / f"{name}.gguf")).name == plain


REFUSED: dict[str, dict[str, Any]] = {
    "gguf-architecture": {"general.architecture": "rwkv7"},
    "gguf-positions": {"llama.rope.scaling.type": "yarn"},
    "gguf-split": {"split.count": 3},
    "gguf-pre-tokenizer": {"tokenizer.ggml.pre": "made-up"},
    "gguf-tokenizer-kind": {"tokenizer.ggml.model": "llama"},
}


@pytest.mark.parametrize("expected", REFUSED)
def test_a_file_that_would_be_read_wrongly_is_refused_in_words(
    tmp_path: Path, workspace: Workspace, expected: str
) -> None:
    assert rule(files.small(tmp_path / "a.gguf", REFUSED[expected]), workspace) == expected


def test_no_file_no_gguf_and_a_cut_one_are_told_apart(tmp_path: Path, workspace: Workspace) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\x03\x04 and so on")
    assert rule(tmp_path / "none.gguf", workspace) == "gguf-missing"
    assert rule(other, workspace) == "gguf-not-one"
    assert rule(files.small(tmp_path / "short.gguf", data=39), workspace) == "gguf-cut"
    assert rule(files.small(tmp_path / "new.gguf", kind=99), workspace) == "gguf-type"


def test_a_sound_file_asks_to_be_read_whichever_way_it_is_named(tmp_path: Path, workspace: Workspace) -> None:
    path = files.small(tmp_path / "a.gguf")
    assert rule(path, workspace) == rule(f"gguf:{path}", workspace) == "gguf-unread"


@pytest.mark.usefixtures("looks_in_place")
def test_without_the_package_make_real_is_named(tmp_path: Path, workspace: Workspace, monkeypatch) -> None:
    monkeypatch.setattr(headers.importlib.util, "find_spec", lambda _: None)
    (problem,) = bases.describe(str(files.small(tmp_path / "a.gguf")), workspace).problems
    assert problem.rule == "gguf-package" and "make real" in problem.fix


WHOLE = files.header(files.SOUND, [("output.weight", (32, 2), 3)], 40)


@given(st.integers(0, len(WHOLE) - 1), st.binary(max_size=200))
def test_damaged_headers_are_refused_and_never_raise_anything_else(tmp_path_factory, cut: int, rest: bytes) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.gguf"
    path.write_bytes(WHOLE[:cut] + rest)
    try:
        assert headers.read(path).tensors
    except headers.Refused as refused:
        assert refused.problem.sentence


# --- splitting -------------------------------------------------------------------------------------------------------
SPLITS: dict[str, dict[str, list[str]]] = {
    "smollm": {"\n\n1.": ["\n\n", "1", "."], "in 2026": ["in", " ", "2", "0", "2", "6"], "it's": ["it", "'s"]},
    "gpt-2": {"\n\n1.": ["\n", "\n", "1", "."], "in 2026": ["in", " 2026"], "IT'S": ["IT", "'", "S"]},
    "llama-bpe": {"\n\n1.": ["\n\n", "1", "."], "12345": ["123", "45"], "IT'S": ["IT", "'S"], "a.\nb": ["a", ".\n", "b"]},
    "qwen2": {"\n\n1.": ["\n\n", "1", "."], "123": ["1", "2", "3"], "  x": [" ", " x"], "(x": ["(x"]},
    "tekken": {"camelCase12": ["camel", "Case", "1", "2"], "a/\n/b": ["a", "/\n/", "b"]},
    "gpt-4o": {"camelCase": ["camel", "Case"], "DON'T": ["DON'T"], "1234": ["123", "4"]},
    "deepseek-v3": {"我们ab12": ["我们", "ab", "12"], "1234": ["123", "4"], "_x y": ["_x", " y"]},
    "deepseek-coder": {"我们 x\ny1": ["我们", " x", "\n", "y", "1"]},
    "falcon": {"a+b 1234": ["a", "+", "b", " ", "123", "4"]},
    "default": {"a=12": ["a", "=", "12"]},
}  # fmt: skip


@pytest.mark.parametrize("name", SPLITS)
def test_each_rule_splits_as_its_models_do(name: str) -> None:
    from tokenizers import decoders

    split = tokenizers.splitter(tokenizers.RULES[name])
    for text, wanted in SPLITS[name].items():
        pieces = [decoders.ByteLevel().decode([piece]) for piece, _ in split.pre_tokenize_str(text)]
        assert pieces == wanted, text


@given(st.text(max_size=40), st.sampled_from(sorted(tokenizers.RULES)))
def test_no_rule_loses_a_byte(text: str, name: str) -> None:
    from tokenizers import decoders

    pieces = [piece for piece, _ in tokenizers.splitter(tokenizers.RULES[name]).pre_tokenize_str(text)]
    assert decoders.ByteLevel().decode(pieces) == text
