"""What a base makes of every row is known before a run, and report, preview and run agree on it to the token."""

from __future__ import annotations

import errno
import json
import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import starter as starter_model
from engine.check import check_file
from engine.data import Dataset, datasets, jobs, readiness
from engine.models import Base, bases
from engine.plan import plans
from engine.render import Coder, preview
from engine.render.encode import encode
from engine.runs import failures
from engine.train import rows as train_rows
from engine.train.tokenize import get_ready
from engine.words import Problem
from engine.workspace import Workspace
from tests.helpers import examples

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# One of each way to write turns: marks of its own, shared marks, [INST], headers, reasoning that is dropped.
WRITTEN = ("qwen3", "qwen2_5", "llama3", "gemma", "phi3")
WINDOW = readiness.Window(64)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "home")


@pytest.fixture
def starter(workspace: Workspace) -> Base:
    return bases.describe("starter", workspace)


def stored(workspace: Workspace, rows: list[Any]) -> Dataset:
    workspace.root.mkdir(parents=True, exist_ok=True)
    file = workspace.root / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return datasets.add(workspace, file, "rows")


def conversation(number: int) -> dict[str, Any]:
    return {"messages": [user(f"Question {number}"), assistant(f"Answer {number}")]}


def calling(number: int) -> dict[str, Any]:
    """A row that the starter's template refuses: it knows no tools."""
    call = {"type": "function", "id": "c1", "function": {"name": "look", "arguments": {"n": number}}}
    result = {"role": "tool", "content": "One", "tool_call_id": "c1"}
    asked = [user(f"Look {number}"), assistant("", tool_calls=[call]), result, assistant(f"One {number}")]
    return {"messages": asked}


def mixed() -> list[dict[str, Any]]:
    rows = [conversation(number) for number in range(12)]
    rows[2], rows[5] = calling(2), calling(5)
    rows[7] = {"messages": [user("Count"), assistant(" ".join(map(str, range(60))))]}
    rows[9] = {"messages": [user("word " * 80), assistant("Yes")]}
    return rows


def test_rows_that_are_refused_lost_or_cut_are_named_with_the_length_that_keeps_them(
    workspace: Workspace, starter: Base
) -> None:
    found = readiness.of(workspace, stored(workspace, mixed()), starter)
    assert found is not None and found.stops(WINDOW) is None
    refused, lost, cut, remedy = map(str, found.warnings(WINDOW))
    assert refused.startswith("Left out: 2 of 12 rows, lines 3, 6:") and "unknown role: tool" in refused
    assert lost.startswith("Left out: 1 of 12 rows, lines 10:") and cut.startswith("Cut: 1 of 12 rows, lines 8:")
    needed = readiness.Window(found.tally.keeps_all)
    assert f"{needed.length:,}" in remedy and len(found.warnings(needed)) == 1
    assert len(found.warnings(needed._replace(length=needed.length - 1))) > 1


