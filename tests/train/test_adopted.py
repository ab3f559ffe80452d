"""Models that were tuned elsewhere, adopted for real: scored, chatted with, merged and gone on from like our own."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from engine.export import card
from engine.plan import repeat
from engine.report import items
from engine.runs import lifecycle, store
from engine.workspace import Workspace
from tests import forked
from tests.conftest import ROOT, tunebook

pytestmark = pytest.mark.train

# What LLaMA-Factory leaves beside its adapter; none of it is taken.
LEFT_BEHIND = {"training_args.yaml": "stage: sft\n", "trainer_log.jsonl": "{}\n", "all_results.json": "{}"}


def adopt(tmp_path: Path, *arguments: str) -> tuple[int, str, Path]:
    done = tunebook(
        "adopt", *arguments, "--wait", "--json",
        home=tmp_path / "home", machine=tmp_path / "machine", module=forked.module("cli"),
    )  # fmt: skip
    print(done.stderr[-3000:])
    told = json.loads(done.stdout) if done.stdout.strip() else {"id": ""}
    return done.returncode, told["id"], tmp_path / "home" / "runs" / told["id"]


@pytest.fixture
def elsewhere(trained_home: Path, tmp_path: Path) -> Path:
    """The adapter that a real run has made, as if another trainer had: peft wrote it either way."""
    shutil.copytree(trained_home, tmp_path / "home")
    run = store.list_all(Workspace(tmp_path / "home"))[0].id
    return Path(shutil.copytree(trained_home / "runs" / run / "adapter", tmp_path / "outputs" / "mine"))


# The answers and logits that peft itself gives, and ours: in Chat, merged, and as the base of a further run.
SAYS = """
import json, sys
from pathlib import Path
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from engine import starter
from engine.chat import protocol
from engine.spec import schema
from engine.train import chat, export, load
from engine.workspace import Workspace

home, run_id, folder = Workspace(sys.argv[1]), sys.argv[2], sys.argv[3]
ref, question = f"run:{run_id}", [{"role": "user", "content": "What is the opposite of hot?"}]
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits
def off(model):
    return float((logits(model) - wanted).abs().max())
base = AutoModelForCausalLM.from_pretrained(starter.MODEL_DIR)
plain = logits(base)
theirs = PeftModel.from_pretrained(base, folder)
wanted = logits(theirs)
said = tokenizer.decode(theirs.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8,
    do_sample=False, pad_token_id=0)[0, ids.shape[1]:], skip_special_tokens=True)
found = {"moved": float((wanted - plain).abs().max()), "theirs": said}
held = chat.Models(home)
keys = held.keys([ref, "starter"])
host = held.host(ref, keys[ref], set(keys.values()))
with host.as_model(ref) as model:
    found["chat"] = off(model)
written = []
turn = protocol.Turn(model=ref, messages=question)
chat.answer(host, turn, protocol.Sampling(temperature=0, most_tokens=8), written.append, lambda: False)
found["ours"] = "".join(written)
with host.as_model("starter") as model:
    found["base_again"] = float((logits(model) - plain).abs().max())
