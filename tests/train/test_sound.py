"""What a folder holds is what is loaded, trained and saved: nothing laid over it, all of it there, in numbers, held in the
bits it is stored in; and what is saved is read back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from engine import events, starter
from engine.render import Coder, encode
from engine.runs import failures
from engine.spec import schema
from engine.train import load, outline, saved, sound, tokenize
from engine.words import Problem
from tests.train.test_backend import read, train_all

FAR = {"train.learning_rate": 0.05, "train.max_steps": 8}
PLAIN = {"evaluate.benchmarks": [], "train.replay_share": 0.0, "train.warmup": 0.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> list[dict[str, Any]]:
    """Runs on folders of each kind, in one process."""
    return train_all(
        tmp_path_factory.mktemp("sound"),
        [
            ["llama", "full", PLAIN],
            ["adapter:llama", "full", PLAIN | {"merge": True}],
            ["nan:llama", "lora", PLAIN],
            ["part:llama", "lora", PLAIN],
            ["adapter:llama", "lora", PLAIN | {"merge": True}],
            ["bf16:llama", "lora", PLAIN | FAR | {"merge": True}],
            ["run:5", "oft", PLAIN | FAR | {"merge": True}],
        ],
    )


@pytest.fixture(scope="module")
def rounded(tmp_path_factory) -> list[dict[str, Any]]:
    """Runs on a base that is stored in 4 bits, with the same settings."""
    same = PLAIN | {"train.learning_rate": 1e-3, "adapter_args.rank": 4, "adapter_args.alpha": 8}
    return train_all(
        tmp_path_factory.mktemp("rounded"),
        [
            ["4bit:llama", "lora", same | {"merge": True}],
            ["4bit:llama", "qlora", same],
            ["4bit:llama", "full", PLAIN],
            ["4bit:llama", "lora", same | {"quantize": "8bit"}],
            ["run:0", "full", PLAIN | {"merge": True}],
        ],
    )


def losses(run: dict[str, Any]) -> list[float | None]:
    assert run.get("status") == 0, run
    return [event.loss for event in read(run) if isinstance(event, events.Step)]


@pytest.mark.train
def test_a_model_with_an_adapter_beside_it_is_trained_alone_and_saved_whole(made):
    """transformers would lay the adapter on, and then save only that."""
    plain, both = made[0], made[1]
    assert losses(plain) == losses(both)
    kept = Path(both["run"]) / "model"
    assert sorted(path.name for path in kept.glob("*.safetensors")) == ["model.safetensors"]
    assert not (kept / "adapter_config.json").exists()
    assert load_file(kept / "model.safetensors").keys() == both["shapes"].keys()
    told = " ".join(str(event.text) for event in read(both) if isinstance(event, events.Log))
    assert "adapter" in told
    merged = made[4]  # nothing but the run's own adapter is merged
    assert merged["shapes"] == both["shapes"] and merged["parity"]["logits"] <= merged["parity"]["tolerance"]


@pytest.mark.train
def test_what_lies_on_a_base_in_bf16_merges_into_it_and_says_what_the_rounding_costs(made):
    """Held against each other in bf16, a merged and an unmerged model that are the same would differ like strangers."""
    for run in (made[5], made[6]):  # the second on what the first has made
        parity = run["parity"]
        assert parity["logits"] <= parity["tolerance"] == 1e-4 and parity["same_choice"] == 1
        assert parity["dtype"] == "bfloat16" and parity["rounded"] > 10 * parity["tolerance"]
        assert 0.5 < parity["kept_choice"] <= 1
        held = load_file(Path(run["run"]) / "merged" / "model.safetensors")
        assert {tensor.dtype for tensor in held.values()} == {torch.bfloat16}


@pytest.mark.slow
@pytest.mark.train
def test_lora_on_a_base_in_4_bits_is_qlora(rounded):
    assert losses(rounded[0]) == losses(rounded[1])
    spec = json.loads((Path(rounded[0]["run"]) / "spec.json").read_bytes())
    assert spec["quantize"] == "4bit"


@pytest.mark.slow
@pytest.mark.train
def test_what_cannot_be_done_with_a_base_in_4_bits_is_refused_before_the_start(rounded):
    assert rounded[2]["refused"] == ["model-stored-whole"] and rounded[3]["refused"] == ["model-stored-bits"]


@pytest.mark.slow
@pytest.mark.train
def test_merging_into_a_base_in_4_bits_unpacks_it(rounded):
    """The merged model is whole, says the same, and is a base of which all weights can be trained."""
    merged, again = rounded[0], rounded[4]
    names = load_file(Path(again["run"]) / "model" / "model.safetensors")
    assert merged["shapes"] == {name: list(tensor.shape) for name, tensor in names.items()}
    assert merged["parity"]["logits"] <= merged["parity"]["tolerance"]
    config = json.loads((Path(merged["run"]) / "merged" / "config.json").read_bytes())
    assert "quantization_config" not in config
    assert losses(again) and again["shapes"] == merged["shapes"]


@pytest.mark.train
def test_a_base_without_numbers_or_with_a_part_missing_is_refused_by_name(made):
    assert made[2]["refused"] == ["model-not-finite"]
    assert made[3]["refused"] == ["model-lacks-weights"]


# --- what is saved is read back ----------------------------------------------------------------------------------


def tiny(tied: bool = True) -> Any:
    size: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=16, tie_word_embeddings=tied, **size))


def adapted() -> Any:
    return get_peft_model(tiny(), LoraConfig(target_modules=["q_proj"], r=2, task_type="CAUSAL_LM"))


@pytest.mark.parametrize("model", [tiny(), tiny(tied=False), adapted()], ids=["tied", "untied", "adapter"])
def test_what_was_saved_whole_is_found_so(tmp_path, model):
    model.save_pretrained(tmp_path)
    saved.check(tmp_path, model)


def change(folder: Path, how: Any) -> None:
    path = next(folder.glob("*.safetensors"))
    held = load_file(path)
    how(held)
    save_file(held, path, metadata={"format": "pt"})


def drop_last(held: dict[str, Any]) -> None:
    held.pop(max(held))


def bend_last(held: dict[str, Any]) -> None:
    held[max(held)] = held[max(held)].flatten()[:-1].clone()


def spoil_last(held: dict[str, Any]) -> None:
    held[max(held)].view(-1)[0] = float("inf")


@pytest.mark.parametrize("model", [tiny(), adapted()], ids=["model", "adapter"])
@pytest.mark.parametrize(
    ("how", "rule"),
    [(drop_last, "model-saved-part"), (bend_last, "model-saved-shape"), (spoil_last, "diverged-saved"),
     (dict.clear, "model-saved-part")],
)  # fmt: skip
def test_a_tensor_that_is_missing_bent_or_no_number_is_found(tmp_path, model, how, rule):
    model.save_pretrained(tmp_path)
    change(tmp_path, how)
    with pytest.raises(failures.RunRefused) as refused:
        saved.check(tmp_path, model)
    assert refused.value.problem.rule == rule


def test_a_model_of_which_only_an_adapter_was_saved_is_found(tmp_path):
    adapted().save_pretrained(tmp_path)
    with pytest.raises(failures.RunRefused) as refused:
        saved.check(tmp_path, tiny())
    assert refused.value.problem.rule == "model-saved-part"
    with pytest.raises(failures.RunRefused):
        saved.check_copy(tmp_path, tmp_path)  # what such a run left is not exported either


def test_a_file_that_is_cut_off_counts_as_missing(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(failures.RunRefused):
        saved.check(tmp_path, model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_none_is_found_wherever_it_is(dtype, bad):
    tensor = torch.zeros(5, 7, dtype=dtype)
    assert sound.is_finite(tensor)
    for at in (0, 17, 34):
        broken = tensor.clone()
        broken.view(-1)[at] = bad
        assert not sound.is_finite(broken)


class Raises:
    """A class of transformers that fails to load."""

    def __init__(self, error: BaseException):
        self.error = error

    def from_pretrained(self, *_: Any, **__: Any) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [OSError("gone\nmore"), KeyError("x"), AttributeError("no such"), RecursionError(), Exception("expected value")],
    ids=repr,
)
def test_whatever_a_base_makes_its_reader_raise_is_a_sentence(tmp_path, error):
    spec = schema.adopted(base=schema.BaseRef(str(tmp_path)))
    with pytest.raises(failures.RunRefused) as refused:
        load.from_pretrained(Raises(error), str(tmp_path), spec)
    assert refused.value.problem.rule == "model-load"
    assert "\n" not in str(refused.value.problem.parameters["reason"])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory"),
        KeyboardInterrupt(), failures.RunRefused(Problem(rule="model-not-finite")),
    ],
    ids=repr,
)  # fmt: skip
def test_a_lack_of_memory_and_a_stop_pass_as_they_are(tmp_path, error):
    spec = schema.adopted(base=schema.BaseRef(str(tmp_path)))
    with pytest.raises(type(error)) as passed:
        load.from_pretrained(Raises(error), str(tmp_path), spec)
    assert passed.value is error


@pytest.mark.train
@pytest.mark.parametrize("named", [{"AutoConfig": "own.O", "AutoTokenizer": ["own.O", "own.O"]}, [], None, "x"])
def test_code_beside_a_model_and_its_tokenizer_is_passed_over_whatever_names_it_and_not_saved_on(tmp_path, named):
    folder, ran = tmp_path / "base", tmp_path / "ran"
    shutil.copytree(starter.MODEL_DIR, folder)
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass O: pass\n")
    for name in ("config.json", "tokenizer_config.json"):
        told = json.loads((folder / name).read_bytes())
        (folder / name).write_text(json.dumps({**told, "auto_map": named}))
    spec = schema.adopted(base=schema.BaseRef(str(folder)))
    tokenizer = load.from_pretrained(AutoTokenizer, str(folder), spec)
    model = load.whole(str(folder), spec)
    tokenizer.save_pretrained(tmp_path / "saved")
    model.save_pretrained(tmp_path / "saved")
    assert len(tokenizer("hello")["input_ids"]) and type(model).__name__ == "LlamaForCausalLM"
    assert not ran.exists()
    assert not [path.name for path in (tmp_path / "saved").glob("*.json") if "auto_map" in path.read_text("utf-8")]


@pytest.mark.train
def test_what_settings_say_of_kernels_and_other_files_is_not_followed(tmp_path):
    folder = Path(shutil.copytree(starter.MODEL_DIR, tmp_path / "base"))
    told = json.loads((folder / "config.json").read_bytes())
    for name in ("attn_implementation", "_attn_implementation", "experts_implementation", "transformers_weights"):
        (folder / "config.json").write_text(json.dumps({**told, name: "somebody/kernel@main:run"}))
        loaded = load.whole(str(folder), schema.adopted(base=schema.BaseRef(str(folder))))
        counted = outline.build(folder / "config.json")
        assert {one.config._attn_implementation for one in (loaded, counted)} == {"sdpa"}, name


@pytest.mark.train
@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer_class": "LlamaTokenizer"}, {"tokenizer_class": "BertTokenizer"}, {"tokenizer_class": "ByT5Tokenizer"},
        {"tokenizer_class": "T5Tokenizer"}, {"fast_tokenizer_files": ["../tokenizer.4.json"]},
        {"tokenizer_truncation": {"max_length": 3, "stride": 0, "strategy": "longest_first", "direction": "right"}},
        {"split_special_tokens": True},
    ],
    ids=str,
)  # fmt: skip
def test_a_run_cuts_text_as_pages_show_it_whatever_the_settings_of_a_tokenizer_say(tmp_path, settings):
    folder = Path(shutil.copytree(starter.MODEL_DIR, tmp_path / "base"))
    stored = json.loads((folder / "tokenizer.json").read_bytes())
    stored["model"]["merges"] = []
    (tmp_path / "tokenizer.4.json").write_text(json.dumps(stored))
    told = json.loads((folder / "tokenizer_config.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({**told, **settings}))
    tokenizer = load.read_tokenizer(str(folder), schema.adopted(base=schema.BaseRef(str(folder))))
    tokenize.get_ready(tokenizer, folder)
    row = {"messages": [{"role": "user", "content": load.PROBE}, {"role": "assistant", "content": "Two  words."}]}
    shown = encode.encode(row, Coder.of_folder(folder, "base"))
    assert tokenize.encode(row, tokenizer, 1_000)[:2] == shown[:2]


@pytest.mark.train
def test_a_tokenizer_that_cannot_be_had_as_it_is_stored_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "_is_as_stored", lambda *_: False)
    with pytest.raises(failures.RunRefused) as refused:
        load.read_tokenizer(str(starter.MODEL_DIR), schema.adopted(base=schema.BaseRef("starter")))
    assert refused.value.problem.rule == "tokenizer-otherwise"


@pytest.mark.train
def test_of_several_chat_templates_the_default_one_is_taken(tmp_path):
    folder = Path(shutil.copytree(starter.MODEL_DIR, tmp_path / "base"))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    tokenizer = load.read_tokenizer(str(folder), schema.adopted(base=schema.BaseRef(str(folder))))
    assert not tokenize.get_ready(tokenizer, folder)
    assert tokenizer.chat_template == (folder / "chat_template.jinja").read_text("utf-8")
