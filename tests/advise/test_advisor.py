"""The advisor: it always answers, never what cannot be, holds its ties, and signs what an expert would sign."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine import machine, words
from engine.advise import Advice, Case, Facts, evidence, guide, reasons, ways
from engine.advise import case as advise_case
from engine.advise import facts as advise_facts
from engine.advise.advice import advise
from engine.advise.handoff import draft
from engine.advise.ways import Way
from engine.estimate import duration
from engine.models import Base, bases
from engine.plan import plans
from engine.read import formats
from engine.spec import counts, objectives, recipes
from engine.spec import settings as spec_settings
from engine.workspace import Workspace
from tests.helpers import examples, finished_run

SFT_ROWS = "prompt-completion"
STARTER = Base(ref="starter", kind="starter", title="", parameters=935_040)
# Every way to train the advisor knows, to name those that fit.
WAYS = [
    (objective, adapter, quantize, layers)
    for objective in ("sft", "dpo", "kto", "reward", "ppo")
    for adapter, quantize, layers in (
        ("full", "none", "all"),
        ("full", "none", "bottom_frozen:0.5"),
        ("lora", "none", "all"),
        ("lora", "4bit", "all"),
        ("oft", "none", "all"),
        ("oft", "4bit", "all"),
    )
]


@pytest.fixture(scope="module", autouse=True)
def a_machine_with_room() -> Iterator[None]:
    """Without a card the main memory decides: here it never does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "facts", lambda: machine.MachineFacts(8, 2**22, ()))
        yield


def kind(way: Way) -> tuple[str, str, str, str]:
    return way.objective, way.adapter, way.quantize, way.layers


def case_of(facts: Facts, base: Base | None = None) -> Case:
    return advise_case.of(facts, Workspace("/nowhere"), base=base)


@dataclass(eq=False)
class Fitting(Case):
    """A case in which the ways that are named fit, and no others."""

    named: frozenset[Any] | None = None

    def fits(self, way: Way) -> bool:
        return self.named is None or kind(way) in self.named


def when(facts: Facts, fitting: Iterable[Any] | None) -> Advice:
    return advise(fitting_case(facts, fitting))


def fitting_case(facts: Facts, fitting: Iterable[Any] | None) -> Case:
    """`fitting` is None where every way fits."""
    case = case_of(facts)
    named = None if fitting is None else frozenset(fitting)
    return Fitting(case.facts, case.workspace, case.base, case.own_base, problems=case.problems, named=named)


def ask(**facts) -> Advice:
    return advise(case_of(Facts(**facts)))


def fired(advice: Advice, table: str) -> list[str]:
    return [row.rule for row in advice.tables[table] if row.fired]


