"""Situations of training, evaluating and operating that people reported of other tools, each tried on a real training.

`make test-all` runs them; the public reports stand beside each. Where the real base is wanted, `make real` brings it.
"""

from __future__ import annotations

import glob
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from engine import events, starter
from engine.models import bases
from tests import forked
from tests.conftest import ROOT
from tests.real_base import smollm2
from tests.reported.trials import FACTS, FACTS_EVAL, GOOD_BAD, PAIRS, Run, Trial, apart, edit, rows, weights

pytestmark = [pytest.mark.train, pytest.mark.slow]

PLAIN = ("train.replay_share=0", "train.evaluations=1", "evaluate.benchmarks=[]")


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path)


def base(ref: object) -> tuple[object, ...]:
    return ("--base", ref)


def run_python(code: str, *arguments: Path | str) -> str:
    done = forked.run_python(code, *arguments, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


# axolotl#2073, LLaMA-Factory#7454 and #9189, ms-swift#3113, open-r1 PR#604, QwenLM/Qwen3#927
def test_a_base_whose_end_of_text_does_not_end_a_turn_answers_as_well_and_its_export_stops(trial: Trial) -> None:
    plain, other = trial.starter("plain"), trial.starter("qwen-like")
    edit(other / "tokenizer_config.json", eos_token="<|pad|>")
    for name in ("config.json", "generation_config.json"):
        edit(other / name, eos_token_id=0)
    asked = ("--eval-data", FACTS_EVAL)
    one, two = (
        trial.train("lora", FACTS, *PLAIN, "train.epochs=6", more=(*base(folder), *asked)) for folder in (plain, other)
    )
    assert abs(one.right("tuned-new-task-exact") - two.right("tuned-new-task-exact")) <= 3
    trial.tunebook("export", two.id, "--what", "merged", "--to", trial.folder / "merged")
    stops = json.loads((trial.folder / "merged" / "generation_config.json").read_text())["eos_token_id"]
    assert 1 in (stops if isinstance(stops, list) else [stops])


# gpt-neox#1373, gpt-neox PR#1379
def test_a_run_of_one_step_trains_or_says_that_nothing_moved(trial: Trial) -> None:
    data = trial.write("pairs.jsonl", rows(PAIRS)[:34])
    run = trial.train(
        "dpo", data, "train.batch_size=4", "train.accumulation=8", "train.epochs=1", "train.warmup=0.1",
        "evaluate.benchmarks=[]", more=base("starter"),
    )  # fmt: skip
    if not run.refused:
        assert [event.step for event in run.events(events.Step)] == [1]
        moved = any(bool(tensor.any()) for name, tensor in weights(run.folder / "adapter").items() if "lora_B" in name)
        assert moved or any(event.level == "warning" for event in run.events(events.Log))


# torchtune PR#2074 and #2224, transformers PR#43781 (issue 43746)
def test_a_model_with_its_adapter_beside_it_is_that_model_and_a_full_run_on_it_keeps_its_weights(trial: Trial) -> None:
    run = trial.train("lora", FACTS, *PLAIN, "train.epochs=6", more=base(trial.starter("plain")))
    merged, both = trial.folder / "merged", trial.folder / "both"
    trial.tunebook("export", run.id, "--what", "merged", "--to", merged)
    shutil.copytree(merged, both)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(run.folder / "adapter" / name, both / name)
    asked = ("--benchmarks", "toy-world", "--limit", "60", "--wait")
    alone, beside = (trial.started("evaluate", folder, *asked) for folder in (merged, both))
    assert beside.refused or beside.right("base-toy-world") == alone.right("base-toy-world")
    full = trial.train("full", FACTS, *PLAIN, "train.max_steps=4", more=base(both))
    assert full.refused or [p.name for p in (full.folder / "model").glob("*.safetensors")] == ["model.safetensors"]


STORE_IN_4_BITS = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                            bnb_4bit_compute_dtype=torch.float32)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], quantization_config=config, dtype=torch.float32,
                                             device_map={"": "cpu"})
