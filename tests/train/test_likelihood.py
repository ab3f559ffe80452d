"""What questions share is computed once, and the answers are those of each question read alone."""

from __future__ import annotations

import functools
import json
import tempfile
from typing import Any

import pytest

from tests import forked
from tests.conftest import ROOT
from tests.tiny_models import SHAPES

pytestmark = pytest.mark.train
KINDS = ("long contexts", "examples", "letters", "one in another", "short", "the whole window")


@functools.cache
def told() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        ended = forked.run_python("from tests.train.likelihood_cases import main; main()", folder, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def right(found: dict[str, Any]) -> bool:
    """Each question is answered, as it is by itself."""
    return found["questions"] and found["difference"] < 1e-4 and found["greedy"]


@pytest.mark.parametrize("shape", SHAPES)
def test_answers_are_those_of_each_question_read_alone(shape):
    assert all(right(told()[shape][kind]) for kind in KINDS)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_context_or_examples_that_are_shared_are_read_once(shape):
    found = told()[shape]
    for kind in KINDS[:4]:
        assert found[kind]["spared"] > 0.45, kind
    assert found["short"]["spared"] == 0


@pytest.mark.parametrize(
    ("model", "ways"),
    [
        ("mamba", [True, False, False]),
        ("forgets", [True, True, False]),
        ("unseeing", [True, False, False]),
        ("capped", [False, True, True]),
        ("eager", [True, True, True]),
    ],
)
def test_a_model_is_asked_only_in_the_ways_in_which_it_answers_as_plainly(model, ways):
    for found in told()[model].values():
        assert right(found) and found["ways"] == ways


def test_what_is_longer_than_a_sliding_window_shares_nothing_and_what_is_shorter_does():
    found = told()["sliding"]
    assert right(found["long contexts"]) and found["long contexts"]["spared"] < 0.1
    assert right(found["letters"]) and found["letters"]["spared"] > 0.45


def test_no_more_logits_are_made_at_once_than_may_be_also_of_a_long_text():
    most = 1024 * 20
    for found in [*told()["few logits"].values(), told()["a long text"]]:
        assert right(found) and found["logits"] <= most


def test_answers_of_the_harnesss_own_tasks_survive_a_stop_and_a_torn_line_and_none_is_computed_twice():
    found = told()["kept"]
    assert found["stopped"] and 0 < found["done"] < found["all"] == 40 and found["same"]
    resumed, unbroken = found["tokens"]
    assert resumed == pytest.approx(unbroken, rel=0.1)  # batches are cut anew, so that padding differs
    assert found["shares"] == [1.0, True] and found["known"][-1] == [found["done"] / 40, False]
    assert found["other"] == 0
