"""The yardstick of bench/engine.py: what somebody would write by hand with TRL and peft, with the same settings.

    python -m bench.bare_trl SETTINGS.json OUT_DIR

Prints one JSON object: steps, seconds from the first to the last step, losses.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def table_of(path: Path) -> Any:
    """Return the rows of a file, questions with answers, as TRL takes them."""
    from datasets import Dataset

    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["completion"]}],
            }
            for row in rows
        ]
    )


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    torch.set_num_threads(settings["threads"])
    set_seed(settings["seed"])

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times_s: list[float] = []

        def on_step_end(self, *_: object, **__: object) -> None:
            self.times_s.append(time.monotonic())

    clock = Clock()
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(settings["base"], dtype=torch.float32),
        args=SFTConfig(
            output_dir=str(Path(sys.argv[2]) / "checkpoints"),
            learning_rate=settings["learning_rate"],
            lr_scheduler_type="cosine",
            warmup_steps=settings["warmup"],
            num_train_epochs=settings["epochs"],
            per_device_train_batch_size=settings["batch_size"],
            gradient_accumulation_steps=settings["accumulation"],
            max_length=settings["max_length"],
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            seed=settings["seed"],
            save_strategy="no",
            logging_steps=settings["logging_steps"],
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        processing_class=AutoTokenizer.from_pretrained(settings["base"]),
        train_dataset=table_of(Path(settings["data"])),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        if settings["adapter"] == "lora"
        else None,
        callbacks=[clock],
    )
    trainer.train()
    trainer.save_model(str(Path(sys.argv[2]) / "made"))
    print(json.dumps({"steps": len(clock.times_s), "between_s": clock.times_s[-1] - clock.times_s[0]}))


if __name__ == "__main__":
    main()
