"""The starter: what ships is what the manifest describes, its benchmark is held out, its samples are sound."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from engine import starter
from engine.starter import stored, world
from engine.starter.world.dialogues import SENTENCE_REQUESTS, WRAPPERS
from engine.starter.world.questions import fill, full_sentence
from engine.starter.world.relations import RELATIONS, Relation
from engine.starter.world.samples import INVENTED
from tests.conftest import ROOT

SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


def read(path: Path | None) -> list[dict]:
    assert path is not None
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def run(*arguments: str, timeout_s: float) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
    )


@pytest.fixture(scope="module")
def items() -> list[dict]:
    return read(starter.BENCHMARK)


@pytest.fixture(scope="module")
def trained_text() -> str:
    """Everything said in 20,000 training dialogues, in lower case."""
    dialogues = world.training_dialogues(world.SEED, 20_000)
    return "\n".join(message["content"] for dialogue in dialogues for message in dialogue).lower()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(starter.MODEL_DIR / "tokenizer.json"))


@lru_cache(maxsize=1)
def template() -> jinja2.Template:
    """The chat template for jinja2 alone; the generation markers only mark, so they are taken out."""
    source = (starter.MODEL_DIR / "chat_template.jinja").read_text("utf-8")
    return jinja2.Environment().from_string(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source))


def render(messages: list[dict], add_generation_prompt: bool = False) -> str:
    return template().render(messages=messages, add_generation_prompt=add_generation_prompt)


# ---- files


def test_every_shipped_file_is_the_one_in_the_manifest():
    assert starter.verify() == []
    listed = {stored.HERE / name for name in starter.manifest()["sha256"]}
    shipped = {*starter.MODEL_DIR.iterdir(), *starter.SAMPLES_DIR.iterdir(), starter.BENCHMARK}
    assert listed == shipped


def test_a_changed_or_missing_file_is_named(tmp_path, monkeypatch):
    name = starter.BENCHMARK.name
    (tmp_path / name).write_bytes(starter.BENCHMARK.read_bytes() + b"\n")
    monkeypatch.setattr(stored, "HERE", tmp_path)
    problems = starter.verify()
    assert f"{name} differs from the one the manifest describes." in problems
    assert "model/model.safetensors is missing." in problems


def test_the_weights_are_a_million_parameters_and_at_most_8_mb():
    assert (starter.MODEL_DIR / "model.safetensors").stat().st_size <= 8_000_000
    assert 500_000 <= starter.manifest()["parameters"] <= 2_000_000
    config = json.loads((starter.MODEL_DIR / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] >= 1024
    assert config["dtype"] == "float32"


def test_nothing_runs_code_of_its_own_when_it_is_loaded():
    for path in starter.MODEL_DIR.glob("*.json"):
        assert "auto_map" not in path.read_text("utf-8"), path.name
    assert not list(starter.MODEL_DIR.glob("*.py"))


def test_the_manifest_has_no_date_and_no_absolute_path():
    text = starter.MANIFEST.read_text("utf-8")
    assert not re.search(r"\b20\d\d-\d\d", text)
    assert '"/' not in text


def test_importing_the_starter_imports_no_torch_and_reads_no_file():
    code = (
        "import sys, engine.starter, engine.starter.build\n"
        "from engine.starter.world import benchmark, dialogues, samples\n"
        "assert engine.starter.manifest.cache_info().currsize == 0\n"
        "print([m for m in ('torch', 'transformers', 'tokenizers', 'streamlit') if m in sys.modules])"
    )
    done = run("-c", code, timeout_s=60)
    assert done.stdout.strip() == "[]", done.stderr


# ---- benchmark


def test_the_stored_benchmark_is_the_one_the_seed_gives(items):
    assert items == world.benchmark_items(world.SEED)


def test_the_benchmark_has_at_least_400_items_in_at_least_6_families(items):
    assert len(items) >= 400
    assert len({item["family"] for item in items}) >= 6
    assert len({item["item"] for item in items}) == len(items)
    assert len({item["prompt"] for item in items}) == len(items)


def test_every_item_has_four_different_choices_and_a_valid_gold(items):
    for item in items:
        assert item["gold"] in range(4), item
        assert len(item["choices"]) == 4 == len(set(item["choices"])), item


def test_no_choice_begins_another_since_a_summed_score_would_favour_the_shorter(items):
    for item in [*items, *read(starter.sample("new-facts").eval_file)]:
        for one in item["choices"]:
            assert not any(other != one and other.startswith(one) for other in item["choices"]), item


def test_the_right_choice_is_as_often_in_each_place(items):
    places = [sum(item["gold"] == place for item in items) for place in range(4)]
    assert max(places) - min(places) <= 1


def test_exactly_one_choice_is_right(items):
    """Checked against the world's own facts, so a second right answer among the wrong ones would show."""
    answers: dict[str, set[str]] = {}
    for relation in RELATIONS:
        if isinstance(relation, Relation):
            for fact in relation.facts:
                for phrasing in relation.held_out:
                    answers.setdefault(fill(phrasing, fact.slots), set()).add(fact.answer)
    for item in items:
        known = answers.get(item["prompt"])
        if known is not None:
            assert [c for c in item["choices"] if c in known] == [item["choices"][item["gold"]]], item


