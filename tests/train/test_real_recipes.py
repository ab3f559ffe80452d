"""Every recipe on a real base: its first loss is what plain transformers says of the same rows and the same trained
tokens, and what it exports loads elsewhere and says the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from engine import events
from engine.export import parity
from engine.spec import recipes
from tests import forked
from tests.conftest import ROOT
from tests.real_base import smollm2
from tests.reported.trials import Run, Trial

pytestmark = [pytest.mark.train, pytest.mark.slow]

ASKED = (
    ("Name a colour of the sky at noon.", "Blue, as a rule.", "I do not care."),
    ("How many legs has a spider? Why?", "Eight.\n\n1. It is an arachnid.\n2. All of them have eight.", "Six."),
    ("Écris « bonjour » en espagnol.", "Buenos días, or simply hola.", "Guten Tag"),
    ("What is 12 + 30?", "12 + 30 = 42", "12 + 30 = 1230"),
)  # fmt: skip
PLAIN = (
    "train.batch_size=4", "train.accumulation=1", "train.max_steps=2", "train.replay_share=0", "dataset.eval_share=0",
    "evaluate.benchmarks=[]", "train.max_length=128", "machine.precision=fp32", "adapter_args.dropout=0",
)  # fmt: skip

# What plain transformers says of a base and of pairs of question and answer: the log-likelihood of each answer with the
# token that ends its turn, and how many tokens that are. Nothing of Tunebook is imported.
PLAINLY = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
torch.set_num_threads(2)
folder, bits, pairs = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
extra = {}
if bits == "4bit":
    extra["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **extra).eval()
for module in model.modules():
    if hasattr(module, "support_avx512bf16_for_cpu"):
        module.support_avx512bf16_for_cpu = False
said = []
for question, answer in pairs:
    asked = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": answer}], tokenize=False)
    start = len(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    end = text.rindex("<|im_end|>") + len("<|im_end|>")
    coded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    ids = torch.tensor([coded["input_ids"]])
    with torch.no_grad():
        found = model(ids).logits[0, :-1].float().log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    trained = torch.tensor([a >= start and b <= end and b > a for a, b in coded["offset_mapping"]][1:])
    said.append([float(found[trained].sum()), int(trained.sum())])
print(json.dumps(said))
"""

# Two folders that should be one model, on a text: an adapter over its base, and what was merged of it.
SAME = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, made, merged = sys.argv[1:4]
tokenizer = AutoTokenizer.from_pretrained(merged)
ids = tokenizer("The capital of France is Paris. 1 + 1 = 2", return_tensors="pt")["input_ids"]
def says(model):
    with torch.no_grad():
        return model.eval()(ids).logits.log_softmax(-1)
whole = says(AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32))
if base:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), made)
else:
    model = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
print(json.dumps({"apart": float((whole - says(model)).abs().max()), "same": tokenizer.decode(ids[0])}))
"""

# A reward model's loss on pairs, with plain transformers and peft, by what it saved after steps of no size.
JUDGES = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
base, made, pairs = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(made)
model = AutoModelForSequenceClassification.from_pretrained(
    base, num_labels=1, dtype=torch.float32, pad_token_id=tokenizer.pad_token_id)
model = PeftModel.from_pretrained(model, made).eval()
def reward(question, answer):
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], tokenize=False)
    text = text[:text.rindex("<|im_end|>") + len("<|im_end|>")]
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        return model(ids).logits[0, 0]
losses = []
for question, good, bad in pairs:
    one, other = reward(question, good), reward(question, bad)
    losses.append(float(-torch.nn.functional.logsigmoid(one - other) + 0.01 * (one + other) ** 2))
print(json.dumps(sum(losses) / len(losses)))
"""

SFT = [name for name, recipe in sorted(recipes.recipes().items()) if recipe.objective == "sft"]


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path)