def maybe(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | strategy


any_facts = st.builds(
    Facts,
    rows=maybe(st.integers(-5, 2_000_000) | st.sampled_from([0, 1, 10_000, 10_001, 50_000, 100_000, 100_001])),
    data_type=maybe(st.sampled_from(formats.TYPES)),
    conversational=st.booleans(),
    good_rows=maybe(st.integers(-1, 100_000)),
    bad_rows=maybe(st.integers(-1, 100_000)),
    gpu_memory_gib=maybe(st.floats(-1, 300) | st.sampled_from([0.0, 7.6, 8.0, 15.7, 16.0, 79.0, 80.0, float("nan")])),
    base_parameters=maybe(st.floats(0, 4e11) | st.sampled_from([1e6, 1e9, 7e9, 7e10])),
    base_is_tuned=st.booleans(),
    goal=maybe(st.sampled_from(advise_facts.GOALS)),
    alignment_data=maybe(st.sampled_from(advise_facts.ALIGNMENT_DATA)),
    has_reward_model=st.booleans(),
    forgetting_tolerance=st.sampled_from(advise_facts.TOLERANCES),
    time_budget_minutes=maybe(st.floats(-10, 10_000)),
)


def sound_facts(**fixed: st.SearchStrategy) -> st.SearchStrategy[Facts]:
    """Facts without impossible values, some of them held to a strategy."""
    known = {
        "rows": maybe(st.integers(1, 2_000_000)),
        "data_type": maybe(st.sampled_from(formats.TYPES)),
        "good_rows": maybe(st.integers(0, 100_000)),
        "bad_rows": maybe(st.integers(0, 100_000)),
        "gpu_memory_gib": maybe(st.floats(1, 300)),
        "base_parameters": maybe(st.floats(1e6, 4e11)),
        "base_is_tuned": st.booleans(),
        "goal": maybe(st.sampled_from(advise_facts.GOALS)),
        "alignment_data": maybe(st.sampled_from(advise_facts.ALIGNMENT_DATA)),
        "has_reward_model": st.booleans(),
        "forgetting_tolerance": st.sampled_from(advise_facts.TOLERANCES),
        "time_budget_minutes": maybe(st.floats(1, 10_000)),
    }
    return st.builds(Facts, **{**known, **fixed})


# --- what always holds -------------------------------------------------------------------------------------------------


@given(any_facts, st.frozensets(st.sampled_from(WAYS)))
@settings(max_examples=examples(200))
def test_it_always_answers_and_never_what_cannot_be(facts: Facts, fitting: frozenset) -> None:
    advice = when(facts, fitting)
    assert advice.headline
    assert advice.reasons
    assert set(advice.tables) == {"rows", "memory", "alignment"}
    for way in (advice.advised, *(other.way for other in advice.runners_up)):
        if way is None:
            continue
        assert kind(way) in fitting
        assert ways.recipe_name_for(way) is not None
        if advice.facts.data_type is not None:
            assert way.objective in objectives.feeds(advice.facts.data_type)
        if way.objective == "ppo":
            assert advice.facts.has_reward_model
        if advice.facts.gpu_memory_gib is None:
            assert way.quantize == "none"
    assert advice.sentence and (advice.advised is not None or not advice.doubts)


@given(any_facts)
@settings(max_examples=examples(100))
def test_what_is_advised_fits_by_the_plan_of_its_run(facts: Facts) -> None:
    case = case_of(facts)
    advice = advise(case)
    if case.facts.gpu_memory_gib is None or case.facts.base_parameters is None:
        return
    for way in (advice.advised, *(other.way for other in advice.runners_up)):
        assert way is None or case.plan(way).fits
    assert [one.fits for one in advice.alternatives] == [case.plan(one.way).fits for one in advice.alternatives]


@given(sound_facts(), st.frozensets(st.sampled_from(WAYS), min_size=1))
@settings(max_examples=examples(200))
def test_when_something_feedable_fits_something_is_advised(facts: Facts, fitting: frozenset) -> None:
    everything = when(facts, None)
    assume(everything.advised is not None)
    offered = {kind(everything.advised)} if everything.advised else set()
    advice = when(facts, fitting | offered)
    assert advice.advised is not None


@given(sound_facts(data_type=st.sampled_from(["prompt-completion", "language-modeling"])), st.data())
@settings(max_examples=examples(200))
def test_an_irrelevant_fact_changes_nothing(facts: Facts, data: st.DataObject) -> None:
    """For rows with answers the labels, a reward model, judgements and the time at hand do not decide the method."""
    other = msgspec.structs.replace(
        facts,
        good_rows=data.draw(maybe(st.integers(0, 1000))),
        bad_rows=data.draw(maybe(st.integers(0, 1000))),
        has_reward_model=data.draw(st.booleans()),
        alignment_data=data.draw(maybe(st.sampled_from(advise_facts.ALIGNMENT_DATA))),
        time_budget_minutes=data.draw(maybe(st.floats(1, 1000))),
    )
    one, two = (advise(case_of(f)).advised for f in (facts, other))
    assert one == two


@given(sound_facts(data_type=st.sampled_from(["preference", "unpaired-preference"])), st.data())
@settings(max_examples=examples(200))
def test_the_form_of_judged_rows_outweighs_their_number_and_what_is_said(facts: Facts, data: st.DataObject) -> None:
    other = msgspec.structs.replace(
        facts,
        rows=data.draw(maybe(st.integers(1, 10**6))),
        alignment_data=data.draw(maybe(st.sampled_from(advise_facts.ALIGNMENT_DATA))),
        goal=data.draw(maybe(st.sampled_from(advise_facts.GOALS))),
        has_reward_model=data.draw(st.booleans()),
    )
    one, two = (when(f, None).advised for f in (facts, other))
    assert (one and one.objective) == (two and two.objective)


@given(sound_facts(), st.integers(1, 100))
@settings(max_examples=examples(100))
def test_more_memory_never_takes_a_choice_away(facts: Facts, more: int) -> None:
    assume(facts.gpu_memory_gib is not None)
    larger = msgspec.structs.replace(facts, gpu_memory_gib=(facts.gpu_memory_gib or 0) + more)
    if advise(case_of(facts)).advised is not None:
        assert advise(case_of(larger)).advised is not None


@given(sound_facts())
@settings(max_examples=examples(100))
def test_each_table_fires_at_most_one_row_and_always_says_why(facts: Facts) -> None:
    advice = advise(case_of(facts))
    for name, rows in advice.tables.items():
        assert len(fired(advice, name)) <= 1
        assert all(row.reason.endswith(".") for row in rows)
    assert (len(fired(advice, "rows")) == 1) == (facts.rows is not None)
    assert (len(fired(advice, "memory")) == 1) == (facts.gpu_memory_gib is not None)


@given(any_facts)
@settings(max_examples=examples(100))
def test_every_rule_named_exists_and_a_fired_rule_is_followed_or_explained(facts: Facts) -> None:
    advice = advise(case_of(facts))
    named = {*advice.rules, *(o.rule for o in advice.overruled), *(r for s in advice.plan for r in s.rules)}
    assert named <= set(guide.rules())
    assert set(advice.fired) <= {*advice.rules, *(o.rule for o in advice.overruled)}
    assert all(o.why for o in advice.overruled)


# --- classes and ties --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gib", "gb"),
    [
        *((7.6, 8), (7.78, 8), (8.0, 8), (11.2, 12), (14.6, 16), (15.7, 16), (16.0, 16), (22.1, 24), (23.6, 24)),
        *(
            (31.4, 32),
            (39.4, 40),
            (44.5, 48),
            (47.5, 48),
            (79.0, 80),
            (79.65, 80),
            (80.0, 80),
            (93.6, 94),
            (140.4, 141),
        ),
    ],
)
def test_a_card_counts_as_the_class_it_is_sold_as(gib: float, gb: int) -> None:
    assert machine.marketed_gb(gib) == gb


