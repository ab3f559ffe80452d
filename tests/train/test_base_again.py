"""The base of a trained run is asked exactly as it was before: with its adapter off, or loaded once more."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from engine import starter
from engine.data import datasets
from engine.models import bases
from engine.train import adapters, backend, load
from engine.train.base_again import BaseAgain
from engine.train.objectives import reward
from engine.train.told import Told
from tests.helpers import planned

torch.set_num_threads(1)
IDS = torch.arange(40, 100)[None]
SILENT: Any = SimpleNamespace(append=lambda _: None)


def prepared(workspace: Any, recipe: str, data: str, **overrides: Any) -> Any:
    """A run with its base loaded, as training has it before it adapts the model."""
    dataset = datasets.add_sample(workspace, starter.sample(data)).id
    spec, problems = planned(workspace, recipe, base="starter", dataset=dataset, overrides=overrides)
    assert not problems
    chosen = backend.decide(spec, workspace)
    loaded = load.load(spec, workspace, chosen)
    return SimpleNamespace(
        spec=spec, workspace=workspace, chosen=chosen, base=loaded.base, model=loaded.model, tokenizer=loaded.tokenizer,
        told=Told(SILENT), objective=SimpleNamespace(is_judge=recipe == "reward"),
    )  # fmt: skip


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits.clone()


def trained(model: Any) -> Any:
    """Move every weight that trains, as far as a long training would, and leave it as training does."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
    return model.train()


@pytest.mark.parametrize(("through", "asked_in"), [("plain", "bf16"), ("unsloth", "fp32")])
def test_the_base_of_a_whole_model_is_asked_in_the_format_that_the_tuned_one_is(
    workspace: Any, monkeypatch: pytest.MonkeyPatch, through: Any, asked_in: str
) -> None:
    run = prepared(workspace, "full", "new-facts")
    run.device, run.chosen = "cuda", run.chosen._replace(backend=through, precision="bf16")
    seen: list[Any] = []
    monkeypatch.setattr(load, "load", lambda *told: seen.append(told[2]) or SimpleNamespace(model=run.model))
    with BaseAgain(run, run.model).lent():
        assert [(one.backend, one.precision) for one in seen] == [("plain", asked_in)]


@pytest.mark.parametrize(
    ("recipe", "data", "overrides"),
    [
        ("lora", "new-facts", {"adapter_args.dropout": 0.3}),
        ("oft", "new-facts", {}),
        ("full", "new-facts", {}),
        ("freeze-bottom", "new-facts", {}),
        ("reward", "preference-pairs", {"adapter": "lora"}),
        ("reward", "preference-pairs", {"adapter": "full"}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(map(str, value.values())),
)
def test_what_a_base_says_after_the_training_is_what_it_said_before_to_the_last_bit(
    workspace: Any, recipe: str, data: str, overrides: dict[str, Any]
) -> None:
    run = prepared(workspace, recipe, data, **overrides)
    if recipe == "reward":
        run.model = reward.judge(run.model, run.tokenizer, run.spec.train.seed)
    before = logits(run.model)
    tuned = trained(adapters.prepare(run.model, run.spec, run.chosen).model)
    after = logits(tuned)
    with BaseAgain(run, tuned).lent() as base:
        assert torch.equal(logits(base), before)
    assert torch.equal(logits(tuned), after) and not torch.equal(after, before)


@pytest.mark.parametrize(
    "more", [{"use_dora": True}, {"modules_to_save": ["embed_tokens"]}], ids=["dora", "whole modules"]
)
def test_adapters_of_other_trainers_leave_the_base_as_it_was_too(workspace: Any, more: dict[str, Any]) -> None:
    run = prepared(workspace, "lora", "new-facts")
    before = logits(run.model)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM", **more)
    tuned: Any = trained(get_peft_model(run.model, config))
    with BaseAgain(run, tuned).lent() as base:
        assert torch.equal(logits(base), before)


@pytest.mark.parametrize("kind", ["lora", "oft"])
def test_under_an_adapter_that_is_trained_on_the_base_is_the_earlier_runs_model(
    workspace: Any, kind: str, tmp_path: Path
) -> None:
    first = prepared(workspace, kind, "new-facts")
    earlier = trained(adapters.prepare(first.model, first.spec, first.chosen).model)
    earlier.save_pretrained(tmp_path / "adapter")
    again = prepared(workspace, kind, "new-facts")
    from engine.train import oft

    tuned = oft.lay_over(again.model, tmp_path / "adapter", is_trainable=True)
    before = logits(tuned)
    trained(tuned)
    again.base = bases.describe("starter", workspace)
    again.base = SimpleNamespace(folder=tmp_path / "adapter")
    again.spec = SimpleNamespace(adapter_args=SimpleNamespace(continues=True))
    with BaseAgain(again, tuned).lent() as base:
        assert torch.equal(logits(base), before)
    assert not torch.equal(logits(tuned), before)