def python(code: str, *arguments: object) -> Any:
    done = forked.run_python(code, *map(str, arguments), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def plainly(pairs: list[tuple[str, str]], bits: str = "none") -> list[tuple[float, int]]:
    """The log-likelihood of each answer under the real base, and its tokens."""
    return [(found, count) for found, count in python(PLAINLY, smollm2().folder, bits, json.dumps(pairs))]


def exports(trial: Trial, run: Run, *, dtype: str = "auto", within: float = 0.1) -> None:
    """What was merged of a run is the run's model, loaded with plain transformers and peft: log-probabilities differ by what
    a rounding to 16 bits does at most."""
    merged = trial.folder / f"merged-{'float16' if dtype == 'auto' else dtype}"
    done = trial.tunebook("export", run.id, "--what", "merged", "--to", merged, "--dtype", dtype)
    assert done.returncode == 0, done.stderr
    whole = (run.folder / "model").is_dir()
    told = python(SAME, "" if whole else smollm2().folder, run.folder / ("model" if whole else "adapter"), merged)
    assert told["same"] == "The capital of France is Paris. 1 + 1 = 2"
    assert told["apart"] < within
    if not whole:
        merges_exactly(merged)
        merges_into_bf16(trial, run)


def merges_exactly(merged: Path) -> None:
    """Held against the unmerged model in fp32 it is the same, and what its rounding costs is said."""
    found = parity.read(merged)
    assert found is not None and found.logits is not None
    assert found.logits < 1e-4 and found.same_choice == 1 and found.dtype == merged.name.partition("merged-")[2]
    if found.dtype != "float32":
        assert found.rounded is not None and found.kept_choice is not None
        assert found.rounded < 0.05 and found.kept_choice > 0.95


def merges_into_bf16(trial: Trial, run: Run) -> None:
    """The run merges into its base as most are stored: in bf16."""
    stored = trial.folder / "stored-in-bf16"
    if not stored.is_dir():
        shutil.copytree(str(smollm2().folder), stored)
        held = {name: one.bfloat16() for name, one in load_file(stored / "model.safetensors").items()}
        save_file(held, stored / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((stored / "config.json").read_text())
        (stored / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    spec, target = run.folder / "spec.json", trial.folder / "merged-bfloat16"
    told = spec.read_text()
    spec.write_text(json.dumps(json.loads(told) | {"base": {"ref": str(stored), "revision": None}}))
    done = trial.tunebook("export", run.id, "--what", "merged", "--to", target)
    spec.write_text(told)
    assert done.returncode == 0, done.stderr
    merges_exactly(target)
    shutil.rmtree(target)


@pytest.mark.parametrize("recipe", SFT)
def test_the_first_loss_is_that_of_plain_transformers_and_the_exports_load_elsewhere(trial: Trial, recipe: str) -> None:
    data = trial.write("asked.jsonl", [{"prompt": question, "completion": good} for question, good, _ in ASKED])
    run = trial.train(recipe, data, *PLAIN, more=("--base", smollm2().folder))
    assert not run.refused, run.said
    assert isinstance(run.end, events.Finished), run.end
    found = plainly([(question, good) for question, good, _ in ASKED], recipes.recipes()[recipe].quantize)
    expected = -sum(one for one, _ in found) / sum(count for _, count in found)
    assert run.losses[0] == pytest.approx(expected, abs=1e-4)
    if (
        recipes.recipes()[recipe].quantize == "none"
    ):  # merged into 16 bits, one of a base in 4 is another model: it is said
        exports(trial, run)
    if recipe == "lora":
        exports(trial, run, dtype="float32", within=1e-3)


def test_dpo_starts_from_the_likelihoods_of_plain_transformers(trial: Trial) -> None:
    data = trial.write("pairs.jsonl", [{"prompt": q, "chosen": good, "rejected": bad} for q, good, bad in ASKED])
    run = trial.train("dpo", data, *PLAIN, more=("--base", smollm2().folder))
    assert isinstance(run.end, events.Finished), run.said
    good, bad = (plainly([(row[0], row[side]) for row in ASKED]) for side in (1, 2))
    metrics = run.events(events.Step)[0].metrics
    assert run.losses[0] == pytest.approx(0.693147, abs=1e-4)
    for name, found in (("logps/chosen", good), ("logps/rejected", bad)):
        assert metrics[name] == pytest.approx(sum(one for one, _ in found) / len(found), rel=1e-4)
    exports(trial, run)


def test_kto_starts_from_the_likelihoods_of_plain_transformers(trial: Trial) -> None:
    marked = [
        {"prompt": question, "completion": row[side], "label": side == 1} for row in ASKED for side in (1, 2)
        for question in row[:1]
    ]  # fmt: skip
    data = trial.write("marked.jsonl", marked)
    run = trial.train("kto", data, *PLAIN, "train.batch_size=8", more=("--base", smollm2().folder))
    assert isinstance(run.end, events.Finished), run.said
    good, bad = (plainly([(row[0], row[side]) for row in ASKED]) for side in (1, 2))
    metrics = run.events(events.Step)[0].metrics
    for name, found in (("logps/chosen", good), ("logps/rejected", bad)):
        assert metrics[name] == pytest.approx(sum(one for one, _ in found) / len(found), rel=1e-4)
    exports(trial, run)


def test_a_reward_model_has_the_loss_that_plain_transformers_gives_it_and_ppo_trains_on_it(trial: Trial) -> None:
    pairs = [{"prompt": q, "chosen": good, "rejected": bad} for q, good, bad in ASKED]
    data = trial.write("pairs.jsonl", pairs)
    held_out = trial.write("held-out.jsonl", [
        {"prompt": "Name a fruit.", "chosen": "An apple.", "rejected": "A stone, I think."},
        {"prompt": "What is 2 + 2?", "chosen": "2 + 2 = 4", "rejected": "2 + 2 = 22"},
    ])  # fmt: skip
    more = ("--base", smollm2().folder, "--eval-data", held_out)
    judge = trial.train("reward", data, *PLAIN, "train.learning_rate=1e-7", more=more)
    assert isinstance(judge.end, events.Finished), judge.said
    expected = python(JUDGES, smollm2().folder, judge.folder / "adapter", json.dumps(ASKED))
    assert judge.losses[0] == pytest.approx(expected, abs=1e-4)
    merges_into_bf16(trial, judge)
    asked = trial.write("asked.jsonl", [{"prompt": question} for question, _, _ in ASKED])
    run = trial.train(
        "ppo", asked, *PLAIN, "train.max_steps=1", f"objective_args.reward_model=run:{judge.id}",
        "objective_args.least_reward_accuracy=0", "objective_args.answer_tokens=16", more=("--base", smollm2().folder),
    )  # fmt: skip
    assert isinstance(run.end, events.Finished), run.said
    exports(trial, run)
