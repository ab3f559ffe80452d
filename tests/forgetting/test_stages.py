"""A run made from a run: each stage against the model it began with, and against the first base of the line."""

from __future__ import annotations

import shutil

import msgspec
import pytest

from engine.forgetting import stages
from engine.report import Item, items
from engine.runs import scored
from engine.spec import schema
from engine.workspace import Workspace, new_run_id
from tests.helpers import fake_spec


def asked(right: str, first: int = 0) -> list[Item]:
    """Make up the answers to questions numbered from `first`: r for right, w for wrong."""
    return [
        Item(item=f"q{first + n}", family="all", prompt_sha=f"s{first + n}", choices=["a", "b"], gold=0,
             choice=int(one != "r"), correct=one == "r")
        for n, one in enumerate(right)
    ]  # fmt: skip


def run(
    workspace: Workspace,
    base: str,
    before: list[Item],
    after: list[Item],
    objective: str = "sft",
    benchmark: str = "blimp",
) -> str:
    """Write a finished run with the answers of its base and its own."""
    run_id = new_run_id()
    folder = workspace.run_dir(run_id)
    folder.mkdir(parents=True)
    spec = msgspec.structs.replace(fake_spec(), base=schema.BaseRef(base), objective=objective)
    (folder / "spec.json").write_bytes(schema.encode(spec))
    for model, found in (("base", before), ("tuned", after)):
        items.write_items(folder / "items" / f"{model}-{benchmark}.jsonl", found)
    (folder / "adapter").mkdir()
    return run_id


def line(workspace: Workspace, run_id: str) -> stages.Line | None:
    return stages.of(scored.of(workspace, run_id))


def test_each_stage_has_its_own_change_and_the_one_since_the_first_base(workspace: Workspace) -> None:
    first = run(workspace, "starter", asked("r" * 100), asked("r" * 90 + "w" * 10))
    second = run(workspace, f"run:{first}", asked("r" * 90 + "w" * 10), asked("r" * 70 + "w" * 20 + "r" * 10), "dpo")
    found = line(workspace, second)
    assert found is not None and found.first == "starter" and not found.notes
    one, two = found.changes
    assert (one.own.base, one.own.tuned) == (1.0, 0.9) and one.since == one.own
    assert (two.own.base, two.own.tuned, two.own.base_only_right, two.own.tuned_only_right) == (0.9, 0.8, 20, 10)
    since = two.since
    # 10 of the questions that the first stage lost came back: of the first base's 100 right ones 80 are left, in pairs
    assert since is not None and (since.base, since.tuned, since.n) == (1.0, 0.8, 100)
    assert (since.base_only_right, since.tuned_only_right) == (20, 0)
    assert since.change == pytest.approx(-0.2) and since.low < since.change < since.high < 0
    # from its own pairs, and not from the two stages' intervals: what came back is no change since the first base
    assert since.high - since.low < two.own.high - two.own.low
    assert one.stage.startswith("1. SFT") and two.stage.startswith("2. DPO")
    assert line(workspace, first) is None


def test_only_questions_that_both_were_asked_are_compared_and_that_is_said(workspace: Workspace) -> None:
    first = run(workspace, "starter", asked("r" * 40), asked("r" * 40))
    second = run(workspace, f"run:{first}", asked("r" * 40, 30), asked("w" * 40, 30))
    found = line(workspace, second)
    assert found is not None and found.changes[1].own.n == 40
    assert found.changes[1].since is not None and found.changes[1].since.n == 10
    assert "10 questions were asked both" in str(found.notes[0])
    third = run(workspace, f"run:{first}", asked("r" * 9, 60), asked("w" * 9, 60))
    apart = line(workspace, third)
    assert apart is not None and apart.changes[1].since is None and "no question in common" in str(apart.notes[0])
    fourth = run(workspace, f"run:{first}", asked("rr"), asked("ww"), benchmark="toy-world")
    other = line(workspace, fourth)
    assert other is not None and other.changes[1].since is None and "was not asked toy-world" in str(other.notes[0])


def test_questions_under_another_template_are_not_compared(workspace: Workspace) -> None:
    first = run(workspace, "starter", asked("rrr"), asked("rrr"))
    second = run(workspace, f"run:{first}", asked("rrr"), asked("rrw"))
    for one, template in ((first, "none"), (second, "chat")):
        settings = {"blimp": {"shots": 0, "template": template}}
        (workspace.run_dir(one) / "items" / "settings.json").write_bytes(msgspec.json.encode(settings))
    found = line(workspace, second)
    assert found is not None and found.changes[1].since is None and "another template" in str(found.notes[0])


def test_a_stage_that_was_deleted_is_said(workspace: Workspace) -> None:
    first = run(workspace, "starter", asked("rr"), asked("rr"))
    second = run(workspace, f"run:{first}", asked("rr"), asked("rw"))
    third = run(workspace, f"run:{second}", asked("rw"), asked("ww"))
    shutil.rmtree(workspace.run_dir(first))
    found = line(workspace, third)
    assert found is not None and [one.run_id for one in found.runs] == [second, third]
    assert found.gone == f"run:{first}" and "was deleted" in str(found.notes[0])
    assert [change.own.change for change in found.changes] == [-0.5, -0.5]


def test_the_table_and_the_command_line_show_both_changes(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    from engine.cli import parser
    from pages import _forgetting_tables

    first = run(workspace, "starter", asked("r" * 100), asked("r" * 90 + "w" * 10))
    second = run(workspace, f"run:{first}", asked("r" * 90 + "w" * 10), asked("r" * 80 + "w" * 20), "dpo")
    found = line(workspace, second)
    assert found is not None
    table = _forgetting_tables.stages(found, {})
    assert list(table["Change"].str.split().str[0]) == ["-10.0", "-10.0"]
    assert list(table["Since the first base"].str.split().str[0]) == ["-10.0", "-20.0"]
    with pytest.raises(SystemExit) as ended:
        parser.main(["compare", second])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "Stage by stage, from starter:" in said and "since the first base -20.00 [" in said
