"""Supervised fine-tuning of an adapter on the output layer: it moves, fresh or loaded, and its loss is that of the rows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from trl.trainer.sft_trainer import SFTTrainer

from engine import starter
from engine.spec import schema
from engine.train.objectives import sft
from tests.train.test_scores import tokenizer_of

CASES: dict[str, dict[str, Any]] = {
    "a LoRA on it": {"target_modules": ["q_proj", "lm_head"]},
    "saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "elsewhere": {"target_modules": ["q_proj"]},
}


@pytest.mark.parametrize(
    ("case", "continues"),
    [("a LoRA on it", False), ("a LoRA on it", True), ("saved whole", True), ("elsewhere", False)],
)
def test_what_is_on_the_output_layer_trains(tmp_path: Path, case: str, *, continues: bool) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(starter.MODEL_DIR, dtype=torch.float32)
    made: Any = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", **CASES[case]))
    if continues:
        made.save_pretrained(str(tmp_path / "adapter"))
        lower: Any = AutoModelForCausalLM.from_pretrained(starter.MODEL_DIR, dtype=torch.float32)
        model = made = PeftModel.from_pretrained(lower, tmp_path / "adapter", is_trainable=True)
    run: Any = SimpleNamespace(
        model=model, spec=schema.adopted(base=schema.BaseRef("starter")), rows=SimpleNamespace(replay=[]),
        chosen=SimpleNamespace(padding_free=None),
    )  # fmt: skip
    shared = {"output_dir": str(tmp_path), "max_steps": 1, "use_cpu": True, "bf16": False, "learning_rate": 0.01}
    args = sft.config(run, {**shared, "report_to": "none", "warmup_steps": 0, "disable_tqdm": True})
    ids = list(range(40, 70))
    rows = sft.as_dataset([SimpleNamespace(input_ids=ids, labels=ids)] * 8)  # pyright: ignore[reportArgumentType]
    before = {name: one.detach().clone() for name, one in made.named_parameters() if one.requires_grad}
    with torch.no_grad():
        loss = float(made(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss)
    trainer = SFTTrainer(model=made, args=args, train_dataset=rows, processing_class=tokenizer_of(starter.MODEL_DIR))
    trainer.train()
    moved = {name for name, one in made.named_parameters() if one.requires_grad and not torch.equal(one, before[name])}
    assert any("lm_head" in name for name in moved) == (case != "elsewhere") and any("q_proj" in name for name in moved)
    assert trainer.state.log_history[0]["train_loss"] == pytest.approx(loss, abs=1e-4)
    assert args.loss_type == ("chunked_nll" if case == "elsewhere" else "nll")