def test_comparisons_are_right(items):
    for item in (i for i in items if i["family"] == "comparisons"):
        numbers = [int(n) for n in re.findall(r"\d+", item["prompt"])]
        right = max(numbers) if "largest" in item["prompt"] else min(numbers)
        assert int(item["choices"][item["gold"]]) == right, item


def test_no_benchmark_prompt_occurs_in_20000_training_dialogues(items, trained_text):
    assert [item["prompt"] for item in items if item["prompt"].lower() in trained_text] == []


def test_no_held_out_phrasing_is_a_training_phrasing():
    def plain(phrasing: str) -> str:
        return re.sub(r"[^a-z0-9{} ]", "", phrasing.lower()).strip()

    trained = {plain(p) for relation in RELATIONS for p in relation.training}
    held_out = {plain(p) for relation in RELATIONS for p in relation.held_out}
    assert not trained & held_out
    # Nor does a phrasing with something said around it make a held-out one.
    wrapped = {plain(w.replace("{q}", p)) for p in trained for w in (*WRAPPERS, *SENTENCE_REQUESTS)}
    assert not wrapped & held_out


def test_replay_rows_use_training_phrasings_only_and_touch_every_family(items):
    rows = world.replay_rows(2_000, seed=3)
    assert not {row["prompt"] for row in rows} & {item["prompt"] for item in items}
    assert rows == world.replay_rows(2_000, seed=3)
    assert rows != world.replay_rows(2_000, seed=4)
    assert all(row["prompt"].strip() and row["completion"].strip() for row in rows)
    assert world.replay_rows(0, seed=3) == []


# ---- samples


def test_every_sample_is_listed_once_with_its_words():
    names = [sample.name for sample in starter.SAMPLES]
    assert len(set(names)) == len(names)
    files = {f for sample in starter.SAMPLES for f in (sample.file, sample.eval_file) if f}
    assert files == set(starter.SAMPLES_DIR.iterdir())
    for sample in starter.SAMPLES:
        assert sample.title and sample.description.endswith(".")
        assert starter.sample(sample.name) is sample
    with pytest.raises(KeyError, match="new-facts"):
        starter.sample("nothing")


@pytest.mark.parametrize("path", sorted(starter.SAMPLES_DIR.glob("*.jsonl")), ids=lambda path: path.name)
def test_sample_rows_have_no_blank_and_no_duplicate_and_the_same_keys(path):
    rows = read(path)
    assert len({json.dumps(row, sort_keys=True) for row in rows}) == len(rows)
    assert len({tuple(row) for row in rows}) == 1
    for row in rows:
        assert all(value.strip() for value in row.values() if isinstance(value, str)), row


