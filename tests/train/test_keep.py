"""What keeps a base's knowledge while SFT goes on: each loss is its equation, is bounded in memory, adds up over
micro-batches, and is plain SFT where it weighs nothing."""

from __future__ import annotations

import math
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
import transformers
from peft import LoraConfig, OFTConfig, get_peft_model
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from engine.render import Encoded, skipped
from engine.render.encode import IGNORED
from engine.runs import checkpoints, failures
from engine.spec import OBJECTIVES
from engine.train import keep, keep_losses, oft
from engine.train.objectives import common, sft
from engine.workspace import Unreadable

torch.set_num_threads(1)
SIZE: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def drawn(tokens: int, vocabulary: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of a model and of a base, and targets, in double."""
    torch.manual_seed(seed)
    model, base = (3 * torch.randn(tokens, vocabulary, dtype=torch.float64) for _ in range(2))
    return model, base, torch.randint(vocabulary, (tokens,))


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(one - top) for one in row]
    return [one / sum(powers) for one in powers]


def slow_weight(row: list[float]) -> float:
    top = softmax(sorted(row, reverse=True)[:20])
    return -sum(p * math.log(p) for p in top if p) / math.log(len(top))


def slow_kl(model: list[float], base: list[float], target: int) -> float:
    others = [at for at in range(len(model)) if at != target]
    p, q = softmax([model[at] for at in others]), softmax([base[at] for at in others])
    return sum(b * math.log(b / a) for a, b in zip(p, q, strict=True) if b)


def slow_kl_to_kept(model: list[float], base: list[float], target: int) -> float:
    others = [at for at in range(len(model)) if at != target]
    p, q = softmax([model[at] for at in others]), softmax([base[at] for at in others])
    pairs = sorted(zip(q, p, strict=True), reverse=True)
    kept, rest = pairs[:64], pairs[64:]
    if rest:
        kept.append((sum(b for b, _ in rest), sum(a for _, a in rest)))
    return sum(b * math.log(b / a) for b, a in kept if b)


# --- the equations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [5, 20, 200])
def test_a_weight_by_entropy_is_that_of_its_equation_taken_in_plain_loops(vocabulary: int) -> None:
    model, _, _ = drawn(7, vocabulary)
    found = keep_losses.entropy_weights(model)
    assert found.tolist() == pytest.approx([slow_weight(row) for row in model.tolist()], abs=1e-5)
    assert bool((found >= 0).all()) and bool((found <= 1 + 1e-6).all())


def test_a_weight_by_entropy_is_one_of_a_flat_distribution_and_none_of_a_sure_one() -> None:
    assert keep_losses.entropy_weights(torch.zeros(1, 50)).item() == pytest.approx(1.0)
    assert keep_losses.entropy_weights(torch.eye(50)[:1] * 100).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("vocabulary", [5, 40, 300])
def test_the_divergence_from_the_base_without_the_target_is_that_of_its_equation(vocabulary: int) -> None:
    model, base, targets = drawn(6, vocabulary)
    slow = [slow_kl(*one) for one in zip(model.tolist(), base.tolist(), targets.tolist(), strict=True)]
    assert keep_losses.kl_to_base(model, base, targets).tolist() == pytest.approx(slow, abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("vocabulary", [5, 65, 66, 300])
def test_what_is_kept_of_the_base_bounds_the_divergence_from_below(vocabulary: int) -> None:
    model, base, targets = drawn(6, vocabulary)
    kept = keep_losses.kept_of_base(base, targets)
    found = keep_losses.kl_to_kept(model, targets, *kept)
    slow = [slow_kl_to_kept(*one) for one in zip(model.tolist(), base.tolist(), targets.tolist(), strict=True)]
    whole = keep_losses.kl_to_base(model, base, targets)
    assert found.tolist() == pytest.approx(slow, abs=1e-5, rel=1e-5)
    assert bool((found <= whole + 1e-5).all())
    assert bool((found > 0.5 * whole).all()) if vocabulary == 66 else True
    if vocabulary <= 65:  # nothing is left to be grouped
        assert found.tolist() == pytest.approx(whole.tolist(), abs=1e-5)


def test_the_target_itself_is_held_to_nothing() -> None:
    model, base, targets = drawn(4, 30)
    raised = model.scatter_add(-1, targets[:, None], torch.full((4, 1), 5.0, dtype=torch.float64))
    before, after = (keep_losses.kl_to_base(one, base, targets) for one in (model, raised))
    assert after.tolist() == pytest.approx(before.tolist(), abs=1e-5)
    assert keep_losses.kl_to_base(base, base, targets).abs().max() < 1e-6


@pytest.mark.parametrize("way", ["entropy", "kl", "kept"])
def test_the_gradient_is_that_of_the_equation_with_weights_and_base_held_still(way: str) -> None:
    model, base, targets = drawn(3, 90)
    kept = keep_losses.kept_of_base(base, targets)
    weights = keep_losses.entropy_weights(model)
    ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "entropy": lambda at: keep_losses.weighted_by_entropy(
            at, targets, torch.nn.functional.cross_entropy(at, targets, reduction="none")
        ),
        "kl": lambda at: keep_losses.kl_to_base(at, base, targets),
        "kept": lambda at: keep_losses.kl_to_kept(at, targets, *kept),
    }
    at = model.clone().requires_grad_()
    ways[way](at).sum().backward()
    p = model.softmax(-1)
    one_hot = torch.nn.functional.one_hot(targets, 90).double()
    if way == "entropy":
        expected = weights[:, None] * (p - one_hot)
    else:
        others = model.masked_fill(one_hot.bool(), -torch.inf).softmax(-1)
        wanted = base.masked_fill(one_hot.bool(), -torch.inf).softmax(-1)
        if way == "kept":  # the rest shares its mass as the model's does
            inside = torch.zeros_like(wanted).scatter(-1, kept[0], 1.0).bool() | one_hot.bool()
            rest = others.masked_fill(inside, 0.0)
            mass = wanted.masked_fill(inside, 0.0).sum(-1, keepdim=True)
            wanted = wanted.masked_fill(~inside, 0.0) + mass * rest / rest.sum(-1, keepdim=True)
        expected = others - wanted
    assert torch.isfinite(at.grad).all()  # pyright: ignore[reportArgumentType]
    assert (at.grad - expected).abs().max() < 1e-5  # pyright: ignore[reportOptionalOperand]


def test_chunks_of_tokens_say_what_all_tokens_at_once_say_and_never_hold_all_logits() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(3 * keep_losses.CHUNK_TOKENS + 7, 16, requires_grad=True)
    out, targets = torch.nn.Linear(16, 50), torch.randint(50, (len(hidden),))
    most = 0

    def logits_of(part: torch.Tensor) -> torch.Tensor:
        nonlocal most
        most = max(most, len(part))
        return out(part)

    found = keep_losses.summed(hidden, targets, [], logits_of, keep_losses.weighted_by_entropy)
    found.loss.backward()
    gradient, hidden.grad = hidden.grad, None
    whole = keep_losses.of_logits(out(hidden), targets, [], keep_losses.weighted_by_entropy)
    whole.loss.backward()
    assert [one.item() for one in found] == pytest.approx([one.item() for one in whole], rel=1e-5)
    assert torch.allclose(gradient, hidden.grad, atol=1e-6) and most == keep_losses.CHUNK_TOKENS  # pyright: ignore[reportArgumentType]


# --- in a trainer -----------------------------------------------------------------------------------------------------


def rows(lengths: list[int], seed: int = 0) -> list[Encoded]:
    dice = random.Random(seed)
    found = []
    for length in lengths:
        ids = [dice.randrange(3, 96) for _ in range(length)]
        asked = length // 3
        found.append(Encoded(ids, [IGNORED] * asked + ids[asked:], cut=False))
    return found


def run_of(
    tmp_path: Path, way: str, model: Any, *, adapter: str = "lora", beta: float | None = None, train: Any = None
) -> Any:
    """A run of a model that has not begun to train."""
    tmp_path.mkdir(exist_ok=True)
    spec = SimpleNamespace(
        objective_args=SimpleNamespace(keep=way, beta=beta), adapter=adapter, objective="sft",
        adapter_args=SimpleNamespace(continues=False), train=SimpleNamespace(batch_size=2, seed=0),
    )  # fmt: skip
    told: dict[str, Any] = {"train": train or rows([9, 14, 6, 11]), "replay": [], "about": []}
    return SimpleNamespace(
        spec=spec, run_dir=tmp_path, only_probes=False, model=model, log=SimpleNamespace(append=lambda _: None),
        stop=SimpleNamespace(asked=lambda: False), told=SimpleNamespace(begin=lambda *_, **__: 0, upto=lambda *_: 0),
        rows=SimpleNamespace(**told, _replace=lambda **new: SimpleNamespace(**{**told, **new})),
        objective=OBJECTIVES["sft"],
    )  # fmt: skip


def trainer_of(
    tmp_path: Path, way: str, *, adapter: str = "lora", batch: int = 4, accumulation: int = 1, packed: bool = False,
    loss: str = "chunked_nll", checkpointing: bool = False, bf16: bool = False, beta: float | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """A trainer of a model that has moved from its base, and its run."""
    model = base_model()
    run = run_of(tmp_path, way, model, adapter=adapter, beta=beta)
    keep.prepare(run)
    if adapter == "lora":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    elif adapter == "oft":
        oft_config: Any = OFTConfig(oft_block_size=8, use_cayley_neumann=False, target_modules="all-linear")
        model = get_peft_model(model, oft_config)
        oft.host(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (adapter == "full" or "lora_B" in name or "oft_R" in name):
            parameter.data += 0.05 * torch.randn_like(parameter)
    args = SFTConfig(
        output_dir=str(tmp_path / "out"), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        max_length=None, loss_type=loss, report_to="none", use_cpu=True, bf16=bf16, logging_steps=1, learning_rate=1e-3,
        gradient_checkpointing=checkpointing, lr_scheduler_type="constant", weight_decay=0.0,
        train_sampling_strategy="sequential", max_steps=1, disable_tqdm=True, max_grad_norm=0.0, optim="sgd",
    )  # fmt: skip
    callback: Any = transformers.TrainerCallback()
    made = common.trainer(SFTTrainer, args, model, _Tokenizer(), sft.as_dataset(run.rows.train), None, callback)
    if packed:
        made.data_collator = DataCollatorForLanguageModeling(0, padding_free=True)
    keep.hook(run, made)
    return made, run


class _Tokenizer(transformers.PreTrainedTokenizerFast):
    def __init__(self) -> None:
        from tokenizers import Tokenizer, models

        super().__init__(tokenizer_object=Tokenizer(models.BPE()), pad_token="<pad>", eos_token="<end>")


def loss_of(made: Any, items: int | None = None, examples: list[int] | None = None) -> torch.Tensor:
    some = [made.train_dataset[at] for at in examples or range(len(made.train_dataset))]
    made.model.train()
    return made.compute_loss(made.model, made._prepare_inputs(made.data_collator(some)), num_items_in_batch=items)


def slow_loss(made: Any, way: str, base: Any) -> float:
    """The mean over trained tokens, row by row and token by token, in double."""
    total = tokens = 0.0
    for row in made.train_dataset:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            model, told = (one(input_ids=ids).logits[0].double().tolist() for one in (made.model, base))
        for at, label in enumerate(row["labels"][1:]):
            if label == IGNORED:
                continue
            plain = -math.log(softmax(model[at])[label])
            weight = slow_weight(model[at]) if way == "entropy" else 1.0
            apart = {"kl": slow_kl, "kept": slow_kl_to_kept}.get(way)
            total += weight * plain + (apart(model[at], told[at], label) if apart else 0.0)
            tokens += 1
    return total / tokens


def base_model() -> Any:
    torch.manual_seed(3)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZE)).eval()


@pytest.mark.parametrize(
    ("way", "adapter", "loss", "packed"),
    [
        ("entropy", "full", "chunked_nll", True), ("kl", "lora", "chunked_nll", True), ("kl", "lora", "nll", False),
        ("kl", "full", "chunked_nll", False), ("kl", "oft", "chunked_nll", True),
        *(pytest.param(*one, "nll", False, marks=pytest.mark.slow) for one in (("entropy", "full"), ("kl", "full"))),
        pytest.param("kl", "full", "chunked_nll", True, marks=pytest.mark.slow),
        pytest.param("kl", "lora", "chunked_nll", False, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_training_step_has_the_loss_of_the_equation(
    tmp_path: Path, way: str, adapter: str, loss: str, packed: bool
) -> None:
    made, _ = trainer_of(tmp_path, way, adapter=adapter, loss=loss, packed=packed)
    found = loss_of(made)
    slow = slow_loss(made, "kept" if (way, adapter) == ("kl", "full") else way, base_model())
    assert found.item() == pytest.approx(slow, abs=1e-5)


@pytest.mark.parametrize(
    ("way", "adapter"), [pytest.param("entropy", "full", marks=pytest.mark.slow), ("kl", "lora"), ("kl", "full")]
)
def test_a_step_is_the_same_in_one_batch_in_two_and_with_layers_computed_twice(
    tmp_path: Path, way: str, adapter: str
) -> None:
    moved = []
    for number, (batch, accumulation) in enumerate([(4, 1), (2, 2)]):
        made, _ = trainer_of(
            tmp_path / str(number), way, adapter=adapter, batch=batch, accumulation=accumulation,
            checkpointing=number == 1,
        )  # fmt: skip
        made.train()
        moved.append(torch.cat([one.detach().flatten() for one in made.model.parameters() if one.requires_grad]))
    assert torch.allclose(*moved, atol=1e-6)


def test_a_weight_of_one_everywhere_is_plain_sft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep_losses, "entropy_weights", lambda logits: torch.ones(len(logits)))
    kept, _ = trainer_of(tmp_path / "kept", "entropy")
    plain, _ = trainer_of(tmp_path / "plain", "plain")
    assert loss_of(kept).item() == pytest.approx(loss_of(plain).item(), rel=1e-6)


def test_a_model_that_has_not_moved_pays_nothing_for_being_held_to_its_base(tmp_path: Path) -> None:
    kept, _ = trainer_of(tmp_path / "kept", "kl", beta=5.0)
    plain, _ = trainer_of(tmp_path / "plain", "plain")
    apart = loss_of(kept).item() - loss_of(plain).item()
    for made in (kept, plain):
        for name, parameter in made.model.named_parameters():
            if "lora_B" in name:
                parameter.data.zero_()
    assert apart > 1e-4
    assert loss_of(kept).item() == pytest.approx(loss_of(plain).item(), abs=1e-6)


def test_the_adapter_trains_on_after_the_base_was_asked_through_it(tmp_path: Path) -> None:
    made, _ = trainer_of(tmp_path, "kl")
    loss_of(made).backward()
    gradients = {name: one.grad for name, one in made.model.named_parameters() if one.requires_grad}
    assert gradients and all(one is not None and one.abs().sum() > 0 for one in gradients.values())
    assert not [name for name, one in made.model.named_parameters() if "lora" not in name and one.requires_grad]


@pytest.mark.slow
@pytest.mark.parametrize(("way", "adapter"), [("entropy", "lora"), ("kl", "lora"), ("kl", "full")])
def test_rounding_to_bf16_moves_the_loss_by_little(tmp_path: Path, way: str, adapter: str) -> None:
    made, _ = trainer_of(tmp_path, way, adapter=adapter, bf16=True)
    with made.accelerator.autocast():
        rounded = loss_of(made)
    assert rounded.dtype == torch.float32 and torch.isfinite(rounded)
    assert rounded.item() == pytest.approx(loss_of(made).item(), rel=0.02)


def test_the_held_out_loss_stays_plain(tmp_path: Path) -> None:
    made, _ = trainer_of(tmp_path / "kept", "entropy")
    plain, _ = trainer_of(tmp_path / "plain", "plain")
    found = []
    for one in (made, plain):
        one.model.eval()
        batch = one._prepare_inputs(one.data_collator([one.train_dataset[at] for at in range(4)]))
        found.append(one.compute_loss(one.model, batch).item())
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_base_whose_experts_are_balanced_beside_is_refused(tmp_path: Path) -> None:
    made, run = trainer_of(tmp_path, "plain")
    made.aux_loss_enabled = True
    run.spec.objective_args.keep = "entropy"
    with pytest.raises(failures.RunRefused) as refused:
        keep.hook(run, made)
    assert refused.value.problem.rule == "keep-experts"


# --- what is found once -----------------------------------------------------------------------------------------------


def surprising(run: Any, base: Any) -> dict[str, list[int]]:
    """The places of tokens of perplexity above 2.5, found token by token."""
    found = {}
    for row in run.rows.train:
        with torch.no_grad():
            logits = base(input_ids=torch.tensor([row.input_ids])).logits[0].double().tolist()
        chances = {
            at: softmax(logits[at - 1])[row.labels[at]] for at in range(1, len(row.labels)) if row.labels[at] >= 0
        }
        found[skipped.key(row)] = [at for at, chance in chances.items() if 1 / chance > 2.5]
    return found


@pytest.fixture
def sure_base(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A base that is sure of some tokens: its output layer says more."""
    made = transformers.LlamaForCausalLM

    def louder(config: Any) -> Any:
        model = made(config)
        model.lm_head.weight.data *= 60
        return model

    monkeypatch.setattr(transformers, "LlamaForCausalLM", louder)
    return base_model()


def likely_rows(base: Any) -> list[Encoded]:
    """Rows of which every second token is what the base would say."""
    found = []
    for row in rows([9, 14, 6, 11]):
        ids = list(row.input_ids)
        for at in range(2, len(ids), 2):
            with torch.no_grad():
                ids[at] = int(base(input_ids=torch.tensor([ids[:at]])).logits[0, -1].argmax())
        found.append(
            Encoded(ids, [IGNORED if label == IGNORED else ids[at] for at, label in enumerate(row.labels)], False)
        )
    return found


def prepared(tmp_path: Path, base: Any, train: list[Encoded]) -> Any:
    return run_of(tmp_path, "skip_surprising", base, train=train)


def test_tokens_that_surprise_the_base_are_left_out_and_are_kept_with_the_run(tmp_path: Path, sure_base: Any) -> None:
    run = prepared(tmp_path, sure_base, likely_rows(sure_base))
    before, expected = list(run.rows.train), surprising(SimpleNamespace(rows=run.rows), sure_base)
    keep.prepare(run)
    about = skipped.about(tmp_path)
    assert about is not None and 0 < about.skipped < about.tokens
    assert about.skipped == sum(map(len, expected.values()))
    assert skipped.places(tmp_path) == {name: at for name, at in expected.items() if at}
    kept = [skipped.without(row, expected[skipped.key(row)]) for row in before]
    assert run.rows.train == [row for row in kept if row.trained_tokens]
    share = f"{100 * about.share:.0f} % of the answer tokens are left out"
    assert share in str(run.rows.about[0])


def test_a_run_that_goes_on_leaves_out_the_same_whatever_its_model_says_by_then(tmp_path: Path, sure_base: Any) -> None:
    run = prepared(tmp_path, sure_base, likely_rows(sure_base))
    again = prepared(tmp_path, sure_base, likely_rows(sure_base))
    keep.prepare(run)
    again.model = None  # not asked
    keep.prepare(again)
    assert again.rows.train == run.rows.train


@pytest.mark.parametrize("damage", ["no json", "a line less", "of other rows"])
def test_places_that_are_not_whole_are_found_again(tmp_path: Path, sure_base: Any, damage: str) -> None:
    run = prepared(tmp_path, sure_base, likely_rows(sure_base))
    keep.prepare(run)
    whole = (tmp_path / skipped.NAME).read_text()
    lines = whole.splitlines()
    if damage == "no json":
        lines[-1] = "no json"
    elif damage == "a line less":
        del lines[-1]
    else:
        lines = [lines[0], *(line.replace('"row":"', '"row":"x') for line in lines[1:])]
    (tmp_path / skipped.NAME).write_text("\n".join([*lines, ""]))
    again = prepared(tmp_path, sure_base, likely_rows(sure_base))
    keep.prepare(again)
    assert (tmp_path / skipped.NAME).read_text() == whole and again.rows.train == run.rows.train


def test_rows_of_which_all_surprises_are_counted_and_nothing_left_is_refused(tmp_path: Path, sure_base: Any) -> None:
    run = prepared(tmp_path, sure_base, [*likely_rows(sure_base), *rows([8], seed=7)])
    keep.prepare(run)
    about = skipped.about(tmp_path)
    assert about is not None and about.rows >= 1 and len(run.rows.train) == 5 - about.rows
    sure_base.lm_head.weight.data.zero_()  # as unsure as can be
    none = prepared(tmp_path / "none", sure_base, rows([8, 9], seed=7))
    with pytest.raises(failures.RunRefused) as refused:
        keep.prepare(none)
    assert refused.value.problem.rule == "keep-nothing-left"


def test_a_stop_while_the_base_is_asked_leaves_nothing_half_found(tmp_path: Path, sure_base: Any) -> None:
    run = prepared(tmp_path, sure_base, likely_rows(sure_base))
    run.stop.asked = lambda: True
    keep.prepare(run)
    run.spec.objective_args.keep, run.spec.adapter = "kl", "full"
    keep.prepare(run)
    assert not (tmp_path / skipped.NAME).exists() and not list(tmp_path.glob("reference*"))


def said_of(folder: Path, train: list[Encoded]) -> tuple[Any, Any]:
    collator = keep.WithReference(DataCollatorForLanguageModeling(0), folder, made_up=False)
    batch = collator([{"input_ids": row.input_ids, "labels": row.labels} for row in train])
    return batch["base_ids"], batch["base_told"]


def test_a_run_that_goes_on_is_held_to_what_its_base_said_at_the_start(tmp_path: Path) -> None:
    run = run_of(tmp_path, "kl", base_model(), adapter="full")
    keep.prepare(run)
    some, written = [run.rows.train[at] for at in (2, 0)], (tmp_path / "reference" / "ids").stat().st_mtime_ns
    run.model = None  # not asked
    keep.prepare(run)
    told = said_of(tmp_path / "reference", some)
    assert [len(one) for one in told] == [sum(row.trained_tokens for row in some)] * 2
    assert (tmp_path / "reference" / "ids").stat().st_mtime_ns == written


@pytest.mark.parametrize("damage", ["all", "rows.json", "ids", "cut", "of other rows"])
def test_what_the_base_said_is_asked_for_again_where_it_is_not_whole(tmp_path: Path, damage: str) -> None:
    run, folder = run_of(tmp_path, "kl", base_model(), adapter="full"), tmp_path / "reference"
    keep.prepare(run)
    before = said_of(folder, run.rows.train)
    if damage == "cut":
        (folder / "log_probabilities").write_bytes((folder / "log_probabilities").read_bytes()[:-4])
    elif damage == "of other rows":
        shutil.rmtree(folder)
        keep.prepare(run_of(tmp_path, "kl", base_model(), adapter="full", train=rows([9, 14, 6, 12])))
    elif damage == "all":
        shutil.rmtree(folder)
    else:
        (folder / damage).unlink()
    keep.prepare(run)
    assert all(torch.equal(*pair) for pair in zip(before, said_of(folder, run.rows.train), strict=True))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["reference"]


def test_a_long_row_is_asked_about_in_parts_that_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path / "whole", "kl", base_model(), adapter="full")
    keep.prepare(run)
    most: list[int] = []
    monkeypatch.setattr(keep_losses, "CHUNK_TOKENS", 3)
    kept = keep_losses.kept_of_base
    monkeypatch.setattr(keep_losses, "kept_of_base", lambda base, at: (most.append(len(at)), kept(base, at))[1])
    again = run_of(tmp_path / "parts", "kl", base_model(), adapter="full")
    keep.prepare(again)
    pairs = zip(*(said_of(one.run_dir / "reference", run.rows.train) for one in (run, again)), strict=True)
    assert max(most) == 3 and all(torch.allclose(*pair) for pair in pairs)


