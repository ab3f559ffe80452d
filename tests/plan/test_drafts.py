"""Drafts: the hand-off between pages keeps what was asked for, and a repeated run is the same run."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import starter
from engine.data import datasets
from engine.plan import drafts
from engine.plan.drafts import Draft
from engine.runs import store
from engine.spec import RunSpec, recipes, schema
from engine.spec import settings as spec_settings
from engine.workspace import Workspace
from tests.helpers import planned

needs_starter = pytest.mark.skipif(
    not (starter.MANIFEST.is_file() and starter.MODEL_DIR.is_dir()), reason="engine/starter/model has not been built"
)


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "home")


@pytest.fixture
def base(tmp_path) -> str:
    """A base of 32 parameters, written by hand."""
    folder = tmp_path / "base"
    folder.mkdir()
    header = json.dumps({"w": {"dtype": "F32", "shape": [8, 4], "data_offsets": [0, 128]}}).encode()
    config = {"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 64, "max_position_embeddings": 256}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(128))
    return str(folder)


def data(workspace: Workspace) -> str:
    workspace.root.mkdir(parents=True, exist_ok=True)
    source = workspace.root / "mine.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"q{i}", "completion": f"a{i}"}) + "\n" for i in range(9)))
    return datasets.add(workspace, source, "mine").id


def ran(workspace: Workspace, base: str, dataset_id: str, recipe: str = "lora", **overrides: Any) -> RunSpec:
    """A run folder r1 as a start leaves it; overrides are written train__epochs=3."""
    settings = {path.replace("__", "."): value for path, value in overrides.items()}
    made, problems = planned(workspace, recipe, base=base, dataset=dataset_id, overrides=settings)
    assert made is not None and problems == []
    run_dir = workspace.run_dir("r1")
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "spec.json").write_bytes(schema.encode(made))
    return made


def opened(workspace: Workspace, draft: Draft) -> RunSpec:
    """What the Train page makes of a draft."""
    made, problems = planned(workspace, draft.recipe, base=draft.base, dataset=draft.dataset, overrides=draft.overrides)
    assert made is not None and problems == []
    return made


# --- files -------------------------------------------------------------------------------------------------------


@given(
    st.dictionaries(
        st.sampled_from(sorted(spec_settings.fields())),
        st.one_of(st.text(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.none()),
    ),
    st.lists(st.text(), max_size=3),
)
def test_a_draft_saved_is_the_draft_loaded(tmp_path_factory, overrides, reasons):
    workspace = Workspace(tmp_path_factory.getbasetemp() / "drafts")
    draft = Draft(recipe="lora", dataset="a", overrides=overrides, reasons=reasons, rules=["B2"], came_from="advisor")
    draft_id = drafts.save(workspace, draft)
    assert drafts.load(workspace, draft_id) == draft


def test_each_draft_has_an_id_of_its_own_that_cannot_be_guessed(workspace):
    ids = {drafts.save(workspace, Draft(recipe="lora")) for _ in range(20)}
    assert len(ids) == 20 and all(len(draft_id) == 16 for draft_id in ids)


@pytest.mark.parametrize("draft_id", ["", "none", "../../etc/passwd", "..", "A", "a/b", "\x00", "a" * 500])
def test_an_id_that_is_no_draft_opens_nothing(workspace, draft_id):
    assert drafts.load(workspace, draft_id) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"recipe": 1}', '{"recipe": "lora", "trust": 1}', "\xff"])
def test_a_draft_that_cannot_be_read_opens_nothing(workspace, text):
    path = workspace.draft_path("broken")
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode("latin-1"))
    assert drafts.load(workspace, "broken") is None


# --- repeating a run ---------------------------------------------------------------------------------------------


def test_a_run_on_its_defaults_has_no_changes_that_would_travel_to_another_base(workspace, base):
    assert drafts.changed_settings(ran(workspace, base, data(workspace)), workspace) == {}


def test_what_a_person_changed_is_in_the_draft(workspace, base):
    ran(workspace, base, data(workspace), train__epochs=3, layers="top:0.5", adapter_args__rank=4, train__max_length=64)
    draft = drafts.of_spec(workspace, store.load_spec(workspace, "r1"), came_from="r1")
    assert draft.overrides.items() >= {
        "train.epochs": 3.0, "layers": "top:0.5", "adapter_args.rank": 4, "train.max_length": 64
    }.items()  # fmt: skip
    assert (draft.recipe, draft.base, draft.came_from) == ("lora", base, "r1")


@pytest.mark.page
@pytest.mark.parametrize("recipe", ["lora", "full"])
@pytest.mark.parametrize(
    "overrides", [{}, {"train__epochs": 3, "train__seed": 7, "layers": [0, 2]}, {"dataset__eval_share": 0.0}]
)
def test_the_draft_of_a_run_opens_as_the_same_spec(workspace, base, recipe, overrides):
    made = ran(workspace, base, data(workspace), recipe, **overrides)
    assert opened(workspace, drafts.of_spec(workspace, store.load_spec(workspace, "r1"), came_from="r1")) == made


@pytest.mark.page
@needs_starter
@pytest.mark.parametrize(
    "overrides", [{}, {"evaluate__benchmarks": []}, {"dataset__eval_id": None}, {"train__replay_share": 0.0}]
)
def test_the_draft_of_a_starter_run_opens_as_the_same_spec(workspace, overrides):
    sample = datasets.add_sample(workspace, starter.sample("new-facts"))
    made = ran(workspace, "starter", sample.id, **overrides)
    assert opened(workspace, drafts.of_spec(workspace, store.load_spec(workspace, "r1"), came_from="r1")) == made


def test_changes_asked_for_go_before_those_of_the_run(workspace, base):
    ran(workspace, base, data(workspace), train__epochs=3, train__seed=7)
    draft = drafts.of_spec(workspace, store.load_spec(workspace, "r1"), came_from="r1", changes={"train.epochs": 9})
    assert draft.overrides["train.epochs"] == 9 and draft.overrides["train.seed"] == 7


def test_a_draft_survives_its_file(workspace, base):
    ran(workspace, base, data(workspace), layers=[1, 3], train__learning_rate=5e-5)
    draft = drafts.of_spec(workspace, store.load_spec(workspace, "r1"), came_from="r1")
    assert drafts.load(workspace, drafts.save(workspace, draft)) == draft


def test_a_run_of_a_recipe_that_is_gone_still_makes_a_draft(workspace, base, monkeypatch, tmp_path):
    ran(workspace, base, data(workspace), train__epochs=3)
    monkeypatch.setattr(recipes, "RECIPES_DIR", Path(tmp_path))
    assert drafts.of_spec(workspace, store.load_spec(workspace, "r1"), came_from="r1").recipe == "lora"
