"""What a quantised file lost, from both models' answers alone: figures, sentences and where these are said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine import processes
from engine.export import card
from engine.quantised import asking, lost, said
from engine.quantised.lost import Difference, Lost, Same
from engine.report import Item, items
from engine.spec import recipes, schema
from engine.workspace import Workspace

RUN = "20261130-000000-aaaaaa"
ALL_SAME = Same(20)


def right(number: int, correct: bool, **more: Any) -> Item:
    return Item(item=f"q{number}", family="all", prompt_sha=str(number), correct=correct, **more)


def loss(number: int, nats: float) -> Item:
    return Item(item=f"r{number}", family="seen rows", prompt_sha=str(number), loglikelihoods=[-nats], tokens=10)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path / "home")
    spec, _ = recipes.resolve(
        recipes.recipes()["full"], base="starter", revision=None, parameters=None, dataset_id="a", overrides={}
    )
    made.run_dir(RUN).mkdir(parents=True)
    (made.run_dir(RUN) / "spec.json").write_bytes(schema.encode(spec))
    return made


def made(workspace: Workspace, kind: str = "q4_k_m", *, merged: dict[str, list[Item]] | None = None,
         file: dict[str, list[Item]] | None = None, **more: Any) -> Path:  # fmt: skip
    """Lay out a file of 37 bytes, with answers of both where they are given, and what was compared."""
    path = workspace.run_dir(RUN) / "gguf" / f"{RUN}-{kind}.gguf"
    (lost.folder_of(path) / "items").mkdir(parents=True)
    path.write_bytes(b"x" * 37)
    for who, answers in ((lost.MERGED, merged or {}), (lost.QUANTISED, file or {})):
        for name, found in answers.items():
            items.write_items(lost.folder_of(path) / "items" / f"{who}-{name}.jsonl", found)
    told = {"plain_bytes": 100, "same": ALL_SAME, "same_in_16_bits": ALL_SAME, "number_format": "float32", **more}
    one = Lost(quantization=kind, size_bytes=37, mtime_ns=path.stat().st_mtime_ns, **told)
    (lost.folder_of(path) / lost.LOST).write_bytes(msgspec.json.encode(one))
    return path


def found(path: Path) -> lost.Found:
    one = lost.read(path)
    assert one is not None
    return one


def test_a_file_says_its_points_over_all_questions_in_pairs_and_its_size(workspace):
    before = {"a": [right(n, True) for n in range(60)], "b": [right(n + 100, n % 2 == 0) for n in range(40)]}
    after = {"a": [right(n, n >= 5) for n in range(60)], "b": [right(n + 100, n % 2 == 0 or n == 1) for n in range(40)]}
    one = found(made(workspace, merged=before, file=after, asked=100, questions=100))
    assert one.points is not None
    assert (one.points.n, one.points.base_only_right, one.points.tuned_only_right) == (100, 5, 1)
    assert one.points.change == pytest.approx(-0.04) and one.points.low < one.points.change < one.points.high
    low, high = f"{100 * one.points.low:+.1f}", f"{100 * one.points.high:+.1f}"
    assert said.sentence(one) == f"Q4_K_M: -4.0 [{low}, {high}] points at 0.37 of the size"
    assert [row.benchmark for row in one.rows if row.family == items.ALL] == ["a", "b"]
    assert any("100 questions" in note for note in said.notes(one))


def test_the_loss_of_rows_and_texts_is_said_beside_the_points(workspace):
    before, after = {"l": [loss(n, 10) for n in range(40)]}, {"l": [loss(n, 11 + n % 2) for n in range(40)]}
    one = found(made(workspace, merged=before, file=after))
    assert one.points is None and one.nats is not None and one.nats.change == pytest.approx(0.15)
    assert said.sentence(one).startswith("Q4_K_M: +0.150 [")


def test_questions_of_one_row_err_together_and_widen_the_interval(workspace):
    before = {name: [right(n, True) for n in range(60)] for name in ("a", "b", "c")}
    together = {name: [right(n, n >= 6) for n in range(60)] for name in before}
    apart = {name: [right(n, not at * 6 <= n < at * 6 + 6) for n in range(60)] for at, name in enumerate(before)}
    narrow, wide = (found(made(workspace, kind, merged=before, file=answers)).points
                    for kind, answers in (("q4_k_m", apart), ("q8_0", together)))  # fmt: skip
    assert narrow is not None and wide is not None and narrow.change == wide.change
    assert wide.low < narrow.low


def test_of_few_questions_no_interval_is_said(workspace):
    before, after = {"a": [right(n, True) for n in range(10)]}, {"a": [right(n, n > 4) for n in range(10)]}
    assert said.sentence(found(made(workspace, merged=before, file=after, same=Same(20)))) == (
        "Q4_K_M: 20 of 20 greedy answers are the same at 0.37 of the size"
    )


def test_a_run_that_was_never_scored_says_so_and_compares_its_answers_alone(workspace):
    differs = Same(20, [Difference("p", "m", "f", 0.4)])
    one = found(made(workspace, same=differs))
    assert said.sentence(one) == "Q4_K_M: 19 of 20 greedy answers are the same at 0.37 of the size"
    assert "This run was never scored, so that nothing but greedy answers is compared." in said.notes(one)


def test_where_sixteen_bits_say_something_else_the_figure_is_said_to_be_no_measure_of_quantising(workspace):
    other = Same(20, [Difference("Capital of France?", "Paris", "Rome", 2.5)])
    told, quoted, *_ = said.notes(found(made(workspace, same_in_16_bits=other)))
    assert "no measure of quantising" in told and "“Paris”" in quoted and "“Rome”" in quoted
    assert "no measure of quantising" in (shown := card.markdown(workspace, RUN)) and "Capital of" not in shown
    near = Same(20, [Difference("Capital of France?", "Paris", "Rome", 0.01)])
    told = said.notes(found(made(workspace, "q8_0", same_in_16_bits=near)))[0]
    assert "on 19 of 20 prompts" in told and "rounding decides" in told and "no measure" not in told
    assert "was not compared" in said.notes(found(made(workspace, "f16", same=None, same_in_16_bits=None)))[0]


def test_of_a_base_that_was_rounded_before_the_loss_is_said_to_be_flattered(workspace):
    assert any("flattered" in note for note in said.notes(found(made(workspace, rounded_bits=4))))
    assert not any("flattered" in note for note in said.notes(found(made(workspace, "q8_0"))))


def test_what_could_not_be_asked_any_more_is_named(workspace):
    path = made(workspace, left=["new task"])
    assert "Not asked, since it cannot be put any more as it was: new task." in said.notes(found(path))


def test_a_file_that_was_made_anew_has_no_loss_until_it_is_asked_again(workspace):
    path = made(workspace)
    os.utime(path, ns=(1, 1))
    assert lost.read(path) is None
    path.unlink()
    assert lost.read(path) is None


@pytest.mark.parametrize("broken", ["items", "json"])
def test_answers_that_cannot_be_read_say_nothing(workspace, broken):
    path = made(workspace, merged={"a": [right(1, True)]}, file={"a": [right(1, True)]})
    where = lost.folder_of(path) / (lost.LOST if broken == "json" else f"items/{lost.MERGED}-a.jsonl")
    where.write_bytes(b"{")
    assert lost.read(path) is None


def test_what_was_lost_stands_in_the_card_in_english_and_not_where_no_file_was_asked(workspace):
    assert "quantising" not in card.markdown(workspace, RUN)
    made(workspace, merged={"a": [right(n, True) for n in range(30)]}, file={"a": [right(n, True) for n in range(30)]})
    told = card.markdown(workspace, RUN)
    assert "## What quantising lost" in told and "- Q4_K_M: +0.0 [" in told


@pytest.mark.parametrize(
    "words", ['{"failed": {"type": "failed", "kind": "bug", "message": "no", "fix": ""}}', "", "{["]
)
def test_asking_that_fails_leaves_the_file_and_the_reason_beside_it(workspace, monkeypatch, words):
    path = workspace.run_dir(RUN) / "gguf" / f"{RUN}-q4_k_m.gguf"
    path.parent.mkdir()
    path.write_bytes(b"a file")
    code = f"print({words!r}); print('{{\"share\": 0.5}}'); raise SystemExit(1)"
    monkeypatch.setattr(processes, "start", lambda *_, **how: subprocess.Popen([sys.executable, "-c", code], **how))
    shares: list[float] = []
    asking.ask(workspace, RUN, path, "q4_k_m", told=shares.append)
    assert path.read_bytes() == b"a file" and shares == [0.5]
    told = said.sentence(found(path))
    assert told.startswith("Q4_K_M: what it lost was not measured: ") and ("no" in told or "was ended" in told)