model.save_pretrained(sys.argv[2])
AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
"""


# unsloth-zoo#326, unsloth#2749, bitsandbytes#2078
def test_lora_on_a_base_stored_in_4_bits_learns_as_qlora_does_and_full_is_refused(trial: Trial) -> None:
    stored = trial.folder / "smollm2-bnb-4bit"
    run_python(STORE_IN_4_BITS, str(smollm2().folder), stored)
    data = trial.write("tiny.jsonl", rows(FACTS)[:16])
    few = (
        *PLAIN, "train.max_steps=4", "train.batch_size=4", "train.accumulation=1", "train.learning_rate=2e-3",
        "train.warmup=0", "train.max_length=64",
    )  # fmt: skip
    qlora, lora, full = (trial.train(recipe, data, *few, more=base(stored)) for recipe in ("qlora", "lora", "full"))
    assert lora.refused or abs(lora.losses[-1] - qlora.losses[-1]) < 0.5
    assert full.refused and "4 bits" in full.said


TWO_FILTERS = """
import json, sys, torch
torch.set_num_threads(1)
from transformers import AutoModelForCausalLM, AutoTokenizer
from engine.train.scoring import harness
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
for name in ("gsm8k_local", "norm_local"):
    found = harness.score_harness(model, tokenizer, name, limit=0, shots=0, chat=False, max_length=512,
                                  include_path=sys.argv[2])
    print(json.dumps([[i.item, i.choice, i.gold, i.correct] for i in found]))
