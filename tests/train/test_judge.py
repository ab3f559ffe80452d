"""A reward is read at the last token of the last turn, whatever fills rows up, and elsewhere as here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from engine import starter
from engine.export import scripts
from engine.render import encode
from engine.train.objectives import reward
from engine.train.scoring import judged
from engine.train.tokenize import coder_of, get_ready

torch.set_num_threads(1)
ROWS = [
    {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": answer}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    for question, answer in (
        ("Who guards the gate?", "The owl guards it."),
        ("Say it.", "It is said, and said again, until the night is over."),
        ("And then?", "A."),
    )
]
PLAIN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def made(folder: Path, template: str, **tokens: str) -> tuple[Any, Any]:
    """A judge of the starter's weights whose padding token ends its turns."""
    base = folder / "base"
    shutil.copytree(starter.MODEL_DIR, base)
    told = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**told, **tokens}))
    (base / "chat_template.jinja").write_text(template)
    tokenizer = AutoTokenizer.from_pretrained(base)
    get_ready(tokenizer, base)
    model = AutoModelForCausalLM.from_pretrained(base, use_safetensors=True)
    return reward.judge(model, tokenizer, 0).eval(), tokenizer


def conversations(tokenizer: Any) -> list[list[int]]:
    pairs = [encode.encode_pair(row, coder_of(tokenizer)) for row in ROWS]
    return [pair.prompt_ids + pair.chosen_ids for pair in pairs]


@torch.no_grad()
def by_hand(model: Any, rows: list[list[int]]) -> list[float]:
    """Each by itself, so that nothing is filled up: the head on the last hidden state."""
    states = (model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1] for ids in rows)
    return [float(model.score(state)) for state in states]


TEMPLATES = {
    "a line break after the end": (starter.MODEL_DIR / "chat_template.jinja").read_text().replace(
        "'<|end|>'", "'<|end|>\\n'"
    ),
    "no mark": PLAIN,
}  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_judge_whose_padding_ends_its_turns_is_read_at_their_end_by_us_and_by_others(tmp_path, template):
    model, tokenizer = made(tmp_path, TEMPLATES[template], pad_token="<|end|>")
    rows = conversations(tokenizer)
    assert all(ids[-1] == tokenizer.eos_token_id for ids in rows)
    wanted = by_hand(model, rows)
    assert len({round(one, 4) for one in wanted}) == len(rows)
    for padding in (tokenizer.eos_token_id, tokenizer.pad_token_id, 7):
        assert judged.rewards(model, padding, rows) == pytest.approx(wanted, abs=1e-5)

    # what transformers alone makes of the saved files, on either side
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    other = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs.pad_token == "<|pad|>" and type(other).__name__ == type(model).__name__
    for side in ("right", "left"):
        theirs.padding_side = side
        batch = theirs.pad({"input_ids": rows}, return_tensors="pt")
        with torch.no_grad():
            found = other(**batch).logits[:, 0].tolist()
        assert found == pytest.approx(wanted, abs=1e-5)

    # the lines that are handed out, on a conversation as messages
    mark, end = coder_of(tokenizer).closing
    lines = scripts.fill(
        "load.py.jinja", question="?", reward=True, mark=mark, end=end, folder=str(tmp_path / "saved"), base=None,
        revision=None, straightens=False,
    )  # fmt: skip
    named: dict[str, Any] = {}
    exec(lines, named)
    given = [named["reward"](row["prompt"] + row["chosen"]) for row in ROWS]
    assert given == pytest.approx(wanted, abs=1e-5)


def test_a_tokenizer_without_a_spare_token_leaves_the_judge_without_padding(tmp_path):
    own = (starter.MODEL_DIR / "chat_template.jinja").read_text()
    others = "{# <|pad|> #}"
    model, tokenizer = made(tmp_path, others + own, pad_token="<|end|>")
    assert model.config.pad_token_id is None and tokenizer.pad_token == "<|end|>"
    rows = conversations(tokenizer)
    assert judged.rewards(model, tokenizer.pad_token_id, rows) == pytest.approx(by_hand(model, rows), abs=1e-5)
