"""Bases: what is known of a model from its config and headers alone, and everything that is wrong with it, in words."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine import starter
from engine.models import bases
from engine.workspace import Workspace

CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8, "max_position_embeddings": 64}
TENSORS = {"a": [4, 8], "b": [8], "c": [2, 3, 5]}
STARTER_IS_HERE = starter.MANIFEST.is_file() and starter.MODEL_DIR.is_dir()
needs_starter = pytest.mark.skipif(not STARTER_IS_HERE, reason="engine/starter/model has not been built")


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Workspace:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return Workspace(tmp_path / "home")


def safetensors(tensors: dict[str, list[int]], **metadata: str) -> bytes:
    """A safetensors file of float32 zeros, written by hand."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in tensors.items():
        size = 4
        for dimension in shape:
            size *= dimension
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def model(folder: Path, config: Any = CONFIG, files: dict[str, bytes | None] | None = None) -> Path:
    """A folder with a base that has nothing wrong; `files` replace or add to its own, None leaves one out."""
    folder.mkdir(parents=True)
    sound: dict[str, bytes | None] = {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": safetensors(TENSORS),
        "tokenizer.json": b"{}",
    }
    for name, data in (sound | (files or {})).items():
        if data is not None:
            (folder / name).write_bytes(data)
    return folder


def rules(ref: str | Path, workspace: Workspace) -> list[str]:
    base = bases.describe(str(ref), workspace)
    assert all(problem.where == "base" and problem.sentence for problem in base.problems)
    return [problem.rule for problem in base.problems]


# --- folders -----------------------------------------------------------------------------------------------------


def test_a_sound_folder_is_described_from_its_config_and_headers(workspace, tmp_path):
    folder = model(tmp_path / "mine")
    base = bases.describe(str(folder), workspace)
    assert base.problems == () and not base.is_toy
    assert (base.kind, base.title, base.ref, base.folder) == ("folder", "mine", str(folder), folder)
    assert (base.layers, base.hidden, base.window_tokens) == (2, 8, 64)
    assert base.parameters == 4 * 8 + 8 + 2 * 3 * 5
    assert base.weights_bytes == (folder / "model.safetensors").stat().st_size


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def test_parameters_of_all_shards_are_added_and_metadata_is_none_of_them(workspace, tmp_path):
    files = {SHARDS[0]: safetensors({"a": [3, 3]}, format="pt"), SHARDS[1]: safetensors({"b": [5]})}
    folder = model(tmp_path / "mine", files={"model.safetensors": None, **files})
    base = bases.describe(str(folder), workspace)
    assert base.parameters == 14 and base.weights_bytes == sum(map(len, files.values()))


def test_a_missing_shard_is_found(workspace, tmp_path):
    index = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode()
    files = {
        "model.safetensors": None,
        "model.safetensors.index.json": index,
        SHARDS[0]: safetensors({"a": [3, 3]}),
    }
    assert rules(model(tmp_path / "mine", files=files), workspace) == ["folder-missing-shards"]


@pytest.mark.parametrize(
    "other", ["../other.safetensors", "inner/other.safetensors", "other.bin", "/other.safetensors"]
)
def test_weights_that_an_index_names_elsewhere_or_otherwise_are_none(workspace, tmp_path, other):
    index = json.dumps({"weight_map": {"a": SHARDS[0], "b": other}}).encode()
    files = {"model.safetensors": None, "model.safetensors.index.json": index, SHARDS[0]: safetensors({"a": [3, 3]})}
    folder = model(tmp_path / "mine", files=files)
    (folder / "inner").mkdir()
    with suppress(OSError):
        (folder / other).write_bytes(safetensors({"b": [3, 3]}))
    assert rules(folder, workspace) == ["folder-missing-shards"]


def test_the_names_of_gpt2_are_known(workspace, tmp_path):
    folder = model(tmp_path / "mine", {"n_layer": 12, "n_embd": 768, "n_positions": 1024})
    base = bases.describe(str(folder), workspace)
    assert (base.layers, base.hidden, base.window_tokens) == (12, 768, 1024)


def test_what_the_config_does_not_say_is_unknown(workspace, tmp_path):
    base = bases.describe(str(model(tmp_path / "mine", {"model_type": "llama", "hidden_size": "8"})), workspace)
    assert (base.layers, base.hidden, base.window_tokens, base.problems) == (None, None, None, ())