"""


# lm-evaluation-harness#1687, #2025, #2362; #2722 and #1396 for acc_norm
def test_a_question_of_the_harness_is_one_item_whose_choice_agrees_with_its_verdict(tmp_path: Path) -> None:
    sums = ((1, 2), (3, 4), (2, 2), (5, 1), (6, 3), (4, 4))
    asked = [
        {"question": f"Tom has {a} apples and gets {b} more. How many apples has he?", "answer": f"#### {a + b}"}
        for a, b in sums
    ]
    choices = [
        {"q": "Water that is very cold becomes", "choices": ["ice", "a very hot kind of steam"], "a": 0},
        {"q": "The person who teaches children is called", "choices": ["a dog", "the teacher of that school"], "a": 1},
        {"q": "A cat is", "choices": ["an animal that many people keep at home", "a car"], "a": 0},
        {"q": "The capital of France is", "choices": ["the beautiful old city of Paris", "Rome"], "a": 0},
    ]
    for name, found in (("q", asked), ("c", choices * 3)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    (shipped,) = glob.glob(f"{sys.prefix}/lib/python3*/site-packages/lm_eval/tasks/gsm8k/gsm8k.yaml")
    files = f"dataset_kwargs:\n  data_files: {{train: {tmp_path}/q.jsonl, test: {tmp_path}/q.jsonl}}"
    task = Path(shipped).read_text()
    for old, new in (
        ("dataset_path: openai/gsm8k\ndataset_name: main", f"dataset_path: json\n{files}"),
        ("task: gsm8k", "task: gsm8k_local"),
        ("num_fewshot: 5", "num_fewshot: 0"),
        ("temperature: 0.0", "max_gen_toks: 24"),
    ):
        assert old in task
        task = task.replace(old, new)
    (tmp_path / "gsm8k_local.yaml").write_text(task)
    (tmp_path / "norm_local.yaml").write_text(
        f"task: norm_local\ndataset_path: json\ndataset_kwargs:\n  data_files: {{test: {tmp_path}/c.jsonl}}\n"
        "test_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{q}}"\ndoc_to_choice: choices\ndoc_to_target: a\nmetric_list:\n'
        "  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
        "  - {metric: acc_norm, aggregation: mean, higher_is_better: true}\nmetadata: {version: 1.0}\n"
    )
    written, normed = map(json.loads, run_python(TWO_FILTERS, str(smollm2().folder), tmp_path).splitlines()[-2:])
    assert len(written) == len(asked) == len({item[0] for item in written})
    assert len(normed) == 12 and all((choice == gold) == correct for _, choice, gold, correct in normed)


# peft#2777 (PR#2972), transformers#45127, LLaMA-Factory PR#10832
def test_going_on_from_lora_on_a_tied_embedding_is_the_same_model_or_is_refused(trial: Trial) -> None:
    targets = "adapter_args.target_modules=q_proj,v_proj,embed_tokens"
    first = trial.train("lora", FACTS, *PLAIN, targets, "train.max_steps=25", more=base("starter"))
    if not first.refused:
        second = trial.train("lora", FACTS, *PLAIN, "train.max_steps=1", more=base(f"run:{first.id}"))
        if not second.refused and not isinstance(second.end, events.Failed):
            assert abs(first.loss("tuned-new-task-loss") - second.loss("base-new-task-loss")) < 0.01


# oobabooga/textgen PR#6692, sglang#3296 and PR#5927; time zones stand for days
def test_a_template_that_writes_the_date_has_a_report_on_the_next_day_too(trial: Trial) -> None:
    dated = trial.starter("dated")
    template = dated / "chat_template.jinja"
    today = "{%- set today = strftime_now('%d %b %Y') -%}{{- '<|system|>Today Date: ' + today + '<|end|>' -}}"
    template.write_text(today + template.read_text())
    for zone in ("Etc/GMT+12", "Pacific/Kiritimati"):  # never the same date
        run = trial.train(
            "lora", FACTS, "train.max_steps=4", "train.replay_share=0", 'evaluate.benchmarks=["toy-world"]',
            "evaluate.limit=40", "train.evaluations=1", more=base(dated), TZ=zone,
        )  # fmt: skip
        assert len(trial.tunebook("compare", run.id).stdout.splitlines()) > 5


# lm-evaluation-harness#2598, lighteval PR#1323
def test_of_900_sorted_evaluation_rows_every_kind_is_asked_and_how_many_is_said(trial: Trial) -> None:
    pairs = rows(FACTS_EVAL)
    many = [
        {"prompt": f"{pairs[n % 144]['prompt']} (kind {kind}, {n})", "completion": pairs[n % 144]["completion"]}
        for kind, count in (("A", 520), ("B", 380))
        for n in range(count)
    ]
    run = trial.train(
        "lora",
        FACTS,
        *PLAIN,
        "train.max_steps=3",
        more=("--eval-data", trial.write("eval.jsonl", many), *base("starter")),
    )
    scored = [i["prompt"] for i in run.items("tuned-new-task-exact") if i["family"] == "unseen rows"]
    assert any("kind A" in prompt for prompt in scored) and any("kind B" in prompt for prompt in scored)
    assert len(scored) == 500 and any("900" in line for line in run.logs), run.logs


# OpenRLHF#1089; herniqeu/extract0#1
def test_rows_that_are_trained_on_are_never_called_unseen(trial: Trial) -> None:
    run = trial.train("lora", FACTS, *PLAIN, "train.max_steps=3", more=("--eval-data", FACTS, *base("starter")))
    if not run.refused:
        assert not [i for i in run.items("tuned-new-task-loss") if i["family"] == "unseen rows"]
        assert any("240" in line for line in run.logs), run.logs


ADD_TOKENS = """
import sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
tokenizer.add_tokens(["<think>", "</think>"])
tokenizer.save_pretrained(sys.argv[1])
"""


# transformers#11102, #24698, #1848
def test_tokens_for_which_the_model_has_no_row_are_named_before_the_start(trial: Trial) -> None:
    spoilt = trial.starter("base")
    run_python(ADD_TOKENS, spoilt)
    thinking = [{"prompt": r["prompt"], "completion": f"<think></think>{r['completion']}"} for r in rows(FACTS)[:60]]
    run = trial.train("lora", trial.write("think.jsonl", thinking), *PLAIN, "train.max_steps=4", more=base(spoilt))
    assert run.refused and "<think>" in run.said


# openvla#49, Chinese-LLaMA-Alpaca#444
def test_weights_that_hold_no_numbers_are_told_from_a_rate_that_is_too_high(trial: Trial) -> None:
    from safetensors.torch import load_file, save_file

    spoilt, name = trial.starter("base"), "model.layers.2.mlp.down_proj.weight"
    held = load_file(spoilt / "model.safetensors")
    held[name][3, :5] = float("nan")
    save_file(held, spoilt / "model.safetensors", metadata={"format": "pt"})
    run = trial.train("lora", FACTS, *PLAIN, "train.max_steps=4", more=base(spoilt))
    told = run.said if run.refused else f"{run.end.message} {run.end.fix}"
    assert name in told and "learning rate" not in told


# peft#523, LLaMA-Factory#1912, lm-sys/FastChat#502, ollama#9505
def test_a_folder_that_is_no_model_is_named_with_what_to_give_instead(trial: Trial) -> None:
    run = trial.train("lora", FACTS, *PLAIN, "train.max_steps=2", more=base(trial.starter("plain")))
    folder = trial.folder
    shutil.copytree(run.folder / "adapter", folder / "tuned")
    shutil.copytree(run.folder / "adapter", folder / "axolotl")
    shutil.copy(starter.MODEL_DIR / "config.json", folder / "axolotl" / "config.json")
    (folder / "converted").mkdir()
    for place in ("converted/m.gguf", "m.bin.gguf"):
        (folder / place).write_bytes(b"GGUF" + bytes(64))
    shutil.copytree(starter.MODEL_DIR, folder / "output" / "checkpoint-500")
    pointer = trial.starter("fetched") / "model.safetensors"
    pointer.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 3744208\n")
    wanted = {
        "tuned": "adapter", "axolotl": "adapter", "converted": "gguf", "m.bin.gguf": "gguf",
        "output": "checkpoint-500", "fetched": "lfs",
    }  # fmt: skip
    for name, word in wanted.items():
        problems = bases.describe(str(folder / name), trial.workspace).problems
        told = " ".join(str(text) for problem in problems for text in problem.texts).replace(str(folder), "")
        assert word in told.lower(), (name, told)
    assert trial.train("lora", FACTS, *PLAIN, "train.max_steps=2", more=base(folder / "axolotl")).refused


# agentic-hil#460, h2o-llmstudio PR#169 and PR#937
def test_a_run_of_a_later_version_is_listed_as_such_and_is_no_base(trial: Trial) -> None:
    run = trial.train("lora", FACTS, *PLAIN, "train.max_steps=2", more=base("starter"))
    spec = json.loads((run.folder / "spec.json").read_text())
    edit(run.folder / "spec.json", train=spec["train"] | {"label_smoothing": 0.1})
    assert run.id in trial.tunebook("runs").stdout
    shown = trial.tunebook("show", run.id)
    assert "later version" in shown.stdout + shown.stderr
    assert trial.train("lora", FACTS, *PLAIN, "train.max_steps=2", more=base(f"run:{run.id}")).refused


# unsloth#1178, transformers#35856, trl PR#2615
@pytest.mark.parametrize("recipe", ["lora", "oft", "dpo", "reward"])
def test_a_step_cut_into_passes_gives_the_same_weights(trial: Trial, recipe: str) -> None:
    words = [1, 40, 3, 25, 2, 60, 7, 1] * 12 + [5, 9, 33]  # of unequal length, and the last group is not whole
    unequal = [{"prompt": f"Say {n} words.", "completion": " ".join(["stone"] * n)} for n in words]
    data = trial.write("unequal.jsonl", unequal) if recipe in ("lora", "oft") else PAIRS
    unasked = () if recipe == "reward" else ("evaluate.benchmarks=[]",)
    replayed = () if recipe in ("dpo", "reward") else ("train.replay_share=0",)

    def cut(size: int, passes: int) -> dict[str, Any]:
        run = trial.train(
            recipe, data, f"train.batch_size={size}", f"train.accumulation={passes}", "train.epochs=1",
            "train.evaluations=1", *unasked, *replayed, more=base("starter"),
        )  # fmt: skip
        return weights(run.folder / "adapter")

    whole, parts = cut(16, 1), cut(2, 8)
    for name, tensor in whole.items():
        assert float((tensor - parts[name]).norm()) <= 1e-4 * float(tensor.norm()) + 1e-12, name


RESUMED = {
    "kto, full": ("kto", GOOD_BAD, "adapter=full train.batch_size=8 train.epochs=2 train.learning_rate=3e-4"),
    "dropout": ("lora", FACTS, "adapter_args.dropout=0.1 train.batch_size=5 train.epochs=3 train.replay_share=0"),
    "oft, replay": ("oft", FACTS, "train.batch_size=8 train.epochs=3"),
    "dpo, full": ("dpo", PAIRS, "adapter=full train.batch_size=8 train.epochs=3 train.learning_rate=1e-4"),
}


# ms-swift#2031, NVIDIA-NeMo/RL PR#3722, trl#2423
@pytest.mark.parametrize("case", RESUMED)
def test_a_run_that_was_stopped_and_went_on_has_bit_for_bit_the_weights_of_one_that_was_not(
    trial: Trial, case: str
) -> None:
    recipe, data, more = RESUMED[case]
    settings = (*more.split(), "train.accumulation=3", "evaluate.benchmarks=[]", "train.evaluations=2")
    whole = trial.train(recipe, data, *settings, more=base("starter"))
    total = whole.end.step
    words = [word for setting in ("train.threads=1", *settings) for word in ("--set", setting)]
    part: Run = trial.started("train", recipe, "--data", data, "--base", "starter", *words)
    part.wait_for(lambda: [e for e in part.events(events.Step) if e.step >= 0.4 * total])
    trial.tunebook("stop", part.id)
    part.wait_for(lambda: part.events(events.Stopped))
    assert part.end.step < total
    trial.tunebook("resume", part.id)
    part.wait_for(lambda: part.events(events.Finished))
    made = "model" if "full" in case else "adapter"
    assert apart(whole.folder / made, part.folder / made) == 0
