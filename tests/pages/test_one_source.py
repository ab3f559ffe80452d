"""A figure that is shown twice comes from one place: what Data, Advisor, Train and the command line say of a run is what
the run is started with."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from engine import machine, starter
from engine.cli import main
from engine.data import datasets
from engine.estimate import duration, memory
from engine.machine import MachineFacts
from engine.plan import plans
from engine.runs import lifecycle
from engine.spec import RunSpec
from engine.workspace import Workspace
from tests.apps import button, field, open_page, table, texts
from tests.models.test_bases import model

SIZE = r"(\d[\d.,]* [KMG]iB)"
SPAN = r"(\d[\d.,]* (?:s|min|h|minutes|hours|seconds)) to (\d[\d.,]* (?:s|min|h|minutes|hours|seconds))"
# The shape of TinyLlama 1.1B, with the starter's tokens.
LARGER = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632,
    "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
    "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip
MACHINES = {"small": MachineFacts(2, 9 * 1024, ()), "usual": MachineFacts(2, 24 * 1024, ())}

Figures = dict[str, dict[str, Any]]  # figure -> place -> what is said there


def larger(folder: Path) -> str:
    names = ("*token*", "chat_template.jinja")
    return str(model(folder, LARGER, {p.name: p.read_bytes() for name in names for p in starter.MODEL_DIR.glob(name)}))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """What is started, instead of a run."""
    specs: list[RunSpec] = []
    monkeypatch.setattr(lifecycle, "start", lambda workspace, spec, **_: specs.append(spec) or "20260101-000000-abcdef")
    return specs


def told(pattern: str, text: str) -> tuple[str, ...]:
    found = re.findall(pattern, text)
    assert found, (pattern, text)
    assert len(set(found)) == 1, found
    return found[0] if isinstance(found[0], tuple) else (found[0],)


def sizes(row: Any) -> tuple[str, ...]:
    """The memory in a row of the advisor's table."""
    return tuple(re.findall(SIZE, row.iloc[2].replace("\u00a0", " ")))