def test_a_folder_that_is_not_there(workspace, tmp_path):
    assert rules(tmp_path / "nowhere", workspace) == ["base-missing"]
    file = tmp_path / "file"
    file.write_text("")
    assert rules(file, workspace) == ["folder-file"]


@pytest.mark.parametrize("config", [None, b"", b"{", b"[]", b"null", b"\xff", b'{"a": 1', b"[" * 100_000])
def test_a_folder_without_a_readable_config(workspace, tmp_path, config):
    assert rules(model(tmp_path / "mine", files={"config.json": config}), workspace) == ["base-no-config"]


def test_a_folder_without_weights(workspace, tmp_path):
    assert rules(model(tmp_path / "mine", files={"model.safetensors": None}), workspace) == ["base-no-weights"]


def test_weights_that_are_only_a_pickle_are_never_taken(workspace, tmp_path):
    folder = model(tmp_path / "mine", files={"model.safetensors": None, "pytorch_model.bin": b"\x80\x04."})
    assert rules(folder, workspace) == ["base-pickle"]


def test_a_model_that_brings_code_is_refused_unless_transformers_has_its_architecture(workspace, tmp_path):
    config = {**CONFIG, "auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}}
    assert rules(model(tmp_path / "known", config), workspace) == []
    assert "not run" in " ".join(map(str, bases.describe(str(tmp_path / "known"), workspace).notes))
    own = {**config, "model_type": "of-our-own"}
    assert rules(model(tmp_path / "mine", own), workspace) == ["base-remote-code"]


@pytest.mark.parametrize("named", [{"AutoTokenizer": ["x.X", None]}, ["x.X", None], [], None, "x", 1])
def test_code_of_a_tokenizer_is_passed_over_and_said_where_transformers_has_the_kind_and_refused_elsewhere(
    workspace, tmp_path, named
):
    settings = json.dumps({"auto_map": named, "eos_token": "</s>"}).encode()
    folder = model(tmp_path / "known", CONFIG, {"tokenizer_config.json": settings})
    assert rules(folder, workspace) == []
    assert "not run" in " ".join(map(str, bases.describe(str(folder), workspace).notes))
    own = model(tmp_path / "mine", {**CONFIG, "model_type": "own"}, {"tokenizer_config.json": settings})
    assert rules(own, workspace) == ["base-remote-code"]


def test_a_model_without_a_tokenizer(workspace, tmp_path):
    assert rules(model(tmp_path / "mine", files={"tokenizer.json": None}), workspace) == ["base-no-tokenizer"]


def test_all_that_is_wrong_with_a_folder_is_told_at_once(workspace, tmp_path):
    files = {"tokenizer.json": None, "model.safetensors": safetensors(TENSORS)[:-1]}
    folder = model(tmp_path / "mine", {**CONFIG, "model_type": "of-our-own", "auto_map": {}}, files)
    assert rules(folder, workspace) == ["base-remote-code", "base-no-tokenizer", "base-broken-weights"]


WHOLE = safetensors(TENSORS)


@pytest.mark.parametrize("length", [0, 7, 8, 20, len(WHOLE) - 1])
def test_weights_that_are_cut_off_anywhere_are_found(workspace, tmp_path, length):
    assert rules(model(tmp_path / "mine", files={"model.safetensors": WHOLE[:length]}), workspace) == [
        "base-broken-weights"
    ]


def headed(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header


@pytest.mark.parametrize(
    "data",
    [
        WHOLE + b"\0",
        headed(b"{}", 2**63),
        headed(b"\xff\xff"),
        headed(b'{"a": {"dtype": "F32", "data_offsets": [0, 0]}}'),
        headed(b'{"a": {"dtype": "F32", "shape": 3, "data_offsets": [0, 0]}}'),
        headed(b'{"a": {"dtype": "F32", "shape": [[1]], "data_offsets": [0, 0]}}'),
        headed(b'{"a": 1}'),
        headed(b"[]"),
        headed(b"1"),
        headed(b"[" * 100_000),
        headed(b'{"a": {"dtype": "F32", "shape": [-1, 2], "data_offsets": [0, 0]}}'),
        headed(b'{"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 0]}}'),
    ],
    ids=range(12),
)
def test_a_header_that_makes_no_sense_is_damage_and_never_an_error(workspace, tmp_path, data):
    assert rules(model(tmp_path / "mine", files={"model.safetensors": data}), workspace) == ["base-broken-weights"]


@settings(max_examples=30)
@given(st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(0, 6), max_size=4), min_size=1))
def test_the_parameter_count_is_the_product_of_each_shape(tmp_path_factory, tensors):
    folder = model(tmp_path_factory.mktemp("base") / "mine", files={"model.safetensors": safetensors(tensors)})
    expected = 0
    for shape in tensors.values():
        size = 1
        for dimension in shape:
            size *= dimension
        expected += size
    base = bases.describe(str(folder), Workspace(folder))
    assert base.problems == () and (base.parameters or 0) == expected