def test_a_row_that_the_base_was_not_asked_about_is_never_held_to_the_model_itself(tmp_path: Path) -> None:
    made, _ = trainer_of(tmp_path, "kl", adapter="full")
    stranger = sft.as_dataset(rows([7], seed=9))
    with pytest.raises(RuntimeError, match="was not asked"):
        made.compute_loss(made.model.train(), made._prepare_inputs(made.data_collator([stranger[0]])))


def test_a_run_that_goes_on_asks_its_base_to_the_end_also_where_it_is_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It trains a step before it hears of it."""
    run = run_of(tmp_path, "kl", base_model(), adapter="full")
    monkeypatch.setattr(checkpoints, "last_checkpoint", lambda _: tmp_path)
    run.stop.asked = lambda: True
    keep.prepare(run)
    assert (tmp_path / "reference").is_dir()


@pytest.mark.parametrize("name", ["rows.json", "ids", "log_probabilities"])
def test_a_damaged_part_of_what_the_base_said_is_asked_again(tmp_path: Path, name: str) -> None:
    """Without it full weights would be held to nothing but themselves, and nobody would see it."""
    _, run = trainer_of(tmp_path, "kl", adapter="full")
    place = tmp_path / "reference" / name
    whole = place.read_bytes()
    elsewhere = [re.sub(rb'"(start|tokens)":\d+', rb'"\1":' + number, whole) for number in (b"-7", b"77")]
    for damaged in (b"", whole[: len(whole) // 2], b"garbage", *(elsewhere if name == "rows.json" else ())):
        place.write_bytes(damaged)
        torch.manual_seed(3)
        run.model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZE))
        keep.prepare(run)
        assert place.read_bytes() == whole


def test_full_weights_without_a_word_of_their_base_are_not_trained_as_if_held_to_it(tmp_path: Path) -> None:
    made, _ = trainer_of(tmp_path, "kl", adapter="full")
    made.data_collator._rows.clear()
    with pytest.raises(RuntimeError, match="base"):
        loss_of(made)


def test_a_file_of_places_that_is_damaged_counts_as_none(tmp_path: Path) -> None:
    about = msgspec.json.encode(skipped.About(2.5, 2, 1, 0)) + b"\n"
    for damaged in (b"no json\n", b"[" * 100_000, b'{"row":"a","at":[1' + b"0" * 400 + b"]}"):
        (tmp_path / skipped.NAME).write_bytes(damaged)
        assert skipped.about(tmp_path) is None
        (tmp_path / skipped.NAME).write_bytes(about + damaged)
        with pytest.raises(Unreadable):
            skipped.places(tmp_path)
    (tmp_path / skipped.NAME).unlink()
    os.mkfifo(tmp_path / skipped.NAME)
    assert skipped.about(tmp_path) is None and skipped.about(tmp_path / "nowhere") is None
