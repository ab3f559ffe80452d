"""Architectures of today go through all that a base goes through: docs/architectures.md is made so, and here five of it."""

from __future__ import annotations

import pytest

from tools import architectures

# One that also sees, a mixture of experts, logits with a factor, convolutions and states in place of attention.
FIVE = ("gemma3", "qwen3_moe", "granite", "lfm2", "qwen3_5_text")


@pytest.mark.train
@pytest.mark.parametrize("kind", FIVE)
def test_an_architecture_is_counted_trained_by_every_way_merged_and_read_back(tmp_path, kind):
    (one,) = [one for one in architectures.ARCHITECTURES if one.kind == kind]
    assert architectures.row(one, tmp_path)[2:] == ["yes"] * (1 + len(architectures.RECIPES))


def test_the_page_holds_the_architectures_in_order_and_none_that_fails():
    lines = architectures.PAGE.read_text("utf-8").splitlines()
    rows = [line for line in lines if "`" in line and line.startswith("| ")][1:]
    kinds = [line.split(" | ")[1].strip("`") for line in rows]
    assert kinds == [one.kind for one in architectures.ARCHITECTURES if one.kind in kinds] and {*FIVE} <= {*kinds}
    assert not [line for line in rows if "FAILS" in line]