export.write(home.run_dir(run_id), Path(sys.argv[4]), "auto", lambda _: None)
found["merged"] = off(AutoModelForCausalLM.from_pretrained(sys.argv[4]))
spec = schema.adopted(base={"ref": ref})
found["as_base"] = off(load.load(spec, home).model)
found["template"] = load.load(spec, home).tokenizer.chat_template == tokenizer.chat_template
print(json.dumps(found))
"""


def test_an_adopted_adapter_scores_as_the_run_it_came_from_and_says_what_peft_says(elsewhere, tmp_path):
    home = Workspace(tmp_path / "home")
    ours = home.run_dir(store.list_all(home)[0].id)
    for name, text in LEFT_BEHIND.items():
        (elsewhere / name).write_text(text)
    code, run_id, run_dir = adopt(tmp_path, "starter", str(elsewhere), "--data", "new-facts")
    assert code == 0 and store.load_spec(home, run_id).adopted.tool == "LLaMA-Factory"  # pyright: ignore
    shutil.rmtree(elsewhere.parent)  # it stands on its own copy
    assert sorted(os.listdir(run_dir / "adapter")) == sorted(
        name for name in os.listdir(ours / "adapter") if name not in ("README.md", "training_args.bin")
    )
    before, after = items.joined(ours), items.joined(run_dir)
    assert after["toy-world"] == before["toy-world"]  # the base's scores too, from the same store
    exact = {one.item: one.correct for one in before["new-task-choices"].tuned}
    assert {one.item: one.correct for one in after["new-task-choices"].tuned} == exact

    done = forked.run_python(SAYS, home.root, run_id, ours / "adapter", tmp_path / "merged", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["moved"] > 0.1 and found["chat"] == found["base_again"] == 0 and found["template"]
    assert found["merged"] < 1e-4 and found["as_base"] < 1e-4 and found["ours"] == found["theirs"]

    text = card.markdown(home, run_id, whole=False)
    assert (
        "method unknown" in text and "alpha" in text and "rate, steps not known" in text and str(tmp_path) not in text
    )
    assert "adopt starter" in repeat.repeat_command(home, run_id)
    shown = tunebook("show", run_id, home=home.root, machine=tmp_path / "machine", module=forked.module("cli"))
    assert "Trained elsewhere" in shown.stdout and "Not known: learning rate" in shown.stdout
    lifecycle.delete(home, run_id)
    assert not run_dir.exists()


@pytest.mark.slow
def test_a_template_of_its_own_is_used_for_the_tuned_side_alone_and_the_difference_is_said(elsewhere, tmp_path):
    path = elsewhere / "chat_template.jinja"
    text = path.read_text()
    assert "<|assistant|>" in text
    path.write_text(text.replace("<|assistant|>", "<|assistant|> "))
    code, _, run_dir = adopt(tmp_path, "starter", str(elsewhere), "--limit", "12", "--benchmarks", "toy-world")
    assert code == 0
    log = (run_dir / "events.jsonl").read_text()
    assert "a chat template of its own" in log and "text of {n} of {total} questions differs" in log
    asked = items.joined(run_dir)["toy-world"]
    assert len(asked.base) == len(asked.tuned) == 12


# --- what peft itself writes, kind by kind ---------------------------------------------------------------------------

WRITES = """
import json, sys
import torch
from peft import LoraConfig, OFTConfig, get_peft_model
from transformers import AutoModelForCausalLM
from engine import starter
made = {
    "rslora": LoraConfig(r=8, lora_alpha=16, use_rslora=True, target_modules=["q_proj", "v_proj"],
                         rank_pattern={"layers.0.self_attn.q_proj": 4}, task_type="CAUSAL_LM"),
    "dora": LoraConfig(r=8, lora_alpha=16, use_dora=True, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
    "whole": LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"),
    "embedding": LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM"),
    "oft": OFTConfig(oft_block_size=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
}[sys.argv[1]]
torch.manual_seed(0)
model = get_peft_model(AutoModelForCausalLM.from_pretrained(starter.MODEL_DIR), made).train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
ids = torch.arange(20, 60)[None]
for _ in range(4):
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
model.save_pretrained(sys.argv[2])
print(json.dumps({}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rslora", "dora", "whole", "embedding", "oft"])
def test_every_kind_that_is_taken_gives_the_logits_that_peft_gives(kind, tmp_path):
    folder = tmp_path / "mine"
    assert forked.run_python(WRITES, kind, folder, cwd=ROOT).returncode == 0
    shutil.copy(ROOT / "engine" / "starter" / "model" / "chat_template.jinja", folder)
    code, run_id, _ = adopt(tmp_path, str(folder), "--limit", "8")  # it names the starter itself
    assert code == 0
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "engine" / "starter" / "model" / name, folder)
    done = forked.run_python(SAYS, tmp_path / "home", run_id, folder, tmp_path / "merged", cwd=ROOT)
    if kind in ("whole", "embedding"):  # the starter's output layer is its embedding: merging one changes both
        return
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["moved"] > 0.01 and found["chat"] == found["base_again"] == 0 and found["merged"] < 1e-4
