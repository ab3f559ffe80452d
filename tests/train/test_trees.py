"""Sequences laid out as trees: each token once, each seeing its own past; and answers that hang on no neighbour."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.train.scoring import trees
from engine.train.scoring.likelihood import Reader
from engine.train.scoring.trees import Wanted
from tests import tiny_models

pytestmark = pytest.mark.train

# Few kinds of token, so that sequences share their beginnings.
SEQUENCES = st.lists(
    st.lists(st.integers(3, 6), min_size=2, max_size=40).flatmap(
        lambda tokens: st.sets(st.integers(1, len(tokens) - 1), min_size=1).map(
            lambda places: Wanted(tuple(tokens), sorted(places))
        )
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150)
@given(SEQUENCES, st.booleans(), st.integers(1, 200), st.integers(1, 5))
def test_every_target_is_asked_once_where_exactly_its_own_past_is_seen(wanted, share, most_tokens, most_rows):
    asked = []
    for family in trees.families(wanted, share=share):
        for rows in trees.batches(family.trees, most_tokens, most_rows, fill=share):
            laid = trees.lay_out(rows, wanted, len(family.header))
            assert len(rows) <= most_rows and (len(rows) == 1 or laid.ids.size <= most_tokens)
            for row, at, token, number in laid.asked:
                seen = laid.seen[row, at]
                past = [*family.header, *laid.ids[row][seen[len(family.header) :]]]
                target = len(past)
                assert tuple(past) == wanted[number].tokens[:target] and token == wanted[number].tokens[target]
                assert laid.positions[row, at] == target - 1 and seen[: len(family.header)].all()
                asked.append((number, target))
    assert sorted(asked) == sorted((n, at) for n, one in enumerate(wanted) for at in one.targets)


def test_what_is_shared_is_laid_out_once_and_gaps_are_filled():
    long, short = tuple(range(100, 160)), (7, 8, 9)
    some = [Wanted((*long, k, 5), [60, 61]) for k in (1, 2, 3)] + [Wanted((*short, k), [3]) for k in (1, 2)]
    (family,) = trees.families(some)
    assert [tree.size for tree in family.trees] == [3, 63]
    apart = [Wanted((*long[: 40 + n], 5), [40 + n]) for n in (0, 19)] + [Wanted(tuple(range(9)), [8])] * 2
    (rows,) = trees.batches(trees.families(apart, share=False)[0].trees, 200, 9)
    assert [[tree.size for tree in row] for row in rows] == [[59], [40, 8]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    return {
        shape: transformers.AutoModelForCausalLM.from_pretrained(tiny_models.make(folder, shape)).eval()
        for shape in tiny_models.SHAPES
    }


def likelihoods(model: Any, wanted: list[Wanted]) -> list[list[float]]:
    found: dict[int, list[float]] = {}
    for some in Reader(model).read(wanted):
        found |= {number: [likely for likely, _ in answers] for number, answers in some.items()}
    return [found[number] for number in range(len(wanted))]


@torch.no_grad()
def alone(model: Any, one: Wanted) -> list[float]:
    """What plain transformers says of one sequence."""
    likely = model(torch.tensor([one.tokens])).logits[0].double().log_softmax(-1)
    return [float(likely[at - 1, one.tokens[at]]) for at in one.targets]


@pytest.mark.parametrize("shape", tiny_models.SHAPES)
def test_an_answer_hangs_on_no_neighbour_and_is_that_of_plain_transformers(models: dict[str, Any], shape: str):
    @settings(max_examples=12)
    @given(SEQUENCES, st.data())
    def hold(wanted: list[Wanted], data: Any) -> None:
        order = data.draw(st.permutations(range(len(wanted))))
        some = order[: data.draw(st.integers(1, len(order)))]
        whole, part = likelihoods(models[shape], wanted), likelihoods(models[shape], [wanted[n] for n in some])
        for n, answers in zip(some, part, strict=True):
            assert answers == pytest.approx(whole[n], abs=1e-5)
            assert answers == pytest.approx(alone(models[shape], wanted[n]), abs=1e-4)

    hold()