@given(st.floats(0.1, 400), st.floats(0.1, 400))
def test_a_larger_card_is_never_of_a_smaller_class(one: float, two: float) -> None:
    smaller, larger = sorted((one, two))
    assert machine.marketed_gb(smaller) <= machine.marketed_gb(larger)
    assert machine.marketed_gb(smaller) >= smaller * 0.99


@pytest.mark.parametrize(
    ("gib", "rule"),
    [
        *((4.0, "C4"), (7.6, "C4"), (8.0, "C4"), (10.0, "C5"), (15.7, "C5"), (16.0, "C5"), (19.5, "C6")),
        *((79.0, "C6"), (80.0, "C6"), (93.6, "C7"), (140.4, "C7")),
    ],
)
def test_a_card_on_the_limit_belongs_to_the_smaller_class(gib: float, rule: str) -> None:
    advice = ask(rows=100, data_type=SFT_ROWS, gpu_memory_gib=gib)
    assert fired(advice, "memory") == [rule]


@pytest.mark.parametrize(
    ("rows", "rule"),
    [(1, "C3"), (9_999, "C3"), (10_000, "C3"), (10_001, "C2"), (100_000, "C2"), (100_001, "C1"), (10**7, "C1")],
)
def test_rows_on_the_limit_belong_to_the_smaller_class(rows: int, rule: str) -> None:
    advice = ask(rows=rows, data_type=SFT_ROWS)
    assert fired(advice, "rows") == [rule]
    assert f"{rows:,}" in next(row.reason for row in advice.tables["rows"] if row.fired)


@given(sound_facts(gpu_memory_gib=st.none()))
@settings(max_examples=examples(150))
def test_without_a_gpu_no_rule_about_memory_applies(facts: Facts) -> None:
    advice = advise(case_of(facts))
    assert fired(advice, "memory") == []
    assert not {"C4", "C5", "C6", "C7", "L5", "L6", "L7", "N1"} & set(advice.rules)
    assert any("no GPU" in reason for reason in advice.reasons)


def test_rows_of_a_file_stand_for_judgements_when_nothing_is_said() -> None:
    assert fired(ask(rows=3000, data_type="preference"), "alignment") == ["C9"]
    assert fired(ask(rows=10_000, data_type="preference"), "alignment") == ["C9"]
    many = ask(rows=10_001, data_type="preference")
    assert fired(many, "alignment") == ["C8"]
    assert many.advised and many.advised.objective == "dpo"
    assert "C8" in [o.rule for o in many.overruled]
    assert fired(ask(rows=100, data_type=SFT_ROWS), "alignment") == []


@pytest.mark.parametrize(
    ("good", "bad", "fires"),
    [(900, 100, True), (100, 900, True), (600, 400, False), (500, 500, False), (None, None, True), (10, 0, True)],
)
def test_only_labels_of_very_different_numbers_are_unbalanced(good: int | None, bad: int | None, fires: bool) -> None:
    advice = ask(rows=1000, data_type="unpaired-preference", good_rows=good, bad_rows=bad)
    assert (fired(advice, "alignment") == ["C10"]) == fires
    assert advice.advised and advice.advised.objective == "kto"


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_weights_of_kto_stay_in_the_published_range_and_move_one_label_only(good: int, bad: int) -> None:
    weight_good, weight_bad = counts.kto_weights(good, bad)
    assert 1.0 in (weight_good, weight_bad)
    assert 1 <= weight_good * good / (weight_bad * bad) <= 4 / 3 + 1e-3


# --- what an expert would sign -----------------------------------------------------------------------------------------


def test_7b_on_8_gb_with_5k_rows_is_qlora() -> None:
    case = case_of(Facts(rows=5000, data_type=SFT_ROWS, gpu_memory_gib=7.6, base_parameters=7e9))
    advice = advise(case)
    assert advice.advised and advice.advised.recipe == "qlora"
    assert {"C3", "C4", "N1"} <= set(advice.rules)
    assert case.plan(advice.advised).setup.gradient_checkpointing
    assert (advice.advised.value("train.batch_size"), advice.advised.value("train.accumulation")) == (1, 16)


def test_7b_on_24_gb_with_50k_rows_is_lora_and_runs() -> None:
    advice = ask(rows=50_000, data_type=SFT_ROWS, gpu_memory_gib=23.6, base_parameters=7e9)
    assert advice.advised and advice.advised.recipe == "lora"
    assert advice.advised.value("adapter_args.rank") == 16
    assert {"C2", "C6"} <= set(advice.rules)
    assert any("50,000" in sentence and "64" in sentence for sentence in advice.would_change)