def metric(app: AppTest, label: str) -> str:
    return next(one.value for one in app.metric if one.label == label)


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit):
        main(list(words))
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("sample", "base", "machine_size"),
    [
        *((sample, "starter", "usual") for sample in ("new-facts", "good-bad", "preference-pairs")),
        ("new-facts", "larger", "small"), ("good-bad", "larger", "usual"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (
            ("new-facts", "larger", "usual"), ("good-bad", "larger", "small"),
            ("preference-pairs", "larger", "small"), ("preference-pairs", "larger", "usual"),
        )),
    ],
)  # fmt: skip
def test_every_figure_that_is_shown_twice_has_one_source(
    workspace: Workspace, tmp_path: Path, started: list[RunSpec], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], sample: str, base: str, machine_size: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(machine, "facts", lambda: MACHINES[machine_size])
    said: Figures = defaultdict(dict)
    ref = "starter" if base == "starter" else larger(tmp_path / "larger")
    dataset = datasets.add_sample(workspace, starter.sample(sample))
    if sample == "good-bad":
        text = texts(open_page("data", dataset=dataset.id))
        said["weight of bad rows"]["check"] = told(r"a weight of ([\d.]+) for the undesirable answers", text)[0]

    def why(part: str) -> AppTest:
        state = {"current_base": ref, "why": True, "why_part": part}
        return open_page("advisor", state=state, dataset=dataset.id)

    # a folder is not taken from an address
    advisor = open_page("advisor", state={"current_base": ref}, dataset=dataset.id)
    text = texts(advisor)
    memory_words = rf"It needs {SIZE} to {SIZE}"
    said["memory"]["advisor: its bar and the model's chip"] = told(memory_words, text)
    said["time"]["advisor"] = told(rf"and takes {SPAN}", text)
    text = texts(why("reasons"))
    said["memory"]["advisor: why"] = re.findall(rf"needs {SIZE} to {SIZE} at", text)[-1]
    advisor = why("takes")
    chosen = table(advisor).iloc[:, 0].str.startswith("✓")
    row = table(advisor)[chosen].iloc[0]
    said["memory"]["advisor: its table"] = sizes(row)
    in_table = {sizes(one) for _, one in table(advisor).iterrows()}
    in_reasons = re.findall(rf"needs {SIZE} to {SIZE} at", text)
    assert in_reasons and set(in_reasons) <= in_table  # those of a way that does not fit, too
    time_words = row.iloc[3].replace("\u00a0", " ").partition(" (")[0]
    said["time"]["advisor: its table"] = tuple(time_words.split(" – "))
    if sample == "good-bad":
        said["weight of bad rows"]["advisor"] = told(r"Weights of 1 for answers marked good and ([\d.]+) for", text)[0]
    if found := re.findall(r"at a batch size of ([\d,]+), with rows of up to ([\d,]+) tokens", text):
        said["rows at a time"]["advisor"], said["longest row"]["advisor"] = (one.replace(",", "") for one in found[-1])

    button(advisor, "use_this").click().run()
    (saved,) = (workspace.root / "drafts").glob("*.json")
    train = open_page("train", draft=saved.stem)
    text = texts(train)
    said["memory"]["train: its panel and its plan"] = told(memory_words, text)
    said["time"]["train"] = told(rf"It takes {SPAN}", text)
    said["rows"]["train"], said["steps"]["train"] = metric(train, "Rows to train on"), metric(train, "Steps")
    said["rows of a step"]["train"] = metric(train, "Effective batch")
    said["rate"]["train"] = float(field(train, "text_input", "train.learning_rate").value)
    said["rows at a time"]["train"] = str(field(train, "number_input", "train.batch_size").value)
    if sample == "good-bad":
        said["weight of bad rows"]["train"] = told(r"Weights: 1 for each of .*, ([\d.]+) for each of", text)[0]

    start = button(train, "start")
    assert not start.disabled or base == "larger"  # whose weights are none
    if not start.disabled:
        start.click().run()
    (spec,) = started or [plans.make(workspace, **asked(saved)).spec]
    said["rate"]["run"] = spec.train.learning_rate
    said["rows at a time"]["run"] = str(spec.train.batch_size)
    said["rows of a step"]["run"] = str(spec.train.batch_size * spec.train.accumulation)
    if sample == "good-bad":
        assert spec.objective_args.weights is not None
        said["weight of bad rows"]["run"] = f"{spec.objective_args.weights[1]:g}"
    run = plans.of_spec(workspace, spec)  # what its child goes by
    said["memory"]["run"] = memory.range_words(run.memory, run.target.memory_bytes)
    assert run.time is not None
    said["time"]["run"] = (duration.duration_words(run.time.low_s), duration.duration_words(run.time.high_s))
    said["longest row"]["run"] = str(run.setup.max_length)
    said["rows"]["run"], said["steps"]["run"] = f"{run.rows:,}", f"{run.steps:,}"

    wish = asked(saved)
    changes = [word for path, value in wish["overrides"].items() for word in ("--set", f"{path}={json.dumps(value)}")]
    text = printed(capsys, "fit", wish["recipe"], "--data", dataset.id, "--base", ref, *changes)
    said["memory"]["tunebook fit"], said["time"]["tunebook fit"] = (
        told(memory_words, text),
        told(f"It takes {SPAN}", text),
    )
    text = printed(capsys, "advise", "--data", dataset.id, "--base", ref)
    assert re.findall(rf"needs {SIZE} to {SIZE} at", text) == in_reasons
    if sample == "good-bad":
        said["weight of bad rows"]["tunebook advise"] = told(
            r"Weights of 1 for answers marked good and ([\d.]+) for", text
        )[0]

    apart = {figure: places for figure, places in said.items() if len(set(places.values())) != 1}
    assert not apart, json.dumps(apart)
    assert {"memory", "time", "rows", "steps", "rate"} <= set(said) and all(len(places) > 1 for places in said.values())


def asked(draft: Path) -> dict[str, Any]:
    found = json.loads(draft.read_bytes())
    return {name: found[name] for name in ("recipe", "base", "dataset", "overrides")}
