"""What a folder is, told by its files: what is said of each kind, and that nothing a folder may hold is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.models import Base, bases, folders, shapes
from engine.workspace import Workspace
from tools import folders as kinds
from tools.folders import EMBEDDING, POINTER, adapter, inside, model, safetensors, without, write


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "home")


def look(folder: Path, files: dict[str, Any]) -> folders.Folder:
    return folders.look(write(folder, files))


def rules(seen: folders.Folder | Base) -> list[str]:
    return [problem.rule for problem in seen.problems]


def said(seen: folders.Folder | Base) -> str:
    return " ".join(problem.sentence for problem in seen.problems)


def test_the_table_is_current():
    assert kinds.PAGE.read_text("utf-8") == kinds.page(), "run `make folders`"


# --- adapters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [{}, {"config.json": kinds.CONFIG}], ids=["alone", "with config.json, as Axolotl does"]
)
def test_of_an_adapter_its_base_is_named_and_how_to_take_both(tmp_path, config):
    seen = look(tmp_path / "mine", adapter() | config)
    assert seen.kind == "adapter" and rules(seen) == ["folder-adapter"]
    assert f"tunebook adopt owner/base {tmp_path / 'mine'}" in said(seen)
    assert seen.adapter is not None and (seen.adapter.base, seen.adapter.method) == ("owner/base", "LORA")


TOLD = {
    "Unsloth": [{"README.md": "---\ntags:\n- unsloth\n- trl\n---\n"}, {"adapter_config.json": kinds.ADAPTER | {
        "auto_mapping": {"parent_library": "transformers.models.qwen3", "unsloth_fixed": True}}}],
    "LLaMA-Factory": [{"README.md": "---\ntags:\n- llama-factory\n- lora\n---\n"}, {"training_args.yaml": ""}],
    "Axolotl": [{"README.md": "---\ntags:\n- axolotl\n---\n"}, {"README.md": "built with github.com/axolotl-ai-cloud"}],
    "ms-swift": [{"args.json": {"swift_version": "3.1"}}],
    "torchtune": [{"recipe_state.pt": b""}],
    "TRL": [{"README.md": "---\nlibrary_name: transformers\ntags:\n- trl\n- sft\n---\n"}],
    "peft": [{}, {"README.md": "---\nlibrary_name: peft\n---\n"}, {"args.json": {"seed": 1}}, {"README.md": b"\xff"}],
}  # fmt: skip


@pytest.mark.parametrize(("tool", "files"), [(tool, one) for tool, every in TOLD.items() for one in every])
def test_who_made_an_adapter_is_told_by_what_lies_beside_it(tmp_path, tool, files):
    assert look(tmp_path / "mine", adapter() | files).tool == tool


@pytest.mark.parametrize(
    ("files", "rule"),
    [
        (adapter(peft_type="IA3"), "folder-adapter-method"),
        (without(adapter(), "adapter_model.safetensors") | {"adapter_model.bin": b"\x80"}, "folder-adapter-pickle"),
        (without(adapter(), "adapter_model.safetensors"), "folder-adapter-empty"),
        (adapter(base_model_name_or_path=""), "folder-adapter-no-base"),
        (adapter() | {"adapter_model.safetensors": POINTER}, "folder-pointer"),
        (adapter() | {"adapter_config.json": b"\xff"}, "folder-adapter-method"),
    ],
)
def test_an_adapter_that_cannot_be_taken_is_told_as_one(tmp_path, files, rule):
    seen = look(tmp_path / "mine", files)
    assert seen.kind == "adapter" and rules(seen) == [rule]


def test_an_adapter_beside_a_model_is_a_note_and_the_model_counts_alone(workspace, tmp_path):
    base = bases.describe(str(write(tmp_path / "mine", model() | adapter())), workspace)
    alone = bases.describe(str(write(tmp_path / "alone", model())), workspace)
    assert base.problems == () and base.parameters == alone.parameters and base.weights_bytes == alone.weights_bytes
    assert any("adapter" in str(note) for note in base.notes) and alone.notes == ()


# --- what a trainer leaves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [("checkpoint-500", "checkpoint-1000"), ("epoch_0", "epoch_1"), ("checkpoint-9", "checkpoint-10")],
    ids="-".join,
)
def test_of_an_output_folder_the_newest_checkpoint_is_named(tmp_path, names):
    files = {name: content for one in names for name, content in inside(one, model()).items()}
    seen = look(tmp_path / "mine", files | {"trainer_state.json": {}})
    assert seen.kind == "output" and rules(seen) == ["folder-output"]
    assert str(tmp_path / "mine" / names[1]) in said(seen)
    assert [path.name for path in seen.checkpoints] == [names[1], names[0]]


def test_an_empty_checkpoint_is_none(tmp_path):
    seen = look(tmp_path / "mine", inside("checkpoint-5", model()) | {"checkpoint-9/trainer_state.json": {}})
    assert [path.name for path in seen.checkpoints] == ["checkpoint-5"]


def test_of_an_output_folder_of_adapters_the_command_is_named(tmp_path):
    seen = look(tmp_path / "mine", inside("checkpoint-5", adapter()))
    assert rules(seen) == ["folder-output-adapters"] and "tunebook adopt owner/base" in said(seen)


def test_a_checkpoint_is_a_base_and_said_to_be_one(workspace, tmp_path):
    files = model() | {"trainer_state.json": {"global_step": 1200}, "optimizer.pt": b"PK\x03\x04"}
    base = bases.describe(str(write(tmp_path / "checkpoint-1200", files)), workspace)
    assert base.problems == () and any("1,200" in str(note) for note in base.notes)


def test_a_model_with_checkpoints_inside_is_the_model(workspace, tmp_path):
    files = model() | inside("checkpoint-5", model())
    assert bases.describe(str(write(tmp_path / "mine", files)), workspace).problems == ()


# --- rounded weights ---------------------------------------------------------------------------------------------

FOUR = {"quant_method": "bitsandbytes", "load_in_4bit": True}


def test_a_base_in_4_bits_is_counted_unpacked(workspace, tmp_path):
    """By its shape where that is known, else by the headers: two weights to a byte, the constants none of them."""
    linear = "model.layers.0.mlp.up_proj.weight"
    packed = {
        linear: ("U8", [16, 1]), f"{linear}.absmax": ("U8", [1]), f"{linear}.quant_map": ("F32", [16]),
        f"{linear}.nested_absmax": ("F32", [1]), f"{linear}.nested_quant_map": ("F32", [16]),
        f"{linear}.quant_state.bitsandbytes__nf4": ("U8", [90]),
    }  # fmt: skip
    files = model(quantization_config=FOUR, model_type="olmo9") | {"model.safetensors": safetensors(EMBEDDING | packed)}
    base = bases.describe(str(write(tmp_path / "mine", files)), workspace)
    assert base.parameters == kinds.VOCABULARY * kinds.HIDDEN + 32
    assert base.stored is not None and base.stored.setting == "4bit"
    known = bases.describe(str(write(tmp_path / "known", files | model(quantization_config=FOUR))), workspace)
    whole = bases.describe(str(write(tmp_path / "whole", model())), workspace)
    assert whole.shape is not None and known.shape == whole.shape
    assert known.parameters == shapes.count_parameters(whole.shape)


@pytest.mark.parametrize(
    ("config", "method", "trains"),
    [
        ({"quantization_config": FOUR}, "bitsandbytes", True),
        ({"quantization_config": {"load_in_8bit": True}}, "bitsandbytes", True),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq", False),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq", False),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8", False),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors", False),
        ({"quantization_config": {}}, "?", False),
        ({"quantization": {"bits": 4, "group_size": 64}}, "mlx", False),
        ({"text_config": {"quantization_config": FOUR}}, "bitsandbytes", True),
        ({"quantization_config": {"bits": "4", "quant_method": 3}}, "3", False),
    ],
)
def test_how_weights_are_stored_is_read_and_what_cannot_be_trained_is_refused(tmp_path, config, method, trains):
    seen = look(tmp_path / "mine", model(**config))
    assert seen.stored is not None and seen.stored.method == method
    assert rules(seen) == ([] if trains else ["folder-quantized"])


# --- weights that are not there as they should be ----------------------------------------------------------------


def test_weights_in_two_layouts_are_counted_once(workspace, tmp_path):
    both = model() | {"consolidated.safetensors": safetensors(EMBEDDING)}
    base = bases.describe(str(write(tmp_path / "mine", both)), workspace)
    assert base.problems == () and base.parameters == kinds.VOCABULARY * kinds.HIDDEN


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_git_lfs_pointer_is_told_from_a_damaged_file(tmp_path, name):
    seen = look(tmp_path / "mine", model() | {name: POINTER})
    assert rules(seen) == ["folder-pointer"] and "git lfs pull" in said(seen) and name in said(seen)


def test_missing_parts_are_counted_and_the_first_is_named(tmp_path):
    parts = [f"model-{at:05}-of-00003.safetensors" for at in (1, 2, 3)]
    index = {"weight_map": {f"w{at}": name for at, name in enumerate(parts)}}
    files = without(model(), "model.safetensors") | {"model.safetensors.index.json": index}
    seen = look(tmp_path / "mine", files | {parts[0]: safetensors(EMBEDDING)})
    assert (
        rules(seen) == ["folder-missing-shards"] and "2 of the 3 weights files" in said(seen) and parts[1] in said(seen)
    )
    none = look(tmp_path / "none", files)
    assert rules(none) == ["folder-missing-shards"] and "3 of the 3" in said(none)


def test_a_token_without_a_row_is_named_in_a_note(workspace, tmp_path):
    files = model() | {"tokenizer.json": kinds.tokenizer("<think>", "</think>")}
    base = bases.describe(str(write(tmp_path / "mine", files)), workspace)
    assert base.problems == () and "<think>, </think>" in " ".join(map(str, base.notes))
    assert base.tokens is not None and (base.tokens.tokens, base.tokens.rows) == (10, 8)


def test_rows_beyond_the_tokens_are_usual(workspace, tmp_path):
    """Embeddings are padded to a round number of rows."""
    wide = {"model.embed_tokens.weight": ("F32", [64, kinds.HIDDEN])}
    files = model(vocab_size=64) | {"model.safetensors": safetensors(wide)}
    base = bases.describe(str(write(tmp_path / "mine", files)), workspace)
    assert base.problems == () and base.notes == ()


# --- other things ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({"m.gguf": b"GGUF", "mmproj-m.gguf": b"GGUF"}, "/m.gguf"),
        (inside("deep", model()), "/deep"),
        ({"model_index.json": {}}, "diffusers"),
        (model() | {"modules.json": "[]"}, "sentence-transformers"),
        ({"onnx/model.onnx": b""}, "ONNX"),
        ({"openvino_model.xml": b"", "openvino_model.bin": b""}, "OpenVINO"),
        ({"config.json": {}, "tf_model.h5": b""}, "TensorFlow"),
        ({"config.json": kinds.CONFIG, "flax_model.msgpack": b""}, "Flax"),
        ({"config.json": kinds.CONFIG, "consolidated.00.pth": b""}, "consolidated.00.pth"),
        ({"consolidated.safetensors": safetensors(EMBEDDING), "params.json": {}}, "consolidated"),
        ({"spec.json": {}, "events.jsonl": ""}, "run:mine"),
    ],
)
def test_what_is_no_model_is_named_with_what_to_give(tmp_path, files, word):
    assert word in said(look(tmp_path / "mine", files))


def test_the_folder_of_the_hubs_cache_is_called_by_its_id(tmp_path):
    seen = look(tmp_path / "models--owner--name", inside("snapshots/abc", model()))
    assert "owner/name" in said(seen) and seen.kind == "cache"


def test_the_adapter_in_the_folder_of_a_run_is_called_by_the_run(tmp_path):
    write(tmp_path / "20260101-000000-abcdef", {"spec.json": {}, "events.jsonl": ""} | inside("adapter", adapter()))
    seen = folders.look(tmp_path / "20260101-000000-abcdef" / "adapter")
    assert "run:20260101-000000-abcdef" in said(seen)


def test_an_encoder_is_refused_though_transformers_could_make_it_write(workspace, tmp_path):
    files = model(model_type="bert", architectures=["BertForMaskedLM"])
    assert rules(bases.describe(str(write(tmp_path / "mine", files)), workspace)) == ["folder-no-writer"]


def test_a_folder_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    def denied(_: Path) -> Any:
        raise PermissionError(13, "denied")

    write(tmp_path / "mine", model())
    monkeypatch.setattr(Path, "iterdir", denied)
    assert rules(folders.look(tmp_path / "mine")) == ["folder-permission"]


CONTENTS = st.one_of(
    st.binary(max_size=40), st.just(b"{}"), st.just(b"[]"), st.just(POINTER), st.just(b"[" * 10_000),
    st.just(safetensors(EMBEDDING)), st.sampled_from([*model().values(), *adapter().values()]).map(
        lambda one: one if isinstance(one, bytes) else json.dumps(one).encode()
    ),
)  # fmt: skip
NAMES = st.sampled_from([
    "config.json", "model.safetensors", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "m.gguf",
    "model.safetensors.index.json", "pytorch_model.bin", "trainer_state.json", "consolidated.safetensors", "README.md",
    "checkpoint-5/config.json", "checkpoint-5/model.safetensors", "checkpoint-5/adapter_config.json", "args.json",
    "tokenizer_config.json", "in/config.json", "in/model.safetensors", "model-00001-of-00002.safetensors",
])  # fmt: skip


@settings(max_examples=100)
@given(st.dictionaries(NAMES, CONTENTS, max_size=8))
def test_whatever_a_folder_holds_it_is_told_and_never_an_error(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("any") / "mine"
    folder.mkdir()
    write(folder, files)
    seen = folders.look(folder)
    assert seen.kind in folders.KINDS and (seen.is_model or seen.problems)
    base = bases.describe(str(folder), Workspace(folder.parent / "home"))
    assert all(problem.sentence and problem.where == "base" for problem in base.problems)


# --- settings that transformers could not read ---------------------------------------------------------------------

DEEP = b"[" * 100_000
UNREAD = [
    ({"tokenizer.json": []}, "base-settings"),
    ({"tokenizer.json": b""}, "base-settings"),
    ({"tokenizer_config.json": [1]}, "base-settings"),
    ({"special_tokens_map.json": 5}, "base-settings"),
    ({"generation_config.json": DEEP}, "base-settings"),
    ({"generation_config.json": "text"}, "base-settings"),
    ({"added_tokens.json": b"\xff"}, "base-settings"),
    ({"config.json": b"\xef\xbb\xbf" + json.dumps(kinds.CONFIG).encode()}, "base-byte-order-mark"),
    ({"tokenizer.json": b"\xef\xbb\xbf{}"}, "base-byte-order-mark"),
    ({"config.json": without(kinds.CONFIG, "model_type")}, "base-no-model-type"),
    ({"config.json": kinds.CONFIG | {"model_type": 5}}, "base-no-model-type"),
    ({"config.json": kinds.CONFIG | {"quantization_config": [1]}}, "base-quantization-config"),
    ({"config.json": kinds.CONFIG | {"quantization_config": "4bit"}}, "base-quantization-config"),
]


@pytest.mark.parametrize(("files", "rule"), UNREAD)
def test_settings_that_cannot_be_read_are_named_before_a_run_starts(workspace, tmp_path, files, rule):
    base = bases.describe(str(write(tmp_path / "mine", model() | files)), workspace)
    assert rules(base) == [rule] and next(iter(files)) in said(base)


@pytest.mark.parametrize("files", [{}, {"tokenizer_config.json": {"pad_token": "a"}}, {"special_tokens_map.json": {}}])
def test_a_tokenizer_without_its_tokens_is_none(workspace, tmp_path, files):
    base = bases.describe(str(write(tmp_path / "mine", without(model(), "tokenizer.json") | files)), workspace)
    assert rules(base) == ["base-no-tokenizer"]


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer.model": b"\n"},
        {"vocab.json": {}, "merges.txt": ""},
        {"vocab.txt": ""},
        {"qwen.tiktoken": ""},
        {"tokenizer_config.json": {"tokenizer_class": "ByT5Tokenizer"}},
    ],
    ids=lambda files: next(iter(files)),
)
def test_a_tokenizer_may_lie_in_other_files(workspace, tmp_path, files):
    base = bases.describe(str(write(tmp_path / "mine", without(model(), "tokenizer.json") | files)), workspace)
    assert rules(base) == []


# --- what no trainer writes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "added",
    [{"id": 99, "content": 5}, {"id": 99, "content": None}, {"id": 99, "content": [1]}, {"id": 9.5, "content": "a"}],
)
def test_tokens_that_are_no_text_or_have_no_number_are_not_counted(tmp_path, added):
    seen = look(tmp_path / "mine", model() | {"tokenizer.json": kinds.tokenizer() | {"added_tokens": [added]}})
    assert seen.tokens is None and [str(note) for note in seen.notes] == []


@pytest.mark.parametrize("offsets", [[], [0], None, "text", {}, [0, "a"]])
def test_a_weights_file_whose_offsets_are_none_is_damaged(workspace, tmp_path, offsets):
    text = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": offsets}}).encode()
    file = len(text).to_bytes(8, "little") + text + bytes(4)
    base = bases.describe(str(write(tmp_path / "mine", model() | {"model.safetensors": file})), workspace)
    assert "base-broken-weights" in rules(base)


@pytest.mark.parametrize("ref", ["gguf:~nosuchuser/x.gguf", "~nosuchuser/x.gguf", "~nosuchuser/x"])
def test_a_home_of_nobody_is_a_path_that_leads_nowhere(workspace, ref):
    assert len(rules(bases.describe(ref, workspace))) == 1


# --- other trainers ------------------------------------------------------------------------------------------------

SPLIT = {
    "folder-deepspeed": [
        {"global_step10/mp_rank_00_model_states.pt": b""},
        {"zero_to_fp32.py": ""},
        {"mp_rank_00_model_states.pt": b""},
        {"checkpoint-10/zero_to_fp32.py": "", "checkpoint-10/global_step10/mp_rank_00_model_states.pt": b""},
        {"config.json": kinds.CONFIG, "zero_to_fp32.py": "", "global_step10/zero_pp_rank_0_optim_states.pt": b""},
    ],
    "folder-fsdp": [
        {"pytorch_model_fsdp_0/.metadata": b""},
        {"__0_0.distcp": b""},
        {"checkpoint-10/pytorch_model_fsdp_0/__0_0.distcp": b"", "checkpoint-10/trainer_state.json": {}},
    ],
    "folder-megatron": [
        {"iter_0000100/mp_rank_00/model_optim_rng.pt": b""},
        {"mp_rank_00/model_optim_rng.pt": b""},
        {"iter_0000100/common.pt": b"", "iter_0000100/__0_0.distcp": b""},
    ],
    "folder-adapter-mlx": [
        {"adapters.safetensors": safetensors(EMBEDDING), "adapter_config.json": {"fine_tune_type": "lora"}},
        {"adapters.safetensors": safetensors(EMBEDDING)},
    ],
    "folder-diffusers-adapter": [{"pytorch_lora_weights.safetensors": safetensors(EMBEDDING)}],
}


@pytest.mark.parametrize(("rule", "files"), [(rule, one) for rule, every in SPLIT.items() for one in every])
def test_what_other_trainers_leave_is_called_by_its_name(tmp_path, rule, files):
    assert rules(look(tmp_path / "mine", files)) == [rule]


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("epoch_3", {"recipe_state.pt": b""}),
        ("mine", {"trainer_state.json": b"no JSON"}),
        ("mine", {"trainer_state.json": {"global_step": "many"}}),
    ],
)
def test_of_a_checkpoint_that_counts_no_steps_none_is_said(tmp_path, name, files):
    seen = look(tmp_path / name, model() | files)
    assert seen.step is None and seen.is_model
    assert [str(note) for note in seen.notes] == ["A checkpoint of a training: the weights as they were there."]


def test_of_the_cache_of_the_hub_the_snapshot_inside_is_named(tmp_path):
    seen = look(tmp_path / "models--x--y", inside("snapshots/abc", model()))
    assert rules(seen) == ["folder-cache"] and str(tmp_path / "models--x--y" / "snapshots" / "abc") in said(seen)
