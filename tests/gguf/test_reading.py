"""GGUF files read into folders: tiny ones that the test has written, and SmolLM2 where `make real` has been run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.models import bases, shortlist
from engine.workspace import Workspace
from tests.conftest import ROOT, tunebook
from tests.gguf import files
from tests.gguf.conversion import CASES
from tests.real_base import smollm2


# --- tiny ones -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of every tiny file, all read in one child; `home` is the workspace they are in."""
    folder = tmp_path_factory.mktemp("gguf")
    done = subprocess.run(
        [sys.executable, "-m", "tests.gguf.conversion", str(folder)], cwd=ROOT, capture_output=True, text=True,
        timeout=300, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return {**json.loads(done.stdout.splitlines()[-1]), "home": str(folder / "home")}


@pytest.mark.train
@pytest.mark.parametrize("case", [" ".join(case) for case in CASES])
def test_a_model_comes_back_with_its_logits_its_ids_and_the_end_of_its_turns(read: dict[str, Any], case: str) -> None:
    found = read[case]
    assert found["problem"] is None and found["same_ids"]
    # what was half precision comes back to the last digit; the other formats round: 8 bits, and bf16 of 32 or 16 bits
    assert found["differs"] < {"F16": 1e-5, "F32": 0.05, "BF16": 0.05, "Q8_0": 0.05}[case.split()[1]]
    assert found["end"] == "<|end|>" and found["ends"] == [1, 0]  # the template's, though the file names another


@pytest.mark.train
def test_positions_stretched_as_llama_31s_are_kept_and_others_refused(read: dict[str, Any]) -> None:
    kept = read["llama-31 F16"]["config"]["rope_parameters"]
    assert kept["rope_type"] == "llama3" and kept["factor"] == 8 and kept["rope_theta"] == 5000
    assert read["other positions"]["problem"] == "gguf-positions"


@pytest.mark.train
def test_what_was_read_is_a_base_that_says_whether_it_was_rounded(read: dict[str, Any]) -> None:
    workspace = Workspace(read["home"])
    rounded = bases.describe(read["llama Q8_0"]["folder"], workspace)
    assert rounded.title == "tiny-llama (rounded from 8 bits)" and "8 bits" in (rounded.rounding_note or "")
    assert rounded.problems == () and rounded.template == "own" and rounded.shape is not None
    whole = bases.describe(read["qwen2 F16"]["folder"], workspace)
    assert whole.title == "tiny-qwen2" and whole.rounding_note is None
    assert {read[" ".join(case)]["folder"] for case in CASES} <= set(shortlist.folders(workspace))


@pytest.mark.train
def test_an_unknown_rule_takes_the_models_own_tokenizer_and_nothing_half_made_is_left(read: dict[str, Any]) -> None:
    assert read["other rule"]["problem"] == "gguf-pre-tokenizer" and read["other rule"]["folder"]
    assert "does not hold the weights of its architecture" in read["lacking"]["problem"]
    made = {read[" ".join(case)]["folder"] for case in CASES} | {read["other rule"]["folder"]}
    assert {str(path) for path in Workspace(read["home"]).models_dir.iterdir()} == made


def test_the_command_line_refuses_a_bad_file_before_anything_is_imported(tmp_path: Path) -> None:
    path = files.small(tmp_path / "a.gguf", {"tokenizer.ggml.pre": "made-up"})
    done = tunebook("download", str(path), home=tmp_path / "home", machine=tmp_path / "machine")
    assert done.returncode == 1 and "made-up" in done.stderr and "--tokenizer" in done.stderr


# --- SmolLM2 ---------------------------------------------------------------------------------------------------------
# as a reader that shares no code with this one has them
IDS = {
    "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
    "Café déjà vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
    "  multiple   spaces": [216, 2701, 256, 5600],
    "The capital of France is": [504, 3575, 282, 4649, 314],
}


def test_smollm2_has_the_ids_of_another_reader_and_ends_its_turns() -> None:
    from tokenizers import Tokenizer

    folder = smollm2().folder
    assert folder is not None
    core = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert {text: core.encode(text).ids for text in IDS} == IDS
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings["eos_token_id"] == core.token_to_id("<|im_end|>") == 2
    assert core.encode("\n\n1.").tokens == ["ĊĊ", "1", "."]


SAYS = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = (kind.from_pretrained(sys.argv[1]) for kind in (AutoTokenizer, AutoModelForCausalLM))
model.float()
on = tokenizer("The capital of France is", return_tensors="pt")
print(tokenizer.decode(model.generate(**on, max_new_tokens=5, do_sample=False)[0]))
asked = tokenizer.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}],
    add_generation_prompt=True, return_tensors="pt", return_dict=True)
made = model.generate(**asked, max_new_tokens=60, do_sample=False)[0, asked["input_ids"].shape[1]:]
print(tokenizer.decode(made))
"""


@pytest.mark.slow
@pytest.mark.train
def test_smollm2_knows_the_capital_of_france_and_stops_after_its_answer() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SAYS, str(smollm2().folder)], capture_output=True, text=True, timeout=300
    )
    goes_on, _, answer = done.stdout.strip().partition("\n")
    assert "Paris" in goes_on and "Paris" in answer and answer.endswith("<|im_end|>"), done.stdout + done.stderr
