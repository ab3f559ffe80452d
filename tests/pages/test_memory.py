"""The one picture of memory: its scale, its colours, its one unit and its values."""

from __future__ import annotations

from typing import Any

import pytest

from engine.estimate import memory
from engine.estimate.memory import Estimate
from pages import _memory

GIB = 2**30


def estimate(**parts_gib: float) -> Estimate:
    return Estimate(device="cuda:0", parts={name: round(size * GIB) for name, size in parts_gib.items()})


def axis(bars: list[Estimate], memory_gib: float) -> tuple[float, str]:
    drawn = _memory.figure([_memory.Bar(one) for one in bars], memory_gib * GIB).to_plotly_json()["layout"]["xaxis"]
    return drawn["range"][1], drawn["ticksuffix"].strip()


def colours(found: Estimate) -> dict[str, Any]:
    drawn = _memory.figure([_memory.Bar(found)], 8 * GIB).to_plotly_json()["data"]
    return {one["name"]: one["marker"]["color"] for one in drawn if sum(one["x"])}


def test_one_bar_is_drawn_to_the_memory_there_is_or_to_what_it_may_need_and_no_further() -> None:
    small, large = estimate(weights=1, fixed=1), estimate(weights=10)
    assert axis([small], 8) == (pytest.approx(8 * 1.02), "GiB")
    assert axis([large], 8) == (pytest.approx(large.high_bytes / GIB * 1.02), "GiB")
    assert axis([estimate(weights=0.25)], 0.5) == (pytest.approx(512 * 1.02), "MiB")


def test_of_many_bars_one_that_needs_far_more_does_not_make_the_others_too_small_to_read() -> None:
    assert axis([estimate(weights=6), estimate(weights=150)], 8)[0] < 17


def test_a_part_has_its_colour_whatever_else_is_drawn() -> None:
    alone, beside = estimate(weights=1, fixed=1), estimate(weights=1, optimizer=1, reference=2, logits=1, fixed=1)
    assert colours(alone).items() <= colours(beside).items() and len(set(colours(beside).values())) == 6


def test_every_part_that_is_counted_is_drawn_once() -> None:
    assert sorted(part for group in _memory.GROUPS for part in group) == sorted(memory.PARTS)


def test_the_values_stand_beside_the_picture_in_its_one_unit() -> None:
    found = estimate(weights=0.5, optimizer=1, fixed=0.25)
    table = _memory._table(found, 8 * GIB)
    values = [float(one) for one in table["GiB"]]
    assert sum(values[:3]) == values[3] == 1.75 and values[-1] == 8


def test_what_all_there_is_is_said_where_it_has_room() -> None:
    beyond, within = estimate(weights=40), estimate(weights=1)
    for found, side in ((beyond, "left"), (within, "right")):
        said = _memory.figure([_memory.Bar(found)], 8 * GIB).to_plotly_json()["layout"]["annotations"][0]
        assert said["xanchor"] == side and "8.0 GiB" in said["text"]
