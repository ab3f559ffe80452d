"""A merged model says what the unmerged one said, also where its output layer is its embedding; what does not is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, OFTConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from engine.runs import failures
from engine.train import merging, oft, sound

SIZE: dict[str, Any] = {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 1}


class Words:
    """A tokenizer of which only this is asked."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [2 + ord(letter) for letter in text]}


def llama(*, tied: bool) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            **SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            tie_word_embeddings=tied, initializer_range=0.2,
        )
    ).eval()  # fmt: skip


def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(**SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.2)
    ).eval()


def lora(*targets: str, **more: Any) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=16, target_modules=list(targets), task_type="CAUSAL_LM", **more)


CASES = {
    "embedding": (lambda: llama(tied=True), lora("q_proj", "embed_tokens"), True),
    "output layer": (lambda: llama(tied=True), lora("q_proj", "lm_head"), True),
    "both": (lambda: llama(tied=True), lora("embed_tokens", "lm_head"), True),
    "saved whole": (lambda: llama(tied=True), lora("q_proj", modules_to_save=["embed_tokens"]), True),
    "neither": (lambda: llama(tied=True), lora("q_proj"), False),
    "not tied": (lambda: llama(tied=False), lora("q_proj", "embed_tokens", "lm_head"), False),
    "DoRA": (lambda: llama(tied=True), lora("q_proj", "down_proj", use_dora=True), False),
    "GPT-2's embedding": (gpt2, lora("c_attn", "wte", fan_in_fan_out=True), True),
    "OFT on Conv1D": (
        gpt2,
        OFTConfig(oft_block_size=16, use_cayley_neumann=False, target_modules=["c_attn"], task_type="CAUSAL_LM"),
        False,
    ),
}


def save_adapter(model: Any, config: Any, folder: Path) -> None:
    """Save an adapter of a model as if it had learned: each of its weights is moved."""
    if isinstance(config, OFTConfig):
        oft.straighten(model)
    trained = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter)) if "magnitude" not in name else parameter.mul_(1.1)
    trained.save_pretrained(str(folder))


@pytest.mark.parametrize("case", CASES)
def test_a_merged_model_says_the_same_also_when_it_is_read_again(tmp_path: Path, case: str) -> None:
    base, config, unties = CASES[case]
    save_adapter(base(), config, tmp_path / "adapter")

    laid = oft.lay_over(base(), tmp_path / "adapter")
    ids = torch.arange(5, 305)[None, ::5]
    with torch.no_grad():
        before, alone = laid(input_ids=ids).logits, base()(input_ids=ids).logits
        model = merging.merged(laid, Words(), "run:r1")
        model.save_pretrained(tmp_path / "merged")
        after = model(input_ids=ids).logits
        read: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        again = read(input_ids=ids).logits
    most = float(before.abs().max())
    assert (before - alone).abs().max() > 0.1 * most
    assert (before - after).abs().max() < 1e-4 * most and torch.equal(after, again)
    tied = read.get_input_embeddings().weight is read.get_output_embeddings().weight
    assert tied == (base().config.tie_word_embeddings and not unties) == read.config.tie_word_embeddings


@pytest.mark.parametrize("case", CASES)
def test_a_model_held_in_bf16_is_compared_in_fp32_and_rounded_once(tmp_path: Path, case: str) -> None:
    """What comes out is what merging in fp32 and then rounding gives, number by number, and it is read as it was written."""
    base, config, _ = CASES[case]

    def rounded() -> Any:
        return sound.held_in(base(), torch.bfloat16)

    save_adapter(sound.held_in(rounded(), torch.float32), config, tmp_path / "adapter")
    ids = list(range(5, 69))
    wide = merging.joined(oft.lay_over(sound.held_in(rounded(), torch.float32), tmp_path / "adapter"), [ids])
    laid = oft.lay_over(rounded(), tmp_path / "adapter")
    before = {name: one.detach().clone() for name, one in laid.named_parameters()}
    unmerged = merging.logits(laid, [ids])
    assert all(torch.equal(one, before[name]) for name, one in laid.named_parameters())

    narrow = merging.joined(laid, [ids])
    assert narrow.off < merging.TOLERANCE
    if case != "saved whole":  # which peft rounds as it is read
        assert torch.equal(narrow.exact[0], wide.exact[0])
    made = sound.held_in(narrow.model, torch.bfloat16)
    for one, other in zip(made.parameters(), wide.model.parameters(), strict=True):
        assert torch.equal(one, other.bfloat16())
    made.save_pretrained(tmp_path / "merged")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    written = merging.logits(made, [ids])
    assert read.dtype == torch.bfloat16 and torch.equal(merging.logits(read, [ids])[0], written[0])
    assert merging.compare_logits(unmerged, written)[0] > merging.TOLERANCE


def test_one_that_says_something_else_is_refused_and_names_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = get_peft_model(llama(tied=True), lora("embed_tokens", init_lora_weights=False))
    trained.save_pretrained(str(tmp_path))
    monkeypatch.setattr(merging, "_untie", lambda model: None)  # as it was merged before
    with pytest.raises(failures.RunRefused) as refused:
        merging.merged(oft.lay_over(llama(tied=True), tmp_path), Words(), "run:r1")
    assert "run:r1 cannot be merged" in str(refused.value) and "adapter_args.continue" in refused.value.problem.texts[1]
    assert "float32" not in str(refused.value.problem.texts)


def test_the_copy_that_preferences_are_held_to_stays_and_is_not_saved(tmp_path: Path) -> None:
    from engine.train import adapters

    for name, config in (("lora", lora("q_proj", init_lora_weights=False)), ("oft", CASES["OFT on Conv1D"][1])):
        model = llama(tied=True) if name == "lora" else gpt2()
        if name == "oft":
            oft.straighten(model)
        made: Any = get_peft_model(model, config)
        if name == "oft":
            oft.host(made)
        adapters.add_reference(made)
        ids = torch.arange(5, 65)[None]
        with torch.no_grad():
            start = made(input_ids=ids).logits
            for parameter in made.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter))
            moved = made(input_ids=ids).logits
            with adapters.as_at_start(made, tmp_path) as before:
                assert torch.allclose(before(input_ids=ids).logits, start, atol=1e-6)
            assert torch.equal(made(input_ids=ids).logits, moved) and not torch.allclose(moved, start, atol=1e-2)
        made.save_pretrained(tmp_path / name)
        assert not (tmp_path / name / "ref").exists()
        again = PeftModel.from_pretrained(llama(tied=True) if name == "lora" else _straight(), tmp_path / name).eval()
        with torch.no_grad():
            assert torch.allclose(again(input_ids=ids).logits, moved, atol=1e-3)


@pytest.mark.parametrize("made_by_trl", [True, False])
def test_the_copy_is_the_same_also_where_an_adapter_sits_on_the_embedding(*, made_by_trl: bool) -> None:
    from engine.train import adapters

    made: Any = get_peft_model(llama(tied=True), lora("q_proj", "embed_tokens", init_lora_weights=False))
    if made_by_trl:  # as its trainers make one (dpo_trainer.py)
        made.add_adapter("ref", made.peft_config["default"])
        for name, parameter in made.named_parameters():
            if ".default." in name:
                made.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)
    ids = torch.arange(5, 65)[None]
    with torch.no_grad():
        start = made(input_ids=ids).logits
        adapters.add_reference(made)
        made.set_adapter("ref")
        assert torch.allclose(made(input_ids=ids).logits, start, atol=1e-6)


def _straight() -> Any:
    model = gpt2()
    oft.straighten(model)
    return model
