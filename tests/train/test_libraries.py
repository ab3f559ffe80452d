"""What a training imports, and what it does without: of a real import in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine.plan import plans
from engine.train import libraries
from engine.workspace import Workspace
from tests.helpers import PROJECT_DIR
from tools import compile as compiling

CODE = """
import json, sys
from engine.train import waiting
waiting.imports()
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, utils
sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
get_peft_model(LlamaForCausalLM(LlamaConfig(**sizes)), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
said = {"loaded": [name for name, one in sys.modules.items() if one is not None and "." not in name]}
said["flags"] = [utils.is_sklearn_available(), utils.is_scipy_available()]
import torch
said["cuda"] = torch.cuda.is_initialized()
import threading, os
said["threads"] = threading.active_count()
import sklearn, scipy
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said() -> dict:
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=PROJECT_DIR, capture_output=True, text=True, timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_lora_training_imports_nothing_that_it_does_not_use(said):
    """Where a new version of a library fails here, it probes for these packages in another way, or uses them now."""
    unused = {"sklearn", "scipy", "bitsandbytes", "lm_eval", "networkx", "sacrebleu", "torchvision", "unsloth"}
    assert {"torch", "trl", "peft", "datasets"} <= {*said["loaded"]}
    assert {*said["loaded"]} & unused == set()
    assert said["flags"] == [False, False]  # what transformers made of it; whoever imports them later gets them


def test_what_waits_for_a_run_has_touched_no_card_and_started_no_thread(said):
    assert not said["cuda"] and said["threads"] == 1


@pytest.mark.parametrize(
    ("recipe", "base", "overrides", "wants"),
    [
        ("lora", "starter", {}, False),
        ("full", "starter", {}, False),
        ("dpo", "starter", {}, False),
        ("qlora", "starter", {}, True),
        ("lora", "starter", {"quantize": "8bit"}, True),
        ("lora", "run:20260101-000000-000000", {}, True),
    ],
)
def test_a_run_that_may_hold_a_base_in_few_bits_gets_bitsandbytes(workspace: Workspace, recipe, base, overrides, wants):
    spec = plans.make(workspace, recipe, base=base, dataset=None, overrides=overrides).spec
    assert libraries.wants_quantizers(spec, workspace) is wants
    assert libraries.wants_quantizers(spec, workspace, "adamw_8bit")


def test_set_up_compiles_what_is_imported_and_no_more(tmp_path: Path, monkeypatch):
    (tmp_path / "wanted.py").write_text("x = 1")
    (tmp_path / "unwanted.py").write_text("x = 1")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    code = "import wanted" + compiling.IMPORTS[compiling.IMPORTS.index("\nimport json, sys") :]
    found = [path for path in compiling.imported(code) if tmp_path in path.parents]
    assert [path.name.partition(".")[0] for path in found] == ["wanted"]
    assert list(tmp_path.rglob("*.pyc")) == found
    assert re.fullmatch(r"Bytecode of the [\d,]+ modules that runs import: \d+ MB, \d+ s\.", compiling.compiled(code))
