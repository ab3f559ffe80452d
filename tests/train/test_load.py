"""Loading a base for a card, as transformers is asked for it: no card was here."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from transformers import Trainer, TrainingArguments

from engine.spec import schema
from engine.train import load
from engine.workspace import Workspace


class Asked(Exception):
    pass


@pytest.mark.parametrize("quantize", ["none", "4bit"])
def test_weights_go_straight_to_the_card_and_not_through_main_memory(workspace: Workspace, monkeypatch, quantize):
    """free Colab has 12.7 GB of main memory; a 7B base in 16 bits has 14.5."""
    told: dict[str, Any] = {}

    def from_pretrained(*_: Any, **settings: Any) -> Any:
        told.update(settings)
        raise Asked

    monkeypatch.setattr(load, "_device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(load, "from_pretrained", from_pretrained)
    spec = schema.RunSpec(
        recipe=schema.RecipeRef("lora", "0" * 64), base=schema.BaseRef("starter"), dataset=schema.DatasetRef(""),
        quantize=quantize,
    )  # fmt: skip
    with pytest.raises(Asked):
        load._read("folder", spec, torch.bfloat16, a_choice(), cast("Any", None))
    # named by its number, as the Trainer names it (transformers 5.17, trainer.py, is_model_parallel)
    assert told["device_map"] == {"": torch.device("cuda:0")}


def a_choice() -> Any:
    from engine.estimate import machine_choices

    return machine_choices.Chosen("plain", "bf16", False, "adamw", None, ())


def test_a_base_loaded_by_a_map_is_for_the_trainer_one_on_a_single_device(workspace: Workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(load, "straight", lambda: {"device_map": {"": torch.device("cpu")}})
    spec = schema.RunSpec(
        recipe=schema.RecipeRef("lora", "0" * 64), base=schema.BaseRef("starter"), dataset=schema.DatasetRef("")
    )
    model = load.load(spec, workspace, a_choice()._replace(precision="fp32")).model
    assert not hasattr(model, "hf_device_map")
    trainer = Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]))
    assert not trainer.is_model_parallel and next(model.parameters()).device == torch.device("cpu")
