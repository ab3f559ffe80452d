"""The lines of Python that load what was taken along, with other libraries than ours, and ask it something."""

from __future__ import annotations

import json
import shlex

from engine.export.artifacts import STRAIGHTEN_IMPORT, STRAIGHTEN_LINES, is_conv1d
from engine.models import bases
from engine.runs import store
from engine.workspace import Workspace

_MODEL_LINES = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("model")
model = AutoModelForCausalLM.from_pretrained("model")
"""

_REWARD_MODEL_LINES = """\
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("model")
model = AutoModelForSequenceClassification.from_pretrained("model")
"""

_REWARD_ADAPTER_LINES = """\
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("adapter")
base = AutoModelForSequenceClassification.from_pretrained(
    {base!r}, num_labels=1, pad_token_id=tokenizer.pad_token_id{revision}
)
model = PeftModel.from_pretrained(base, "adapter")
"""

_JUDGE_LINES = """
answer = [{{"role": "user", "content": {question!r}}}, {{"role": "assistant", "content": "It is Paris."}}]
inputs = tokenizer.apply_chat_template(answer, return_tensors="pt", return_dict=True)
print(model(**inputs).logits.item())  # higher is better; compare answers to the same question only
"""

_ADAPTER_LINES = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("adapter")
base = AutoModelForCausalLM.from_pretrained({base!r}{revision})
model = PeftModel.from_pretrained(base, "adapter")
"""

_ASK_LINES = """
question = [{{"role": "user", "content": {question!r}}}]
inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, max_new_tokens=40, do_sample=False, pad_token_id=tokenizer.pad_token_id)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""


def load_script(workspace: Workspace, run_id: str, question: str = "What is the capital of France?") -> str:
    """Return the Python that loads a run's download, from the folder it was unpacked in, and asks it something.

    The starter travels inside the download as base/, since nobody else has it.
    """
    run_spec = store.load_spec(workspace, run_id)
    reward = run_spec.objective == "reward"
    if run_spec.adapter == "full":
        load = _REWARD_MODEL_LINES if reward else _MODEL_LINES
    else:
        base = "base" if run_spec.base.ref == "starter" else run_spec.base.ref
        revision = f", revision={run_spec.base.revision!r}" if run_spec.base.revision else ""
        load = (_REWARD_ADAPTER_LINES if reward else _ADAPTER_LINES).format(base=base, revision=revision)
        if run_spec.adapter == "oft" and is_conv1d(bases.describe(run_spec.base.pinned, workspace)):
            load = load.replace("\n\n", f"\n{STRAIGHTEN_IMPORT}\n", 1)
            load = f"import torch\n{load}".replace(
                "model = Peft", STRAIGHTEN_LINES.format(model="base") + "model = Peft"
            )
    return load + (_JUDGE_LINES if reward else _ASK_LINES).format(question=question)


def load_merged_script(
    workspace: Workspace, run_id: str, folder: str, question: str = "What is the capital of France?"
) -> str:
    """Return the Python that loads the whole model from `folder` with transformers alone and asks it something."""
    reward = store.load_spec(workspace, run_id).objective == "reward"
    load = (_REWARD_MODEL_LINES if reward else _MODEL_LINES).replace('"model"', repr(folder))
    return load + (_JUDGE_LINES if reward else _ASK_LINES).format(question=question)


def vllm_commands(folder: str) -> str:
    """Return the commands that serve the whole model with vLLM and ask it something."""
    ask = {"model": folder, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    return "\n".join(
        [
            shlex.join(["vllm", "serve", folder]),
            "curl http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' "
            f"-d {shlex.quote(json.dumps(ask))}",
        ]
    )
