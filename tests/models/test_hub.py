"""The hub: looked at, searched and fetched from, against a server of our own (tests/hub.py); nothing leaves the machine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import starter
from engine.check import DatasetError
from engine.data import datasets, hub_data, jobs, mix
from engine.models import bases, cache, hub, hub_client, shortlist
from engine.plan import plans
from engine.spec import schema
from engine.words import rules
from engine.workspace import Workspace
from tests.conftest import tunebook
from tests.helpers import PROJECT_DIR, planned, wait_until
from tests.house.sources import sources
from tests.hub import COMMIT, TOKEN, Hub, Repository
from tests.models.test_bases import safetensors

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64,
    "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000,
    "max_position_embeddings": 256, "tie_word_embeddings": True,
}  # fmt: skip
QWEN = {**LLAMA, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": False}
GPT2 = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 1000,
    "n_positions": 128,
}  # fmt: skip
SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "chat_template": "x",
}
ROWS = [{"prompt": f"What is {i} plus one?", "completion": f"It is {i + 1}."} for i in range(30)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def repository(config: dict = LLAMA, settings: dict = SETTINGS, *, size: int = 1000, **more: bytes | None) -> dict:
    files: dict[str, bytes | None] = {
        "config.json": json.dumps(config).encode(), "tokenizer.json": b"{}", "README.md": b"#",
        "tokenizer_config.json": json.dumps(settings).encode(), "model.safetensors": safetensors({"a": [size]}),
    }  # fmt: skip
    named = {name.replace("__", "."): data for name, data in more.items()}
    return {name: data for name, data in (files | named).items() if data is not None}


@pytest.fixture
def server(monkeypatch, tmp_path) -> Iterator[Hub]:
    one = Hub()
    monkeypatch.setenv("HF_ENDPOINT", one.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    yield one
    one.close()


def refused(action, *arguments, **named) -> str:
    """Return the rule of the problem, and hold that its sentence says what to do and repeats no token."""
    with pytest.raises(hub_client.HubError) as caught:
        action(*arguments, **named)
    sentence = caught.value.problem.sentence
    assert "{" not in sentence and "; " in sentence and TOKEN not in sentence
    return caught.value.problem.rule


def test_the_hubs_library_counts_nobody_and_asks_for_nothing_more():
    code = "import engine.models.hub; from huggingface_hub import constants; assert constants.HF_HUB_DISABLE_TELEMETRY"
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_DIR, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# --- looking ---------------------------------------------------------------------------------------------------------


def test_a_look_tells_size_shape_and_template_and_fetches_no_weights(server, workspace):
    server.models["tiny/qwen"] = Repository(repository(QWEN), card={"license": "mit"})
    found = hub.look("tiny/qwen")
    assert (found.commit, found.gated, found.readable, found.licence) == (COMMIT, False, True, "mit")
    assert found.download_bytes == sum(len(d) for n, d in server.models["tiny/qwen"].files.items() if n != "README.md")
    assert not [asked for asked in server.requests if "safetensors" in asked]
    base = bases.describe("tiny/qwen", workspace)
    assert base.folder is None and base.revision == COMMIT and base.template == "own" and not base.pads_with_end
    assert base.shape is not None and base.shape.layout == "qwen2" and base.window_tokens == 256 and base.parameters
    run_spec, _ = planned(workspace, "lora", base="tiny/qwen", dataset=None, overrides={})
    assert run_spec is not None and (run_spec.base.ref, run_spec.base.revision) == ("tiny/qwen", COMMIT)
    assert plans.of_spec(workspace, run_spec).memory.parts


def test_a_gpt2_without_a_template_or_padding_says_so(server, workspace):
    settings = {"tokenizer_class": "GPT2Tokenizer"}
    server.models["tiny/gpt2"] = Repository(repository(GPT2, settings))
    hub.look("tiny/gpt2")
    base = bases.describe("tiny/gpt2", workspace)
    assert base.template == "headings" and base.pads_with_end and base.problems == ()


@pytest.mark.parametrize(
    ("config", "settings", "rule"),
    [
        ({"model_type": "whatever"}, SETTINGS, "base-architecture"),
        ({**LLAMA, "model_type": "own", "auto_map": {"AutoModel": "x.py"}}, SETTINGS, "base-remote-code"),
        (LLAMA, {"tokenizer_class": "PreTrainedTokenizerFast"}, "base-no-end-token"),
    ],
)
def test_what_rules_a_model_out_is_known_before_its_weights_are_fetched(server, workspace, config, settings, rule):
    server.models["tiny/odd"] = Repository(repository(config, settings))
    hub.look("tiny/odd")
    found = bases.describe("tiny/odd", workspace).problems
    assert [one.rule for one in found] == [rule] and found[0].sentence


def test_weights_that_can_run_code_are_refused_and_not_fetched(server):
    server.models["tiny/bin"] = Repository(repository(model__safetensors=None, pytorch_model__bin=b"pickle"))
    assert [one.rule for one in hub.look("tiny/bin").problems] == ["hub-pickle"]
    assert refused(hub.fetch, "tiny/bin") == "hub-pickle"
    assert not [asked for asked in server.requests if asked.endswith(".bin")]


def test_search_finds_by_part_of_the_id(server):
    server.models |= {"tiny/one": Repository(repository()), "other/two": Repository(repository(), gated=True)}
    assert [(one.id, one.gated) for one in hub.search("two")] == [("other/two", True)]


# --- access ----------------------------------------------------------------------------------------------------------


def test_each_way_of_being_refused_has_its_own_sentence(server, monkeypatch):
    server.models["tiny/gated"] = Repository(repository(), gated=True)
    assert refused(hub.fetch, "tiny/gated") == "hub-gated"
    assert refused(hub.fetch, "tiny/gated", token="hf_of_somebody_else") == "hub-gated-refused"
    assert refused(hub.fetch, "tiny/gated", token="nonsense") == "hub-token"
    assert refused(hub.look, "tiny/none") == "hub-not-found"
    assert refused(hub.look, "tiny/gated@v9") == "hub-revision"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert refused(hub.look, "tiny/gated") == "hub-offline-asked"


def test_a_hub_that_is_not_there_is_told_at_once(monkeypatch, server):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert refused(hub.look, "tiny/one") == "hub-unreachable"
    assert refused(hub.search, "tiny") == "hub-unreachable"


def test_a_hub_that_says_nothing_is_not_waited_for(monkeypatch, server):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(hub_client, "TIMEOUT_S", 0.2)
        for asked in (hub.look, hub.search, hub_data.data_parts):
            assert refused(asked, "tiny/one") == "hub-unreachable"


@pytest.mark.parametrize(
    "answer",
    [
        *("<html>", "3", "[3]", '{"error": "no"}', '{"id": "a/b", "sha": null, "siblings": []}'),
        '{"id": "a/b", "sha": "COMMIT", "siblings": 3}',
        '{"id": "a/b", "sha": "COMMIT", "siblings": [{"rfilename": "config.json", "size": 2}]}',  # a file without a hash
    ],
)
def test_what_is_no_answer_of_a_hub_is_told_as_that(server, answer):
    server.nonsense = answer.replace("COMMIT", COMMIT).encode()
    for asked in (hub.look, hub.search, hub_data.data_parts):
        assert refused(asked, "tiny/one") == "hub-answer"


@pytest.mark.parametrize("is_hub", [True, False], ids=["to the hub", "to a stranger"])
def test_a_mirror_that_sends_on_takes_the_token_along_to_the_hub_alone(server, monkeypatch, is_hub):
    from huggingface_hub import constants

    server.models["tiny/gated"] = Repository(repository(), gated=True)
    server.is_mirror = True
    if is_hub:
        monkeypatch.setattr(constants, "HF_URL_HOSTS", constants.HF_URL_HOSTS | {"localhost"})
        monkeypatch.setattr("tests.hub.LFS", ())  # no store: it is of the same name
        assert hub.fetch("tiny/gated", token=TOKEN) == COMMIT
    else:
        assert refused(hub.fetch, "tiny/gated", token=TOKEN) == "hub-gated"


def test_a_gated_model_comes_with_a_token_which_is_nowhere_on_disk(server, workspace, tmp_path):
    server.models["tiny/gated"] = Repository(repository(), gated=True)
    assert hub.look("tiny/gated").problems[0].rule == "hub-gated"
    folder = jobs.start(jobs.Call(workspace=str(workspace.root), model="tiny/gated"), token=TOKEN)
    wait_until(lambda: (folder / "result.json").exists(), 60, "the download")
    result = jobs.result(folder)
    assert result is not None and result.commit == COMMIT and result.problem is None
    assert bases.describe("tiny/gated", workspace).folder is not None
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 5 and not [path for path in written if TOKEN.encode() in path.read_bytes()]


# --- fetching --------------------------------------------------------------------------------------------------------


def test_a_download_that_is_cancelled_goes_on_where_it_ended(server, workspace):
    server.models["tiny/large"] = Repository(repository(size=1 << 20))  # 4 MiB, 64 pieces
    server.delay_s = 0.05
    call = jobs.Call(workspace=str(workspace.root), model="tiny/large")
    folder = jobs.start(call)
    wait_until(lambda: 0.2 < jobs.progress(folder).share < 1 or (folder / "result.json").exists(), 60, "some progress")
    jobs.stop(folder)
    assert not folder.exists()
    half = bases.describe("tiny/large", workspace)
    assert half.folder is None and half.problems == () and "tiny/large" not in cache.cached()
    blobs = cache.hub_cache() / "models--tiny--large" / "blobs"
    there = sum(path.stat().st_size for path in blobs.glob("*.incomplete"))
    assert there > 1 << 19
    server.delay_s = 0
    told: list[tuple[int, int]] = []
    assert hub.fetch("tiny/large", progress=lambda done, total: told.append((done, total))) == COMMIT
    assert server.ranges == [f"bytes={there}-"] and told[-1][0] == told[-1][1]
    assert bases.describe("tiny/large", workspace).folder is not None and not list(blobs.glob("*.incomplete"))
    before = len(server.requests)
    hub.fetch("tiny/large")
    assert not [asked for asked in server.requests[before:] if "resolve" in asked]  # nothing is fetched twice


def test_a_server_that_sends_all_again_is_begun_anew(server, workspace):
    server.models["tiny/one"] = Repository(repository())
    server.has_ranges = False
    data = server.models["tiny/one"].files["model.safetensors"]
    blobs = cache.folder("tiny/one") / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(data).hexdigest()}.incomplete").write_bytes(b"x" * 100)
    told: list[tuple[int, int]] = []
    hub.fetch("tiny/one", progress=lambda done, total: told.append((done, total)))
    assert bases.describe("tiny/one", workspace).folder is not None and not list(blobs.glob("*.incomplete"))
    assert [done for done, _ in told] == sorted(done for done, _ in told) and told[-1][0] == told[-1][1]


def test_two_that_want_the_same_model_at_once_fetch_it_once(server):
    server.models["tiny/large"] = Repository(repository(size=1 << 18))  # 1 MiB, 16 pieces
    server.delay_s = 0.02
    with ThreadPoolExecutor(2) as both:
        assert list(both.map(hub.fetch, ["tiny/large"] * 2)) == [COMMIT, COMMIT]
    assert len([asked for asked in server.requests if asked.startswith("GET store/")]) == 1


def test_a_damaged_shard_is_thrown_away_and_named(server, workspace):
    server.models["tiny/one"] = Repository(repository())
    server.corrupt.add("model.safetensors")
    assert refused(hub.fetch, "tiny/one") == "hub-corrupt"
    assert bases.describe("tiny/one", workspace).folder is None
    repository_folder = cache.hub_cache() / "models--tiny--one"
    assert not list(repository_folder.rglob("*.incomplete")) and not list(repository_folder.rglob("*.safetensors"))
    server.corrupt.clear()
    hub.fetch("tiny/one")
    assert bases.describe("tiny/one", workspace).folder is not None


def test_a_part_of_the_shards_is_no_model_yet(server, workspace):
    index = json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    )
    files = repository(model__safetensors=None) | {
        "model.safetensors.index.json": index.encode(),
        "model-00001-of-00002.safetensors": safetensors({"a": [5]}),
        "model-00002-of-00002.safetensors": safetensors({"b": [7]}),
        "consolidated.safetensors": b"another copy", "onnx/model.safetensors": b"another",
    }  # fmt: skip
    server.models["tiny/two"] = Repository(files)
    server.corrupt.add("model-00002-of-00002.safetensors")
    assert refused(hub.fetch, "tiny/two") == "hub-corrupt"
    assert bases.describe("tiny/two", workspace).folder is None
    server.corrupt.clear()
    hub.fetch("tiny/two")
    base = bases.describe("tiny/two", workspace)
    assert base.folder is not None and base.parameters == 12 and cache.cached() == ["tiny/two"]
    assert not (base.folder / "consolidated.safetensors").exists()


def test_a_disk_too_small_is_told_before_a_byte_is_fetched(server, monkeypatch):
    server.models["tiny/one"] = Repository(repository())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert refused(hub.fetch, "tiny/one") == "hub-disk"
    assert not [asked for asked in server.requests if "resolve" in asked]


def test_the_pinned_revision_stays_when_the_branch_moves_on(server, workspace):
    other = "d" * 40
    server.models["tiny/one"] = Repository(repository())
    hub.fetch("tiny/one")
    server.models["tiny/one"] = Repository(repository(size=2000), revisions={"main": other, "v1": COMMIT})
    hub.fetch("tiny/one")
    assert bases.describe("tiny/one", workspace).revision == other
    pinned = bases.describe("tiny/one", workspace, COMMIT)
    assert pinned.revision == COMMIT and pinned.folder is not None and pinned.folder.name == COMMIT
    named = bases.describe(f"tiny/one@{COMMIT}", workspace)
    assert named.folder == pinned.folder and named.spec_ref == "tiny/one"


def test_what_the_huggingface_libraries_look_for_is_where_they_look(server):
    from huggingface_hub import try_to_load_from_cache

    server.models["tiny/one"] = Repository(repository())
    hub.fetch("tiny/one")
    found = try_to_load_from_cache("tiny/one", "model.safetensors", cache_dir=cache.hub_cache())
    assert isinstance(found, str) and Path(found).read_bytes() == server.models["tiny/one"].files["model.safetensors"]


# Names that say so; of these families a name without a word is a base, but of TinyLlama, Qwen3 and SmolLM3.
def is_base(name: str) -> bool:
    plain = not re.search("Instruct|Chat", name) and not re.search("Qwen3-|SmolLM3-", name)
    return name.endswith("-Base") or plain


def test_the_short_list_is_of_models_that_can_be_trained():
    assert [one.id for one in shortlist.curated()] == [
        one.id for one in sorted(shortlist.curated(), key=lambda o: o.parameters)
    ]
    for one in shortlist.curated():
        assert 1.3e8 < one.parameters < 3.4e10 and one.kind in ("base", "instruct") and one.shape.layout
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", one.id) and one.checked and 1024 < one.window_tokens <= 2**17
        assert one.gated == one.id.startswith("meta-llama/") and one.kind == ("base" if is_base(one.id) else "instruct")
        billions = re.search(r"-([\d.]+)([BM])\b", one.id, re.IGNORECASE)
        assert billions and one.parameters == pytest.approx(
            float(billions[1]) * {"B": 1e9, "M": 1e6}[billions[2].upper()], rel=0.25
        )
    # A layer of SmolLM2-135M by hand: 2 x 576^2 + 2 x 576 x 192 (attention), 3 x 576 x 1536, two norms of 576.
    by_hand = 30 * (2 * 576**2 + 2 * 576 * 192 + 3 * 576 * 1536 + 2 * 576) + 49152 * 576 + 576
    counted = {one.id: one.parameters for one in shortlist.curated()}
    assert counted["HuggingFaceTB/SmolLM2-135M"] == by_hand == 134_515_008


# --- data ------------------------------------------------------------------------------------------------------------


def test_data_by_its_card_by_its_names_and_by_the_hubs_own_copy(server):
    card = {"configs": [{"config_name": "small", "data_files": [{"split": "train", "path": "a/*.jsonl"}]}]}
    server.datasets["o/card"] = Repository({"a/1.jsonl": JSONL, "b.jsonl": b"x"}, card=card)
    server.datasets["o/names"] = Repository({"data/train-0-of-1.jsonl": JSONL, "data/test-0-of-1.jsonl": JSONL})
    server.datasets["o/script"] = Repository({"load.py": b""})
    assert [(p.config, p.split, len(p.files)) for p in hub_data.data_parts("o/card")] == [("small", "train", 1)]
    assert [(p.config, p.split) for p in hub_data.data_parts("o/names")] == [("default", "train"), ("default", "test")]
    assert refused(hub_data.data_parts, "o/script") == "hub-data-none"
    copies = {"main": COMMIT, "refs/convert/parquet": "e" * 40}
    server.datasets["o/script"] = Repository({"x.py": b""}, revisions=copies)
    assert refused(hub_data.data_parts, "o/script") == "hub-data-none"
    server.datasets["o/script"] = Repository({"c/train/0.parquet": b"x"}, revisions=copies)
    assert [(p.config, p.split) for p in hub_data.data_parts("o/script")] == [("c", "train")]


def test_data_from_the_hub_goes_through_the_same_check_and_into_the_list(server, workspace):
    bad = JSONL + b'{"prompt": "only"}\n'
    server.datasets["o/data"] = Repository({"train-0.jsonl": JSONL, "train-1.jsonl": bad, "test.jsonl": JSONL})
    found = jobs.carry_out(jobs.Call(workspace=str(workspace.root), data="hf:o/data:train"))
    assert found.dataset is not None
    stored = datasets.load(workspace, found.dataset)
    assert (stored.name, stored.report.rows, stored.report.bad_rows) == ("o/data (default, train)", 61, 1)
    assert not stored.trainable and not list(workspace.uploads_dir.iterdir())
    assert jobs.add_from_hub(workspace, "hf:o/data:test").trainable
    assert refused(jobs.add_from_hub, workspace, "hf:o/data:nothing") == "hub-data-part"


def test_parquet_files_of_a_split_are_one_data_set(server, workspace, tmp_path):
    import pandas

    pandas.DataFrame(ROWS).to_parquet(tmp_path / "p")
    data = (tmp_path / "p").read_bytes()
    server.datasets["o/p"] = Repository({"c/train/0.parquet": data, "c/train/1.parquet": data})
    assert jobs.add_from_hub(workspace, "hf:o/p:c:train").report.rows == 60


def test_a_mix_takes_rows_by_weight_and_none_twice(workspace, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(JSONL)
    chat = [{"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"<{i}>"}]}
            for i in range(12)]  # fmt: skip
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat))
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(9)))
    a, b, text = (datasets.add(workspace, tmp_path / f"{n}.jsonl", n).id for n in ("a", "b", "t"))
    mixed = mix.add(workspace, [(a, 1), (b, 2)], "both")
    assert mixed.trainable and mixed.report.rows == 18
    shown = datasets.preview(workspace, mixed.id, 0, 30)
    assert (
        len({json.dumps(row["messages"] if "messages" in row else row["prompt"], default=str) for row in shown}) == 18
    )
    for parts, rule in (
        ([(a, 1), (text, 1)], "mix-part"),
        ([(a, 1)], "mix-weights"),
        ([(a, 1), (b, 0)], "mix-weights"),
    ):
        with pytest.raises(DatasetError) as caught:
            mix.add(workspace, parts, "no")
        assert caught.value.problem.rule == rule and caught.value.problem.sentence


@given(st.lists(st.tuples(st.integers(1, 10_000), st.floats(0.01, 100)), min_size=2, max_size=5))
def test_a_mix_never_takes_more_than_there_is(parts):
    rows, weights = [n for n, _ in parts], [w for _, w in parts]
    taken = mix.counts(rows, weights)
    assert all(1 <= n <= have for n, have in zip(taken, rows, strict=True))
    assert any(n >= have - 1 for n, have in zip(taken, rows, strict=True))  # the scarcest is used up


def test_every_problem_of_the_hub_is_told_in_words():
    source = "".join(path.read_text() for path in sources("engine/models", "engine/data/hub_data.py"))
    named = set(re.findall(r'"(hub-[a-z-]+)"', source))
    assert len(named) > 15 and named <= set(rules.rules())


# --- a training ------------------------------------------------------------------------------------------------------


@pytest.mark.train
@pytest.mark.slow  # in a fresh process: the shared parent of the other trainings was told that there is no hub
def test_from_an_empty_cache_a_hub_model_trains_pinned_to_its_commit(server, tmp_path):
    files = {path.name: path.read_bytes() for path in starter.MODEL_DIR.iterdir() if path.is_file()}
    server.models["tiny/llama"] = Repository(files)
    done = tunebook(
        "train", "lora", "--data", "new-facts", "--base", "tiny/llama", "--wait", "--json",
        "--set", "train.max_steps=2", "--set", "evaluate.benchmarks=[]", "--set", "train.replay_share=0",
        "--set", "train.threads=1",
        home=tmp_path / "home", machine=tmp_path / "machine",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "GET store/tiny/llama/resolve/" + COMMIT + "/model.safetensors" in server.requests
    workspace = Workspace(tmp_path / "home")
    run = workspace.run_dir(json.loads(done.stdout)["id"])
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert schema.decode((run / "spec.json").read_bytes()).base.ref == "tiny/llama"
    assert bases.describe("tiny/llama", workspace).folder is not None