def test_what_cannot_be_kept_on_a_full_disk_is_told_all_the_same(
    workspace: Workspace, starter: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(readiness, "write_atomically", full)
    dataset = stored(workspace, mixed())
    assert readiness.of(workspace, dataset, starter) is not None
    assert readiness.known(workspace, dataset, starter) is None


def test_it_is_counted_once_and_again_when_the_base_is_another(
    workspace: Workspace, starter: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = stored(workspace, mixed())
    assert readiness.known(workspace, dataset, starter) is None
    first = readiness.of(workspace, dataset, starter)
    monkeypatch.setattr(readiness, "AT_ONCE_ROWS", 0)
    assert readiness.of(workspace, dataset, starter) is first
    assert starter.folder is not None
    for path in starter.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert readiness.of(workspace, dataset, bases.describe(str(tmp_path), workspace)) is None


def test_many_rows_are_counted_by_a_job_that_says_how_far_it_is(
    workspace: Workspace, starter: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = stored(workspace, [conversation(number) for number in range(250)])
    monkeypatch.setattr(readiness, "AT_ONCE_ROWS", 10)
    assert readiness.of(workspace, dataset, starter) is None
    told: list[tuple[int, int]] = []
    call = jobs.Call(workspace=str(workspace.root), dataset=dataset.id, base="starter")
    result = jobs.carry_out(call, lambda done, total: told.append((done, total)))
    assert result.problem is None and told == [(number, 250) for number in range(20, 250, 20)]
    found = readiness.of(workspace, dataset, starter)
    assert found is not None and found.tally.rows == 250
    missing = jobs.carry_out(jobs.Call(workspace=str(workspace.root), dataset=dataset.id, base="someone/not-here"))
    assert missing.problem is not None and missing.problem.rule == "tokenizer-none"


@pytest.mark.parametrize(
    "rows, length, rule",
    [
        ([calling(1), calling(2)], 512, "template-refuses"),
        ([{"messages": [user("word " * 80), assistant(f"a{n}")]} for n in range(3)], 40, "data-nothing-trained"),
        (mixed(), 40, None),
    ],
)
def test_a_run_of_which_no_row_would_be_left_does_not_start(
    workspace: Workspace, rows: list[Any], length: int, rule: str | None
) -> None:
    dataset = stored(workspace, rows)
    plan = plans.make(workspace, "lora", base="starter", dataset=dataset, overrides={"train.max_length": length})
    assert [one.rule for one in plan.problems] == ([rule] if rule else [])
    assert bool(plan.row_warnings)


def test_tokens_without_a_row_are_named_with_their_lines_by_the_check_before_the_start_and_by_the_run(
    workspace: Workspace, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(starter_model.MODEL_DIR, folder)
    told = json.loads((folder / "tokenizer.json").read_bytes())
    first = 1 + max(one["id"] for one in told["added_tokens"] + [{"id": at} for at in told["model"]["vocab"].values()])
    more = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    told["added_tokens"] += [{"id": first + at, "content": text} | more for at, text in enumerate(["<a>", "<b>"])]
    (folder / "tokenizer.json").write_text(json.dumps(told))
    base = bases.describe(str(folder), workspace)
    assert base.problems == () and base.tokens is not None and base.tokens.rows == first

    unused = [conversation(number) for number in range(6)]
    using = [*unused[:3], {"messages": [user("Think"), assistant("<b> Yes")]}, *unused[3:]]
    good, bad = stored(workspace, unused), stored(workspace, using)
    assert plans.make(workspace, "lora", base=base, dataset=good, overrides={}).problems == []
    (problem,) = plans.make(workspace, "lora", base=base, dataset=bad, overrides={}).problems
    assert problem.rule == "rowless-tokens" and problem.where == "dataset"
    assert (problem.parameters["tokens"], problem.parameters["lines"]) == ("<b>", "4")
    report = check_file(workspace.root / "rows.jsonl", base=base)
    assert not report.trainable and any("<b>" in one.sentence for one in report.problems if one.severity == "error")

    coder = Coder.of_folder(base.folder, base.ref)
    coded = [encode(row, coder) for row in using]
    tokenizer = SimpleNamespace(convert_ids_to_tokens=lambda ids: [coder.tokenizer.id_to_token(one) for one in ids])
    train_rows.refuse_rowless(train_rows.Rows(coded[:3], [], [], [], [], []), tokenizer, first)
    with pytest.raises(failures.RunRefused, match="<b>"):
        train_rows.refuse_rowless(train_rows.Rows(coded[:3], [], coded[3:], [], [], []), tokenizer, first)


def test_a_judge_takes_no_row_that_is_cut_and_a_question_needs_room_for_its_answer(
    workspace: Workspace, starter: Base
) -> None:
    pairs = [{"prompt": f"q{n}", "chosen": "good " * (30 * n + 1), "rejected": "bad"} for n in range(3)]
    found = readiness.of(workspace, stored(workspace, pairs), starter)
    assert found is not None
    length = sorted(found.tally.needed)[1]
    (left_out, _) = map(str, found.warnings(readiness.Window(length, whole=True)))
    assert left_out.startswith("Left out: 1 of 3 rows, lines 3: they do not fit")
    asked = readiness.of(workspace, stored(workspace, [{"prompt": "word " * (n + 1)} for n in range(9)]), starter)
    assert asked is not None
    longest = max(asked.tally.first)
    assert asked.warnings(readiness.Window(longest + 10, answer=10)) == []
    assert "lines 9:" in str(asked.warnings(readiness.Window(longest + 9, answer=10))[0])
    stopped = asked.stops(readiness.Window(10, answer=10))
    assert stopped is not None and stopped.parameters["needed"] == min(asked.tally.first) + 10


# --- report, preview and run ------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


@cache
def base_with(template: str, folder: Path) -> Path:
    """A base of one of TRL's templates beside a byte-level BPE that has its marks as added tokens."""
    import re

    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    source = (TEMPLATES / f"{template}.jinja").read_text()
    marks = sorted({*re.findall(r"<[|a-z/_]+(?:\|>|>)", source), "<|endoftext|>", "<bos>", "[INST]", "[/INST]"})
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["a question and its answer", source], trainer)
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    made = folder / template
    made.mkdir()
    tokenizer.save(str(made / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "bos_token": "<bos>"}
    (made / "tokenizer_config.json").write_text(json.dumps(told))
    (made / "chat_template.jinja").write_text(source)
    (made / "config.json").write_text("{}")
    return made


WORDS = st.text("ab é漢\n<", min_size=1, max_size=30).filter(str.strip)
ANSWERS = st.builds(assistant, WORDS)
QUESTIONS = st.builds(user, WORDS)
TURNS = st.lists(st.one_of(QUESTIONS, ANSWERS), max_size=3).flatmap(
    lambda before: st.tuples(QUESTIONS, ANSWERS).map(lambda last: [*before, *last])
)
LAYOUTS = st.one_of(
    st.fixed_dictionaries({"messages": TURNS}),
    st.fixed_dictionaries({"prompt": WORDS, "completion": WORDS}),
    st.fixed_dictionaries({"prompt": WORDS, "chosen": WORDS, "rejected": WORDS}),
    st.fixed_dictionaries({"prompt": WORDS, "completion": WORDS, "label": st.booleans()}),
    st.fixed_dictionaries({"text": WORDS}),
)


@pytest.mark.parametrize("template", WRITTEN)
@settings(max_examples=examples(15))
@given(row=LAYOUTS, length=st.integers(4, 60))
def test_report_preview_and_run_agree_to_the_token(
    tmp_path_factory: pytest.TempPathFactory, home: Path, template: str, row: dict[str, Any], length: int
) -> None:
    from transformers import AutoTokenizer

    folder = base_with(template, home)
    place = tmp_path_factory.mktemp("rows")
    file = place / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    report = check_file(file, base=Base(ref=str(folder), kind="folder", title="t", folder=folder), max_length=length)
    told = {problem.rule for problem in report.problems}
    workspace = Workspace(place / "home")
    dataset = datasets.add(workspace, file, "rows")
    if not dataset.good_rows:
        return
    (read,) = datasets.read_rows(workspace, dataset.id)
    made = preview.look([read], Coder.of_folder(folder, "t"), length)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    get_ready(tokenizer, folder)
    try:
        (coded,) = train_rows.read([read], tokenizer).coded
    except failures.RunRefused as refused:
        assert "row-refused" in told and made.tally.refused[0].problem == refused.problem
        return
    assert "row-refused" not in told
    kept = coded.within(length)
    if hasattr(coded, "labels"):
        (part,) = made.rows[0].parts
        assert part.tokens == len(coded.input_ids) and part.trained == kept.trained_tokens
        assert [kind == preview.TRAINED for kind in part.kinds] == [
            at > 0 and at < length and label != -100 for at, label in enumerate(coded.labels)
        ]
        lost = not kept.trained_tokens
        assert ("row-cut" in told) == (not lost and kept.trained_tokens < coded.trained_tokens)
    else:
        parts = made.rows[0].parts
        assert max(part.tokens for part in parts) == coded.needed
        lost = kept is None
        assert ("row-cut" in told) == (not lost and kept.cut)
    assert ("row-lost" in told) == lost == bool(made.tally.lost(length))


def test_a_turn_that_is_turned_off_is_shown_as_context_with_its_end(starter: Base) -> None:
    coder = Coder.of_folder(starter.folder, "starter")
    turns = [user("One"), assistant("first words", train=False), user("Two"), assistant("second")]
    made = preview.look([{"line": 1, "messages": turns}, {"line": 2, "messages": turns[:2]}], coder, 512)
    (part,) = made.rows[0].parts
    by_kind = {
        kind: "".join(piece for piece, one in zip(part.pieces, part.kinds, strict=True) if one == kind)
        for kind in (preview.TRAINED, preview.KEPT_BACK)
    }
    assert by_kind == {preview.TRAINED: "second<|end|>", preview.KEPT_BACK: "first words<|end|>"}
    assert made.tally.untrained == [2]


def test_what_the_template_leaves_out_is_told_of_the_row_and_of_all(workspace: Workspace, starter: Base) -> None:
    tool = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {}}}
    dataset = stored(workspace, [{**conversation(n), "tools": [tool] * n} for n in range(3)])
    made = readiness.preview(workspace, dataset.id, starter, 512)
    assert [list(map(str, row.dropped)) for row in made.rows] == [
        [], ["descriptions of tools (1)"], ["descriptions of tools (2)"],
    ]  # fmt: skip
    found = readiness.of(workspace, dataset, starter)
    assert found is not None and [str(note) for note in found.notes] == [
        "The base's chat template leaves out descriptions of tools (3) (lines 2, 3)."
    ]


@pytest.mark.parametrize(
    "special, template, rules",
    [
        ({}, "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", ["never-stops"]),
        ({"eos_token": "<e>"}, "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", []),
        ({"eos_token": "<e>", "bos_token": "<b>"}, "<b><b>{% for m in messages %}{{ m.content }}<e>{% endfor %}",
         ["bos-twice"]),
        ({"eos_token": "<e>", "bos_token": "<b>", "adds": "<b>"}, "{% for m in messages %}{{ m.content }}<e>{% endfor %}",
         ["bos-not-written"]),
    ],
)  # fmt: skip
def test_a_base_that_never_stops_or_begins_wrongly_is_said_so(
    special: dict[str, str], template: str, rules: list[str]
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    from engine.render import outcome

    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(sorted({*special.values()}))
    if mark := special.get("adds"):
        place = [(mark, tokenizer.token_to_id(mark))]
        tokenizer.post_processor = TemplateProcessing(single=f"{mark} $A", pair=f"{mark} $A $B", special_tokens=place)
    named = {name: text for name, text in special.items() if name != "adds"}
    assert [one.rule for one in outcome.base_warnings(Coder(tokenizer, named, template))] == rules


def test_a_text_that_a_template_refuses_ends_a_run_in_words() -> None:
    from engine.render import NotWritten

    problem = Problem(rule="template-refuses", parameters={"reason": "no system turns"})
    failed = failures.from_exception(NotWritten(problem))
    assert failed.kind == "data" and "no system turns" in str(failed.message)
