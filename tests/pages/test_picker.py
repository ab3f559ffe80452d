"""The base picker and the table of devices: what is shown of a model before it is fetched, and on a machine with Apple's
GPU, an NVIDIA card or neither."""

from __future__ import annotations

import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine import machine
from engine.estimate import cards, machine_choices
from engine.machine import Gpu, MachineFacts, nvidia
from engine.models import bases, shortlist
from engine.plan import targets
from engine.runs import store
from engine.spec import RunSpec, schema
from tests import apps
from tests.apps import button, has_button, open_page, shown, texts
from tests.gguf import files as gguf_files
from tests.helpers import planned, wait_until
from tests.hub import TOKEN, Hub, Repository
from tests.models.test_bases import model
from tests.models.test_hub import repository
from tests.models.test_hub import server as server  # a fixture

APPLE = MachineFacts(8, 16 * 1024, (), apple=True)
CARD = MachineFacts(8, 64 * 1024, (Gpu("NVIDIA L4", 24 * 1024, 8.9),))
PLAIN = MachineFacts(2, 4 * 1024, ())


def widget(app: Any, kind: str, key: str) -> Any:
    return next(one for one in getattr(app, kind) if str(one.key).partition("~")[0] == key)


# --- the picker --------------------------------------------------------------------------------------------------


def test_a_gated_model_is_found_and_opened_with_a_token_that_no_address_holds(server: Hub) -> None:
    server.models["tiny/gated"] = Repository(repository(), gated=True, card={"license": "mit"})
    app = open_page("train", state={"base_fold": True})
    widget(app, "radio", "find_way").set_value("search").run()
    widget(app, "text_input", "hub_search").set_value("gat")
    button(app, "search_hub").click().run()
    assert "tiny/gated" in texts(app) and "asks for permission" in texts(app)
    button(app, "found_tiny/gated").click().run()
    assert "tiny/gated asks for permission" in texts(app) and "licence mit" in texts(app)
    assert not has_button(app, "download_base") and button(app, "start").disabled
    token = next(one for one in app.text_input if one.label == "Token for the hub")
    token.set_value(TOKEN)
    button(app, "use_token").click().run()
    shown = texts(app)
    assert "Asks for permission, which you have." in shown and "Not on this machine: " in shown
    assert "Brings its own chat template." in shown and "LoRA: fits. It needs" in shown
    assert has_button(app, "download_base") and button(app, "start").disabled
    assert TOKEN not in shown and TOKEN not in str(app.query_params)
    assert not app.exception


def taken(ref: str) -> Any:
    """The Train page with a base that its address names, and that a person has taken."""
    app = open_page("train", state={"base_fold": True}, base=ref)
    return button(app, "take_named_base").click().run()


def test_an_id_that_is_not_there_and_a_folder_that_is_no_model_are_said_with_what_to_do(
    server: Hub,
    tmp_path,
) -> None:
    app = taken("tiny/nothing")
    assert "check the id" in texts(app) and has_button(app, "look_again") and button(app, "start").disabled
    widget(app, "radio", "find_way").set_value("folder").run()
    pickle = model(tmp_path / "old", files={"model.safetensors": None, "pytorch_model.bin": b"\x80"})
    widget(app, "text_input", "model_folder").set_value(str(pickle))
    button(app, "add_folder").click().run()
    assert "safetensors" in texts(app) and not (tmp_path / "home" / "folders.json").exists()


def test_where_no_hub_answers_the_one_real_base_without_is_named() -> None:
    app = taken("tiny/nothing")
    assert "make real" in texts(app) and not app.exception


def test_what_the_hub_says_is_said_once_at_the_field_and_start_points_there() -> None:
    app = taken("tiny/nothing")
    assert len(app.error) == 1 and texts(app).count(shown(app.error[0].value)) == 1
    assert button(app, "start").disabled and "cannot start yet: see the model above" in texts(app)


def test_a_model_of_the_short_list_is_estimated_where_no_hub_answers() -> None:
    shown = texts(open_page("train", base="Qwen/Qwen2.5-7B"))
    assert "7.62 billion parameters" in shown and "It needs" in shown and "cannot be estimated" not in shown


# --- GGUF files ------------------------------------------------------------------------------------------------------


def named(path: Path) -> Any:
    """The Train page with a file of this machine named as the base."""
    app = open_page("train", state={"base_fold": True})
    widget(app, "radio", "find_way").set_value("folder").run()
    widget(app, "text_input", "model_folder").set_value(str(path))
    return button(app, "add_folder").click().run()


def test_an_address_names_no_file_of_this_machine(tmp_path) -> None:
    path = gguf_files.small(tmp_path / "mine.gguf")
    for ref in (f"gguf:{path}", "mine.gguf"):
        assert "mine.gguf" not in texts(open_page("train", base=ref))


