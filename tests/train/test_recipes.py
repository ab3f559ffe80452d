"""The contract of a recipe: whatever lies in recipes/*.yaml round-trips, has data that passes the check, trains on the
starter, moves what it says and nothing else, and saves what gives the same scores elsewhere. A new file gets all of it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from engine import starter
from engine.data.datasets import add_sample
from engine.export import archive as export_archive
from engine.export import usage
from engine.runs import store
from engine.spec import counts, recipes, schema
from engine.workspace import Workspace
from tests import forked
from tests.conftest import ROOT
from tests.helpers import planned
from tests.train.test_train import SHORT, losses, train

pytestmark = pytest.mark.train

RECIPES = sorted(recipes.recipes())
# One of each kind of weights; the others are left to `make test-all`, and preferences have tests of their own.
QUICK = ("full", "lora", "oft", "qlora")

# Runs in a child. Which tensors moved away from the base, and by how much do the scores of the last benchmark, asked of
# what was saved and loaded anew, differ from those the run itself wrote down?
COMPARE = """
import json, sys
from pathlib import Path
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig
from engine import starter
from engine.models import bases
from engine.report import items
from engine.spec import schema
from engine.train import objectives
from engine.train.objectives import preference
from engine.train.run import Run
from engine.workspace import Workspace

run_dir = Path(sys.argv[1])
run_spec = schema.decode((run_dir / "spec.json").read_bytes())
made = run_dir / ("model" if run_spec.adapter == "full" else "adapter")
reward = run_spec.objective == "reward"
kind, extra = AutoModelForCausalLM, {}
if reward:
    kind, extra = AutoModelForSequenceClassification, {"num_labels": 1, "pad_token_id": 0}
if run_spec.quantize == "4bit":
    extra["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(made)
if reward:
    extra["pad_token_id"] = tokenizer.pad_token_id
if run_spec.adapter == "full":
    model = kind.from_pretrained(made, dtype=torch.float32, **extra)
else:
    model = PeftModel.from_pretrained(kind.from_pretrained(starter.MODEL_DIR, dtype=torch.float32, **extra), made)
for module in model.modules():
    if hasattr(module, "support_avx512bf16_for_cpu"):
        module.support_avx512bf16_for_cpu = False  # as engine.train.load, which says why
model.eval()
base = load_file(starter.MODEL_DIR / "model.safetensors")
saved = load_file(next(made.glob("*.safetensors")))
told = {"moved": sorted({name for name in base if name in saved and not base[name].equal(saved[name])}),
        "still": sorted({name for name in base if name in saved and base[name].equal(saved[name])}),
        "adapter": sorted({name.split(".")[-2] if name.endswith("weight") else name.split(".")[-1] for name in saved}),
        "zero": [name for name in saved if name.endswith(("lora_B.weight", "oft_R.weight")) and not saved[name].any()]}
workspace = Workspace(run_dir.parents[1])
class Stop:
    def asked(self):
        return False
run = Run(run_spec, workspace, run_dir, None, Stop(), "cpu", None, model=model, tokenizer=tokenizer,
          base=bases.describe(run_spec.base.ref, workspace))
objective = objectives.of(run_spec.objective)
(preference if reward else objective).prepare(run)  # the judge has its head already
question = objective.questions(run)[-1]
before = {i.item: i for i in items.read_items(run_dir / "items" / f"tuned-{question.benchmark}.jsonl")}
after = {i.item: i for i in question.score(model, tokenizer, question.asked)}
value = lambda i: i.rewards or [v / (i.tokens or 1) for v in i.loglikelihoods]
told["same"] = sorted(before) == sorted(after) and len(after) > 20
told["difference"] = max(abs(a - b) for n in before for a, b in zip(value(before[n]), value(after[n]), strict=True))
print(json.dumps(told))
"""


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_default_spec_comes_back_from_its_file_and_the_sample_passes_the_check(recipe: str, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "home")
    found = recipes.recipes()[recipe]
    dataset = add_sample(workspace, starter.sample(found.sample))
    assert dataset.report.type in found.data_types and not dataset.report.errors
    made, problems = planned(workspace, recipe, base="starter", dataset=dataset.id, overrides={})
    assert made is not None
    missing = {"ppo-no-reward"} if found.needs else set()  # the run that a recipe stands on is not there yet
    assert {p.rule for p in problems if p.severity == "error"} == missing
    assert schema.decode(schema.encode(made)) == made


@pytest.mark.parametrize(
    "recipe", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_a_recipe_trains_moves_what_it_says_and_saves_what_loads_elsewhere(recipe: str, tmp_path: Path) -> None:
    found = recipes.recipes()[recipe]
    short = SHORT
    if found.needs is not None:  # PPO's loss says nothing, and its steps are long: test_ppo.py looks at its reward
        needed = recipes.recipes()[found.needs]
        assert train(tmp_path, needed.name, "--data", needed.sample, *SHORT)[0] == 0
        short = (*SHORT, "--set", "train.max_steps=2", "--set", "objective_args.least_reward_accuracy=0.5")
    status, run_id, run_dir = train(tmp_path, recipe, "--data", found.sample, *short)
    assert status == 0
    first, last = losses(run_dir)[0], losses(run_dir)[-1]
    assert first is not None and last is not None and (found.needs is not None or last < 0.75 * first)

    done = forked.run_python(COMPARE, run_dir, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["same"]
    # Nats a token, or points of reward: what was saved is what was trained. Sums in another order differ by 1.2e-5 on some
    # processors; weights rounded to bf16 would by a hundred times as much.
    assert told["difference"] <= 5e-5
    assert starter.verify() == []  # the base on disk is bit for bit what it was
    assert told["zero"] == []
    workspace = Workspace(tmp_path / "home")
    run_spec = store.load_spec(workspace, run_id)
    if run_spec.adapter == "full":
        depth = 4
        chosen = set(counts.layer_indices(run_spec.layers, depth) or range(depth))
        moved = {int(name.split(".")[2]) for name in told["moved"] if ".layers." in name}
        still = {int(name.split(".")[2]) for name in told["still"] if ".layers." in name}
        assert moved == chosen and still == set(range(depth)) - chosen
        embedding = run_spec.layers == "all" or run_spec.train_head  # the starter's output layer is its embedding
        assert ("model.embed_tokens.weight" in told["moved"]) == embedding

    with zipfile.ZipFile(export_archive.write_zip(workspace, run_id)) as archive:
        assert not [n for n in archive.namelist() if n.endswith(".bin") or ".." in n or n.startswith("/")]
        archive.extractall(tmp_path / "elsewhere")
    # The lines the page shows, run by themselves with plain transformers and peft in another folder:
    done = forked.run_python(
        usage.load_script(workspace, run_id, question="Who guards the gate?"), cwd=tmp_path / "elsewhere"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
