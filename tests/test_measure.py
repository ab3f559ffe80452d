"""The harness of what is measured: a case is read whole or refused, a table is gone on with and named partial until it is
whole, and a run is told from others by all that decides it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bench.measure import cases, recover, table, ways
from bench.measure.__main__ import phases_s
from engine import events
from engine.forgetting import recovery_curve


def row(piece: cases.Piece, key: str) -> table.Row:
    figures = [
        table.Figure("general-text", "all", 28, 3.5, 3.4, -0.1, -0.2, -0.01),
        table.Figure("blimp", "all", 100, 0.72, 0.7, -0.02, -0.06, 0.02),
        table.Figure("blimp", "agreement", 9, 0.5, 0.5, 0.0, None, None),
    ]
    return table.Row(
        key=key, data=piece.data, recipe=piece.recipe, varied=piece.varied, seed=piece.seed, base="A base", base_sha256="a",
        data_sha256="b", spec={}, machine={"device": "x86_64", "cores": 2, "memory_gib": 24, "backend": "plain"},
        versions=dict.fromkeys(("torch", "transformers", "trl", "peft"), "1"), at="2026-11-29", seconds=120.0, phases_s={},
        steps=24, figures=figures,
    )  # fmt: skip


@pytest.mark.parametrize("name", sorted(path.stem for path in cases.CASES.glob("*.yaml")))
def test_every_case_is_read_and_has_every_data_set_beside_every_recipe_and_value(name: str) -> None:
    case = cases.read(name)
    found = cases.pieces(case)
    assert len({msgspec.json.encode(piece) for piece in found}) == len(found)
    of = {data: {(p.recipe, p.way, str(p.varied), p.seed) for p in found if p.data == data} for data in case.all_data}
    assert all(one == of[case.all_data[-1]] for one in of.values())
    ways = [
        (recipe, way) for recipe in case.grid for way, one in case.ways.items() if recipe in (one.recipes or case.grid)
    ]
    assert not case.ways or {(p.recipe, p.way) for p in found} == set(ways)


def test_a_case_with_an_unknown_setting_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (cases.CASES / "rates.yaml").read_text().replace("train.epochs", "train.epoch")
    (tmp_path / "broken.yaml").write_text(text)
    monkeypatch.setattr(cases, "CASES", tmp_path)
    with pytest.raises(ValueError, match=r"not a setting: train\.epoch$"):
        cases.read("broken")
    with pytest.raises(ValueError, match="no case other: broken"):
        cases.read("other")


def test_a_table_is_named_partial_until_all_its_runs_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "TABLES", tmp_path / "tables")
    monkeypatch.setattr(table, "PAGES", tmp_path / "pages")
    case = cases.read("rates")
    wanted = cases.pieces(case)
    for number, piece in enumerate(wanted):
        table.append(case, row(piece, str(number)))
        path = table.write_page(case, len(wanted), table.read(case))
        whole = number + 1 == len(wanted)
        assert [one.name for one in path.parent.iterdir()] == ["rates.md" if whole else "rates.partial.md"]
        assert ("partial" in path.read_text().splitlines()[0]) is not whole
    assert "| 3.500: -0.100 [-0.200, -0.010] |" in path.read_text()
    assert "| 72.0: -2.0 [-6.0, +2.0] |" in path.read_text()
    assert "agreement" not in path.read_text()


def over_seeds(
    recipe: str, benchmark: str, n: int, base: float, ways_changed: dict[str, tuple[float, ...]]
) -> list[table.Row]:
    """Rows of runs by their way, a seed each, that changed one benchmark so much."""
    rows = []
    for way, changes in ways_changed.items():
        for seed, change in enumerate(changes):
            piece = cases.Piece("new facts", recipe, {}, seed, {}, way)
            figures = [table.Figure(benchmark, "all", n, base, base + change, change, None, None)]
            rows.append(msgspec.structs.replace(row(piece, way + str(seed)), way=way, figures=figures))
    return rows


def test_ways_are_told_as_means_over_seeds_and_what_was_not_run_or_gains_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "TABLES", tmp_path / "tables")
    case = cases.read("keep")
    gained = {"plain": (0.75, 0.77, 0.76), "skip_surprising": (0.0, 0.01, -0.01)}
    rows = over_seeds("full", "new-task-choices", 144, 0.24, gained)
    told = ways.table(case, rows)
    assert "| full | plain | 3 | +76.0 [+73.5, +78.5] (+75.0 to +77.0) |  |" in told
    assert "| full | skip_surprising | 3 | +0.0 [-2.5, +2.5] (-1.0 to +1.0) | no gain |" in told
    assert "| full | kl | 0 |  | not run |" in told
    assert "| full | feed-forward |  |  | there is no such run |" in told


def test_ways_are_held_against_the_first_two_by_their_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.read("keep")
    lost = {"plain": (-0.07, -0.08, -0.06), "replay": (-0.03, -0.03, -0.03), "kl": (-0.01, -0.01, -0.01)}
    rows = over_seeds("lora", "toy-world", 452, 1.0, lost)
    told = ways.differences(case, rows)
    assert "| lora | replay − plain | +4.0 [+1.5, +6.5] |" in told
    assert "| lora | kl − replay | +2.0 [+2.0, +2.0] |" in told
    assert ways.differences(case, [one for one in rows if one.seed == 0]) == []  # one seed tells nothing of others


def curve(gain: float, general: float, suggested: float | None) -> recovery_curve.Curve:
    def figure(value: float) -> recovery_curve.Figure:
        return recovery_curve.Figure(value=value, low=value - 0.01, high=value + 0.01)

    points = [
        recovery_curve.Point(at=at, gain=figure(at * gain), general=figure(at * general)) for at in (0.0, 0.5, 1.0)
    ]
    taken = None if suggested is None else recovery_curve.Suggested(
        at=suggested, halves=(suggested, 1.0), gain=figure(gain), general=figure(general / 2), got_back=figure(-general / 2),
    )  # fmt: skip
    return recovery_curve.Curve(
        run="r", way="scale", measure="new-task-choices", general_in="points", points=points, suggested=taken
    )


def test_the_way_back_is_told_of_the_run_the_point_suggested_and_half_of_the_way_over_seeds() -> None:
    def scored(way: str, seed: int, gain: float) -> recover.Row:
        return recover.Row("k", "keep", "lora", way, seed, {}, "2026-11-30", 9.0, curve(gain, -0.06, 0.5))

    told = recover.page([scored("plain", 0, 0.74), scored("plain", 1, 0.76), scored("skip_surprising", 0, 0.0)])
    whole = next(line for line in told.splitlines() if line.startswith("| lora | plain | 2 |"))
    assert (
        "+75.0 [+62.3, +87.7] (+74.0 to +76.0) |  | -6.0" in whole
        and "| 50/100, 50/100 |" in whole
        and "+37.5" in whole
    )
    assert next(line for line in told.splitlines() if "skip_surprising | 1 |" in line).endswith("| no gain |")
    assert "| lora | kl | 0 |" in told and "not run" in told
    assert "| lora | plain | 1 | +76.0 [+75.0, +77.0] |  |" in told


def test_a_sample_is_found_without_a_folder_and_a_file_wants_one() -> None:
    case = cases.read("keep")
    assert cases.file_of(case.data["new facts"], None).name == "new-facts.jsonl"
    with pytest.raises(ValueError, match=r"--data must name the folder that has gsm8k_test\.jsonl"):
        cases.file_of(cases.read("keep-smollm2").data["mathematics"], None)


def test_a_run_is_told_from_others_by_its_settings_its_base_and_its_data() -> None:
    assert len({table.key_of(spec, base, data) for spec in ({}, {"a": 1}) for base in "xy" for data in "pq"}) == 8
    assert table.key_of({"a": 1, "b": 2}, "x", "p") == table.key_of({"b": 2, "a": 1}, "x", "p")


def test_the_seconds_of_the_phases_are_those_of_the_run() -> None:
    said = [
        (0.0, events.Queued(device="cpu")), (1.0, events.Phase(phase="loading")), (4.0, events.Phase(phase="training")),
        (5.0, events.Log(text="x")), (9.0, events.Phase(phase="evaluating", detail="tuned")),
        (12.0, events.Finished(step=1)),
    ]  # fmt: skip
    for at_s, event in said:
        event.monotonic_s = at_s
    found = phases_s([event for _, event in said])
    assert found == {"waiting": 1.0, "loading": 3.0, "training": 5.0, "evaluating tuned": 3.0}