def test_7b_on_80_gb_with_300k_rows_of_a_new_domain_is_a_high_rank_because_full_does_not_fit() -> None:
    facts = {
        "rows": 300_000,
        "data_type": SFT_ROWS,
        "gpu_memory_gib": 79.0,
        "base_parameters": 7e9,
        "goal": "knowledge",
    }
    advice = ask(**facts)
    assert advice.advised and advice.advised.recipe == "lora"
    assert advice.advised.value("adapter_args.rank") == 256
    assert advice.advised.value("train.learning_rate") == pytest.approx(1e-4)
    assert [o.rule for o in advice.overruled] == ["C1"]
    assert {"X6", "X11"} <= set(advice.rules)
    assert any("full fine-tuning" in sentence for sentence in advice.would_change)
    fits = when(Facts(**facts), None)
    assert fits.advised and fits.advised.recipe == "full"
    assert "C1" in fits.rules


def test_many_chats_are_advised_as_the_same_rows_are_as_questions_with_answers() -> None:
    facts = {"rows": 120_000, "gpu_memory_gib": 79.0, "base_parameters": 1e9}
    chats = ask(data_type="language-modeling", conversational=True, **facts)
    pairs = ask(data_type=SFT_ROWS, **facts)
    plain = ask(data_type="language-modeling", **facts)
    assert chats.advised and pairs.advised and plain.advised
    assert chats.advised.key == pairs.advised.key and chats.advised.recipe == "lora"
    assert plain.advised.recipe == "full"
    assert any("conversations" in said for said in chats.reasons)
    assert not any("plain text" in said for said in chats.reasons)


def test_300k_instructions_are_no_reason_for_full_fine_tuning() -> None:
    advice = ask(rows=300_000, data_type=SFT_ROWS, goal="format", gpu_memory_gib=140.4, base_parameters=1e9)
    assert advice.advised and advice.advised.recipe == "lora"
    assert {"C1", "C7"} <= {o.rule for o in advice.overruled}
    assert advice.advised.value("adapter_args.rank") == 64
    assert [r.way.recipe for r in advice.runners_up] == ["full", "oft", "qlora"]


def test_1b_on_16_gb_with_3k_pairs_is_dpo_at_a_harmless_rate() -> None:
    advice = ask(rows=3000, data_type="preference", gpu_memory_gib=15.7, base_parameters=1e9)
    assert advice.advised and (advice.advised.objective, advice.advised.adapter) == ("dpo", "lora")
    assert advice.advised.value("train.learning_rate") == pytest.approx(5e-6)
    assert advice.advised.value("objective_args.beta") == pytest.approx(0.1)
    assert "I5" in [o.rule for o in advice.overruled]
    made = draft(advice, case_of(advice.facts), dataset="d")
    assert made is not None and made.recipe == "dpo"
    assert "train.learning_rate" not in made.overrides  # the recipe's own rate is as harmless


def test_20k_labels_at_nine_to_one_are_kto_with_a_weight() -> None:
    advice = ask(
        rows=20_000,
        data_type="unpaired-preference",
        good_rows=18_000,
        bad_rows=2_000,
        gpu_memory_gib=23.6,
        base_parameters=8e9,
    )
    assert advice.advised and (advice.advised.objective, advice.advised.adapter) == ("kto", "lora")
    assert advice.advised.value("objective_args.weights") == [1.0, 7.826]
    assert {"C10", "J5", "J8", "N4"} <= set(advice.rules)


def test_500_rows_on_a_processor_are_lora_on_the_starter() -> None:
    advice = ask(rows=500, data_type=SFT_ROWS, base_parameters=1e6)
    assert advice.advised and advice.advised.recipe == "lora"
    made = draft(advice, case_of(advice.facts, STARTER), dataset="d")
    assert made is not None and (made.recipe, made.base, made.dataset) == ("lora", "starter", "d")
    assert "train.learning_rate" not in made.overrides and "adapter_args.rank" not in made.overrides


def test_on_a_processor_a_base_of_unknown_size_is_said_to_be_unknown() -> None:
    advice = ask(rows=500, data_type=SFT_ROWS)
    assert any("the size of the base" in doubt for doubt in advice.doubts)
    assert any("below 1B is realistic" in said for said in advice.reasons)


def test_a_tuned_model_tuned_again_is_oft_and_lora_where_that_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"rows": 2000, "data_type": SFT_ROWS, "gpu_memory_gib": 23.6, "base_parameters": 7e9, "base_is_tuned": True}
    advice = ask(**facts)
    assert advice.advised and advice.advised.recipe == "oft"
    assert "F6" in advice.rules
    assert any("little evidence" in doubt for doubt in advice.doubts)
    lora = recipes.recipes()["lora"]
    monkeypatch.setattr(recipes, "recipes", lambda: {"lora": lora})
    without = ask(**facts)
    assert without.advised and without.advised.recipe == "lora"
    assert without.advised.value("adapter_args.rank") == 8