# --- the starter -------------------------------------------------------------------------------------------------


@needs_starter
def test_the_starter_is_sound_and_a_toy(workspace):
    base = bases.describe("starter", workspace)
    assert base.problems == () and base.is_toy and base.kind == "starter" and base.ref == "starter"
    assert base.parameters == starter.manifest()["parameters"]
    assert base.window_tokens == starter.manifest()["window_tokens"] >= 1024
    assert base.layers and base.hidden


def test_white_space_around_a_ref_does_not_count(workspace):
    assert bases.describe("  starter\n", workspace).kind == "starter"
    assert bases.describe(" owner/name ", workspace).ref == "owner/name"


# --- hub ids -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ref", ["gpt2", "Qwen/Qwen3-0.6B", "a/b_c.d-1", "HuggingFaceTB/SmolLM2-135M", "a/" + "b" * 96])
def test_a_well_formed_hub_id_is_taken_without_asking_the_network(workspace, ref):
    base = bases.describe(ref, workspace)
    assert (base.kind, base.ref, base.folder, base.parameters, base.problems) == ("hub", ref, None, None, ())


@pytest.mark.parametrize(
    "ref",
    [
        "a/b/c", "a b", "a/", "/", "a//b", "-a/b", "a/-b", ".a/b", "a/..", "a..b/c", "a/b\nc/d", "a\\b", "ünï/code",
        "https://huggingface.co/a/b", "a/b@../main", "a/b@x y", "a/b?x=1",
        "$(ls)", "a;b", "a/" + "b" * 97, "con:x", "\x00", "\ud800",
    ],
)  # fmt: skip
def test_what_is_no_hub_id_is_a_problem_that_says_what_to_write(workspace, ref):
    found = bases.describe(ref, workspace)
    assert found.problems and found.kind != "hub"
    assert rules(ref, workspace)[0] in ("base-unknown", "base-missing", "base-no-config")


@pytest.mark.parametrize("ref", ["a--b/c", "a/b--c", "a/b.git", "a/b-", "a/b.", "a-/b"])
def test_ids_that_the_hub_itself_refuses_are_refused(workspace, ref):
    assert rules(ref, workspace) == ["base-unknown"]


def test_a_path_that_leads_out_is_a_folder_and_no_hub_id(workspace):
    for ref in ("../../etc", "./../../etc", "/etc"):
        assert bases.describe(ref, workspace).kind == "folder"
        assert rules(ref, workspace) in (["base-missing"], ["base-no-config"])


def cached(tmp_path: Path, name: str, revision: str, folder: str | None = None) -> Path:
    repository = tmp_path / "hub" / f"models--{name}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    return repository / "snapshots" / (folder or revision)


def test_a_hub_id_on_this_machine_is_described_from_its_snapshot(workspace, tmp_path):
    snapshot = model(cached(tmp_path, "owner--name", "0" * 40))
    base = bases.describe("owner/name", workspace)
    assert (base.kind, base.ref, base.folder, base.parameters) == ("hub", "owner/name", snapshot, 70)


def test_a_snapshot_without_its_weights_can_still_be_downloaded(workspace, tmp_path):
    model(cached(tmp_path, "owner--name", "0" * 40), files={"model.safetensors": None})
    assert rules("owner/name", workspace) == []