@pytest.mark.parametrize("path", sorted(starter.SAMPLES_DIR.glob("*.jsonl")), ids=lambda path: path.name)
def test_samples_are_the_ones_the_seed_gives(path):
    assert read(path) == world.sample_files()[path.name]


def test_samples_hold_no_benchmark_prompt(items):
    prompts = {item["prompt"] for item in items}
    for path in starter.SAMPLES_DIR.iterdir():
        assert not prompts & {row["prompt"] for row in read(path)}, path.name


def test_the_new_facts_evaluation_asks_trained_facts_in_untrained_words():
    sample = starter.sample("new-facts")
    trained = read(sample.file)
    evaluation = read(sample.eval_file)
    assert len(evaluation) >= 100
    assert not {row["prompt"] for row in evaluation} & {row["prompt"] for row in trained}
    for invented in INVENTED:
        assert not set(invented.training) & set(invented.held_out)
        for fact in invented.facts:
            assert sum(row["prompt"] == fill(p, fact.slots) for p in invented.training for row in trained) == len(
                invented.training
            )
    by_subject = {(number, fact.slots): fact.answer for number, i in enumerate(INVENTED) for fact in i.facts}
    known = {
        fill(p, slots): answer for (number, slots), answer in by_subject.items() for p in INVENTED[number].held_out
    }
    for row in evaluation:
        assert known[row["prompt"]] == row["completion"]
        assert row["completion"] in row["choices"] and len(set(row["choices"])) == 4
        assert row["family"] == "new facts"


def test_the_new_facts_are_not_in_the_world(trained_text):
    """The subject of a fact must be unknown to the starter, or learning it would prove nothing."""
    words = set(re.findall(r"[a-z-]+", trained_text))
    for invented in INVENTED:
        for fact in invented.facts:
            assert fact.slots[0].lower() not in words, fact


def test_preference_pairs_differ_and_the_chosen_one_is_right():
    for row in read(starter.sample("preference-pairs").file):
        assert row["chosen"] != row["rejected"], row
        assert row["chosen"][-1] == "." and " " in row["chosen"], row


def test_good_and_bad_answers_are_unbalanced_and_their_labels_are_booleans():
    labels = [row["is_good"] for row in read(starter.sample("good-bad").file)]
    assert {type(label) for label in labels} == {bool}
    assert 0.75 <= sum(labels) / len(labels) <= 0.85


def test_bad_answers_are_not_the_right_ones():
    rows = read(starter.sample("good-bad").file)
    right = {full_sentence(r, f) for r in RELATIONS if isinstance(r, Relation) for f in r.facts}
    assert not [row for row in rows if not row["is_good"] and row["response"] in right]


def test_formatted_answers_are_json_objects_with_one_key():
    for row in read(starter.sample("answer-format").file):
        assert list(json.loads(row["completion"])) == ["answer"]


# ---- tokenizer and chat template


@settings(max_examples=300)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_from_the_tokenizer_as_it_was(tokenizer, text):
    if any(special in text for special in SPECIAL_TOKENS):
        return
    encoding = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(encoding.ids, skip_special_tokens=False) == text


@settings(max_examples=150)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_offsets_cover_the_text_without_a_gap(tokenizer, text):
    if any(special in text for special in SPECIAL_TOKENS):
        return
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    assert offsets[0][0] == 0 and offsets[-1][1] == len(text)
    # The bytes of one character share its place, so a place may repeat but never leave a gap.
    for (_, end), (start, _) in itertools.pairwise(offsets):
        assert start <= end


