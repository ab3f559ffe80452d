"""The recipe of a run for other trainers: golden files, rows, and the TRL script run by itself."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import msgspec
import pytest
import yaml

from engine import events, starter
from engine.cli import main
from engine.cli.export import EXPORTS
from engine.data import datasets
from engine.estimate import cards, machine_choices
from engine.export import NotExportable, other_trainers, portable_recipe, scripts
from engine.export.portable_recipe import PortableRecipe, Writing
from engine.models import shapes
from engine.render.template import PLAIN_TEMPLATE
from engine.runs import store
from engine.spec import counts, recipes, schema
from engine.words import Problem
from engine.workspace import Workspace
from tests.conftest import tunebook
from tests.export import our_runs

GOLDEN = Path(__file__).parent / "golden"
HUB = "Qwen/Qwen3-0.6B"
needs_starter = pytest.mark.skipif(not starter.MODEL_DIR.is_dir(), reason="engine/starter/model has not been built")


def recipe(name: str, kind: str, base: str = HUB, depth: int | None = 28, **overrides: Any) -> PortableRecipe:
    settings = {"train.threads": 1, **{path.replace("__", "."): value for path, value in overrides.items()}}
    run_spec, problems = recipes.resolve(
        recipes.recipes()[name], base=base, revision="c1899de289a04d12100db370d81485cdf75e47ca" if base == HUB else None,
        parameters=None, dataset_id="d" * 64, overrides=settings,
    )  # fmt: skip
    assert problems == []
    # a recipe's hash changes with its comments, and is in none of the files
    return PortableRecipe(run_spec, "20261124-201516-0a1b2c", base, kind, depth)


# Qwen3-0.6B, of its config.json.
QWEN = shapes.Shape(
    layout="qwen3", layers=28, hidden=1024, intermediate=3072, vocabulary=151936, heads=16, kv_heads=8, head_dim=128,
    tied=True,
)  # fmt: skip
CHATML = Writing("{{ '<|im_start|>' }} ... {{ '<|im_end|>' }}", False, "<|im_end|>", "<|endoftext|>", False)
PLAIN = Writing(PLAIN_TEMPLATE, True, "</s>", "</s>", False)
SHAPE = shapes.read_shape({"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2,
                          "intermediate_size": 16, "vocab_size": 64, "tie_word_embeddings": True})  # fmt: skip
GPT2 = shapes.read_shape({"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 64})

CASES = {
    "trl-lora": ("trl", recipe("lora", "messages")),
    "trl-lora-layers": ("trl", recipe("lora", "prompt", layers="top:0.25", train__early_stopping=3)),
    "trl-qlora": ("trl", recipe("qlora", "text")),
    "trl-oft": ("trl", recipe("oft", "prompt", adapter_args__target_modules="q_proj, v_proj")),
    "trl-freeze-bottom": ("trl", recipe("freeze-bottom", "messages", dataset__eval_share=0.0)),
    "trl-dpo": ("trl", recipe("dpo", "preference")),
    "trl-kto": ("trl", recipe("kto", "marked", objective_args__weights=[1.0, 1.3])),
    "trl-reward": ("trl", recipe("reward", "preference", train__report_to="trackio")),
    "unsloth-lora": ("unsloth", recipe("lora", "prompt", train__early_stopping=3)),
    "unsloth-qlora-layers": ("unsloth", recipe("qlora", "text", layers="top:0.25", train__gradient_checkpointing=True)),
    "unsloth-full": ("unsloth", recipe("full", "messages", train__replay_share=0.0)),
    "unsloth-freeze-top": ("unsloth", recipe("freeze-top", "messages")),
    "unsloth-kto": ("unsloth", recipe("kto", "marked", objective_args__weights=[1.0, 1.3])),
    "llama-factory-lora": ("llama-factory", recipe("lora", "messages", train__early_stopping=2)),
    "llama-factory-qlora-replay": ("llama-factory", recipe("qlora", "prompt", base="me/own", train__replay_share=0.2)),
    "llama-factory-oft": ("llama-factory", recipe("oft", "text", layers=[1, 2])),
    "llama-factory-freeze-top": ("llama-factory", recipe("freeze-top", "prompt")),
    "llama-factory-freeze-top-tied": ("llama-factory", recipe("freeze-top", "prompt")._replace(shape=QWEN)),
    "llama-factory-layers": ("llama-factory", recipe("lora", "prompt", layers="top:0.1")._replace(shape=QWEN)),
    "llama-factory-dpo": ("llama-factory", recipe("dpo", "preference")),
    "llama-factory-kto": ("llama-factory", recipe("kto", "marked", train__max_steps=7, train__warmup=10)),
    "llama-factory-reward": ("llama-factory", recipe("reward", "preference")),
    "axolotl-lora": ("axolotl", recipe("lora", "messages", train__early_stopping=2)),
    "axolotl-qlora": ("axolotl", recipe("qlora", "prompt", layers="top:0.1", train__report_to="wandb")),
    "axolotl-freeze-top": ("axolotl", recipe("freeze-top", "text")),
    "axolotl-full": ("axolotl", recipe("full", "messages", base="run:20261124-101112-abcdef", train__warmup=5)),
    "trl-keep": ("trl", recipe("lora", "messages", objective_args__keep="kl")),
    "llama-factory-keep": ("llama-factory", recipe("lora", "messages", objective_args__keep="entropy")),
    "axolotl-keep": ("axolotl", recipe("full", "messages", objective_args__keep="skip_surprising")),
    "axolotl-dpo": ("axolotl", recipe("dpo", "preference")),
    "axolotl-kto": ("axolotl", recipe("kto", "marked", objective_args__weights=[1.0, 1.3])._replace(rows=100)),
    "axolotl-chatml": ("axolotl", recipe("lora", "messages")._replace(writing=CHATML)),
    "axolotl-plain": ("axolotl", recipe("full", "messages")._replace(writing=PLAIN)),
    "axolotl-head": ("axolotl", recipe("freeze-top", "prompt", train_head=True)._replace(shape=SHAPE, writing=CHATML)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_files_for_other_trainers_are_as_they_were_agreed(name):
    """TUNEBOOK_WRITE_GOLDEN=1 writes them anew; read the difference before you keep it."""
    tool, one = CASES[name]
    made = "".join(f"=== {file} ===\n{text}" for file, text in other_trainers.files(one, tool).items())
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("TUNEBOOK_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(made, encoding="utf-8")
    assert made == path.read_text(encoding="utf-8")


SCRIPTS = [name for name, (tool, _) in CASES.items() if tool in portable_recipe.BY_TRL]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_is_python_and_uses_all_it_imports(name):
    tool, one = CASES[name]
    text = other_trainers.files(one, tool)["train.py"]
    compile(text, "train.py", "exec")
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F,E9", "-"]
    done = subprocess.run(ruff, input=text, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", [name for name in CASES if name not in SCRIPTS])
def test_every_settings_file_is_yaml_with_the_settings_of_the_run(name):
    tool, one = CASES[name]
    text = other_trainers.files(one, tool)["train.yaml"]
    told = yaml.safe_load(text)
    train = one.spec.train
    assert float(told["learning_rate"]) == train.learning_rate
    assert told["gradient_accumulation_steps"] == train.accumulation
    assert told.get("per_device_train_batch_size", told.get("micro_batch_size")) == train.batch_size
    assert told.get("num_train_epochs", told.get("num_epochs")) == train.epochs
    assert told["seed"] == train.seed
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert any("only Tunebook makes them" in line for line in head)
    assert text.startswith("#") and head == text.splitlines()[: len(head)]


def test_what_cannot_be_said_stands_at_the_head():
    replay = other_trainers.files(CASES["llama-factory-qlora-replay"][1], "llama-factory")["train.yaml"]
    assert "replay_share = 0.2" in replay and "starts on a card alone" in replay
    layers = other_trainers.files(CASES["llama-factory-oft"][1], "llama-factory")["train.yaml"]
    assert "layers = [1, 2]" in layers
    chained = other_trainers.files(CASES["axolotl-full"][1], "axolotl")["train.yaml"]
    assert "tunebook export 20261124-101112-abcdef --what merged --to base" in chained


@pytest.mark.parametrize(
    ("tool", "one", "said"),
    [
        ("axolotl", recipe("oft", "messages"), "no OFT"),
        ("axolotl", recipe("reward", "preference"), "one question and one answer"),
        ("unsloth", recipe("oft", "messages"), "SFT, and DPO and KTO with LoRA"),
        ("unsloth", recipe("reward", "preference"), "SFT, and DPO and KTO with LoRA"),
        ("unsloth", recipe("qlora", "messages", quantize="8bit"), "16 or 4 bits"),
        ("unsloth", recipe("lora", "messages")._replace(shape=GPT2), "no fast path"),
        ("axolotl", recipe("freeze-top", "messages", depth=None), "number of layers"),
        ("llama-factory", recipe("full", "messages", layers=[0, 3]), "the last or the first layers only"),
    ],
)
def test_what_a_trainer_cannot_do_is_refused_in_words(tool, one, said):
    with pytest.raises(NotExportable, match=said):
        other_trainers.files(one, tool)


@pytest.mark.parametrize("tool", other_trainers.TRAINERS)
def test_the_file_of_a_ppo_run_says_that_it_cannot_be_expressed_and_keeps_what_was_told(tool):
    one = recipe(
        "ppo", "question", objective_args__reward_model="run:20261124-101112-abcdef", objective_args__beta=0.07
    )
    (text,) = other_trainers.files(one, tool).values()
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert any("PPO cannot be expressed here: " in line for line in head)
    assert "# What the run was told:" in head and "#     beta: 0.07" in head
    assert "#     reward_model: run:20261124-101112-abcdef" in head
    if tool in portable_recipe.BY_TRL:  # run by itself it says the same, and trains nothing
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
        assert done.returncode == 1 and "PPO cannot be expressed here" in done.stderr
    else:
        assert yaml.safe_load(text) is None


@needs_starter
def test_the_questions_of_a_ppo_run_lie_beside_its_file(workspace, tmp_path):
    stored = datasets.add_sample(workspace, starter.sample("ppo-prompts"))
    other_trainers.write(workspace, ran(workspace, "ppo", stored.id), "trl", tmp_path / "out")
    rows = lines(tmp_path / "out" / "train.jsonl")
    assert len(rows) > 10 and all(list(row) == ["prompt"] for row in rows)


@needs_starter
@pytest.mark.parametrize("tool", [name for name, one in other_trainers.TRAINERS.items() if not one.written_out])
def test_rows_with_turns_that_are_turned_off_are_not_handed_to_whom_nothing_tells(workspace, tmp_path, tool):
    turns = [("user", "q"), ("assistant", "WRONG"), ("user", "r"), ("assistant", "right")]
    row = {"messages": [{"role": role, "content": text, "weight": int(text != "WRONG")} for role, text in turns]}
    path = tmp_path / "weighted.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(20)))
    stored = datasets.add(workspace, path, "weighted.jsonl")
    with pytest.raises(NotExportable, match="not to be trained"):
        other_trainers.write(workspace, ran(workspace, "lora", stored.id), tool, tmp_path / "out")


def test_the_script_turns_gpt2s_layers_and_names_those_of_chosen_ones():
    turned = other_trainers.files(recipe("oft", "prompt")._replace(conv1d=True), "trl")["train.py"]
    assert "isinstance(module, Conv1D)" in turned and turned.index("Conv1D)") < turned.index("get_peft_model(model")
    some = other_trainers.files(recipe("lora", "prompt", layers="top:0.25")._replace(conv1d=True), "trl")["train.py"]
    assert "(torch.nn.Linear, Conv1D)" in some and "set_submodule" not in some
    plain = other_trainers.files(recipe("lora", "prompt")._replace(conv1d=True), "trl")["train.py"]
    assert "Conv1D" not in plain
    with pytest.raises(NotExportable, match="GPT-2"):
        other_trainers.files(recipe("oft", "prompt")._replace(conv1d=True), "llama-factory")


# --- names that look like code -----------------------------------------------------------------------------------

HOSTILE = [
    '"""\nexit()\n"""', "it's\nexit()", '\\" + exit() + "', "\\", "{{ 7 * 7 }}{% x %}", "\u2028exit()", "\r\nexit(): 1"
]  # fmt: skip


def named(one: PortableRecipe, name: str) -> PortableRecipe:
    """The recipe with this name wherever a person, a file or the hub may name something."""
    replace = msgspec.structs.replace
    spec = replace(
        one.spec,
        recipe=replace(one.spec.recipe, name=name),
        base=replace(one.spec.base, ref=name, revision=name),
        adapter_args=replace(one.spec.adapter_args, target_modules=name),
        objective_args=replace(one.spec.objective_args, reward_model=name),
    )
    return one._replace(spec=spec, run_id=name, base=name)


def called(script: str) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("one", [recipe("lora", "prompt"), recipe("oft", "messages"), recipe("ppo", "question")])
def test_a_name_is_only_ever_a_text_in_the_script(one, name):
    plain = other_trainers.files(named(one, "plain"), "trl")["train.py"]
    script = other_trainers.files(named(one, name), "trl")["train.py"]
    assert called(script) == called(plain)
    if one.spec.objective != "ppo":
        values = [node.value for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Constant)]
        assert values.count(name) >= 3  # the base, and its revision for tokenizer and model


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("trainer", ["llama-factory", "axolotl"])
def test_a_name_ends_no_comment_of_a_settings_file(trainer, name):
    for one in (recipe("lora", "prompt"), recipe("ppo", "question")):
        plain, told = (
            yaml.safe_load(other_trainers.files(named(one, each), trainer)["train.yaml"]) for each in ("plain", name)
        )
        assert (told and list(told)) == (plain and list(plain))


def test_a_template_writes_nothing_that_went_through_no_filter(monkeypatch):
    loader = jinja2.DictLoader(
        {
            "bare": "x = {{ value }}",
            "literal": "x = {{ value | literal }}",
            "name": "import {{ value | name }}",
            "missing": "x = {{ nothing | literal }}",
        }
    )
    monkeypatch.setattr(scripts._environment(), "loader", loader)
    assert scripts.fill("literal", value="it's") == 'x = "it\'s"'
    assert scripts.fill("name", value="json") == "import json"
    for template, value in (("bare", "exit()"), ("name", "json; exit()"), ("missing", 1), ("literal", object())):
        with pytest.raises((TypeError, ValueError)):
            scripts.fill(template, value=value)


def test_the_command_line_knows_every_trainer():
    assert set(other_trainers.TRAINERS) <= set(EXPORTS)


# --- with rows ---------------------------------------------------------------------------------------------------


def ran(workspace: Workspace, name: str, dataset_id: str, base: str = "starter", **overrides: Any) -> str:
    run_spec, problems = recipes.resolve(
        recipes.recipes()[name], base=base, revision=None, parameters=1e6, dataset_id=dataset_id,
        overrides={path.replace("__", "."): value for path, value in overrides.items()},
    )  # fmt: skip
    assert problems == []
    run_dir = workspace.run_dir(f"r-{name}")
    run_dir.mkdir(parents=True)
    (run_dir / "spec.json").write_bytes(schema.encode(run_spec))
    return run_dir.name


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


ODD = [
    {"messages": [{"role": "user", "content": f'Zeile {i}: 日本 \u2028 \\ "'}, {"role": "assistant", "content": "ü\n"}]}
    for i in range(10)
]


@needs_starter
@pytest.mark.parametrize("tool", other_trainers.TRAINERS)
def test_rows_and_base_lie_beside_and_no_character_is_lost(workspace, tmp_path, tool):
    source = tmp_path / "odd.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ODD))
    run_id = ran(workspace, "lora", datasets.add(workspace, source, "odd").id, dataset__eval_share=0.2)
    made = other_trainers.write(workspace, run_id, tool, tmp_path / "out")
    assert {"train.jsonl", "eval.jsonl", "base"} <= {path.name for path in made}
    found = lines(tmp_path / "out" / "train.jsonl") + lines(tmp_path / "out" / "eval.jsonl")
    plain = [[{k: m[k] for k in ("role", "content")} for m in row["messages"]] for row in found]
    if other_trainers.TRAINERS[tool].written_out:
        marks = {"user": "<|user|>{}<|end|><|assistant|>", "assistant": "{}<|end|>"}
        wanted = [[{**m, "content": marks[m["role"]].format(m["content"])} for m in row["messages"]] for row in ODD]
    else:
        wanted = [row["messages"] for row in ODD]
    assert sorted(map(str, plain)) == sorted(map(str, wanted))
    assert len(lines(tmp_path / "out" / "eval.jsonl")) == 2
    with pytest.raises(NotExportable, match="there already"):
        other_trainers.write(workspace, run_id, tool, tmp_path / "out")


def as_axolotl_reads(patterns: list[str]) -> list[re.Pattern[str]]:
    """What Axolotl 0.19 makes of the patterns of what trains (utils/freeze.py): a dot is one, but before a plus."""
    return [re.compile(re.sub(r"\.(?!\+)", "\\.", one)) for one in patterns]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize(
    ("embedding", "layer", "output"),
    [
        ("model.embed_tokens.weight", "model.layers.{}.{}", ("model.norm.weight", "lm_head.weight")),
        ("transformer.wte.weight", "transformer.h.{}.{}", ("transformer.ln_f.bias", "lm_head.weight")),
    ],
)
def test_axolotl_trains_the_layers_that_the_run_did_and_no_others(embedding, layer, output, tied, head):
    assert SHAPE is not None
    shape = msgspec.structs.replace(SHAPE, tied=tied)
    one = recipe("freeze-top", "prompt", layers=[1, 12], train_head=head)._replace(shape=shape)
    told = yaml.safe_load(other_trainers.files(one, "axolotl")["train.yaml"])
    inside = {
        layer.format(n, part) for n in (0, 1, 2, 11, 12, 21) for part in ("input_layernorm.weight", "mlp.up.weight")
    }
    names = {embedding, *inside, *(output[:1] if tied else output)}
    patterns = as_axolotl_reads(told["unfrozen_parameters"])
    trained = {name for name in names if any(one.match(name) for one in patterns)}
    of_layers = {name for name in inside if ".1." in name or ".12." in name}
    assert trained == of_layers | ({output[0], embedding if tied else output[1]} if head else set())


@needs_starter
def test_what_ends_an_answer_of_a_base_is_named_and_a_template_given_to_one_that_has_none(workspace, tmp_path):
    for name, end, own in (("chatml", "<|pad|>", True), ("plain", "<|end|>", False)):
        folder = shutil.copytree(starter.MODEL_DIR, tmp_path / name)
        told = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(told | {"eos_token": end}))
        if not own:
            (folder / "chat_template.jinja").unlink()
    stored = datasets.add_sample(workspace, starter.sample("new-facts"))
    written = {}
    for base in ("starter", str(tmp_path / "chatml"), str(tmp_path / "plain")):
        run_spec, problems = recipes.resolve(
            recipes.recipes()["lora"], base=base, revision=None, parameters=1e6, dataset_id=stored.id, overrides={}
        )
        assert problems == []
        made = other_trainers.files(portable_recipe.of_spec(workspace, run_spec), "axolotl")["train.yaml"]
        told = yaml.safe_load(made)
        written[Path(base).name] = (told["chat_template"], told.get("chat_template_jinja"), told.get("eot_tokens"))
        steps = counts.optimizer_steps(run_spec.train, portable_recipe.of_spec(workspace, run_spec).rows)
        assert told["warmup_steps"] == counts.warmup_steps(run_spec.train.warmup, steps) + 1
    assert written == {
        "starter": ("tokenizer_default", None, None),
        "chatml": ("tokenizer_default", None, ["<|end|>"]),
        "plain": ("jinja", PLAIN_TEMPLATE, None),
    }


def test_axolotl_reads_a_text_whole_pairs_as_trl_does_and_arguments_as_text():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"n": 1}}}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    written = portable_recipe.row_for("axolotl", {"messages": turns}, "messages")
    assert written is not None
    assert json.loads(written["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {"n": 1}
    whole = portable_recipe.row_for("axolotl", {"text": "a b"}, "text")
    assert whole == {"messages": [{"role": "assistant", "content": "a b"}]}
    two = [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]
    pair = {"prompt": turns[:1], "chosen": two, "rejected": two[:1]}
    assert portable_recipe.row_for("axolotl", pair, "preference") == portable_recipe.row_for("trl", pair, "preference")
    long = portable_recipe.row_for("axolotl", {"prompt": turns[:1], "completion": [two[0], turns[0], two[1]]}, "prompt")
    assert long is not None and [turn["train"] for turn in long["messages"]] == [False, True, False, True]


@needs_starter
def test_only_the_last_answer_of_a_prompt_with_history_is_marked_for_axolotl(workspace, tmp_path):
    source = tmp_path / "a.jsonl"
    history = [{"role": r, "content": r} for r in ("system", "user", "assistant", "user")]
    rows = [{"prompt": history, "completion": [{"role": "assistant", "content": str(i)}]} for i in range(4)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_id = ran(workspace, "lora", datasets.add(workspace, source, "a").id, dataset__eval_share=0.0)
    other_trainers.write(workspace, run_id, "axolotl", tmp_path / "out")
    for row in lines(tmp_path / "out" / "train.jsonl"):
        assert [message["train"] for message in row["messages"]] == [False, False, False, False, True]
    assert not (tmp_path / "out" / "eval.jsonl").exists()


def test_a_run_whose_data_is_gone_is_refused_in_words_and_leaves_nothing(workspace, tmp_path):
    run_id = ran(workspace, "lora", "d" * 64)
    with pytest.raises(NotExportable, match="no data set"):
        other_trainers.write(workspace, run_id, "trl", tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


# --- what divides a model over cards: read by Accelerate, which divides on no processor -----------------------------------
@pytest.mark.parametrize(("file", "kind"), [("fsdp2.yaml", "FSDP"), ("deepspeed-zero3.yaml", "DEEPSPEED")])
def test_accelerate_reads_the_configurations_that_divide_a_model(tmp_path, file, kind):
    from accelerate.commands.config.config_args import load_config_from_file

    one = recipe("lora", "messages", machine__nodes=2, machine__devices=4, train__accumulation=8)
    text = other_trainers.files(one, "trl")[file]
    assert "untested" in text
    path = tmp_path / file
    path.write_text(text)
    told: Any = load_config_from_file(str(path))  # refuses keys that it does not know
    assert (told.distributed_type, told.num_processes, told.num_machines) == (kind, 8, 2)
    for line in (line.lstrip("# ") for line in text.splitlines() if "accelerate launch" in line):
        told = accelerate_words(line.partition("      #")[0])
        assert told.config_file == file and told.training_script == "train.py" and told.machine_rank in (0, 1)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("trl")])
def test_the_arguments_come_before_the_model_as_what_divides_it_wants(name):
    """transformers asks them how to load it (is_deepspeed_zero3_enabled, is_fsdp_enabled; training_args.py sets both up)."""
    text = other_trainers.files(CASES[name][1], "trl")["train.py"]
    assert text.index("\nargs = ") < text.index("\nmodel = AutoModel")


def test_a_base_in_four_bits_is_divided_from_main_memory_or_its_limit_is_said():
    made = other_trainers.files(CASES["trl-qlora"][1], "trl")
    script = made["train.py"]
    asked = script[script.index("fsdp, deepspeed = ") : script.index("bits = ")]
    for divides, place in (("FSDP", {"device_map": {"": "cpu"}}), ("DEEPSPEED", {}), ("", {"device_map": {"": 1}})):
        told: dict[str, Any] = {"os": SimpleNamespace(environ={f"ACCELERATE_USE_{divides}": "true", "LOCAL_RANK": "1"})}
        exec(asked, told | {"cuda": True}, told)
        assert told["place"] == place
    assert "each card takes the whole base in 4 bits" in made["deepspeed-zero3.yaml"]


def accelerate_words(line: str) -> Any:
    from accelerate.commands.launch import launch_command_parser

    return launch_command_parser().parse_args(line.split()[2:])


@needs_starter
def test_a_run_that_cannot_start_here_is_written_as_a_script(workspace, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TUNEBOOK_HOME", str(workspace.root))
    source = tmp_path / "odd.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ODD))
    told = ["train", "lora", "--data", str(source), "--base", "starter", "--script", str(tmp_path / "out")]
    monkeypatch.setattr(cards, "unseen", lambda facts: Problem(rule="driver-torch-none", where=cards.WHERE))
    with pytest.raises(SystemExit) as ended:
        main([*told, "--set", "machine.devices=1000", "--set", "train.accumulation=4000"])
    assert ended.value.code == 0
    assert {"train.py", "fsdp2.yaml", "deepspeed-zero3.yaml", "train.jsonl"} <= set(os.listdir(tmp_path / "out"))
    assert str(tmp_path / "out" / "train.py") in capsys.readouterr().out
    assert store.list_every(workspace) == []  # nothing was started


# --- the script, run by itself -----------------------------------------------------------------------------------


def run_script(folder: Path) -> list[dict[str, float]]:
    """Run train.py as a stranger does, outside of this project, and return what its trainer logged."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(folder / "cache")
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-P", "train.py"], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "out" / "trainer_state.json").read_text())["log_history"]