def test_a_reward_model_and_prompts_are_ppo_and_prompts_alone_are_nothing() -> None:
    advice = ask(rows=5000, data_type="prompt-only", has_reward_model=True, gpu_memory_gib=79.0)
    assert advice.advised and (advice.advised.objective, advice.advised.adapter) == ("ppo", "lora")
    assert [stage.done for stage in advice.plan if stage.title == "Judge"] == [True]
    sized = ask(rows=5000, data_type="prompt-only", has_reward_model=True, gpu_memory_gib=79.0, base_parameters=3e9)
    assert sized.advised and sized.advised.key == advice.advised.key
    # a value model as large as the judge trains whole, in 32 bits, beside the policy (engine/train/objectives/ppo.py)
    large = ask(rows=5000, data_type="prompt-only", has_reward_model=True, gpu_memory_gib=79.0, base_parameters=7e9)
    assert large.advised is None and "needs" in large.reasons[0]
    without = ask(rows=5000, data_type="prompt-only", gpu_memory_gib=79.0)
    assert without.advised is None and without.plan
    assert any("PPO" in sentence for sentence in without.would_change)


def test_70b_on_24_gb_fits_nothing_and_it_says_what_would() -> None:
    advice = ask(rows=5000, data_type=SFT_ROWS, gpu_memory_gib=23.6, base_parameters=7e10)
    assert advice.advised is None
    assert "Nothing fits" in advice.headline
    assert any("70B" in reason and "24" in reason for reason in advice.reasons)
    assert any("48 GB" in sentence for sentence in advice.would_change)
    assert any("base of" in sentence for sentence in advice.would_change)
    assert draft(advice, case_of(advice.facts), dataset=None) is None


def test_without_a_file_the_stated_judgements_decide() -> None:
    def objective(**facts) -> str | None:
        advised = ask(**facts).advised
        return advised.objective if advised else None

    assert objective() == "sft"
    assert objective(alignment_data="comparisons") == "dpo"
    assert objective(alignment_data="ratings_large") == "dpo"
    assert objective(alignment_data="ratings_large", has_reward_model=True) == "ppo"
    assert objective(alignment_data="good_bad") == "kto"
    assert objective(data_type="stepwise") is None


def test_comparisons_beside_rows_with_answers_come_later_in_the_plan() -> None:
    advice = ask(rows=5000, data_type=SFT_ROWS, alignment_data="comparisons")
    assert advice.advised and advice.advised.objective == "sft"
    assert [o.rule for o in advice.overruled if o.rule == "C9"] == ["C9"]
    now = [stage.now for stage in advice.plan]
    assert now.count(True) == 1
    assert "DPO" in advice.plan[-1].text and not advice.plan[-1].now
    assert "Try" in [stage.title for stage in advice.plan]


def test_a_low_tolerance_lowers_rank_and_rate_and_mixes_in_more() -> None:
    usual = ask(rows=60_000, data_type=SFT_ROWS, base_parameters=3e9)
    gentle = ask(rows=60_000, data_type=SFT_ROWS, base_parameters=3e9, forgetting_tolerance="low")
    assert usual.advised and gentle.advised
    for path in ("adapter_args.rank", "train.learning_rate"):
        assert gentle.advised.value(path) < usual.advised.value(path)
    assert gentle.replay_share > usual.replay_share > 0


def test_a_rule_followed_in_part_says_which_part_was_not() -> None:
    advice = ask(rows=50, data_type=SFT_ROWS)
    parts = {o.rule: o for o in advice.overruled}
    assert parts["C3"].partly and "C3" in advice.rules and "Freezing" in parts["C3"].why
    assert not parts["G5"].partly


@given(any_facts)
@settings(max_examples=examples(60))
def test_a_rule_stands_in_one_list_and_none_is_lost(facts: Facts) -> None:
    advice = advise(case_of(facts))
    words = {rule: guide.rules()[rule].words for rule in (*advice.rules, *(one.rule for one in advice.overruled))}
    followed, against = {words[one] for one in advice.followed}, {words[one.rule] for one in advice.overruled}
    unsound = {words[one] for one in advice.rules if guide.rules()[one].verdict in reasons.SPEAK_FOR_NOTHING}
    assert not followed & against and followed | against | unsound == set(words.values())
    assert len(followed) == len(advice.followed) and len(set(advice.doubts)) == len(advice.doubts)


def test_a_place_where_the_guide_contradicts_itself_speaks_for_nothing_and_stands_with_the_doubts() -> None:
    advice = ask(rows=5000, data_type=SFT_ROWS, gpu_memory_gib=7.6, base_parameters=7e9)
    assert "X6" in advice.rules  # a card of 8 GB stands on two rows of the table
    assert not {guide.rules()[one].verdict for one in advice.followed} & {"contradiction", "wrong", "outdated"}
    (said,) = [one for one in advice.doubts if "a value on the limit of two classes" in one]
    assert "a limit belongs to the smaller class" in said


