"""A plan of one run on many bases: what is said of each must agree."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import machine
from engine.machine import MachineFacts
from engine.models import shortlist
from engine.plan import plans
from engine.workspace import Workspace
from tests.helpers import examples

FAMILIES = [
    [one for one in shortlist.curated() if one.id.startswith(start)]
    for start in ("HuggingFaceTB/SmolLM2", "Qwen/Qwen2.5", "meta-llama/Llama-3", "Qwen/Qwen3")
]
ORDER = ("fits", "tight", "risky", "none")


@settings(max_examples=examples(100), deadline=None)
@given(
    recipe=st.sampled_from(["lora", "qlora", "full", "oft", "freeze-bottom", "dpo", "kto"]),
    memory_gib=st.floats(1, 200),
    batch=st.sampled_from([1, 2, 8, 32]),
    tokens=st.sampled_from([128, 512, 2048]),
)
def test_a_smaller_model_is_never_said_to_fit_worse_than_a_larger_one_of_its_family(
    tmp_path_factory: pytest.TempPathFactory, recipe: str, memory_gib: float, batch: int, tokens: int
) -> None:
    """What the picker's short list says is room() of the plan on each base. Of models of one family and vocabulary."""
    workspace = Workspace(tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "facts", lambda: MachineFacts(2, int(memory_gib * 1024), ()))
        wish = {"train.batch_size": batch, "train.max_length": tokens}
        plan = plans.make(workspace, recipe, base="starter", dataset=None, overrides=wish)
        for family in FAMILIES:
            rooms = [ORDER.index(plans.on_base(plan, one.base).room) for one in family]
            assert rooms == sorted(rooms), [one.id for one in family]