def test_a_reference_in_the_cache_that_is_a_path_is_not_followed(workspace, tmp_path):
    model(cached(tmp_path, "owner--name", "../../../elsewhere", "x"))
    model(tmp_path / "elsewhere")
    assert bases.describe("owner/name", workspace).folder is None


# --- earlier runs ------------------------------------------------------------------------------------------------


def made(workspace: Workspace, run_id: str, what: str, base: str) -> Path:
    """A run folder with what a run on `base` made."""
    run_dir = workspace.run_dir(run_id)
    if what == "model":
        model(run_dir / "model")
    else:
        (run_dir / "adapter").mkdir(parents=True)
    (run_dir / "spec.json").write_text(json.dumps({"base": {"ref": base}}))
    return run_dir


@pytest.mark.parametrize(
    "ref", ["run:", "run:nothing", "run:../../etc", "run:/etc", "run:a/b", "run:..", "run:\x00", "run: a", "run:A"]
)
def test_a_run_that_is_none_or_a_path_has_made_no_model(workspace, ref):
    assert rules(ref, workspace) == ["base-run"]


def test_a_run_that_has_made_nothing_yet(workspace):
    workspace.run_dir("r1").mkdir(parents=True)
    assert rules("run:r1", workspace) == ["base-run"]


def test_the_model_of_a_run_is_a_base(workspace, tmp_path):
    run_dir = made(workspace, "r1", "model", str(model(tmp_path / "mine")))
    base = bases.describe("run:r1", workspace)
    assert (base.kind, base.ref, base.folder, base.adapter_of) == ("run", "run:r1", run_dir / "model", None)
    assert base.parameters == 70 and base.problems == () and not base.is_toy


def test_the_adapter_of_a_run_is_a_base_of_the_size_below(workspace, tmp_path):
    below = str(model(tmp_path / "mine"))
    run_dir = made(workspace, "r1", "adapter", below)
    base = bases.describe("run:r1", workspace)
    assert (base.kind, base.folder, base.adapter_of, base.parameters) == ("run", run_dir / "adapter", below, 70)
    assert (base.layers, base.hidden, base.window_tokens) == (2, 8, 64)


@pytest.mark.parametrize("meta", [None, "", "[]", "{}", '{"name": "my run"}'])
def test_the_base_that_is_a_run_is_called_by_its_name_where_it_has_one(workspace, meta):
    run_dir = made(workspace, "20260101-000000-abcdef", "model", "owner/name")
    if meta is not None:
        (run_dir / "meta.json").write_text(meta)
    ref = f"run:{run_dir.name}"
    wanted = "my run (abcdef)" if meta and "my run" in meta else ref
    assert bases.short(ref, workspace) == bases.describe(ref, workspace).title == wanted
    assert bases.short("run:../..", workspace) == "run:../.." and bases.short("starter", workspace) == "starter"


@needs_starter
def test_what_came_from_the_starter_is_a_toy_however_many_runs_later(workspace):
    made(workspace, "r1", "adapter", "starter")
    made(workspace, "r2", "model", "run:r1")
    made(workspace, "r3", "adapter", "run:r2")
    assert all(bases.describe(f"run:{run}", workspace).is_toy for run in ("r1", "r2", "r3"))


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"base": 1}', '{"base": {"ref": "run:r1"}}', "\x00"])
def test_a_run_whose_spec_cannot_be_used_is_a_problem_and_never_an_error(workspace, text):
    spec_json = made(workspace, "r1", "model", "starter") / "spec.json"
    spec_json.unlink() if text is None else spec_json.write_text(text)
    cut = text in ("", "[]", "\x00")
    assert rules("run:r1", workspace) == ["run-broken" if cut else "base-run"]


# --- any text ----------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.one_of(st.text(st.characters()), st.text("/.~:a-_ \\\x00\n"), st.builds("run:{}".format, st.text())))
@example("~nobody-of-this-name/model")
@example("~\x00")
@example("a" * 5000)
@example("/" + "a" * 5000)
@example("~/" + "a" * 300)
@example("run:" + "a" * 5000)
def test_describe_never_raises(tmp_path_factory, ref):
    base = bases.describe(ref, Workspace(tmp_path_factory.getbasetemp() / "home"))
    assert len(base.title) <= len(ref) + 80
    assert all(problem.sentence for problem in base.problems)
