"""Before a run starts: everything that would make it fail or mean nothing, all at once, and nothing else."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine import machine, starter
from engine.data import copies, datasets
from engine.estimate import cards, memory
from engine.plan import checks, plans, targets
from engine.spec import RunSpec, counts, recipes, schema
from engine.words import Problem
from engine.workspace import Workspace
from tests import forked
from tests.conftest import ROOT
from tests.helpers import planned

needs_starter = pytest.mark.skipif(
    not (starter.MANIFEST.is_file() and starter.MODEL_DIR.is_dir()), reason="engine/starter/model has not been built"
)
CONFIG = {"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 16, "max_position_embeddings": 256}
PAIRS = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(12)]


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "home")


@pytest.fixture
def base(tmp_path) -> str:
    """A base of 32 parameters, written by hand."""
    return str(model(tmp_path / "base"))


def model(folder: Path, config: dict[str, Any] = CONFIG) -> Path:
    folder.mkdir()
    header = json.dumps({"w": {"dtype": "F32", "shape": [8, 4], "data_offsets": [0, 128]}}).encode()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(128))
    return folder


def add(workspace: Workspace, rows: list[Any], name: str = "mine", **more: Any) -> str:
    workspace.root.mkdir(parents=True, exist_ok=True)
    source = workspace.root / f"{name}.jsonl"
    source.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return datasets.add(workspace, source, name, **more).id


def build(
    workspace: Workspace, base: str, dataset_id: str | None, recipe: str = "lora", **overrides: Any
) -> tuple[RunSpec, list[Problem]]:
    """A spec and its problems; overrides are written train__epochs=3."""
    settings = {path.replace("__", "."): value for path, value in overrides.items()}
    made, problems = planned(workspace, recipe, base=base, dataset=dataset_id, overrides=settings)
    assert made is not None
    for problem in problems:
        assert problem.where and problem.sentence and "{" not in problem.sentence
    return made, problems


def rules(workspace: Workspace, base: str, dataset_id: str | None, recipe: str = "lora", **overrides: Any) -> list[str]:
    return [problem.rule for problem in build(workspace, base, dataset_id, recipe, **overrides)[1]]


# --- what is well ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["full", "lora"])
def test_a_good_spec_has_no_problem(workspace, base, recipe):
    made, problems = build(workspace, base, add(workspace, PAIRS), recipe)
    assert problems == []
    assert schema.decode(schema.encode(made)) == made


@needs_starter
@pytest.mark.parametrize("recipe", ["full", "lora"])
def test_the_starter_on_its_sample_has_no_problem_and_is_asked_about_its_world(workspace, recipe):
    sample = datasets.add_sample(workspace, starter.sample("new-facts"))
    made, problems = build(workspace, "starter", sample.id, recipe)
    assert problems == []
    assert made.evaluate.benchmarks == ["toy-world"] and made.train.replay_share > 0
    assert made.dataset.eval_id == sample.eval_id is not None


def test_a_base_of_ones_own_gets_no_toy_questions_and_mixes_in_rows_that_it_writes_itself(workspace, base):
    made, _ = build(workspace, base, add(workspace, PAIRS))
    assert made.evaluate.benchmarks == ["general-text", "blimp", "keeps-language"]
    assert made.train.replay_share > 0 and made.train.replay_data is None


def test_a_base_that_learns_chinese_is_asked_in_chinese_too(workspace, base):
    rows = [{"prompt": f"第{i}个问题：天气怎么样？", "completion": "今天下雨，记得带 umbrella。"} for i in range(9)]
    made, _ = build(workspace, base, add(workspace, rows))
    assert made.evaluate.benchmarks == ["general-text-zh", "grammar-zh", "general-text", "blimp", "keeps-language"]


def test_a_hub_id_that_is_not_on_this_machine_has_no_problem(workspace, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert rules(workspace, "owner/name", add(workspace, PAIRS)) == []


def test_the_longest_row_follows_the_window_and_never_the_other_way(workspace, tmp_path):
    dataset_id = add(workspace, PAIRS)
    for window, expected in ((256, 256), (100_000, 512)):
        folder = model(tmp_path / str(window), {**CONFIG, "max_position_embeddings": window})
        made, problems = build(workspace, str(folder), dataset_id)
        assert made.train.max_length == expected and problems == []


def test_a_recipe_that_says_nothing_of_the_longest_row_does_not_get_the_whole_window(workspace, tmp_path, monkeypatch):
    kept = [
        line
        for line in (recipes.RECIPES_DIR / "lora.yaml").read_text().splitlines()
        if "train.max_length: " not in line
    ]
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "lora.yaml").write_text("\n".join(kept))
    monkeypatch.setattr(recipes, "RECIPES_DIR", folder)
    large = str(model(tmp_path / "large", {**CONFIG, "max_position_embeddings": 131_072}))
    made, _ = build(workspace, large, add(workspace, PAIRS))
    assert made.train.max_length == schema.Train().max_length


def test_what_a_person_chose_goes_before_what_follows_from_base_and_data(workspace, base):
    other = add(workspace, PAIRS[:5], "other")
    made, problems = build(
        workspace, base, add(workspace, PAIRS), dataset__eval_id=other, train__max_length=64, train__epochs=1
    )
    assert problems == []
    assert (made.dataset.eval_id, made.train.max_length, made.train.epochs) == (other, 64, 1.0)


# --- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "settings", "wanted"),
    [
        ("lora", {}, []),
        ("full", {}, []),
        ("oft", {}, ["devices-kind"]),
        ("qlora", {}, []),
        ("lora", {"machine__devices": 1, "machine__nodes": 2}, []),
        ("oft", {"machine__devices": 1, "machine__nodes": 2}, ["devices-kind"]),
        ("lora", {"machine__devices": 1, "machine__nodes": 3}, ["devices-share"]),
        ("lora", {"train__batch_size": 3, "train__accumulation": 1}, ["devices-share"]),
        ("lora", {"train__batch_size": 1, "train__accumulation": 6}, []),
        ("lora", {"machine__devices": 999}, ["devices-missing", "devices-share"]),
    ],
)
def test_a_run_over_two_devices_is_refused_where_it_would_not_learn_the_same(workspace, base, recipe, settings, wanted):
    dataset_id = add(workspace, PAIRS)
    asked = {
        "machine__devices": 2,
        "train__batch_size": 4,
        "train__accumulation": 2,
        "adapter_args__rank": 8,
        **settings,
    }
    found = [rule for rule in rules(workspace, base, dataset_id, recipe, **asked) if rule.startswith("devices-")]
    assert found == wanted


def test_a_rank_larger_than_the_layers_is_refused_for_lora_alone(workspace, base):
    dataset_id = add(workspace, PAIRS)
    assert rules(workspace, base, dataset_id, adapter_args__rank=17) == ["rank-too-large"]
    assert rules(workspace, base, dataset_id, adapter_args__rank=16) == []
    assert rules(workspace, base, dataset_id, "full", adapter_args__rank=17) == []


def test_blocks_larger_than_the_layers_or_of_nothing_are_refused_for_oft_alone(workspace, base):
    dataset_id = add(workspace, PAIRS)
    assert rules(workspace, base, dataset_id, "oft", adapter_args__block_size=17) == ["block-too-large"]
    assert rules(workspace, base, dataset_id, "oft", adapter_args__block_size=16) == []
    assert rules(workspace, base, dataset_id, "lora", adapter_args__block_size=17) == []
    for nothing in (0, 1, -3):
        assert "setting-value" in rules(workspace, base, dataset_id, "oft", adapter_args__block_size=nothing)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.parametrize("recipe", ["full", "freeze-top"])
def test_all_weights_cannot_train_in_few_bits(workspace, base, recipe, bits):
    _, (problem,) = build(workspace, base, add(workspace, PAIRS), recipe, quantize=bits)
    assert (problem.rule, problem.where) == ("quantize-full", "quantize")
    assert bits[0] in problem.message and "adapter" in problem.fix
    assert rules(workspace, base, add(workspace, PAIRS), "lora", quantize=bits) == []


def test_rows_longer_than_the_window_are_refused(workspace, base):
    dataset_id = add(workspace, PAIRS)
    assert rules(workspace, base, dataset_id, train__max_length=257) == ["window-too-long"]
    assert rules(workspace, base, dataset_id, train__max_length=256) == []


def test_replay_is_taken_for_any_base(workspace, base):
    assert rules(workspace, base, add(workspace, PAIRS), train__replay_share=0.1) == []


@needs_starter
def test_replay_is_taken_for_the_starter(workspace):
    assert rules(workspace, "starter", add(workspace, PAIRS), train__replay_share=0.1) == []


def test_an_unknown_benchmark_is_named(workspace, base):
    _, problems = build(
        workspace, base, add(workspace, PAIRS), evaluate__benchmarks=["mmlu", "toy-world", "x", "mmmlu"]
    )
    assert [(p.rule, p.parameters["name"]) for p in problems] == [
        ("benchmark-unknown", "x"),
        ("benchmark-unknown", "mmmlu"),
    ]


@pytest.mark.parametrize("layers", ["top:2", "some", [4], [], [-1]])
def test_layers_that_the_base_does_not_have_are_refused(workspace, base, layers):
    _, problems = build(workspace, base, add(workspace, PAIRS), "full", layers=layers)
    assert [(p.rule, p.where) for p in problems] == [("setting-value", "layers")]


@pytest.mark.parametrize("layers", ["all", "top:0.25", "bottom_frozen:0.5", [0, 3]])
def test_layers_that_the_base_has_are_taken(workspace, base, layers):
    assert rules(workspace, base, add(workspace, PAIRS), "full", layers=layers) == []


ADAPTED = """
import sys, peft, transformers
from engine.spec import schema
from engine.train import adapters
config = transformers.LlamaConfig(
    vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2)
