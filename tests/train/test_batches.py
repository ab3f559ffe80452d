"""Rows of a batch lie end to end where loss and gradients stay what they were, and share a batch by length elsewhere."""

from __future__ import annotations

import copy
import json
import random
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from accelerate.utils import convert_outputs_to_fp32, extract_model_from_parallel
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from engine import starter
from engine.render import Encoded, Marked
from engine.render.encode import IGNORED
from engine.train import batches, held_out, precision, rows_apart
from engine.train.objectives import kto, sft
from engine.train.scoring.likelihood import Reader, Ways
from engine.train.scoring.trees import Wanted

torch.set_num_threads(1)
SIZE: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LENGTHS = [9, 40, 5, 17, 31, 12, 58, 23, 7, 44]


def smollm() -> Any:
    """SmolLM2's shape: a Llama of three heads to one key, its output layer tied to the embedding."""
    settings = {**SIZE, "hidden_size": 48, "num_attention_heads": 6, "rope_theta": 100000.0}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings, tie_word_embeddings=True))


def windowed() -> Any:
    settings = {**SIZE, "sliding_window": 16}
    return transformers.MistralForCausalLM(transformers.MistralConfig(**settings))


def gpt2() -> Any:
    none: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = transformers.GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=4, n_positions=512, **none)
    return transformers.GPT2LMHeadModel(config)


def convolving() -> Any:
    settings = {**SIZE, "layer_types": ["conv", "full_attention"]}
    return transformers.Lfm2ForCausalLM(transformers.Lfm2Config(**settings))


def carrying() -> Any:
    return transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2, state_size=4, use_mambapy=False)
    )


KINDS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZE)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZE)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZE, head_dim=8)),
    "smollm": smollm,
    "mistral, window 16": windowed,
    "gpt2": gpt2,
}
LEAKING = {"lfm2": convolving, "mamba": carrying}


def encoded(lengths: list[int]) -> list[Encoded]:
    dice = random.Random(0)
    ids = [[dice.randrange(3, 128) for _ in range(n)] for n in lengths]
    # the first token too, which nothing comes before: it must not be learned from the row that lies before it
    return [Encoded(one, one if n % 3 else [*[IGNORED] * 2, *one[2:]], cut=False) for n, one in enumerate(ids)]


def trainer_of(model: Any, folder: Path, rows: Dataset, **settings: Any) -> Any:
    args = SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=4, gradient_accumulation_steps=1, report_to="none",
        use_cpu=True, disable_tqdm=True, bf16=False, max_length=None, save_strategy="no", logging_steps=1, seed=3,
        loss_type="nll", gradient_checkpointing=False, **settings,
    )  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(starter.MODEL_DIR)
    kind: Any = type("Ours", (held_out.BySum, batches.Arranged, SFTTrainer), {})
    return kind(model=model, args=args, processing_class=tokenizer, train_dataset=rows, eval_dataset=rows)


def run_of(folder: Path, **train: Any) -> Any:
    log: list[Any] = []
    settings = {"seed": 3, "padding_free": None, **train}
    return SimpleNamespace(
        run_dir=folder, spec=SimpleNamespace(train=SimpleNamespace(**settings)), log=log, only_probes=False,
        rows=SimpleNamespace(replay=[]), chosen=SimpleNamespace(backend="plain", padding_free=None),
        base=SimpleNamespace(is_toy=False),
    )  # fmt: skip


def steps(trainer: Any) -> tuple[list[float], torch.Tensor]:
    """Train and return the losses of the steps and all weights."""
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_end_to_end_have_the_loss_and_the_gradients_of_rows_filled_up(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trainer = trainer_of(KINDS[kind](), tmp_path, sft.as_dataset(encoded(LENGTHS)))
    before = copy.deepcopy(trainer.model.state_dict())
    rows: Any = [trainer.train_dataset[n] for n in range(6)]
    found = batches.compare(trainer, rows)
    assert found.agree and found.loss_apart < 1e-5 and found.gradients_apart < 1e-5 and found.packed_s > 0
    after = trainer.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before) and trainer.model.training
    assert all(parameter.grad is None for parameter in trainer.model.parameters()) and not trainer._metrics["train"]


