"""Texts (.md, .txt), alone or a folder of them, as rows; files for OpenAI's fine-tuning; what is said of both."""

import io
import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.check import DatasetError, check_file, text_files
from engine.data import datasets, jobs
from engine.workspace import Workspace

paragraphs = st.lists(st.text("ab #[{,\n", min_size=1, max_size=60), max_size=12)


@given(paragraphs, st.integers(1, 100))
def test_a_text_is_cut_at_blank_lines_alone_and_nothing_of_it_is_lost(parts, most):
    text = "\n\n".join(parts)
    found = list(text_files.pieces(io.StringIO(text), most))
    lines = [line for line in text.split("\n") if line.strip()]
    assert [line for piece in found for line in piece.split("\n") if line.strip()] == lines
    for piece in found:
        assert len(piece) <= most or not re.search(r"\n\s*\n", piece)
    for one, other in itertools.pairwise(found):  # none is cut that need not be
        assert len(one) + 2 + len(other.split("\n\n")[0]) > most


def rows_of(workspace, dataset):
    return [json.loads(line) for line in (dataset.folder / "original").read_text().splitlines()]


def folder_of(path, **files):
    path.mkdir()
    for name, content in files.items():
        (path / f"{name}.md").write_bytes(content)
    return path


def test_a_folder_of_texts_is_rows_with_the_names_of_their_files(tmp_path):
    workspace = Workspace(tmp_path / "home")
    folder = folder_of(tmp_path / "docs", b=b"# Two\r\n\r\nmore\r\n", a=b"\xef\xbb\xbf[a](link) first", empty=b" \n")
    (folder / "deep").mkdir()
    (folder / "deep" / "c.TXT").write_text("three")
    (folder / ".hidden.md").write_text("no")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    dataset = datasets.add(workspace, folder, "docs")
    assert rows_of(workspace, dataset) == [
        {"text": "[a](link) first", "source_file": "a.md"},
        {"text": "# Two\n\nmore", "source_file": "b.md"},
        {"text": "three", "source_file": "deep/c.TXT"},
    ]
    assert dataset.trainable and dataset.report.kind == "texts" and not dataset.report.warnings
    assert any("better looked up" in note for note in dataset.report.notes)
    assert any("4,000 characters" in note for note in dataset.report.notes)


@pytest.mark.parametrize(
    "content", ['{"prompt": "a", "completion": "b"}\n', '[{"text": "a"}]', "prompt,completion\na,b\nc,d\n"]
)
def test_bytes_that_are_rows_stay_rows_whatever_the_file_is_called(tmp_path, content):
    file = tmp_path / "rows.txt"
    file.write_text(content)
    with text_files.as_rows(file, file.name) as rows:
        assert rows == file
    with pytest.raises(DatasetError) as refused:
        datasets.add(Workspace(tmp_path / "home"), tmp_path, "folder")
    assert refused.value.problem.rule == "text-file-rows" and "rows.txt" in str(refused.value)


def test_a_text_without_such_a_name_and_a_text_in_another_encoding_are_refused(tmp_path):
    (tmp_path / "notes.dat").write_text("Once upon a time\nthere was a file.\n")
    assert "plain text" in check_file(tmp_path / "notes.dat").sentence
    folder = folder_of(tmp_path / "docs", a=b"caf\xe9 and more")
    with pytest.raises(DatasetError) as refused:
        datasets.add(Workspace(tmp_path / "home"), folder, "docs")
    assert refused.value.problem.rule == "text-file-encoding" and "a.md" in str(refused.value)


def test_several_texts_brought_together_are_one_data_set_and_leave_nothing_behind(tmp_path):
    workspace = Workspace(tmp_path / "home")
    folder = folder_of(workspace.root, one=b"first", two=b"second\n\nthird")
    texts = tuple((str(folder / f"{name}.md"), f"{name}.md") for name in ("one", "two"))
    call = jobs.Call(workspace=str(workspace.root), texts=texts, name="one.md and 1 more", remove_source=True)
    made = jobs.carry_out(call)
    assert made.dataset and not any((folder / f"{name}.md").exists() for name in ("one", "two"))
    dataset = datasets.load(workspace, made.dataset)
    assert [row["source_file"] for row in rows_of(workspace, dataset)] == ["one.md", "two.md"]


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
OPENAI = {
    "chat": {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "q", "name": "ann"},
            {"role": "assistant", "content": "a", "weight": 0},
            {"role": "user", "content": "more"},
            {"role": "assistant", "content": "b", "weight": 1},
        ]
    },
    "tools": {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "21"},
            {"role": "assistant", "content": "b"},
        ],
        "parallel_tool_calls": False,
        "tools": [TOOL],
    },
    "functions": {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "21"},
            {"role": "assistant", "content": "b"},
        ],
        "functions": [TOOL["function"]],
    },
    "preference": {
        "input": {"messages": [{"role": "user", "content": "q"}], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [{"role": "assistant", "content": "a"}],
        "non_preferred_output": [{"role": "assistant", "content": "b"}],
    },
}


@pytest.mark.parametrize("name", ["chat", "tools", "preference"])
def test_every_key_that_openais_documentation_names_is_taken_without_a_word(tmp_path, name):
    file = tmp_path / "openai.jsonl"
    file.write_text(json.dumps(OPENAI[name]) + "\n")
    report = check_file(file)
    assert report.trainable and not report.warnings, report.lines()
    recipe = "DPO" if name == "preference" else "LoRA"
    assert any("6 January 2027" in note and f"here is {recipe}." in note for note in report.notes)


def test_a_conversation_with_keys_of_others_is_not_called_openais(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({**OPENAI["chat"], "topic": "t"}) + "\n")
    assert check_file(file).notes == []
