"""Rows in texts, read and trained in turn: read one by one they come to the tokens and labels of the whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine import starter
from engine.render import Coder, Encoded, NotWritten, Pair, encode
from engine.render.encode import IGNORED
from tests.render.test_templates import CONVERSATIONS, SOURCES, assistant, coder, user

WINDOW = 1000


def read_again(texts: list[str], made: Coder) -> tuple[list[int], list[int]]:
    """Tokens and labels of texts that are read one by one."""
    parts = [made.code(text).ids for text in texts]
    ids = [one for part in parts for one in part]
    return ids, [one if at % 2 else IGNORED for at, part in enumerate(parts) for one in part]


def whole(row: dict[str, Any], made: Coder, window: int = WINDOW) -> tuple[list[int], list[int]]:
    """Tokens and labels of a row up to the last one that is trained."""
    coded = encode.encode(row, made).within(window)
    return coded.input_ids[: coded.needed], coded.labels[: coded.needed]


@pytest.mark.parametrize("name", SOURCES)
def test_texts_of_a_conversation_come_to_the_tokens_of_the_whole(name: str) -> None:
    made = coder(name)
    for what, (messages, tools) in CONVERSATIONS.items():
        row = {"messages": messages, "tools": json.dumps(tools) if tools else None}
        try:
            wanted = whole(row, made)
        except NotWritten:
            with pytest.raises(NotWritten):
                encode.texts(row, made, WINDOW)
            continue
        assert read_again(encode.texts(row, made, WINDOW), made) == wanted, what


@pytest.mark.parametrize("window", [5, 8, 11])
def test_texts_of_a_window_hold_what_the_window_leaves(window: int) -> None:
    made = coder("qwen2_5")
    row = {"messages": [user("one"), assistant("A long answer of many letters"), user("two"), assistant("B")]}
    found = encode.texts(row, made, window)
    wanted = whole(row, made, window)
    assert read_again(found, made) == wanted if wanted[0] else found == []


def test_a_turn_that_is_turned_off_stands_in_a_text_that_is_only_read() -> None:
    row = {"messages": [user("one"), assistant("WRONG", train=False), user("two"), assistant("right")]}
    read, learned = encode.texts(row, coder("qwen2_5"), WINDOW)
    assert "WRONG" in read and learned == "right<|im_end|>"


def test_of_a_pair_question_and_both_answers_are_texts() -> None:
    made = coder("qwen2_5")
    row = {
        "prompt": [user("q")],
        "chosen": [assistant("yes"), user("r"), assistant("sure")],
        "rejected": [assistant("no")],
    }
    pair = encode.encode_pair(row, made)
    assert [made.code(text).ids for text in encode.texts(row, made, WINDOW)] == [*pair[:3]]
    cut = pair.within(len(pair.prompt_ids) + 2)
    assert isinstance(cut, Pair)
    assert [made.code(text).ids for text in encode.texts(row, made, len(pair.prompt_ids) + 2)] == [*cut[:3]]
    assert encode.texts(row, made, len(pair.prompt_ids)) == []
    marked = {"prompt": [user("q")], "completion": [assistant("yes")], "label": True}
    assert encode.texts(marked, made, WINDOW)[1] == "yes<|im_end|>"


@pytest.mark.skipif(not starter.MODEL_DIR.is_dir(), reason="engine/starter/model has not been built")
@pytest.mark.parametrize(
    "text", ["The colour of a house.", "unbelievable", "日本 \n", "<|end|>", "", "a<|end|><|end|>"]
)
def test_a_plain_text_keeps_its_end_and_its_first_token_is_read_where_the_others_stay_the_same(text: str) -> None:
    made = Coder.of_folder(starter.MODEL_DIR, "starter")
    row = {"text": text}
    coded = encode.encode(row, made)
    found = encode.texts(row, made, WINDOW)
    if not found:
        assert coded.trained_tokens == 0
        return
    ids, labels = read_again(found, made)
    assert (ids, labels[1:]) == (coded.input_ids, coded.labels[1:])


def test_a_plain_text_begins_with_the_mark_that_its_tokenizer_puts_there() -> None:
    made = coder("llama3", starts_with_bos=True)
    read, learned = encode.texts({"text": "some words"}, made, WINDOW)
    assert made.code(read).ids == [made.tokenizer.token_to_id(made.special["bos_token"])]
    coded = encode.encode({"text": "some words"}, made)
    assert isinstance(coded, Encoded)
    assert read_again([read, learned], made)[0] == coded.input_ids