def test_a_gguf_file_asks_to_be_read_and_its_problem_is_said_when_that_fails(tmp_path, monkeypatch) -> None:
    path = gguf_files.small(tmp_path / "mine.Q4_1.gguf")
    app = named(path)
    assert "rounded to 4 bits" in texts(app) and button(app, "start").disabled
    button(app, "read_gguf").click().run()  # by its child: three tokens are no tokenizer
    wait_until(lambda: has_button(app.run(), "read_gguf"), 120, "the file was read")
    assert "does not give back a text it has read" in texts(app) and has_button(app, "read_gguf")
    assert not app.exception and list((tmp_path / "home" / "models").iterdir()) == []


def test_a_gguf_file_with_an_unknown_rule_asks_for_its_tokenizer(tmp_path) -> None:
    app = named(gguf_files.small(tmp_path / "a.gguf", {"tokenizer.ggml.pre": "made-up"}))
    assert "made-up" in texts(app) and widget(app, "text_input", "gguf_tokenizer").value == ""
    assert has_button(app, "read_gguf") and button(app, "start").disabled
    wrong = named(gguf_files.small(tmp_path / "b.gguf", {"general.architecture": "rwkv7"}))
    assert "rwkv7" in texts(wrong) and not has_button(wrong, "read_gguf")


# --- the short list --------------------------------------------------------------------------------------------------


def test_the_short_list_says_for_each_model_whether_it_fits_and_shows_no_figure_that_was_not_confirmed(
    server: Hub,
    monkeypatch,
) -> None:
    monkeypatch.setattr(machine, "facts", lambda: PLAIN)
    app = open_page("train", state={"base_fold": True})
    shown = texts(app)
    for known in shortlist.curated():
        assert known.id in shown and any(one.key == f"known_{known.id}" for one in app.button)
    assert ":material/close: does not fit" in shown and "about 16.4 GB to download" in shown
    facts = next(line for line in shown.splitlines() if "about 15.2 GB" in line)
    assert "apache" not in facts and "7.62 billion parameters" in facts  # its licence could not be confirmed
    assert shown.count("asks for permission") == sum(known.gated for known in shortlist.curated())


# --- bad bases ---------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[Any, dict[str, bytes | None]]] = {
    "base-pickle": ({}, {"model.safetensors": None, "pytorch_model.bin": b"\x80"}),
    "base-architecture": ({"model_type": "whatever"}, {}),
    "base-no-end-token": ({}, {"tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}'}),
    "base-broken-weights": ({}, {"model.safetensors": b"\x10\0\0\0\0\0\0\0half"}),
    "base-no-tokenizer": ({}, {"tokenizer.json": None}),
    "base-remote-code": ({"model_type": "own", "auto_map": {"AutoModel": "x.py"}}, {}),
}


@pytest.mark.parametrize("rule", BAD)
def test_a_bad_base_keeps_a_run_from_starting_and_says_what_to_do(workspace, tmp_path, rule) -> None:
    config, files = BAD[rule]
    usual = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8, "max_position_embeddings": 64}
    folder = model(tmp_path / "mine", {**usual, **config}, files)
    _, problems = planned(workspace, "lora", base=str(folder), dataset=None, overrides={})
    (found,) = [one for one in problems if one.rule == rule]
    what, todo = found.texts
    assert str(what) and str(todo) and "{" not in found.sentence
    assert not workspace.runs_dir.exists()


# --- devices -----------------------------------------------------------------------------------------------------