def test_a_time_without_data_says_which_rows_it_is_for() -> None:
    assert "1,000 rows of about 200 words would take" in ask(base_parameters=135e6).sentence
    assert "250 rows of about 200 words would take" in ask(rows=250, base_parameters=135e6).sentence
    workspace = Workspace("/nowhere")
    toy = case_of(Facts(base_parameters=935_040), bases.describe("starter", workspace))
    told = advise(toy)
    assert told.advised is not None and (time := toy.plan(told.advised).time) is not None
    assert "1,000 rows as short as those of the samples would take" in told.sentence
    assert time.likely_s < 600  # its rows have some 30 tokens: with 300 it was said to take hours


def test_a_base_of_unknown_size_goes_by_the_guides_rule_for_the_card() -> None:
    small = ask(rows=5000, data_type=SFT_ROWS, gpu_memory_gib=7.6)
    assert small.advised and small.advised.recipe == "qlora" and small.doubts
    larger = ask(rows=5000, data_type=SFT_ROWS, gpu_memory_gib=15.7)
    assert larger.advised and larger.advised.recipe == "lora"
    toy = ask(rows=5000, data_type=SFT_ROWS, gpu_memory_gib=7.6, base_parameters=1e6)
    assert toy.advised and toy.advised.recipe == "lora"
    assert "C4" in [o.rule for o in toy.overruled]


@pytest.mark.parametrize(
    ("adapter", "quantize", "layers", "recipe"),
    [
        ("lora", "4bit", "all", "qlora"),
        ("oft", "none", "all", "oft"),
        ("oft", "4bit", "all", "qoft"),
        ("full", "none", "bottom_frozen:0.5", "freeze-bottom"),
        ("full", "none", "all", "full"),
    ],
)
def test_what_it_advises_for_answers_has_a_recipe_of_its_own(
    adapter: str, quantize: str, layers: str, recipe: str
) -> None:
    name = "freeze" if layers != "all" else recipe
    way = Way(recipe=name, objective="sft", adapter=adapter, quantize=quantize, layers=layers)
    assert ways.recipe_name_for(way) == recipe


def test_an_objective_runs_with_any_adapter_some_recipe_shows_to_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    lora = recipes.recipes()["lora"]
    dpo = msgspec.structs.replace(lora, name="dpo", objective="dpo", data_types=["preference"])
    oft = msgspec.structs.replace(lora, name="oft", adapter="oft")
    monkeypatch.setattr(recipes, "recipes", lambda: {"dpo": dpo, "lora": lora, "oft": oft})
    pairs = ask(rows=3000, data_type="preference")
    assert pairs.advised and ways.recipe_name_for(pairs.advised) == "dpo"
    with_oft = next(other.way for other in pairs.runners_up if other.way.adapter == "oft")
    assert ways.recipe_name_for(with_oft) == "dpo"
    only_oft = fitting_case(pairs.facts, [("dpo", "oft", "none", "all")])
    made = draft(advise(only_oft), only_oft, dataset="d")
    assert made is not None and made.recipe == "dpo" and made.overrides["adapter"] == "oft"
    assert ways.recipe_name_for(msgspec.structs.replace(with_oft, quantize="4bit")) is None


# --- bad facts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "where"),
    [
        ({"rows": -3}, "rows"),
        ({"rows": 0}, "rows"),
        ({"gpu_memory_gib": 0.0}, "gpu_memory_gib"),
        ({"gpu_memory_gib": float("nan")}, "gpu_memory_gib"),
        ({"base_parameters": float("inf")}, "base_parameters"),
        ({"time_budget_minutes": -1}, "time_budget_minutes"),
        ({"data_type": "pictures"}, "data_type"),
        ({"goal": "fame"}, "goal"),
        ({"forgetting_tolerance": "none"}, "forgetting_tolerance"),
    ],
)
def test_a_fact_that_cannot_be_is_named_and_the_rest_is_answered(facts: dict, where: str) -> None:
    advice = ask(**facts)
    assert [(p.where, p.rule) for p in advice.problems] == [
        (where, "fact-word" if isinstance(facts[where], str) else "fact-number")
    ]
    assert where in advice.problems[0].sentence and advice.problems[0].fix
    assert advice.advised is not None


# --- settings and drafts -----------------------------------------------------------------------------------------------


@given(sound_facts())
@settings(max_examples=examples(150))
def test_settings_are_paths_of_the_spec_within_their_range(facts: Facts) -> None:
    advice = advise(case_of(facts))
    for way in (advice.advised, *(other.way for other in advice.runners_up)):
        for setting in way.settings if way else ():
            assert setting.path in spec_settings.fields() or setting.path == "effective_batch"
            if setting.low is not None and setting.high is not None:
                assert setting.low <= setting.value <= setting.high
            if setting.path in spec_settings.fields():
                assert not isinstance(spec_settings.convert_setting(setting.path, setting.value), words.Problem)


