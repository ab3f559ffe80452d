"""A run made from a run: its adapter trained on unmerged, with its frozen copy as the reference, and what is saved."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from engine.report import items
from engine.spec import schema
from tests import forked
from tests.conftest import ROOT
from tests.train.test_train import losses, train

FEW = ("evaluate.benchmarks=[]", "train.replay_share=0", "train.evaluations=1")


def short(*pairs: str) -> list[str]:
    return [word for pair in (*FEW, *pairs) for word in ("--set", pair)]


def loss(run_dir: Path, model: str) -> float:
    """Return the loss per token of a run's rows, of its base or of what it made."""
    found = items.read_items(run_dir / "items" / f"{model}-new-task-loss.jsonl")
    return -sum(item.loglikelihoods[0] for item in found) / sum(item.tokens or 0 for item in found)


# Load what a continued run saved with plain peft and with ours, and compare the two.
LOADS = """
import json, sys
from pathlib import Path
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from engine import starter
from engine.spec import schema
from engine.train import export, load
from engine.workspace import Workspace

run = Path(sys.argv[1])
base = AutoModelForCausalLM.from_pretrained(starter.MODEL_DIR, dtype=torch.float32)
ids = torch.arange(40, 90)[None]
found = {"names": sorted(p.name for p in (run / "adapter").iterdir())}
with torch.no_grad():
    alone = base(input_ids=ids).logits
    made = PeftModel.from_pretrained(base, run / "adapter").eval()(input_ids=ids).logits
    spec = schema.decode((run / "spec.json").read_bytes())
    from dataclasses import replace
    import msgspec
    next_spec = msgspec.structs.replace(spec, base=schema.BaseRef(f"run:{run.name}"), quantize="none",
        adapter_args=schema.AdapterArgs())
    merged = load.load(next_spec, Workspace(run.parents[1])).model.eval()(input_ids=ids).logits
found["moved"] = float((made - alone).abs().max())
found["merged"] = float((made - merged).abs().max())
found["parity"] = export.write(run, run.parents[1] / "out", "auto", lambda _: None).logits
print(json.dumps(found))
"""


@pytest.mark.train
@pytest.mark.parametrize(
    ("recipe", "preference", "data"),
    [
        ("lora", "dpo", "preference-pairs"),
        pytest.param("oft", "dpo", "preference-pairs", marks=pytest.mark.slow),
        ("qlora", "dpo", "preference-pairs"),
        pytest.param("qoft", "kto", "good-bad", marks=pytest.mark.slow),
        pytest.param("lora", "kto", "good-bad", marks=pytest.mark.slow),
    ],
)
def test_preferences_train_an_adapter_on_and_are_held_to_what_it_was(
    tmp_path: Path, recipe: str, preference: str, data: str
) -> None:
    status, first, first_dir = train(tmp_path, recipe, "--data", "new-facts", *short("train.max_steps=8"))
    assert status == 0
    go_on = ["--base", f"run:{first}", "--set", "adapter_args.continue=true"]
    status, _, again_dir = train(tmp_path, recipe, "--data", "new-facts", *go_on, *short("train.max_steps=1"))
    assert status == 0 and loss(again_dir, "base") == pytest.approx(loss(first_dir, "tuned"), abs=1e-5)
    status, _, run_dir = train(tmp_path, preference, "--data", data, *go_on, *short("train.max_steps=3"))
    assert status == 0
    # where policy and reference are one model: DPO's -log sigmoid(0), KTO's 1 - sigmoid(0), weighted to about that
    assert losses(run_dir)[0] == pytest.approx(
        math.log(2) if preference == "dpo" else 0.5, abs=1e-5 if preference == "dpo" else 0.1
    )
    spec = schema.decode((run_dir / "spec.json").read_bytes())
    below = schema.decode((first_dir / "spec.json").read_bytes())
    assert (spec.adapter, spec.quantize, spec.adapter_args.rank) == (
        below.adapter,
        below.quantize,
        below.adapter_args.rank,
    )
    assert not list((run_dir / "adapter").glob("ref"))
    done = forked.run_python(LOADS, run_dir, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["moved"] > 0.1 and found["merged"] < 1e-3 and found["parity"] < 1e-4
