"""A run made from a run: its adapter trained on unmerged, with its frozen copy as the reference, and what is saved."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from engine import events
from engine.report import items
from engine.runs import follow, lifecycle, store
from engine.spec import schema
from engine.workspace import Workspace
from tests import forked
from tests.conftest import ROOT
from tests.train.test_train import losses, train

pytestmark = pytest.mark.train

FEW = ("evaluate.benchmarks=[]", "train.replay_share=0", "train.evaluations=1")


def short(*pairs: str) -> list[str]:
    return [word for pair in (*FEW, *pairs) for word in ("--set", pair)]


def loss(run_dir: Path, model: str) -> float:
    """Return the loss per token of a run's rows, of its base or of what it made."""
    found = items.read_items(run_dir / "items" / f"{model}-new-task-loss.jsonl")
    return -sum(item.loglikelihoods[0] for item in found) / sum(item.tokens or 0 for item in found)


# Load what a continued run saved with plain peft, as the base of another run, and merged to be taken along.
LOADS = """
import json, sys
from pathlib import Path
import msgspec, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from engine import starter
from engine.spec import schema
from engine.train import export, load
from engine.workspace import Workspace

run = Path(sys.argv[1])
base = AutoModelForCausalLM.from_pretrained(starter.MODEL_DIR, dtype=torch.float32)
ids = torch.arange(40, 90)[None]
found = {"files": sorted(path.name for path in (run / "adapter").iterdir())}
spec = schema.decode((run / "spec.json").read_bytes())
after = msgspec.structs.replace(spec, base=schema.BaseRef(f"run:{run.name}"), quantize="none",
    adapter_args=schema.AdapterArgs())
with torch.no_grad():
    alone = base(input_ids=ids).logits
    made = PeftModel.from_pretrained(base, run / "adapter").eval()(input_ids=ids).logits
    merged = load.load(after, Workspace(run.parents[1])).model.eval()(input_ids=ids).logits
found["moved"] = float((made - alone).abs().max())
found["off"] = float((made - merged).abs().max())
found["parity"] = export.write(run, run.parents[1] / "out", "auto", lambda _: None).logits
print(json.dumps(found))
"""


def first_of(tmp_path: Path, recipe: str, trained_home: Path) -> Path:
    """Return the folder of a first run: of LoRA the one that other tests share, copied."""
    if recipe != "lora":
        status, _, run_dir = train(tmp_path, recipe, "--data", "new-facts", *short("train.max_steps=8"))
        assert status == 0
        return run_dir
    shutil.copytree(trained_home, tmp_path / "home")
    workspace = Workspace(tmp_path / "home")
    return workspace.run_dir(store.list_all(workspace)[0].id)


@pytest.mark.parametrize(
    ("recipe", "preference", "data"),
    [
        pytest.param("lora", "dpo", "preference-pairs", marks=pytest.mark.slow),
        pytest.param("lora", "kto", "good-bad", marks=pytest.mark.slow),
        pytest.param("oft", "dpo", "preference-pairs", marks=pytest.mark.slow),
        pytest.param("qlora", "dpo", "preference-pairs", marks=pytest.mark.slow),
        pytest.param("qoft", "kto", "good-bad", marks=pytest.mark.slow),
    ],
)
def test_preferences_train_an_adapter_on_and_are_held_to_what_it_was(
    tmp_path: Path, trained_home: Path, recipe: str, preference: str, data: str
) -> None:
    first_dir = first_of(tmp_path, recipe, trained_home)
    go_on = ["--base", f"run:{first_dir.name}", "--set", "adapter_args.continue=true"]
    status, _, again_dir = train(tmp_path, recipe, "--data", "new-facts", *go_on, *short("train.max_steps=1"))
    assert status == 0 and loss(again_dir, "base") == pytest.approx(loss(first_dir, "tuned"), abs=1e-5)
    even = ["objective_args.weights=[1, 1]"] if preference == "kto" else []
    status, _, run_dir = train(
        tmp_path, preference, "--data", data, *go_on, *short("train.max_steps=4", "train.learning_rate=0.01", *even)
    )
    assert status == 0
    # while the model is its own reference: -log sigmoid(0) of DPO (dpo.py), 1 - sigmoid(0) of KTO (kto.py)
    assert losses(run_dir)[0] == pytest.approx(0.5 if even else math.log(2), abs=1e-5)
    told = [schema.decode((one / "spec.json").read_bytes()) for one in (first_dir, run_dir)]
    assert told[1].base.ref == f"run:{first_dir.name}" and told[0].quantize == told[1].quantize
    assert told[0].adapter == told[1].adapter and told[0].adapter_args.rank == told[1].adapter_args.rank
    done = forked.run_python(LOADS, run_dir, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "adapter_model.safetensors" in found["files"] and "ref" not in found["files"]
    assert found["moved"] > 0.1 and found["off"] < 1e-3 and found["parity"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["lora", "oft"])
def test_a_continued_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, trained_home: Path, recipe: str
) -> None:
    first_dir = first_of(tmp_path, recipe, trained_home)
    go_on = ["--base", f"run:{first_dir.name}", "--set", "adapter_args.continue=true"]
    steps = short("train.max_steps=30", "train.evaluations=10", "train.learning_rate=0.002")
    status, _, whole_dir = train(tmp_path, "dpo", "--data", "preference-pairs", *go_on, *steps)
    assert status == 0
    workspace, spec = Workspace(tmp_path / "home"), schema.decode((whole_dir / "spec.json").read_bytes())
    run_id = lifecycle.start(workspace, spec, module=forked.module("supervisor"))

    def stop_when_training(event: object) -> None:
        if isinstance(event, events.Step) and event.step > 8:
            lifecycle.stop(workspace, run_id)

    assert follow.wait(workspace, run_id, stop_when_training) == "stopped"
    lifecycle.resume(workspace, run_id, module=forked.module("supervisor"))
    assert follow.wait(workspace, run_id, lambda _: None) == "finished"
    made = [one / "adapter" / "adapter_model.safetensors" for one in (whole_dir, workspace.run_dir(run_id))]
    assert made[0].read_bytes() == made[1].read_bytes()