@given(sound_facts(), st.sampled_from(["starter", "owner/name"]))
@settings(max_examples=examples(150))
def test_a_draft_is_a_spec_that_resolves(facts: Facts, base: str) -> None:
    own = STARTER if base == "starter" else Base(ref=base, kind="hub", title="", parameters=7_000_000_000)
    case = case_of(facts, own)
    advice = advise(case)
    made = draft(advice, case, dataset="d")
    assert (made is None) == (advice.advised is None)
    if made is None or advice.advised is None:
        return
    assert made.base == case.starts_with.ref
    if made.base != base:  # a named one of the size that is asked about
        assert facts.base_parameters != own.parameters and case.base.parameters is not None
        assert case.base.parameters == pytest.approx(facts.base_parameters, rel=0.16)
    recipe = recipes.recipes()[made.recipe]
    run_spec, problems = recipes.resolve(
        recipe,
        base=made.base,
        revision=None,
        parameters=facts.base_parameters,
        dataset_id="d",
        overrides=made.overrides,
    )
    assert problems == []
    assert (run_spec.objective, run_spec.adapter, run_spec.quantize) == kind(advice.advised)[:3]
    assert made.reasons and set(made.rules) <= set(guide.rules())
    if made.base != "starter":
        assert "train.replay_share" not in made.overrides
    if run_spec.objective in ("dpo", "kto") and (facts.base_parameters or 1e9) >= advise_facts.TOY_PARAMETERS:
        assert run_spec.train.learning_rate <= 5e-5


def test_the_advisors_numbers_and_the_recipes_are_the_same() -> None:
    """A setting the facts did not move must be what the recipe would set, for a base of each size."""
    for parameters in (1e8, 3e9, 8e9, 7e10):
        for name, recipe in recipes.recipes().items():
            facts = Facts(rows=5000, data_type=recipe.data_types[0], base_parameters=parameters, has_reward_model=True)
            for way in (w for w in case_of(facts).ways if (w.recipe, w.adapter) == (name, recipe.adapter)):
                for setting in way.settings:
                    default = recipe.default(setting.path, parameters)
                    if default is not None and not setting.reason and setting.path != "train.replay_share":
                        assert default.value == setting.value, (name, parameters, setting)


def test_it_needs_neither_torch_nor_a_page() -> None:
    code = "import sys, engine.advise.advice; print({'torch', 'streamlit', 'pandas'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "set()"


# --- the answers an expert would sign, by the estimate of memory ----------------------------------------------------------
ROWS: dict[str, Any] = {"rows": 5000, "data_type": "prompt-completion"}
NINE: list[tuple[str, dict[str, Any], str, str]] = [
    ("7B on 8 GB", {**ROWS, "gpu_memory_gib": 7.6, "base_parameters": 7e9}, "QLoRA of rank 16.", "C4"),
    ("7B on 24 GB, 50k rows", {**ROWS, "rows": 50_000, "gpu_memory_gib": 23.6, "base_parameters": 7e9},
     "LoRA of rank 16.", "C2"),
    ("7B on 80 GB, 300k rows of a new domain",
     {"rows": 300_000, "data_type": "language-modeling", "goal": "knowledge", "gpu_memory_gib": 79.1,
      "base_parameters": 7e9},
     "LoRA of rank 256.", "C6"),
    ("1B on 16 GB, 3k pairs", {"rows": 3000, "data_type": "preference", "gpu_memory_gib": 15.7, "base_parameters": 1e9},
     "DPO with LoRA of rank 8.", "C9"),
    ("8B on 24 GB, 20k labels at 9:1",
     {"rows": 20_000, "data_type": "unpaired-preference", "good_rows": 18_000, "bad_rows": 2000, "gpu_memory_gib": 23.6,
      "base_parameters": 8e9}, "KTO with QLoRA of rank 8.", "C10"),
    ("500 rows on a processor", {**ROWS, "rows": 500, "base_parameters": 935_040}, "LoRA of rank 16.", "C3"),
    ("a tuned model again", {**ROWS, "gpu_memory_gib": 23.6, "base_parameters": 7e9, "base_is_tuned": True}, "OFT.", "F6"),
    ("3B, a reward model and prompts on 80 GB",
     {"rows": 10_000, "data_type": "prompt-only", "has_reward_model": True, "gpu_memory_gib": 79.1, "base_parameters": 3e9},
     "PPO with LoRA of rank 8.", "H2"),
    ("70B on 24 GB", {**ROWS, "gpu_memory_gib": 23.6, "base_parameters": 7e10}, "Nothing fits this machine with this base.",
     ""),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "headline", "rule"), [row[1:] for row in NINE], ids=[r[0] for r in NINE])
def test_the_nine_scenarios(facts: dict[str, Any], headline: str, rule: str) -> None:
    case = case_of(Facts(**facts))
    advice = advise(case)
    assert advice.headline == headline
    assert not rule or rule in advice.rules
    assert (advice.advised is None) == (not advice.doubts)
    assert advice.alternatives and (advice.advised is None) == (not any(one.fits for one in advice.alternatives))
    if advice.advised is None:
        assert "smallest way" in advice.reasons[0] and any("With a card of" in said for said in advice.would_change)
    elif rule == "C6":
        assert any(
            "58 GB" in said for said in advice.reasons
        )  # what full fine-tuning would take otherwise: 8 bytes each