@pytest.mark.slow
@pytest.mark.train
@needs_starter
def test_the_trl_script_alone_reaches_the_loss_of_the_run(trained_home, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(trained_home, home)
    workspace = Workspace(home)
    run_id = store.list_all(workspace)[0].id
    done = tunebook("export", run_id, "--what", "trl", "--to", str(tmp_path / "out"), home=home, machine=tmp_path / "m")
    assert done.returncode == 0, done.stderr
    logged = run_script(tmp_path / "out")
    theirs = {int(line["step"]): line["loss"] for line in logged if "loss" in line}
    found, _ = events.read(workspace.run_dir(run_id))
    ours = {e.step: e.loss for e in found if isinstance(e, events.Step) and e.loss is not None}
    assert len(ours) > 5 and max(abs(theirs[step] - loss) for step, loss in ours.items()) < 0.01
    held = [e.loss for e in found if isinstance(e, events.Eval)]
    assert held[-1] == pytest.approx([line["eval_loss"] for line in logged if "eval_loss" in line][-1], abs=0.01)


TALKS = [
    {"messages": [{"role": "system", "content": "Be short."}] * (i % 2) + [
        {"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": f"It is number {i}."},
        {"role": "user", "content": "And then?"}, {"role": "assistant", "content": f"Then comes {i + 1}. " * (i + 1)},
    ]} for i in range(8)
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.train
@needs_starter
@pytest.mark.parametrize("name", ["lora", "dpo", "kto"])
def test_the_trl_script_learns_all_its_rows_at_the_losses_of_the_run(tmp_path, name):
    """Of two steps: the second is at what was learned in the first."""
    rows = TALKS if name == "lora" else our_runs.sample(recipes.recipes()[name].sample, 8)
    run_id = our_runs.trained(tmp_path / "home", name, rows, "train.warmup=0", steps=2)
    other_trainers.write(Workspace(tmp_path / "home"), run_id, "trl", tmp_path / "out")
    losses = [line["loss"] for line in run_script(tmp_path / "out") if "loss" in line]
    assert losses == pytest.approx(our_runs.learned(Workspace(tmp_path / "home"), run_id)[0], abs=1e-3)


@pytest.mark.slow
@pytest.mark.train
@needs_starter
@pytest.mark.parametrize(
    ("name", "sample", "more"),
    [
        ("freeze-top", "new-facts", {}),
        ("lora", "new-facts", {"layers": [2, 3], "train__early_stopping": 2}),
        ("qoft", "new-facts", {}),
        ("full", "new-facts", {"train__replay_share": 0.0}),
        ("dpo", "", {}),
        ("kto", "", {}),
        ("reward", "", {}),
    ],
)
def test_every_recipe_trains_as_a_script(workspace, tmp_path, name, sample, more):
    wanted = sample or recipes.recipes()[name].sample
    stored = datasets.add_sample(workspace, starter.sample(wanted))
    run_id = ran(workspace, name, stored.id, train__max_steps=3, train__threads=1, train__evaluations=1, **more)
    other_trainers.write(workspace, run_id, "trl", tmp_path / "out")
    losses = [line["loss"] for line in run_script(tmp_path / "out") if "loss" in line]
    assert len(losses) == 3 and all(math.isfinite(loss) for loss in losses)
    assert list((tmp_path / "out" / "out" / "final").glob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.train
@needs_starter
@pytest.mark.skipif(
    not machine_choices.installed("unsloth"), reason="Unsloth is not installed: `make unsloth` brings it"
)
@pytest.mark.parametrize("name", ["lora", "full", "dpo"])
def test_the_script_by_unsloth_gives_the_losses_of_the_plain_one(workspace, tmp_path, name):
    """By its backend for processors. That the plain one's are the run's is tested above."""
    stored = datasets.add_sample(workspace, starter.sample(recipes.recipes()[name].sample))
    run_id = ran(workspace, name, stored.id, train__max_steps=2, train__evaluations=1)
    losses = []
    for trainer in portable_recipe.BY_TRL:
        other_trainers.write(workspace, run_id, trainer, tmp_path / trainer)
        losses.append([line["loss"] for line in run_script(tmp_path / trainer) if "loss" in line])
    assert len(losses[0]) == 2 and losses[1] == pytest.approx(losses[0], abs=1e-3)