def test_apples_gpu_is_found_without_torch_and_can_be_left_out(monkeypatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(nvidia, "ask", nvidia.Answer)
    found = machine.facts.__wrapped__()
    assert (found.device, found.slots) == ("mps", ("mps",)) and found.device_memory_bytes == found.memory_mib * 2**20
    monkeypatch.setenv("TUNEBOOK_DEVICE", "cpu")
    assert machine.facts.__wrapped__().device == "cpu"


def test_the_table_of_devices_marks_the_one_that_is_used_and_why(monkeypatch) -> None:
    for facts, said in ((CARD, "NVIDIA L4"), (PLAIN, "no NVIDIA card"), (APPLE, "shares main memory")):
        assert said in cards.device_reason(facts)
    monkeypatch.setattr(machine, "facts", lambda: APPLE)
    app = open_page("train", state={"base_fold": True})
    devices = next(one.value.map(apps.shown).rename(columns=apps.shown) for one in app.table if "Device" in one.value)
    assert [row for row in devices["Device"] if row.startswith("→")] == [f"→ {machine_choices.device_words()['mps']}"]
    assert "shares main memory" in texts(app)
    yes = {one.name: "yes" if one.quantized else "no" for one in machine_choices.ABILITIES}
    assert list(devices["4-bit and 8-bit bases"]) == [yes["cuda"], yes["mps"], yes["cpu"]] == ["yes", "no", "yes"]


def test_on_apples_gpu_four_bits_and_unsloth_are_refused_in_words_and_lora_runs(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "facts", lambda: APPLE)
    base = str(
        model(
            tmp_path / "mine",
            {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "max_position_embeddings": 64},
        )
    )

    def rules(recipe: str, **overrides: Any) -> list[str]:
        changes = {path.replace("__", "."): value for path, value in overrides.items()}
        _, problems = planned(workspace, recipe, base=base, dataset=None, overrides=changes)
        return [one.rule for one in problems if one.rule != "dataset-none"]

    assert rules("lora") == [] and "quantize-apple" in rules("qlora")
    assert {"unsloth-apple", "no-bf16"} <= set(rules("lora", machine__backend="unsloth", machine__precision="bf16"))
    made, _ = planned(workspace, "lora", base=base, dataset=None, overrides={})
    assert made is not None
    found = machine_choices.choose(
        made, targets.this_machine().device, bases.describe(base, workspace).shape, _setup(made)
    )
    assert found.backend == "plain" and not found.bf16


def _setup(made: RunSpec) -> Any:
    from engine.estimate import memory

    return memory.setup_of(made)


def test_a_pinned_base_is_kept_when_a_run_is_trained_again(server: Hub, workspace) -> None:
    """Its branch has moved on; the run, its draft, its export and its chat stay on the commit."""
    from engine.export import artifacts, usage
    from engine.models import hub
    from engine.plan import drafts
    from tests.hub import COMMIT

    server.models["tiny/one"] = Repository(repository())
    hub.fetch("tiny/one")
    made, _ = planned(workspace, "lora", base="tiny/one", dataset=None, overrides={})
    assert made is not None and made.base.pinned == f"tiny/one@{COMMIT}"
    run_dir = workspace.run_dir("20260101-000000-abcdef")
    (run_dir / "adapter").mkdir(parents=True)
    (run_dir / "spec.json").write_bytes(schema.encode(msgspec.structs.replace(made, dataset=schema.DatasetRef("d"))))
    server.models["tiny/one"] = Repository(repository(size=2000), revisions={"main": "d" * 40, "old": COMMIT})
    hub.fetch("tiny/one")
    assert bases.describe("tiny/one", workspace).revision == "d" * 40
    draft = drafts.of_spec(workspace, store.load_spec(workspace, run_dir.name), came_from="it")
    assert draft.base == f"tiny/one@{COMMIT}"
    again, _ = planned(workspace, draft.recipe, base=draft.base, dataset=None, overrides={})
    assert again is not None and again.base == made.base
    described = bases.describe(draft.base, workspace)
    assert described.title == f"tiny/one@{COMMIT[:10]}" and described.parameters == 1000
    assert artifacts.size_bytes(workspace, run_dir.name) == described.weights_bytes
    assert f"revision={COMMIT!r}" in usage.load_script(workspace, run_dir.name)
    assert bases.describe(f"run:{run_dir.name}", workspace).parameters == 1000


def test_what_is_worked_on_is_put_back_into_an_address_that_lost_it(workspace) -> None:
    from engine import starter
    from engine.data import datasets

    data = datasets.add_sample(workspace, starter.sample("new-facts")).id
    app = open_page("train", dataset=data)
    del app.query_params["dataset"]  # as a click in the sidebar does
    app.switch_page("advisor.py").run()
    assert data in app.query_params["dataset"] and not app.exception


def test_a_base_of_a_layout_that_is_not_known_is_counted_and_says_so(workspace, tmp_path, monkeypatch) -> None:
    from engine.models import counted
    from tests.models.test_counted import CONFIG

    started: list[tuple[str, ...]] = []
    start = counted.processes.start

    def begun(module: str, *given: str, **how: Any) -> Any:
        if module != "engine.models.counted":
            return start(module, *given, **how)
        return started.append(given)

    monkeypatch.setattr(counted.processes, "start", begun)
    monkeypatch.setattr(counted, "MOST_S", 3600)  # the page is opened in several runs, slow on a busy machine
    folder = model(tmp_path / "mine", CONFIG)
    shown = texts(open_page("train", state={"current_base": str(folder)}))
    assert "is being counted on the model itself" in shown and len(started) == 1
    (path,) = (workspace.root / "shapes").iterdir()
    path.write_bytes(msgspec.json.encode({"reason": "ValueError: no heads", "begun_s": time.time()}))
    shown = texts(open_page("train", state={"current_base": str(folder)}))
    assert "Transformers cannot build the model" in shown and "no heads" in shown and len(started) == 1


def test_a_base_made_to_cost_is_a_sentence_on_the_train_page(workspace, tmp_path, monkeypatch):
    """Its chat template never ends: the page says so, and no run starts."""
    from engine import looker, starter
    from engine.data import datasets

    monkeypatch.setattr(looker, "MOST_CPU_S", 2)
    folder = tmp_path / "mine"
    shutil.copytree(starter.MODEL_DIR, folder)
    (folder / "chat_template.jinja").write_text(
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    )
    dataset = datasets.add_sample(workspace, starter.sample("new-facts"))
    page = open_page("train", state={"current_base": str(folder), "current_dataset": dataset.id})
    assert "could not be looked at: that took more than 2 s" in texts(page)
    (start,) = [button for button in page.button if button.label == "Start"]
    assert start.disabled
