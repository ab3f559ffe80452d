"""The loss on held-out rows is one figure of the rows, in whatever order and batches they come."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerState
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from engine import starter
from engine.render import Encoded
from engine.render.encode import IGNORED
from engine.train import best, held_out
from engine.train.objectives import dpo, preference, sft

torch.set_num_threads(1)
ANSWERS = [1, 30, 2, 1, 25, 1, 1, 28, 3, 1, 40]  # tokens of each row's answer


class BySum(held_out.BySum, SFTTrainer):
    pass


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(starter.MODEL_DIR, use_safetensors=True)
    return model, AutoTokenizer.from_pretrained(starter.MODEL_DIR)


def rows(order: list[int]) -> Dataset:
    dice = torch.Generator().manual_seed(0)
    every = []
    for tokens in ANSWERS:
        ids = torch.randint(4, 1000, (3 + tokens,), generator=dice).tolist()
        every.append(Encoded(ids, [IGNORED] * 3 + ids[3:], cut=False))
    return sft.as_dataset([every[place] for place in order])


def loss_of(parts: tuple[Any, Any], folder: Path, order: list[int], batch: int) -> dict[str, float]:
    model, tokenizer = parts
    args = SFTConfig(
        output_dir=str(folder), per_device_eval_batch_size=batch, report_to="none", use_cpu=True, disable_tqdm=True,
        max_length=64, bf16=False,
    )  # fmt: skip
    held = rows(order)
    made = BySum(model=model, args=args, processing_class=tokenizer, train_dataset=held, eval_dataset=held)
    return made.evaluate()


def by_hand(parts: tuple[Any, Any]) -> float:
    total, count = 0.0, 0
    held: Any = rows(list(range(len(ANSWERS))))
    for row in held:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            chances = parts[0](input_ids=ids).logits.log_softmax(dim=-1)[0, 2:-1]
        answer = labels[0, 3:]
        total, count = total - float(chances.gather(1, answer[:, None]).sum()), count + len(answer)
    return total / count


def test_the_held_out_loss_is_summed_over_all_tokens_whatever_the_order_and_the_batches(parts, tmp_path):
    wanted, order = by_hand(parts), list(range(len(ANSWERS)))
    sorted_rows = sorted(order, key=lambda place: ANSWERS[place])
    for one, batch in ((order, 4), (sorted_rows, 4), (order[::-1], 3), (sorted_rows, 1), (order, 16)):
        assert loss_of(parts, tmp_path, one, batch)["eval_loss"] == pytest.approx(wanted, rel=1e-5)


def test_what_is_measured_beside_it_is_weighed_by_the_same_tokens(parts, tmp_path):
    found = [loss_of(parts, tmp_path, list(range(len(ANSWERS))), batch) for batch in (4, 16)]
    history = [
        {name: one[name] for name in one if name in ("eval_entropy", "eval_mean_token_accuracy")} for one in found
    ]
    assert history[0] == pytest.approx(history[1], rel=1e-5)


def test_rows_that_fill_up_the_last_batch_of_several_processes_count_for_nothing(parts, tmp_path):
    model, tokenizer = parts
    held = held_out.filled(rows(list(range(len(ANSWERS)))), 8)
    assert len(held) == 16 and held_out.filled(held, 8) is held
    args = SFTConfig(
        output_dir=str(tmp_path), per_device_eval_batch_size=4, report_to="none", use_cpu=True, disable_tqdm=True,
        max_length=64, bf16=False,
    )  # fmt: skip
    made = BySum(model=model, args=args, processing_class=tokenizer, train_dataset=held, eval_dataset=held)
    assert made.evaluate()["eval_loss"] == pytest.approx(by_hand(parts), rel=1e-5)  # the last batch is all empty rows


def test_of_pairs_each_counts_once_also_in_a_short_last_batch(parts, tmp_path):
    model, tokenizer = parts
    dice = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(4, 1000, (count,), generator=dice).tolist()

    pairs = [SimpleNamespace(prompt_ids=ids(3), chosen_ids=ids(4), rejected_ids=ids(2 + n)) for n in range(5)]
    held = dpo.as_dataset(pairs)  # pyright: ignore[reportArgumentType]
    kind = type("Pairs", (held_out.BySum, preference.TokenIdsAlready, DPOTrainer), {})
    found = []
    for batch in (4, 5, 1):
        args = DPOConfig(
            output_dir=str(tmp_path), per_device_eval_batch_size=batch, report_to="none", use_cpu=True, max_length=64,
            disable_tqdm=True, bf16=False, beta=0.1,
        )  # fmt: skip
        made = kind(model=model, args=args, processing_class=tokenizer, train_dataset=held, eval_dataset=held)
        said = made.evaluate()
        found.append((said["eval_loss"], said["eval_logps/chosen"], said["eval_logps/rejected"]))
    for one in found[1:]:
        assert one == pytest.approx(found[0], rel=1e-4)


# --- the best weights after a home has moved -------------------------------------------------------------------------


def checkpoint(folder: Path, step: int, best_at: str | None = None) -> Path:
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    state = TrainerState(global_step=step, best_metric=1.0, best_global_step=20, best_model_checkpoint=best_at)
    state.save_to_json(str(made / "trainer_state.json"))
    return made


def test_the_best_checkpoint_of_a_home_that_has_moved_is_found_beside_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr(best.checkpoints, "is_whole", lambda folder: folder.is_dir())
    kept = checkpoint(tmp_path, 20)
    last = checkpoint(tmp_path, 30, "/a/home/that/was/runs/r1/checkpoints/checkpoint-20")
    best.find_again(last)
    state = TrainerState.load_from_json(str(last / "trainer_state.json"))
    assert state.best_model_checkpoint == str(kept) and state.best_global_step == 20
    assert sorted(path.name for path in last.iterdir()) == ["trainer_state.json"]


def test_a_best_checkpoint_that_is_gone_is_not_named_any_more(tmp_path):
    last = checkpoint(tmp_path, 30, "/a/home/that/was/runs/r1/checkpoints/checkpoint-20")
    best.find_again(last)
    assert TrainerState.load_from_json(str(last / "trainer_state.json")).best_model_checkpoint is None


def test_weights_that_cannot_be_taken_are_not_said_to_be_kept(tmp_path):
    taken: list[str] = []
    state = SimpleNamespace(
        best_model_checkpoint=str(tmp_path / "checkpoint-20"), best_global_step=20, global_step=30,
        log_history=[{"eval_loss": 1.0, "step": 20}, {"eval_loss": 2.0, "step": 30}],
    )  # fmt: skip
    args = SimpleNamespace(load_best_model_at_end=True)
    trainer = SimpleNamespace(state=state, args=args, _load_best_model=lambda: taken.append("loaded"))
    best.watch(trainer)
    trainer._load_best_model()
    told = best.kept(trainer)
    assert taken == [] and told is not None and told.level == "warning"
    assert "of step 30, not the best ones" in str(told.text)
