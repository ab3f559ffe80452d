"""The export for LLaMA-Factory, held against LLaMA-Factory: it starts as written, on the same rows and tokens, at the same
loss. `make other-trainers` installs it; where it is not, only what needs it is skipped."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from engine import starter
from engine.data import datasets
from engine.export import NotExportable, other_trainers
from engine.export.portable_recipe import PortableRecipe
from engine.render import Coder, encode
from engine.render.template import PLAIN_TEMPLATE
from engine.workspace import Workspace
from tests.export import our_runs
from tests.export.our_runs import sample
from tests.export.test_other_trainers import CASES, QWEN, ran, recipe

PROGRAM = Path(os.environ.get("TUNEBOOK_LLAMA_FACTORY") or Path(sys.prefix, "llama-factory", "bin", "llamafactory-cli"))
needs_starter = pytest.mark.skipif(not starter.MODEL_DIR.is_dir(), reason="engine/starter/model has not been built")
needs_program = pytest.mark.skipif(
    not PROGRAM.is_file(), reason=f"no LLaMA-Factory at {PROGRAM}: `make other-trainers` installs it"
)


def turns(*told: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in told], **more}


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
CONVERSATIONS = [
    {"messages": [
        {"role": "user", "content": "What is 2 plus 3?"}, {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "5", "name": "add"}, {"role": "assistant", "content": "2 plus 3 is 5."},
    ]},
    turns(("system", "Be short."), ("user", "Hello"), ("assistant", "Hello."), ("user", "Who?"), ("assistant", "I.")),
    turns(("user", "One question."), ("user", "And another."), ("assistant", "Two answers.")),
    turns(("assistant", "I begin."), ("user", "Do you?"), ("assistant", "I did.")),
    turns(("user", "First"), ("assistant", "yes"), ("assistant", "and yes"), ("user", "{{content}}."), ("assistant", "ok")),
    {"messages": [{"role": "user", "content": "What is 9?"}, {"role": "assistant", "content": "Four.", "weight": 0},
                  {"role": "user", "content": "No."}, {"role": "assistant", "content": "Nine."}]},
]  # fmt: skip
# The starter's own template knows no tools.
WITH_TOOLS = """{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
<|assistant|>{{ message.content or '' }}
{%- for call in message.tool_calls or [] -%}[{{ call.function.name }} {{ call.function.arguments | tojson }}]{%- endfor -%}
<|end|>
{%- elif message.role == 'tool' -%}<|user|>= {{ message.content }}<|end|>
{%- else -%}<|{{ message.role }}|>{{ message.content }}<|end|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""
TEXTS = [{"text": f"The {name} of the house is {name} in every room."} for name in ("colour", "floor", "roof", "door")]


def with_tools(folder: Path) -> Path:
    """A base that is the starter with another template, as a folder of a person's own."""
    if not folder.exists():
        shutil.copytree(starter.MODEL_DIR, folder)
        (folder / "chat_template.jinja").write_text(WITH_TOOLS)
    return folder


# What is run: the recipe, its rows, and settings of its own.
KINDS: dict[str, tuple[str, Any, list[str]]] = {
    "lora": ("lora", lambda: sample("new-facts", 8), []),
    "conversations": ("full", lambda: CONVERSATIONS, []),
    "dpo": ("dpo", lambda: sample("preference-pairs", 8), []),
    "kto": ("kto", lambda: sample("good-bad", 8), []),
    "freeze": ("freeze-top", lambda: sample("new-facts", 8), []),
    "text": ("full", lambda: TEXTS, []),
    "layers": ("lora", lambda: sample("new-facts", 8), ["layers=[1,2]"]),
    "reward": ("reward", lambda: sample("preference-pairs", 8), []),
    "oft": ("oft", lambda: sample("new-facts", 8), []),
    "qlora": ("qlora", lambda: sample("new-facts", 8), []),
}


def trained(home: Path, kind: str) -> str:
    """Run a kind with us for two steps, and return the id."""
    recipe, rows, more = KINDS[kind]
    base = str(with_tools(home.parent / "with-tools")) if kind == "conversations" else "starter"
    return our_runs.trained(home, recipe, rows(), "train.warmup=0", *more, steps=2, base=base)


def theirs(folder: Path) -> tuple[list[float], int]:
    """Start LLaMA-Factory on what was written, as a stranger does, and return its losses and how many weights it trains. It
    is told to keep its tokens besides."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | {
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "cache")
    }  # fmt: skip
    done = subprocess.run(
        [PROGRAM, "train", "train.yaml", "tokenized_path=tokens"],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    log = json.loads((folder / "out" / "trainer_state.json").read_text())["log_history"]
    count = re.search(r"trainable params: ([\d,]+)", done.stderr + done.stdout)
    assert count is not None
    return [line["loss"] for line in log if "loss" in line], int(count[1].replace(",", ""))


def their_rows(folder: Path) -> list[dict[str, list[int]]]:
    """The tokens that LLaMA-Factory kept of its rows, read from the Arrow files of the data set."""
    import pyarrow as pa

    found: list[dict[str, list[int]]] = []
    for path in sorted((folder / "tokens" / "train").glob("*.arrow")):
        with pa.memory_map(str(path)) as file:
            found += pa.ipc.open_stream(file).read_all().to_pylist()
    return found


def learned(ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
    """Tokens and labels of a row up to the last token that is trained."""
    last = max((at + 1 for at, label in enumerate(labels) if label != encode.IGNORED), default=0)
    return ids[:last], labels[:last]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("factory") / "home"


@pytest.mark.slow
@pytest.mark.train
@needs_starter
@needs_program
@pytest.mark.parametrize("kind", KINDS)
def test_llama_factory_starts_as_written_and_trains_the_same_tokens_at_the_same_loss(home, tmp_path, kind):
    workspace, folder = Workspace(home), tmp_path / "out"
    run_id = trained(home, kind)
    other_trainers.write(workspace, run_id, "llama-factory", folder)
    (our_losses, our_count), (their_losses, their_count) = our_runs.learned(workspace, run_id), theirs(folder)

    wanted = [learned(*one) for one in our_runs.encoded(workspace, run_id)]
    sides = ("chosen_", "rejected_") if kind in ("dpo", "reward") else ("",)
    found = [learned(row[f"{side}input_ids"], row[f"{side}labels"]) for row in their_rows(folder) for side in sides]
    assert sorted(found) == sorted(wanted)
    told = (folder / "train.yaml").read_text().partition("Not the same as in the run:")[2]
    assert "other tokens" not in told
    if kind == "reward":
        assert "starts from other random weights" in told
        return
    assert their_losses[0] == pytest.approx(our_losses[0], abs=1e-3)
    if kind == "freeze":
        assert f"{their_count:,} weights train, and {our_count:,} in the run" in told
    else:
        assert their_count == our_count
        assert their_losses[1] == pytest.approx(our_losses[1], abs=1e-3)  # the same weights learned the same


@pytest.mark.slow
@needs_program
def test_its_own_parser_knows_every_setting(tmp_path):
    told = [
        yaml.safe_load(other_trainers.files(one, tool)["train.yaml"])
        for tool, one in CASES.values()
        if tool == "llama-factory"
    ]
    script = (
        "import json, sys\nfrom llamafactory.hparams import parser\nfrom transformers import HfArgumentParser\n"
        "for told in json.load(sys.stdin): HfArgumentParser(parser._TRAIN_ARGS).parse_dict(told, allow_extra_keys=False)"
    )
    done = subprocess.run(
        [PROGRAM.parent / "python", "-c", script], input=json.dumps(told), cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


# --- without LLaMA-Factory ---------------------------------------------------------------------------------------


NO_MARK = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A:{{ m.content }}<|end|>{% else %}Q:{{ m.content }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)


def exported(workspace: Workspace, folder: Path, rows: list[dict[str, Any]], base: str = "starter", **more: Any) -> str:
    """Write a run on these rows for LLaMA-Factory, and return its settings."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_id = ran(workspace, "lora", datasets.add(workspace, path, "rows").id, base, dataset__eval_share=0.0, **more)
    other_trainers.write(workspace, run_id, "llama-factory", folder / "out")
    return (folder / "out" / "train.yaml").read_text()


@needs_starter
def test_rows_that_come_to_other_tokens_there_are_counted_at_the_head(workspace, tmp_path):
    """A tokenizer that puts a space before whatever it reads, and a template without a mark before the answer."""
    base = with_tools(tmp_path / "base")
    told = json.loads((base / "tokenizer.json").read_text())
    told["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True
    (base / "tokenizer.json").write_text(json.dumps(told))
    (base / "chat_template.jinja").write_text(NO_MARK)
    assert "8 of 8 rows come to other tokens there" in exported(workspace, tmp_path, sample("new-facts", 8), str(base))


@needs_starter
def test_turns_that_are_turned_off_and_turns_in_no_order_are_read_and_nothing_of_them_is_lost(workspace, tmp_path):
    base = with_tools(tmp_path / "base")
    head = exported(workspace, tmp_path, CONVERSATIONS, str(base))
    assert "other tokens" not in head
    rows = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert len(rows) == len(CONVERSATIONS)
    for row in rows:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
    learned = [m["content"] for row in rows for m in row["messages"] if m["role"] == "assistant"]
    assert not any("Four." in text for text in learned) and any('[add {"a": 2, "b": 3}]' in text for text in learned)


@needs_starter
def test_longer_rows_are_cut_as_the_run_cuts_them_and_such_as_teach_nothing_are_left_out(workspace, tmp_path):
    rows = [turns(("user", "q"), ("assistant", "a b c " * 200)), turns(("user", "q " * 300), ("assistant", "a"))]
    exported(workspace, tmp_path, rows, train__max_length=64)
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    coder = Coder.of_folder(starter.MODEL_DIR, "starter")
    assert sum(len(coder.code(message["content"]).ids) for message in row["messages"]) == 64


@needs_starter
def test_a_base_without_a_template_gets_the_one_that_its_rows_are_written_in(workspace, tmp_path):
    base = with_tools(tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    head = exported(workspace, tmp_path, sample("new-facts", 4), str(base))
    assert "copy chat_template.jinja into out" in head
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == PLAIN_TEMPLATE


@needs_starter
def test_a_base_whose_tokenizer_is_not_here_is_refused_in_words_and_leaves_nothing(workspace, tmp_path):
    base = with_tools(tmp_path / "base")
    (base / "tokenizer.json").unlink()
    with pytest.raises(NotExportable, match="tokenizer"):
        exported(workspace, tmp_path, sample("new-facts", 4), str(base))
    assert not list(tmp_path.glob("*out*"))


def test_nothing_is_asked_of_a_card_that_may_not_be_there():
    for name, (tool, one) in CASES.items():
        told = yaml.safe_load(other_trainers.files(one, tool)["train.yaml"]) if tool == "llama-factory" else {}
        assert not {"bf16", "fp16", "pure_bf16"} & set(told), name


def settings_of(one: PortableRecipe) -> dict[str, Any]:
    return yaml.safe_load(other_trainers.files(one, "llama-factory")["train.yaml"])


def test_the_first_layers_are_a_count_below_none():
    one = recipe("full", "messages", layers=[0, 1, 2], train_head=False)
    assert settings_of(one)["freeze_trainable_layers"] == -3


def test_the_layers_of_gpt2_are_named_since_all_leaves_them_out():
    gpt2 = msgspec.structs.replace(QWEN, layout="gpt2", layers=12)
    told = settings_of(recipe("lora", "messages")._replace(conv1d=True, shape=gpt2))
    assert told["lora_target"] == "c_attn,c_proj,c_fc"
    told = settings_of(recipe("freeze-top", "messages", depth=12)._replace(conv1d=True, shape=gpt2))
    assert (told["freeze_trainable_layers"], told["freeze_extra_modules"]) == (3, "wte,ln_f")


def test_modules_of_some_layers_that_are_not_known_by_name_are_said_to_be_of_all():
    one = recipe("lora", "prompt", layers="top:0.1", adapter_args__target_modules="self_attn.q_proj")._replace(
        shape=QWEN
    )
    assert "the adapter sits on all layers there" in other_trainers.files(one, "llama-factory")["train.yaml"]
    assert settings_of(one)["lora_target"] == "self_attn.q_proj"