@pytest.mark.parametrize("kind", LEAKING)
def test_layers_that_let_rows_through_are_known_or_found_out(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    trainer = trainer_of(LEAKING[kind](), tmp_path, sft.as_dataset(encoded(LENGTHS)))
    way = batches.settle(run_of(tmp_path), trainer)
    assert not way.packed and way.by_length and "Conv1d" in str(way.why)
    assert list(trainer._get_train_sampler()) == list(trainer.by_length)
    (tmp_path / "batches.json").unlink()
    monkeypatch.setattr(batches, "leaks", lambda model: "")
    way = batches.settle(run_of(tmp_path), trainer)
    assert not way.packed and "see each other" in str(way.why)


def test_a_run_with_rows_end_to_end_learns_what_one_with_rows_filled_up_does(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(batches, "_times", lambda trainer, ways: (2.0, 1.0))
    rows, made = sft.as_dataset(encoded(LENGTHS)), []
    for padding_free in (False, None):
        torch.manual_seed(0)
        model = get_peft_model(smollm(), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        folder = tmp_path / str(padding_free)
        folder.mkdir()
        trainer = trainer_of(model, folder, rows, learning_rate=0.01, num_train_epochs=2)
        run = run_of(folder, padding_free=padding_free)
        way = batches.settle(run, trainer)
        assert way.packed is (padding_free is None) and run.log
        trainer.by_length = None  # the same rows in the same batches
        held = trainer.evaluate()["eval_loss"]
        made.append((*steps(trainer), held, trainer.evaluate()["eval_loss"]))
    (losses, weights, before, after), (packed_losses, packed_weights, packed_before, packed_after) = made
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert packed_losses == pytest.approx(losses, rel=1e-5)
    assert torch.allclose(weights, packed_weights, atol=1e-4)
    assert (packed_before, packed_after) == (pytest.approx(before, rel=1e-5), pytest.approx(after, rel=1e-4))


def test_what_a_run_has_settled_on_holds_when_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    trainer = trainer_of(smollm(), tmp_path, sft.as_dataset(encoded(LENGTHS)))
    for seconds, packed in (((1.0, 2.0), False), ((2.0, 1.0), True)):
        monkeypatch.setattr(batches, "_times", lambda trainer, ways, seconds=seconds: seconds)
        folder = tmp_path / str(packed)
        folder.mkdir()
        assert batches.settle(run_of(folder), trainer).packed is packed
        monkeypatch.setattr(batches, "compare", lambda trainer, rows: pytest.fail("compared once more"))
        assert batches.settle(run_of(folder), trainer).packed is packed
        monkeypatch.undo()
    assert trainer.model.config._attn_implementation == rows_apart.NAME


def test_rows_that_gain_nothing_are_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "compare", lambda trainer, rows: pytest.fail("compared"))
    torch.manual_seed(0)
    toy = run_of(tmp_path)
    toy.base.is_toy = True  # its results are those of before
    way = batches.settle(toy, trainer_of(smollm(), tmp_path, sft.as_dataset(encoded(LENGTHS))))
    assert not way.packed and not way.by_length
    (tmp_path / "batches.json").unlink()
    for lengths, most in (([20, 21] * 6, 8192), (LENGTHS, 100)):
        monkeypatch.setattr(batches, "MOST_PACKED_TOKENS", most)
        trainer = trainer_of(smollm(), tmp_path, sft.as_dataset(encoded(lengths)))
        run = run_of(tmp_path)
        way = batches.settle(run, trainer)
        assert not way.packed and way.by_length is (most == 100) and str(run.log[-1].text) == str(way.why)
        (tmp_path / "batches.json").unlink()


def test_with_flash_attention_no_length_is_handed_to_trl_which_refuses_both(tmp_path: Path) -> None:
    shared = {"output_dir": str(tmp_path), "max_length": 64, "bf16": False, "use_cpu": True, "report_to": "none"}
    run: Any = SimpleNamespace(
        model=smollm(), spec=SimpleNamespace(train=SimpleNamespace(epochs=1)), rows=SimpleNamespace(replay=[]),
        chosen=SimpleNamespace(padding_free=True),
    )  # fmt: skip
    args = sft.config(run, shared)
    tokenizer = transformers.AutoTokenizer.from_pretrained(starter.MODEL_DIR)
    rows = sft.as_dataset(encoded(LENGTHS))
    made: Any = SFTTrainer(model=smollm(), args=args, processing_class=tokenizer, train_dataset=rows)
    assert made.padding_free and "position_ids" in made.data_collator([made.train_dataset[0], made.train_dataset[1]])
    args.max_length = 64
    with pytest.raises(ValueError, match="max_length"):
        SFTTrainer(model=smollm(), args=args, processing_class=tokenizer, train_dataset=rows)


# --- by length -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 600), min_size=1, max_size=700), st.integers(1, 9), st.integers(0, 99), st.booleans())
def test_by_length_every_row_comes_once_in_an_epoch_in_an_order_that_the_seed_fixes(lengths, batch, seed, shuffles):
    sampler, again = (batches.ByLength(lengths, batch, seed, shuffles=shuffles) for _ in range(2))
    for epoch in (0, 1, 5):
        sampler.set_epoch(epoch)
        again.set_epoch(epoch)
        order = list(sampler)
        assert sorted(order) == list(range(len(lengths))) and order == list(again) and len(sampler) == len(lengths)
        window = batches.WINDOW * batch
        if not shuffles:  # no row leaves its part of an order that was there
            assert all(row // window == place // window for place, row in enumerate(order))


def test_alpacas_lengths_cost_little_in_batches_of_4_and_8():
    """Lengths that spread as those of 200 rows of Alpaca in tokens of SmolLM2: 200 at the mean, 606 at the most, and 1.78
    and 2.04 tokens computed for each that is there in random batches of 4 and 8."""
    dice = random.Random(0)
    lengths = [max(20, min(606, round(dice.lognormvariate(5.0, 0.8)))) for _ in range(200)]
    for batch, most in ((4, 1.05), (8, 1.10)):
        order = dice.sample(range(200), 200)
        laid = batches.by_length(lengths, batch, order, dice)
        assert batches.factor([lengths[n] for n in order], batch) > 1.65
        assert batches.factor([lengths[n] for n in laid], batch) < most
        firsts = [lengths[laid[n]] for n in range(0, 200, batch)]
        assert firsts != sorted(firsts) and firsts != sorted(firsts, reverse=True)  # batches are in no order of length


def test_marked_answers_of_like_length_share_a_batch_that_holds_both_labels():
    dice = random.Random(1)
    rows: list[Any] = []
    for n in range(64):
        good = n % 2 == 0
        answer = [1] * (dice.randrange(5, 60) + (80 if good else 0))
        rows.append(Marked([1, 2], answer, good, False))
    laid = kto.by_length(rows, 4, 3)
    assert sorted(map(id, laid)) == sorted(map(id, rows)) and laid == kto.by_length(rows, 4, 3)
    both = sum(len({row.label for row in laid[n : n + 4]}) == 2 for n in range(0, 64, 4))
    assert both >= 14


def test_what_settled_the_way_reads_as_it_was_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trainer = trainer_of(convolving(), tmp_path, sft.as_dataset(encoded(LENGTHS)))
    way = batches.settle(run_of(tmp_path), trainer)
    told = json.loads((tmp_path / "batches.json").read_text())
    assert told["by_length"] is True and told["packed"] is False and way == batches.settle(run_of(tmp_path), trainer)


# --- bf16 on a processor ---------------------------------------------------------------------------------------------


def test_a_model_that_computes_in_bf16_does_so_whoever_asks_it_and_a_copy_asks_itself():
    torch.manual_seed(0)
    model = smollm()
    ids = torch.arange(3, 83)[None]
    with torch.no_grad():
        plain, few = model(input_ids=ids).logits, model(input_ids=ids[:, :8]).logits
        precision.compute_in(model, torch.bfloat16)
        rounded = model(ids).logits
        assert rounded.dtype == torch.bfloat16 and not torch.equal(rounded.float(), plain)
        assert torch.allclose(rounded.float(), plain, atol=0.05) and model.dtype == torch.float32
        assert torch.equal(model(input_ids=ids[:, :8]).logits, few)  # of few tokens nothing is rounded
        with precision.in_full():
            assert torch.equal(model(ids).logits, plain)
        other = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(other(ids).logits, rounded) and not model(ids).logits.any()
    assert precision.format_of(other) == torch.bfloat16 and precision.format_of(smollm()) == torch.float32
    assert precision.format_of(get_peft_model(other, LoraConfig(r=2))) == torch.bfloat16


def test_accelerate_takes_its_own_wrapping_away_and_not_ours() -> None:
    torch.manual_seed(0)
    model, ids = smollm(), torch.arange(3, 83)[None]
    precision.compute_in(model, torch.bfloat16)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        model._original_forward = model.forward  # as Accelerator.prepare_model does it
        wrapped = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward.__func__)
        model.forward = types.MethodType(convert_outputs_to_fp32(wrapped), model)
        assert model(input_ids=ids).logits.dtype == torch.float32
        bare = extract_model_from_parallel(model, keep_fp32_wrapper=False)
        assert torch.equal(bare(input_ids=ids).logits, before)


def test_scoring_asks_body_and_output_layer_in_the_format_and_with_the_attention_of_the_training() -> None:
    torch.manual_seed(0)
    model, ids = smollm().eval(), list(range(3, 83))
    for parameter in model.parameters():
        parameter.data *= 10 if parameter.dim() > 1 else 1  # so that it matters what a token sees
    precision.compute_in(model, torch.bfloat16)
    rows_apart.use(model)
    wanted = [Wanted(tuple(ids[:40] + ids[start : start + 20]), range(41, 60)) for start in (40, 50, 60)]
    formats = []
    model.get_output_embeddings().register_forward_hook(lambda module, given, made: formats.append(made.dtype))
    reader, found = Reader(model), {}
    for some in reader.read(wanted):
        found |= some
    assert reader.ways(wanted) == Ways(splits=True, trees=True, headers=True) and set(formats) == {torch.bfloat16}
    for number, one in enumerate(wanted):
        with torch.no_grad():
            likely = model(input_ids=torch.tensor([one.tokens])).logits[0].float().log_softmax(-1)
        plain = [float(likely[at - 1, one.tokens[at]]) for at in one.targets]
        assert [answer for answer, _ in found[number]] == pytest.approx(plain, abs=0.2)


def test_a_trial_takes_both_formats_on_layers_of_a_bases_width():
    assert all(seconds > 0 for seconds in precision.trial(64, 128))
