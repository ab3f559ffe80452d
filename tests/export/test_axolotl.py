"""The export for Axolotl, held against Axolotl: it starts as written, on the same rows and tokens, at the same loss. Where
Axolotl is not installed all this is skipped (requirements-axolotl.txt)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine import starter
from engine.export import other_trainers
from engine.render import encode
from engine.workspace import Workspace
from tests.conftest import ROOT
from tests.export import our_runs
from tests.export.test_other_trainers import CASES

PYTHON = Path(os.environ.get("TUNEBOOK_AXOLOTL") or Path(sys.prefix, "axolotl", "bin", "python"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.train,
    pytest.mark.skipif(not starter.MODEL_DIR.is_dir(), reason="engine/starter/model has not been built"),
    pytest.mark.skipif(not PYTHON.is_file(), reason=f"no Axolotl at {PYTHON} (requirements-axolotl.txt)"),
]
NAMES = ["Ann", "Ben", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal"]
# Answers that another reading loses: one that also stands in the template, white space at either end.
ANSWERS = ["In a red house.", "a", " leading space", "trail \n", "\nnew line", "It", "assistant", "x y z"]
# One that ends its turns with another mark than texts.
TURNS = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def prompts(kind: str) -> list[dict[str, Any]]:
    asked = [[said("user", f"Where does {name} live?")] for name in NAMES]
    told = [[said("assistant", answer)] for answer in ANSWERS]
    if kind == "dpo":
        others = told[3:] + told[:3]
        return [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in zip(asked, told, others, strict=True)]
    labels = {"label": True} if kind == "kto" else {}
    rows = [{"prompt": p, "completion": c, **labels} for p, c in zip(asked, told, strict=True)]
    return [{**row, "label": i % 2 == 0} for i, row in enumerate(rows)] if labels else rows


def talks() -> list[dict[str, Any]]:
    return [
        {"messages": [said("user", f"What is {i}?"), said("assistant", f"It is number {i}."), said("user", "And then?"),
                      said("assistant", f"Then comes {i + 1}. " * (8 if i == 7 else 1))]}
        for i in range(8)
    ]  # fmt: skip


def texts() -> list[dict[str, Any]]:
    return [{"text": f"{name} lives in the house. " * (number + 1)} for number, name in enumerate(NAMES)]


# The recipe, its rows, and settings of its own; what is longer than max_length is cut.
KINDS: dict[str, tuple[str, list[dict[str, Any]], list[str]]] = {
    "lora": ("lora", prompts("lora"), []),
    "talks": ("lora", talks(), ["train.max_length=64"]),
    "texts": ("full", texts(), ["train.max_length=32"]),
    "freeze": ("freeze-top", prompts("lora"), []),
    "dpo": ("dpo", prompts("dpo"), []),
    "kto": ("kto", prompts("kto"), []),
}


def trained(home: Path, kind: str) -> str:
    """Run a kind with us for a step, and return its id."""
    recipe, rows, more = KINDS[kind]
    base = str(home.parent / "turns") if kind == "talks" else "starter"
    return our_runs.trained(home, recipe, rows, *more, steps=1, base=base)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Workspace, str, dict[str, Any]]]:
    """Every kind run with us, and by Axolotl as it was written for it."""
    root = tmp_path_factory.mktemp("axolotl")
    folder = shutil.copytree(starter.MODEL_DIR, root / "turns")
    told = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(told | {"eos_token": "<|pad|>"}))
    (folder / "chat_template.jinja").write_text(TURNS)
    workspace = Workspace(root / "home")
    ids = {kind: trained(workspace.root, kind) for kind in KINDS}
    for kind, run_id in ids.items():
        other_trainers.write(workspace, run_id, "axolotl", root / "out" / kind)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | {
        "HF_HUB_OFFLINE": "1", "HF_HOME": str(root / "cache"), "AXOLOTL_DO_NOT_TRACK": "1", "WANDB_MODE": "disabled",
        "OMP_NUM_THREADS": "1", "PATH": f"{PYTHON.parent}:{os.environ['PATH']}",
    }  # fmt: skip
    done = subprocess.run(
        [PYTHON, ROOT / "tests" / "export" / "axolotl_steps.py", *(root / "out" / kind for kind in KINDS)],
        cwd=root, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        kind: (workspace, run_id, json.loads((root / "out" / kind / "seen.json").read_text()))
        for kind, run_id in ids.items()
    }


def rows_of(step: dict[str, Any]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The tokens of a batch and which of them are learned, without what fills its rows up. Nothing foretells a first."""
    found = []
    for at, (ids, there) in enumerate(zip(step["input_ids"], step["attention_mask"], strict=True)):
        if "labels" in step:
            labels = step["labels"][at]
        else:
            mask = step["completion_mask"][at]
            labels = [one if kept else encode.IGNORED for one, kept in zip(ids, mask, strict=True)]
        length = sum(there)
        found.append((tuple(ids[:length]), (encode.IGNORED, *labels[1:length])))
    return sorted(found)


def test_every_export_starts_as_written(both):
    assert {kind: seen["error"] for kind, (_, _, seen) in both.items()} == dict.fromkeys(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_axolotl_reads_and_learns_the_tokens_of_the_run(both, kind):
    workspace, run_id, seen = both[kind]
    ours, theirs = our_runs.encoded(workspace, run_id), rows_of(seen["steps"][0])
    assert len(theirs) == (16 if kind == "dpo" else 8)
    assert theirs == sorted((tuple(ids), tuple(labels)) for ids, labels in ours)


@pytest.mark.parametrize("kind", KINDS)
def test_axolotl_begins_at_the_loss_of_the_run_and_trains_as_many_weights(both, kind):
    workspace, run_id, seen = both[kind]
    losses, count = our_runs.learned(workspace, run_id)
    assert next(line["loss"] for line in seen["logs"] if "loss" in line) == pytest.approx(losses[0], abs=1e-3)
    assert seen["steps"][0]["trained"] == count


def test_its_own_schema_knows_every_setting(tmp_path):
    told = [
        yaml.safe_load(other_trainers.files(one, tool)["train.yaml"])
        for tool, one in CASES.values()
        if tool == "axolotl"
    ]
    script = (
        "import json, sys\nfrom axolotl.utils.schemas.config import AxolotlInputConfig as Known\n"
        "for told in json.load(sys.stdin):\n    assert set(told) <= set(Known.model_fields), told\n    Known(**told)"
    )
    done = subprocess.run([PYTHON, "-c", script], input=json.dumps(told), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