prepared = adapters.prepare(transformers.LlamaForCausalLM(config), schema.decode(sys.argv[1].encode()))
assert isinstance(prepared.model, peft.PeftModel)
print(*(name for name, parameter in prepared.model.named_parameters() if parameter.requires_grad))
"""


@pytest.mark.train
def test_lora_on_some_layers_passes_only_when_peft_takes_it(workspace, base):
    """peft refuses to choose layers while the target modules are one word such as all-linear."""
    made, problems = build(workspace, base, add(workspace, PAIRS), layers="top:0.5")
    assert made is not None and problems == []
    done = forked.run_python(ADAPTED, schema.encode(made).decode(), cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    trained = done.stdout.split()
    assert trained and all(".layers.2." in name or ".layers.3." in name for name in trained)


def test_a_seed_that_the_libraries_cannot_take_is_refused(workspace, base):
    """numpy seeds with 32 bits."""
    dataset_id = add(workspace, PAIRS)
    assert rules(workspace, base, dataset_id, train__seed=2**32 - 1) == []
    assert rules(workspace, base, dataset_id, train__seed=2**32) == ["setting-value"]


def test_wrong_settings_are_all_told(workspace, base):
    _, problems = build(workspace, base, add(workspace, PAIRS), train__epochs=-1, train__batch_size="x", nope=1)
    assert [(p.rule, p.where) for p in problems] == [
        ("setting-value", "train.epochs"),
        ("setting-value", "train.batch_size"),
        ("setting-unknown", "nope"),
    ]


def test_an_unknown_recipe_is_told_with_those_there_are(workspace, base):
    with pytest.raises(plans.CannotPlan) as refused:
        plans.make(workspace, "mystery", base=base, dataset=None, overrides={})
    problem = refused.value.problem
    assert problem.rule == "recipe-unknown"
    assert "lora" in problem.fix and "full" in problem.fix


# --- data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset_id", [None, ""])
def test_no_data_chosen(workspace, base, dataset_id):
    assert rules(workspace, base, dataset_id) == ["dataset-none"]


@pytest.mark.parametrize("dataset_id", ["0" * 64, "../../etc", "A b", "x" * 500])
def test_data_that_is_not_there(workspace, base, dataset_id):
    assert rules(workspace, base, dataset_id) == ["dataset-missing"]


def test_data_of_another_kind(workspace, base):
    rows = [{"prompt": "a", "chosen": f"good {i}", "rejected": "bad"} for i in range(5)]
    _, (problem,) = build(workspace, base, add(workspace, rows))
    assert problem.rule == "data-type"
    assert "pairs of a better and a worse answer" in problem.message and "questions with answers" in problem.message


def test_data_with_bad_rows_until_they_are_left_out(workspace, base):
    rows = [*PAIRS, "not json", {"prompt": "q", "completion": None}]
    dataset_id = add(workspace, rows)
    _, (problem,) = build(workspace, base, dataset_id)
    assert problem.rule == "data-bad-rows" and problem.message == "2 of 14 rows have errors"
    assert rules(workspace, base, copies.fixed(workspace, dataset_id).id) == []


def test_a_single_row_is_too_few(workspace, base):
    assert rules(workspace, base, add(workspace, PAIRS[:1])) == ["data-too-few"]
    assert rules(workspace, base, add(workspace, PAIRS[:2])) == []


def test_evaluation_data_that_is_not_there_or_cannot_be_scored(workspace, base):
    dataset_id = add(workspace, PAIRS)
    preference = add(workspace, [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2, "pairs")
    bad = add(workspace, [*PAIRS, "not json"], "bad")
    _, (problem,) = build(workspace, base, dataset_id, dataset__eval_id="0" * 64)
    assert (problem.rule, problem.where) == ("dataset-missing", "dataset.eval_id")
    assert rules(workspace, base, dataset_id, dataset__eval_id=preference) == ["data-eval"]
    assert rules(workspace, base, dataset_id, dataset__eval_id=bad) == ["data-eval"]


# --- base and disk -----------------------------------------------------------------------------------------------


def test_what_is_wrong_with_the_base_is_part_of_the_answer(workspace, base, tmp_path):
    dataset_id = add(workspace, PAIRS)
    assert rules(workspace, str(tmp_path / "none"), dataset_id) == ["base-missing"]
    assert rules(workspace, "a b", dataset_id) == ["base-unknown"]
    assert rules(workspace, "run:none", dataset_id) == ["base-run"]
    (Path(base) / "tokenizer.json").unlink()
    assert rules(workspace, base, dataset_id) == ["base-no-tokenizer"]


def disk(monkeypatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))


def test_a_disk_that_is_too_small_is_told_in_mib(workspace, base, monkeypatch):
    dataset_id = add(workspace, PAIRS)
    disk(monkeypatch, 50 * 2**20)
    _, (problem,) = build(workspace, base, dataset_id)
    assert problem.rule == "disk-too-small"
    assert problem.message == "50 MiB are free on the disk, and this run needs about 100 MiB"
    disk(monkeypatch, 101 * 2**20)
    assert rules(workspace, base, dataset_id) == []


def test_full_fine_tuning_asks_for_room_for_its_checkpoints(workspace, base, monkeypatch):
    dataset_id = add(workspace, PAIRS)
    disk(monkeypatch, checks.SPARE_BYTES + 4 * (Path(base) / "model.safetensors").stat().st_size)
    assert rules(workspace, base, dataset_id, "lora") == []
    assert rules(workspace, base, dataset_id, "full") == ["disk-too-small"]


def test_the_disk_is_looked_at_before_any_folder_is_made(tmp_path, base):
    assert rules(Workspace(tmp_path / "a" / "b" / "c"), base, None) == ["dataset-none"]
    assert not (tmp_path / "a").exists()


# --- memory ------------------------------------------------------------------------------------------------------

SHAPED = {
    **CONFIG, "model_type": "llama", "intermediate_size": 64, "vocab_size": 1000, "num_attention_heads": 2,
}  # fmt: skip


def memory_of(monkeypatch, mib: int, *gpus: machine.Gpu) -> None:
    facts = machine.MachineFacts(2, mib, gpus)
    monkeypatch.setattr(machine, "facts", lambda: facts)


@pytest.fixture
def shaped(tmp_path) -> str:
    return str(model(tmp_path / "shaped", SHAPED))


def test_a_machine_that_is_too_small_is_told_with_what_would_fit(workspace, shaped, monkeypatch):
    dataset_id = add(workspace, PAIRS)
    memory_of(monkeypatch, 800)
    assert rules(workspace, shaped, dataset_id) == []
    _, (problem,) = build(workspace, shaped, dataset_id, train__batch_size=60_000)
    assert (problem.rule, problem.where) == ("memory-too-small", "train.batch_size")
    assert "cpu has 800 MiB" in problem.message and "train.batch_size = " in problem.fix
    size = int(problem.fix.partition("train.batch_size = ")[2].partition(",")[0])
    assert rules(workspace, shaped, dataset_id, train__batch_size=size) == []
    # what is left open is on by itself where memory is short; switched off by hand, it is part of the remedy
    _, (problem,) = build(workspace, shaped, dataset_id, train__batch_size=60_000, train__gradient_checkpointing=False)
    assert "gradient_checkpointing = true" in problem.fix


def test_memory_is_refused_only_when_even_the_low_end_is_too_much(workspace, shaped, monkeypatch):
    dataset_id = add(workspace, PAIRS)
    asked = {"train__batch_size": 64, "train__gradient_checkpointing": False, "train__optimizer": "adamw"}
    made, _ = build(workspace, shaped, dataset_id, **asked)
    low_mib = plans.of_spec(workspace, made).memory.low_bytes / 2**20
    memory_of(monkeypatch, int(low_mib) + 1)
    assert rules(workspace, shaped, dataset_id, **asked) == []
    memory_of(monkeypatch, int(low_mib) - 1)
    assert rules(workspace, shaped, dataset_id, **asked) == ["memory-too-small"]


def test_short_rows_are_not_counted_as_long_as_they_may_be(workspace, shaped):
    short, long = add(workspace, PAIRS), add(workspace, [{**row, "completion": "x" * 2000} for row in PAIRS], "long")
    sizes = [
        plans.make(workspace, "lora", base=shaped, dataset=data, overrides={}).memory.total_bytes
        for data in (short, long, None)
    ]
    assert sizes[0] < sizes[1] == sizes[2]


def test_a_gpu_counts_by_its_own_memory_and_nothing_helps_where_the_libraries_do_not_fit(
    workspace, shaped, monkeypatch
):
    dataset_id = add(workspace, PAIRS)
    monkeypatch.setattr(cards, "unseen", lambda facts: None)
    memory_of(monkeypatch, 10, machine.Gpu("card", 8192))
    assert rules(workspace, shaped, dataset_id) == []
    memory_of(monkeypatch, 10**6, machine.Gpu("card", 100))
    _, (problem,) = build(workspace, shaped, dataset_id)
    assert "cuda:0 has 100 MiB" in problem.message and "smaller base" in problem.fix


def test_a_base_larger_than_a_card_is_refused_with_its_figure_and_the_way_to_divide_it(
    workspace, tmp_path, monkeypatch
):
    monkeypatch.setattr(cards, "unseen", lambda facts: None)
    base, dataset_id = str(model(tmp_path / "large", {**SHAPED, "vocab_size": 8_000_000})), add(workspace, PAIRS)
    made, _ = build(workspace, base, dataset_id)
    planned = plans.of_spec(workspace, made, targets.of_memory(8)).memory.parts
    assert planned is not None
    weights = planned["weights"]
    card = machine.Gpu("card", weights // 2**21)
    memory_of(monkeypatch, 10**6, card, card)
    monkeypatch.setattr(cards, "unseen", lambda facts: None)  # the torch of this test may be built for processors
    for devices in (1, 2):
        _, (problem,) = build(workspace, base, dataset_id, machine__devices=devices)
        assert (problem.rule, problem.where) == ("memory-base", "base")
        assert memory.size_words(weights) in problem.message and "FSDP2" in problem.fix


def test_a_base_of_an_unknown_layout_is_not_refused_for_memory(workspace, tmp_path, monkeypatch):
    memory_of(monkeypatch, 1)
    folder = model(tmp_path / "odd", {**SHAPED, "model_type": "mamba"})
    assert rules(workspace, str(folder), add(workspace, PAIRS)) == []


# --- all at once -------------------------------------------------------------------------------------------------


def test_everything_that_is_wrong_is_told_at_once(workspace, tmp_path, monkeypatch):
    folder = model(tmp_path / "base", {**CONFIG, "model_type": "of-our-own", "auto_map": {}})
    disk(monkeypatch, 0)
    dataset_id = add(workspace, [*PAIRS, "not json"])
    found = rules(
        workspace,
        str(folder),
        dataset_id,
        machine__devices=2,
        train__batch_size=3,
        train__accumulation=1,
        layers=[9],
        adapter_args__rank=99,
        train__max_length=999,
        train__epochs="often",
        evaluate__benchmarks=["mmmlu"],
        train__replay_data="1" * 64,
        dataset__eval_id="0" * 64,
    )
    assert sorted(found) == sorted(
        [
            "setting-value", "base-remote-code", "devices-share", "benchmark-unknown", "setting-value",
            "rank-too-large", "window-too-long", "data-bad-rows", "replay-data",
            "dataset-missing", "disk-too-small",
        ]
    )  # fmt: skip


def test_the_steps_shown_count_the_replayed_rows(workspace, base):
    made, _ = build(
        workspace, base, add(workspace, PAIRS), train__replay_share=0.5, train__epochs=1, train__batch_size=10
    )
    assert counts.optimizer_steps(made.train, 100) == 20


@pytest.mark.parametrize("setting", [{"quantize": "4bit"}, {"layers": "top:0.5"}])
def test_a_reward_model_on_a_quantised_base_or_some_layers_is_refused_in_words(workspace, setting):
    pairs = datasets.add_sample(workspace, starter.sample("preference-pairs"))
    _, problems = planned(
        workspace, "reward", base="starter", dataset=pairs.id, overrides={"train.replay_share": 0.0, **setting}
    )
    assert "reward-plain" in {problem.rule for problem in problems}


# --- keeping more --------------------------------------------------------------------------------------------------


def test_keeping_more_is_for_sft_on_one_device_and_for_bases_without_experts(workspace, base, tmp_path):
    data = add(workspace, PAIRS)
    assert rules(workspace, base, data, objective_args__keep="kl") == []
    assert rules(workspace, base, data, "full", objective_args__keep="skip_surprising") == []
    assert "keep-devices" in rules(workspace, base, data, objective_args__keep="entropy", machine__devices=2)
    preferences = datasets.add_sample(workspace, starter.sample("preference-pairs")).id
    assert rules(workspace, base, preferences, "dpo") == []
    assert rules(workspace, base, preferences, "dpo", objective_args__keep="kl") == ["keep-sft-only"]
    experts = {**CONFIG, "model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 16,
               "num_attention_heads": 2, "vocab_size": 300}  # fmt: skip
    mixed = str(model(tmp_path / "experts", experts))
    assert "keep-experts" in rules(workspace, mixed, data, objective_args__keep="kl")
    assert "keep-experts" not in rules(workspace, mixed, data, objective_args__keep="skip_surprising")
    assert "targets-no-feed-forward" in rules(workspace, mixed, data, adapter_args__target_modules="feed-forward")


def test_what_the_base_says_is_counted_on_the_disk_and_said_before_start(workspace, base, monkeypatch):
    data, keep = add(workspace, PAIRS), {"objective_args.keep": "kl", "train.replay_share": 0.0}

    def plan_of(recipe: str, **changed: Any) -> plans.Plan:
        return plans.make(workspace, recipe, base=base, dataset=data, overrides={**keep, **changed})

    plan = plan_of("full")
    assert plan.rows and plan.kept_bytes >= 64 * 8 * plan.rows
    assert any("kept on the disk" in str(note) for note in plan.step_notes)
    assert plan_of("full", **{"train.replay_share": 0.5}).kept_bytes > plan.kept_bytes
    for other in (plan_of("full", **{"objective_args.keep": "plain"}), plan_of("lora")):  # the adapter off is the base
        assert other.kept_bytes == 0 and not any("kept on the disk" in str(note) for note in other.step_notes)
    disk(monkeypatch, checks.SPARE_BYTES + checks.FULL_BYTES_PER_PARAMETER * (plan.base.parameters or 0))
    assert rules(workspace, base, data, "full") == []
    assert rules(workspace, base, data, "full", objective_args__keep="kl") == ["disk-too-small"]
