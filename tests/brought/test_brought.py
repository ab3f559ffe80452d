"""What a folder that was tuned elsewhere brings: what it is, what is refused and why, and that only that is copied."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from engine import starter
from engine.brought import adapters, folder
from engine.forgetting import adoption
from engine.spec import schema
from engine.workspace import Workspace
from tests.helpers import examples

HIDDEN = json.loads((starter.MODEL_DIR / "config.json").read_bytes())["hidden_size"]
QUERY = "base_model.model.model.layers.{n}.self_attn.q_proj"
PLAIN = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"],
         "base_model_name_or_path": "owner/name"}  # fmt: skip


def lora(rank: int = 4, width: int = HIDDEN, layers: int = 2) -> dict[str, numpy.ndarray]:
    made = {}
    for n in range(layers):
        made[f"{QUERY.format(n=n)}.lora_A.weight"] = numpy.zeros((rank, width), "float32")
        made[f"{QUERY.format(n=n)}.lora_B.weight"] = numpy.zeros((width, rank), "float32")
    return made


@pytest.fixture
def bring(tmp_path: Path) -> Callable[..., Path]:
    """Write an adapter folder; `config` is laid over a plain one."""

    def made(tensors: dict[str, numpy.ndarray] | None = None, **config: Any) -> Path:
        place = tmp_path / f"adapter-{len(list(tmp_path.iterdir()))}"
        place.mkdir()
        (place / "adapter_config.json").write_text(json.dumps({**PLAIN, **config}))
        save_file(lora() if tensors is None else tensors, place / "adapter_model.safetensors")
        return place

    return made


def rules(workspace: Workspace, place: Path, base: str | None = "starter") -> list[str]:
    found, problems = adoption.build(workspace, str(place), base)
    assert (found is None) == bool(problems)
    return [one.rule for one in problems]


# --- what it is ------------------------------------------------------------------------------------------------------


def test_an_adapter_is_told_by_its_tensors_and_peft_is_given_names_instead_of_expressions(bring):
    place = bring(target_modules="(a+)+$", rank_pattern={"(.*)*q": 3}, use_rslora=True, megatron_core="os")
    made, problems = adapters.read(place)
    assert made is not None and not problems
    assert (made.kind, made.rank, made.alpha, made.scaled_by_root, made.base) == ("lora", 4, 8, True, "owner/name")
    assert made.config["target_modules"] == [f"model.layers.{n}.self_attn.q_proj" for n in (0, 1)]
    assert made.config["rank_pattern"] == {} and "megatron_core" not in made.config


def test_layers_of_another_rank_are_named_with_it(bring):
    odd = lora()
    odd[f"{QUERY.format(n=1)}.lora_A.weight"] = numpy.zeros((2, HIDDEN), "float32")
    odd[f"{QUERY.format(n=1)}.lora_B.weight"] = numpy.zeros((HIDDEN, 2), "float32")
    odd["base_model.model.lm_head.weight"] = numpy.zeros((3, HIDDEN), "float32")
    made, _ = adapters.read(bring(odd))
    assert made is not None and made.rank is None and made.whole == ("lm_head",)
    assert set(made.config["rank_pattern"].values()) <= {2, 4} and len(made.config["rank_pattern"]) == 1


def test_rotations_are_told_by_the_numbers_above_their_diagonal(bring):
    blocks = {f"{QUERY.format(n=0)}.oft_R.weight": numpy.zeros((HIDDEN // 32, 32 * 31 // 2), "float32")}
    made, _ = adapters.read(bring(blocks, peft_type="OFT", lora_alpha=None))
    assert made is not None and made.kind == "oft" and made.block_size == 32
    assert adapters.misfits(made, folder.tensors(starter.MODEL_DIR), None) == []


def test_the_tool_is_named_where_it_left_a_mark(bring):
    place = bring(auto_mapping={"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True})
    found, _ = folder.look(place)
    assert found is not None and found.tool == "Unsloth"
    place = bring()
    (place / "training_args.yaml").write_text("stage: sft\n")
    (place / "trainer_log.jsonl").write_text("{}\n")
    found, _ = folder.look(place)
    assert found is not None and found.tool == "LLaMA-Factory" and set(found.files) == {
        "adapter_config.json", "adapter_model.safetensors"
    }  # fmt: skip


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        ({"peft_type": "IA3"}, "adapter-kind"),
        ({"peft_type": None}, "adapter-kind"),
        ({"task_type": "SEQ_CLS"}, "adapter-task"),
        ({"bias": "all"}, "adapter-field"),
        ({"megatron_config": {"a": 1}}, "adapter-field"),
        ({"layer_replication": [[0, 1]]}, "adapter-field"),
        ({"trainable_token_indices": [1]}, "adapter-field"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "adapter-field"),
        ({"lora_alpha": float("nan")}, "adapter-field"),
        ({"lora_alpha": 10**400}, "adapter-field"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "adapter-field"),
        ({"a_field_of_tomorrow": "on"}, "adapter-field"),
        ({"init_lora_weights": "pissa_niter_4"}, "adapter-changed-base"),
        ({"init_lora_weights": "olora"}, "adapter-changed-base"),
    ],
)
def test_what_would_compute_something_else_is_refused_by_name(bring, workspace, config, rule):
    assert rules(workspace, bring(**config)) == [rule]


@pytest.mark.parametrize(
    ("path", "rule"),
    [("", "adopt-no-folder"), (" ", "adopt-no-folder"), ("\0", "base-missing"), ("~nosuchuser/x", "base-missing")],
)
def test_a_path_that_leads_nowhere_is_refused_in_words(workspace, path, rule):
    found, problems = adoption.build(workspace, path, "starter")
    assert found is None and [one.rule for one in problems] == [rule]


@pytest.mark.parametrize(
    ("tensors", "rule"),
    [
        (lora(width=HIDDEN + 8), "adopt-misfit"),
        (lora(layers=9), "adopt-misfit"),
        ({**lora(), "base_model.model.model.norm.weight": numpy.zeros((HIDDEN + 1,), "float32")}, "adopt-misfit"),
        ({**lora(), "something.else": numpy.zeros((2,), "float32")}, "adapter-tensor"),
        ({f"{QUERY.format(n=0)}.lora_A.weight": numpy.zeros((4, HIDDEN), "float32")}, "adapter-tensor"),
        ({f"{QUERY.format(n=0)}.hada_w1_a": numpy.zeros((4, HIDDEN), "float32")}, "adapter-tensor"),
    ],
)
def test_an_adapter_of_another_base_or_make_is_refused_with_the_layer_named(bring, workspace, tensors, rule):
    found, problems = adoption.build(workspace, str(bring(tensors)), "starter")
    assert found is None and [one.rule for one in problems] == [rule]
    assert any(word in problems[0].sentence for word in ("q_proj", "norm", "something.else"))


def test_a_file_that_leads_elsewhere_is_refused_but_not_the_hubs_own_links(bring, workspace, tmp_path):
    place = bring()
    outside = tmp_path / "secret.json"
    shutil.copy(starter.MODEL_DIR / "tokenizer.json", outside)
    (place / "tokenizer.json").symlink_to(outside)
    assert rules(workspace, place) == ["adopt-link"]
    cached = tmp_path / "models--a--b"
    (cached / "snapshots").mkdir(parents=True)
    (cached / "blobs").mkdir()
    snapshot = cached / "snapshots" / "0123"
    shutil.copytree(bring(), snapshot)
    (snapshot / "adapter_model.safetensors").rename(cached / "blobs" / "x")
    (snapshot / "adapter_model.safetensors").symlink_to("../../blobs/x")
    assert rules(workspace, snapshot) == []


def test_code_beside_it_is_passed_over_which_is_said_and_never_copied(bring, workspace):
    place = bring()
    (place / "tokenizer.json").write_bytes((starter.MODEL_DIR / "tokenizer.json").read_bytes())
    (place / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["x.X", None]}}))
    assert rules(workspace, place) == []
    (place / "x.py").write_text("raise SystemExit")
    (place / "training_args.bin").write_bytes(b"\x80pickle")
    found, _ = folder.look(place)
    assert found is not None and {Path(name).suffix for name in found.files} == {".json", ".safetensors"}
    assert "not run" in " ".join(map(str, found.notes))


def test_a_whole_model_of_a_kind_of_its_own_that_brings_code_is_refused(tmp_path):
    place = tmp_path / "whole"
    shutil.copytree(starter.MODEL_DIR, place)
    config = json.loads((place / "config.json").read_bytes())
    (place / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "x.X"}}))
    found, problems = folder.look(place)
    assert found is not None and "not run" in " ".join(map(str, found.notes)) and problems == []
    (place / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": {}}))
    found, problems = folder.look(place)
    assert found is None and "base-remote-code" in [problem.rule for problem in problems]


def test_a_tokenizer_with_more_tokens_than_the_base_has_rows_is_refused(bring, workspace):
    place = bring()
    told = json.loads((starter.MODEL_DIR / "tokenizer.json").read_bytes())
    told["added_tokens"].append({**told["added_tokens"][0], "id": 99_999, "content": "<|new|>"})
    (place / "tokenizer.json").write_text(json.dumps(told))
    assert rules(workspace, place) == ["adopt-tokens"]


def test_a_base_must_be_named_or_here(bring, workspace):
    assert rules(workspace, bring(base_model_name_or_path=None), None) == ["adopt-base-none"]
    assert rules(workspace, bring(base_model_name_or_path="run:x"), None) == ["adopt-base-none"]
    assert rules(workspace, bring(), None) == ["adopt-base-away"]
    own, _ = adoption.build(workspace, str(bring(base_model_name_or_path=str(starter.MODEL_DIR))))
    assert own is not None and own.base.ref == "starter" and own.notes == ()


def test_another_name_of_the_base_is_said_and_not_refused(bring, workspace):
    found, _ = adoption.build(workspace, str(bring()), "starter")
    assert found is not None and "owner/name" in found.notes[0]


def test_a_demo_refuses_before_it_looks(workspace, monkeypatch, tmp_path):
    monkeypatch.setenv("TUNEBOOK_DEMO", "1")
    assert rules(workspace, tmp_path / "nowhere") == rules(workspace, starter.MODEL_DIR) == ["demo-kind"]


@settings(max_examples=examples(60))
@given(
    config=st.dictionaries(
        st.sampled_from([*PLAIN, "alpha_pattern", "modules_to_save", "init_lora_weights", "bias", "x"]),
        st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
                     lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=5), one, max_size=3)),
    ),
    data=st.binary(max_size=60),
)  # fmt: skip
def test_no_config_and_no_header_makes_reading_raise(tmp_path_factory, config, data):
    place = tmp_path_factory.mktemp("strange")
    (place / "adapter_config.json").write_text(json.dumps({**PLAIN, **config}))
    (place / "adapter_model.safetensors").write_bytes(data)
    assert adapters.read(place)[0] is None
    save_file(lora(), place / "adapter_model.safetensors")
    made, problems = adapters.read(place)
    assert (made is None) == bool(problems)


# --- copying ---------------------------------------------------------------------------------------------------------


def test_only_what_was_looked_at_is_copied_and_with_our_config(bring, tmp_path):
    place = bring(target_modules=".*q_proj")
    found, _ = folder.look(place)
    assert found is not None
    sha, run = folder.digest(found), tmp_path / "run"
    run.mkdir()
    made = folder.take(found, run, sha)
    assert sorted(os.listdir(made)) == ["adapter_config.json", "adapter_model.safetensors"]
    assert json.loads((made / "adapter_config.json").read_bytes()) == found.adapter.config  # pyright: ignore
    assert load_file(made / "adapter_model.safetensors").keys() == lora().keys()
    assert adapters.read(made)[0] is not None  # what we write reads as what it was


def test_a_folder_that_was_changed_since_is_refused_and_nothing_is_left(bring, tmp_path):
    place = bring()
    found, _ = folder.look(place)
    assert found is not None
    sha, run = folder.digest(found), tmp_path / "run"
    run.mkdir()
    save_file({name: tensor + 1 for name, tensor in lora().items()}, place / "adapter_model.safetensors")
    with pytest.raises(folder.Refused, match="adopt-changed"):
        folder.take(found, run, sha)
    assert list(run.iterdir()) == []


def test_a_full_disk_is_said_before_anything_is_copied(bring, tmp_path, monkeypatch):
    found, _ = folder.look(bring())
    assert found is not None
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))  # pyright: ignore
    with pytest.raises(folder.Refused, match="adopt-disk"):
        folder.take(found, tmp_path, "")


def test_a_whole_model_of_another_build_is_refused_and_more_rows_of_tokens_are_not():
    base = folder.tensors(starter.MODEL_DIR)
    name = next(one for one in base if one.endswith("embed_tokens.weight"))
    assert folder.unlike(base, base) == []
    assert folder.unlike({**base, name: (base[name][0] + 2, base[name][1])}, base) == []
    assert folder.unlike({**base, name: (base[name][0], base[name][1] + 1)}, base)
    assert folder.unlike({one: shape for one, shape in base.items() if "layers.1" not in one}, base)


# --- its spec --------------------------------------------------------------------------------------------------------


def test_what_nobody_knows_is_null_in_the_file_and_reads_back(bring, workspace):
    found, _ = adoption.build(workspace, str(bring()), "starter")
    assert found is not None
    made = adoption._spec(found, "a" * 64)
    told = json.loads(schema.encode(made))
    assert told["recipe"] is told["objective"] is told["dataset"] is None and told["kind"] == "adopted"
    assert told["adapter_args"]["rank"] == 4 and "learning_rate" not in told["train"] and "layers" not in told
    assert told["adopted"]["sha256"] == "a" * 64 and schema.decode(schema.encode(made)) == made
    for kind in ("train", "evaluate"):  # they may be null there alone
        with pytest.raises(ValueError):
            schema.decode(json.dumps({**told, "kind": kind}).encode())