@pytest.mark.parametrize(
    "text", ["Zürich 12 + 30 = 42", "日本語のテキスト", "🙂🙃 e\u0301", " two  spaces\n\ttab ", "\x00\x7f"]
)
def test_awkward_texts_come_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_special_tokens_are_single_and_the_end_is_not_the_padding(tokenizer):
    for special in SPECIAL_TOKENS:
        assert len(tokenizer.encode(special, add_special_tokens=False).ids) == 1
    config = json.loads((starter.MODEL_DIR / "config.json").read_text("utf-8"))
    generation = json.loads((starter.MODEL_DIR / "generation_config.json").read_text("utf-8"))
    for settings_ in (config, generation):
        assert settings_["eos_token_id"] == tokenizer.token_to_id("<|end|>")
        assert settings_["pad_token_id"] == tokenizer.token_to_id("<|pad|>")
    assert config["vocab_size"] == tokenizer.get_vocab_size()


_ROLES = st.sampled_from(["user", "assistant"])
_MESSAGES = st.lists(st.fixed_dictionaries({"role": _ROLES, "content": st.text(max_size=20)}), min_size=1, max_size=6)


@settings(max_examples=100)
@given(_MESSAGES, st.booleans())
def test_a_rendered_beginning_is_a_beginning_of_the_whole(messages, has_system):
    if has_system:
        messages = [{"role": "system", "content": "Be brief."}, *messages]
    whole = render(messages)
    for k, message in enumerate(messages):
        is_answer = message["role"] == "assistant"
        head = render(messages[:k], add_generation_prompt=is_answer)
        assert whole.startswith(head)
        if is_answer:
            assert whole[len(head) :].startswith(message["content"] + "<|end|>")


# ---- the model itself, in a child


@pytest.mark.slow
@pytest.mark.train
def test_the_stored_model_knows_its_world():
    done = run("-m", "engine.train.build_starter", "--score", timeout_s=300)
    assert done.returncode == 0, done.stderr[-2000:]
    scores = json.loads(done.stdout.splitlines()[-1])
    assert scores["overall"] >= 0.95
    assert min(scores["families"].values()) >= 0.90
    # Another processor may round one close item the other way.
    assert abs(scores["overall"] - starter.manifest()["scores"]["overall"]) <= 0.01


@pytest.mark.train
def test_the_model_loads_the_plain_way_and_answers_and_stops():
    code = f"""
import json
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = {str(starter.MODEL_DIR)!r}
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
def answer(messages):
    batch = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    return tokenizer.decode(model.generate(**batch)[0][batch["input_ids"].shape[1]:])
question = {{"role": "user", "content": "What is the capital of France?"}}
talk = [question, {{"role": "assistant", "content": "Paris"}}]
marked = tokenizer.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
trained = [i for i, m in zip(marked["input_ids"], marked["assistant_masks"]) if m]
full = [{{"role": "system", "content": "Answer in a full sentence."}}, question]
encoded = tokenizer("a 12 ü", return_offsets_mapping=True, add_special_tokens=True)
print(json.dumps([answer([question]), answer(full), tokenizer.decode(trained), tokenizer.decode(encoded["input_ids"])]))
"""
    done = run("-c", code, timeout_s=300)
    assert done.returncode == 0, done.stderr[-2000:]
    short, sentence, trained, plain = json.loads(done.stdout.splitlines()[-1])
    assert short == "Paris<|end|>"
    assert sentence == "The capital of France is Paris.<|end|>"
    assert trained == "Paris<|end|>"
    assert plain == "a 12 ü"


@pytest.mark.slow
@pytest.mark.train
def test_the_starter_can_be_built_again_from_its_seed(tmp_path):
    done = run("-m", "engine.starter.build", "--out", str(tmp_path), timeout_s=3_600)
    assert done.returncode == 0, done.stderr[-2000:]
    scores = json.loads(done.stdout.splitlines()[-1])["scores"]
    assert scores["overall"] >= 0.95
    assert (tmp_path / "benchmark.jsonl").read_bytes() == starter.BENCHMARK.read_bytes()
    for path in starter.SAMPLES_DIR.iterdir():
        assert (tmp_path / "samples" / path.name).read_bytes() == path.read_bytes()