@given(sound_facts())
@settings(max_examples=examples(100))
def test_every_rule_of_the_advice_that_the_sources_do_not_bear_out_is_a_doubt(facts: Facts) -> None:
    advice = advise(case_of(facts))
    against = [rule for rule in advice.rules if guide.rules()[rule].verdict not in ("agree", "incomplete")]
    assert all(any(guide.rules()[rule].why in doubt for doubt in advice.doubts) for rule in against)


# --- a card and a size alone -----------------------------------------------------------------------------------------


def test_a_card_of_8_gb_and_7b_name_a_base_and_the_settings_that_fit() -> None:
    case = case_of(Facts(gpu_memory_gib=8, base_parameters=7e9))
    advice = advise(case)
    assert advice.advised is not None and (advice.advised.adapter, advice.advised.quantize) == ("lora", "4bit")
    made = draft(advice, case, dataset=None)
    assert made is not None and made.base == "unsloth/mistral-7b-v0.3" == case.plan(advice.advised).base.ref
    assert any("gradient checkpointing" in one and "accumulation" in one and "1,024" in one for one in advice.reasons)
    assert any("unsloth/mistral-7b-v0.3" in one for one in advice.stands_in)
    plan = case.plan(advice.advised)
    assert plan.fits and plan.spec.train.batch_size * plan.spec.train.accumulation == 16
    assert made.overrides["train.gradient_checkpointing"] is True  # this machine would leave it off
    handed = plans.make(case.workspace, made.recipe, base=plan.base, dataset=None, overrides=made.overrides,
                        target=case.target)  # fmt: skip
    assert handed.memory == plan.memory and handed.spec.train.batch_size == plan.spec.train.batch_size
    assert "on a card of 8 GB it fits" in advice.sentence and "1,000 rows" in advice.sentence
    assert [p.rule for p in plan.problems if p.rule.startswith("memory")] == []


def test_a_time_is_never_said_without_what_it_stands_on_and_a_judge_is_no_better_model() -> None:
    advice = ask(rows=500, data_type=SFT_ROWS, base_parameters=1e9)
    assert any(words in advice.sentence for words in duration.basis_words().values())
    pairs = ask(rows=3000, data_type="preference", gpu_memory_gib=15.7, base_parameters=1e9)
    (judge,) = [one for one in pairs.alternatives if one.way.objective == "reward"]
    assert "judge of answers" in judge.trade


def test_how_often_runs_like_the_advised_one_were_right_is_counted_and_never_a_word_alone() -> None:
    assert "No run like this" in ask(rows=500, data_type=SFT_ROWS, base_parameters=1e6).evidence
    seen = [evidence.Seen(run=str(n), name="", learned=n > 0, lost=n == 1) for n in range(4)]
    assert evidence.sentence(tuple(seen)) == (
        "2 of 4 runs like this here learned their task without a loss that was found."
    )


def test_a_run_with_a_setting_outside_of_what_is_known_to_work_is_not_counted(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = advise_case.of(Facts(rows=500, data_type=SFT_ROWS), workspace, base=bases.describe("starter", workspace))
    way = advise(case).advised
    assert way is not None
    spec = case.plan(way).spec
    broke = msgspec.structs.replace(spec, train=msgspec.structs.replace(spec.train, learning_rate=0.5))
    finished_run(workspace, 1, spec)
    finished_run(workspace, 2, broke)
    monkeypatch.setattr(evidence, "_came_to", lambda *_: (True, False))
    assert [one.run[:15] for one in evidence.of(case, way)] == ["20260101-000001"]


def test_what_no_setting_makes_fit_is_said_in_one_sentence() -> None:
    advice = ask(gpu_memory_gib=8, base_parameters=32e9)
    assert advice.advised is None and "needs" in advice.reasons[0] and "sold as 8 GB has 8.0 GiB" in advice.reasons[0]


def test_a_size_of_which_no_model_is_listed_says_with_what_the_run_opens() -> None:
    own = Base(ref="starter", kind="starter", title="Starter", parameters=935_040)
    case = case_of(Facts(gpu_memory_gib=80, base_parameters=7e10), own)
    made = draft(advise(case), case, dataset=None)
    assert made is not None and made.base == "starter"
    assert "opens with Starter" in case.stands_in[0]


def test_rows_are_shortened_only_where_nothing_else_fits() -> None:
    """Of the largest base that a card takes at all, rows are cut; of one that fits they keep their length."""
    lengths = {}
    for billions in (7, 8, 9, 10, 11, 12):
        case = case_of(Facts(gpu_memory_gib=8, base_parameters=billions * 1e9))
        if case.best is not None:
            lengths[billions] = case.plan(case.best).spec.train.max_length
    assert lengths[7] == 1024 and sorted(lengths.values(), reverse=True) == list(lengths.values())


def test_a_base_whose_size_alone_is_told_stays_the_base() -> None:
    own = Base(ref="owner/name", kind="hub", title="")
    case = case_of(Facts(gpu_memory_gib=24, base_parameters=7e9), own)
    assert case.starts_with is own
