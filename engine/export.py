"""Take a finished run elsewhere: as a zip, as one whole model, to the hub, to llama.cpp and Ollama.

Whatever needs torch is a child process (engine/train/export.py). What takes long is done by a process of its own,
`python -m engine.export RUN_DIR`, which tells how far it is in runs/<id>/export.json, so that a page may be closed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from engine import events, limits, processes
from engine.models import Base, bases, templates
from engine.runs import admission, failures, lifecycle, store
from engine.words import Problem, Text, later, t
from engine.workspace import Workspace, write_atomically

PARITY, STATE = "parity.json", "export.json"
MERGED = "merged"  # the whole model of a run whose folder holds an adapter
SPARE_BYTES = 50 * 2**20
# owner/name, or a name alone for the login's own; the hub itself is stricter still
_REPOSITORY = re.compile(r"(?:\w[\w.-]{0,95}/)?\w[\w.-]{0,95}", re.ASCII)

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

# As engine/train/oft.py, `straighten`.
STRAIGHTEN_LINES = """\
for name, module in list({model}.named_modules()):  # OFT of peft sits on linear layers, and GPT-2 has Conv1D
    if isinstance(module, Conv1D):
        linear = torch.nn.Linear(*module.weight.shape)
        linear.weight.data, linear.bias.data = module.weight.data.T.contiguous(), module.bias.data
        {model}.set_submodule(name, linear)
"""
STRAIGHTEN_IMPORT = "from transformers.pytorch_utils import Conv1D\n"

_ASK_LINES = """
question = [{{"role": "user", "content": {question!r}}}]
inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, max_new_tokens=40, do_sample=False, pad_token_id=tokenizer.pad_token_id)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""


def made_by(run_dir: Path) -> Path | None:
    """Return the folder of what a run has made, adapter/ or model/, or None."""
    return next((run_dir / name for name in ("adapter", "model") if (run_dir / name).is_dir()), None)


def load_lines(workspace: Workspace, run_id: str, question: str = "What is the capital of France?") -> str:
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


def is_conv1d(base: Base) -> bool:
    """Whether a base is built of Conv1D layers, which hold the weights of a linear layer transposed."""
    return base.shape is not None and base.shape.layout == "gpt2"


class NotExportable(ValueError):
    """It cannot be taken along so; the text says why and what to do."""


def because(problem: Problem) -> NotExportable:
    """Return the refusal that a problem is; it is read in the reader's language, now or later."""
    message, fix = problem.texts
    return NotExportable(later("{message}; {fix}", message=message, fix=fix))


def _refused(rule: str, **parameters: str | int | float | bool | Text | None) -> NotExportable:
    return because(Problem(rule=rule, parameters=parameters))


class Difference(msgspec.Struct, frozen=True):
    """Where a text becomes other tokens: the text, the first token that differs, and what stands there on both sides."""

    text: str
    token: int
    trained: str
    exported: str


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """Whether what is taken along says the same as what was trained.

    `tokens` of `texts` were compared. `logits` is the largest difference between the merged and the unmerged model,
    as a share of the largest logit, and `same_choice` the share of positions with the same likeliest token; None where
    nothing was merged. `trained_in` names the bits the base was held in while training.
    """

    texts: int
    tokens: int
    differences: list[Difference] = []
    logits: float | None = None
    tolerance: float | None = None
    same_choice: float | None = None
    dtype: str = ""
    trained_in: str = "none"

    def lines(self) -> list[str]:
        """Return what was found, in words."""
        if self.differences:
            found = [
                t(
                    "{n} of {texts} texts become other tokens with the exported tokenizer; give it the chat template of "
                    "training.",
                    n=len(self.differences),
                    texts=self.texts,
                )
            ]
            found += [
                t(
                    "At token {token} of “{text}”: “{trained}” in training, “{exported}” in the export.",
                    token=d.token, text=d.text[:60], trained=d.trained, exported=d.exported,
                )
                for d in self.differences[:3]
            ]  # fmt: skip
        else:
            found = [
                t(
                    "{texts} texts give the same {tokens} token ids as in training.",
                    texts=self.texts,
                    tokens=self.tokens,
                )
            ]
        if self.logits is not None:
            found.append(
                t(
                    "Merged and unmerged agree: logits differ by at most {off} % (allowed: {allowed} %), and {same} % of "
                    "the likeliest tokens are the same ({dtype}).",
                    off=_percent(self.logits), allowed=_percent(self.tolerance or 0),
                    same=f"{100 * (self.same_choice or 0):.4g}", dtype=self.dtype,
                )
            )  # fmt: skip
        if self.trained_in != "none":
            found.append(
                t(
                    "It was trained on a base held in {bits} bits and is merged into the unrounded one, so answers can "
                    "differ a little from the scores.",
                    bits=self.trained_in.removesuffix("bit"),
                )
            )
        return found


def _percent(share: float) -> str:
    """Return a small share as per cent, without an exponent."""
    return f"{100 * share:.6f}".rstrip("0").rstrip(".")


def parity(folder: Path) -> Parity | None:
    """Return what was found when a run or an export was compared with its training; None when it never was."""
    try:
        return msgspec.json.decode((folder / PARITY).read_bytes(), type=Parity)
    except (OSError, msgspec.MsgspecError):
        return None


def travels_whole(workspace: Workspace, run_id: str) -> bool:
    """Whether a run can only be taken along merged: its adapter stands on what another run made."""
    made = made_by(workspace.run_dir(run_id))
    ref = store.load_spec(workspace, run_id).base.ref
    return made is not None and made.name == "adapter" and ref.startswith("run:")


def write_zip(workspace: Workspace, run_id: str, *, merged: bool = False) -> Path:
    """Write the run's download and return its path: what was made (or, once it is there, the merged model), load.py,
    spec.json. Made once, then kept.

    Raises NotExportable when the run has made nothing yet or its adapter stands on another run.
    """
    run_dir = workspace.run_dir(run_id)
    made = run_dir / MERGED if merged else made_by(run_dir)
    if made is None or not made.is_dir():
        raise _refused("export-nothing")
    run_spec = store.load_spec(workspace, run_id)
    base = bases.describe(run_spec.base.pinned, workspace)
    if not merged and travels_whole(workspace, run_id):
        raise _refused("export-on-run")
    target = run_dir / f"{made.name}.zip"
    if target.exists():
        return target
    # Weights do not compress; storing them is as small and far quicker.
    with tempfile.NamedTemporaryFile(dir=run_dir, suffix=".partial", delete=False) as partial:
        try:
            # strict_timestamps: reproducible installs date files to 1970, which a zip cannot hold
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
                _add_folder(archive, made, made.name)
                if made.name == "adapter" and base.kind == "starter" and base.folder is not None:
                    _add_folder(archive, base.folder, "base")
                lines = merged_lines(workspace, run_id, MERGED) if merged else load_lines(workspace, run_id)
                archive.writestr("load.py", lines)
                archive.write(run_dir / "spec.json", "spec.json")
            Path(partial.name).replace(target)
        finally:
            Path(partial.name).unlink(missing_ok=True)
    return target


def _add_folder(archive: zipfile.ZipFile, folder: Path, name: str) -> None:
    for path in sorted(folder.rglob("*")):
        # training_args.bin is a pickle: nobody should have to open one.
        if path.is_file() and path.suffix != ".bin":
            archive.write(path, f"{name}/{path.relative_to(folder)}")


# --- the lines that use it elsewhere ------------------------------------------------------------------------------


def whole(workspace: Workspace, run_id: str) -> Path | None:
    """Return the folder of a run's whole model: model/, or merged/ once it has been made."""
    run_dir = workspace.run_dir(run_id)
    return next((run_dir / n for n in ("model", MERGED) if (run_dir / n / "config.json").is_file()), None)


def merged_lines(
    workspace: Workspace, run_id: str, folder: str, question: str = "What is the capital of France?"
) -> str:
    """Return the Python that loads the whole model from `folder` with transformers alone and asks it something."""
    reward = store.load_spec(workspace, run_id).objective == "reward"
    load = (_REWARD_MODEL_LINES if reward else _MODEL_LINES).replace('"model"', repr(folder))
    return load + (_JUDGE_LINES if reward else _ASK_LINES).format(question=question)


def vllm_lines(folder: str) -> str:
    """Return the commands that serve the whole model with vLLM and ask it something."""
    ask = {"model": folder, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    return "\n".join(
        [
            shlex.join(["vllm", "serve", folder]),
            "curl http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' "
            f"-d {shlex.quote(json.dumps(ask))}",
        ]
    )


def gguf_command(folder: Path, checkout: Path | str, outfile: Path, python: str = "python") -> list[str]:
    """Return the command with which llama.cpp turns a whole model into one GGUF file of the same precision."""
    script = str(Path(checkout) / "convert_hf_to_gguf.py")
    return [python, script, str(folder), "--outfile", str(outfile), "--outtype", "auto"]


def _template_of(folder: Path) -> tuple[str | None, dict[str, str]]:
    """Return a saved tokenizer's chat template and its special tokens, as text."""
    told = templates._settings(folder)
    return templates._template(folder, told) or None, {
        name: templates._token(told.get(name)) for name in templates.SPECIAL
    }


def ollama_template(template: str, tokens: dict[str, str]) -> tuple[str, str, str] | None:
    """Return a chat template in Ollama's language, the system prompt it adds by itself, and what ends an answer; None
    where the template does more than put marks around turns.

    The marks are read off conversations of known words, put together again, and compared with longer conversations.
    """
    import jinja2

    try:
        compiled = templates._compiled(template, Base(ref="export", kind="folder", title=""))
    except templates.NoTokenizer:
        return None
    s, u, a, v, b = ("tunebook0s", "tunebook0u", "tunebook0a", "tunebook0v", "tunebook0b")
    roles = [("system", s), ("user", u), ("assistant", a), ("user", v), ("assistant", b)]
    talk = [{"role": role, "content": content} for role, content in roles]

    def show(messages: list[dict[str, str]], *, ask: bool = False) -> str:
        return compiled.render(messages=messages, add_generation_prompt=ask, tools=None, **tokens)

    try:
        begin, _, rest = show(talk[:2]).partition(s)
        between, _, user_end = rest.partition(u)
        answered = show(talk[:3]).partition(u)[2]
        opening, _, answer_end = answered.partition(a)
        if not opening.startswith(user_end):
            return None
        answer_start = opening[len(user_end) :]
        following = show(talk[:4]).partition(a)[2].partition(v)[0]
        if not following.startswith(answer_end):
            return None
        user_start = following[len(answer_end) :]
        if not between.endswith(user_start):
            return None
        system_end = between[: len(between) - len(user_start)]
        ask = show(talk[:4], ask=True)
        if not ask.startswith(show(talk[:4])):
            return None
        prompt = ask[len(show(talk[:4])) :]
        together = f"{begin}{s}{system_end}"
        for role, content in roles[1:]:
            start, end = (user_start, user_end) if role == "user" else (answer_start, answer_end)
            together += f"{start}{content}{end}"
        alone, usual = show(talk[1:2]), ""
        if alone.startswith(begin) and alone.endswith(f"{system_end}{user_start}{u}{user_end}"):
            usual = alone[len(begin) : len(alone) - len(f"{system_end}{user_start}{u}{user_end}")]
        elif not alone.endswith(f"{user_start}{u}{user_end}"):
            return None
        if together != show(talk) or prompt != answer_start:
            return None
    except (jinja2.TemplateError, KeyError, TypeError, AttributeError, ValueError):
        return None
    # llama.cpp puts the first token of all in by itself.
    begin = begin.removeprefix(tokens.get("bos_token") or "\0")
    parts = (begin, system_end, user_start, user_end, answer_start, answer_end, usual)
    if any("{{" in part or '"""' in part for part in parts):
        return None
    made = (
        "{{ range .Messages }}"
        f'{{{{ if eq .Role "system" }}}}{begin}{{{{ .Content }}}}{system_end}'
        f'{{{{ else if eq .Role "user" }}}}{user_start}{{{{ .Content }}}}{user_end}'
        f'{{{{ else if eq .Role "assistant" }}}}{answer_start}{{{{ .Content }}}}{answer_end}'
        "{{ end }}{{ end }}"
        f"{answer_start}"
    )
    return made, usual, answer_end.strip()


def modelfile(folder: Path, source: str) -> str:
    """Return the Modelfile with which `ollama create NAME -f Modelfile` takes in `source`, a GGUF file or a folder of
    safetensors beside it. `folder` is where the tokenizer lies."""
    template, tokens = _template_of(folder)
    found = ollama_template(template, tokens) if template else None
    lines = [f"FROM {source}"]
    if found is None:
        lines += [
            "# The chat template does more than put marks around turns, so it is not written here in Ollama's language:",
            "# Ollama goes by the one inside the GGUF file where it knows it. Compare an answer with Tunebook's.",
        ]
    else:
        made, system, end = found
        lines.append(f'TEMPLATE """{made}"""')
        if system:
            lines.append(f'SYSTEM """{system}"""')
        if end:
            lines.append(f"PARAMETER stop {json.dumps(end, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def take(workspace: Workspace, run_id: str, what: str, to: Path) -> Path:
    """Write the adapter (or the model) as it is, the card, or the Modelfile into the folder `to`, which must be new or
    empty, and return what was written. Raises NotExportable."""
    from engine.card import card

    made = made_by(workspace.run_dir(run_id))
    if made is None:
        raise _refused("export-nothing")
    if to.is_file() or (to.is_dir() and any(to.iterdir())):
        raise _refused("export-in-the-way", folder=str(to))
    if what == "adapter":
        archive = write_zip(workspace, run_id)  # says why where it cannot
        found = too_small(to, archive.stat().st_size)
        if found is not None:
            raise because(found)
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(to)
        return to
    to.mkdir(parents=True, exist_ok=True)
    if what == "card":
        target, text = to / "README.md", card(workspace, run_id, whole=made.name == "model")
    else:
        target, text = to / "Modelfile", modelfile(whole(workspace, run_id) or made, "./merged")
    target.write_text(text, encoding="utf-8")
    return target


def phase_words() -> dict[str, str]:
    """Return what each phase of a job is called."""
    return {
        "starting": t("Starting"),
        "loading": t("Loading the base"),
        "merging": t("Merging"),
        "saving": t("Saving"),
        "comparing": t("Comparing it with what was trained"),
        "converting": t("llama.cpp is converting"),
        "uploading": t("Uploading"),
        "committing": t("Publishing all files at once"),
    }


# --- what takes long ---------------------------------------------------------------------------------------------


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be made. `to` is a folder that is not there yet; None keeps it beside the run. `checkout` is
    llama.cpp's folder, `repository` the hub's owner/name."""

    what: Literal["merged", "gguf", "push"]
    to: str | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    checkout: str | None = None
    repository: str | None = None
    public: bool = False
    only_adapter: bool = False


class State(msgspec.Struct, kw_only=True):
    """How far a job is: its phase, the bytes uploaded so far, and at the end where the result lies or what went wrong.

    A token is never part of it.
    """

    job: Job
    phase: str = "starting"
    done_bytes: int = 0
    total_bytes: int = 0
    made: str | None = None
    failure: str | Text | None = None
    process: processes.Identity | None = None

    @property
    def ended(self) -> bool:
        return self.made is not None or self.failure is not None


Told = Callable[[State], None]


def too_small(target: Path, needed_bytes: int) -> Problem | None:
    """Return what to say when a disk has not so much room, and some to spare."""
    there = next(parent for parent in [target, *target.parents] if parent.exists())
    free = shutil.disk_usage(there).free
    if free >= needed_bytes + SPARE_BYTES:
        return None
    shown = {"free": free // 2**20, "needed": (needed_bytes + SPARE_BYTES) // 2**20, "folder": str(there)}
    return Problem(rule="export-disk", parameters=shown)


def size_bytes(workspace: Workspace, run_id: str) -> int | None:
    """Return about how large the whole model of a run is: as large as its base. None where that is not known yet."""
    made = made_by(workspace.run_dir(run_id))
    if made is not None and made.name == "model":
        return sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
    return bases.describe(store.load_spec(workspace, run_id).base.pinned, workspace).weights_bytes


def problem(workspace: Workspace, run_id: str, job: Job) -> Problem | None:
    """Return what keeps a job from starting, before anything is loaded or written."""
    run_dir = workspace.run_dir(run_id)
    if made_by(run_dir) is None:
        return Problem(rule="export-nothing")
    if limits.on():
        # A push would take the server's own login, a conversion runs a program from a folder that is named.
        if job.what != "merged" or job.to is not None:
            return Problem(rule="demo-export")
        try:
            limits.check_disk(workspace, size_bytes(workspace, run_id) or 0)
        except limits.Refused as refused:
            return refused.problems[0]
    if job.to is not None and (Path(job.to).is_file() or (Path(job.to).is_dir() and any(Path(job.to).iterdir()))):
        return Problem(rule="export-in-the-way", parameters={"folder": job.to})
    if job.what == "gguf":
        if store.load_spec(workspace, run_id).objective == "reward":
            return Problem(rule="export-reward-gguf")
        if not job.checkout or not (Path(job.checkout).expanduser() / "convert_hf_to_gguf.py").is_file():
            return Problem(rule="export-checkout", parameters={"folder": job.checkout or "-"})
    if job.what == "push" and not _REPOSITORY.fullmatch(job.repository or ""):
        return Problem(rule="export-repository", parameters={"name": (job.repository or "")[:100]})
    if job.what == "push" and job.only_adapter and travels_whole(workspace, run_id):
        return Problem(rule="export-on-run")
    needed, size = 0, size_bytes(workspace, run_id) or 0
    needed += 0 if job.only_adapter or (whole(workspace, run_id) is not None and job.to is None) else size
    needed += size if job.what == "gguf" else 0
    return too_small(Path(job.to) if job.to else run_dir, needed) if needed else None


def carry_out(
    workspace: Workspace, run_id: str, job: Job, *, token: str | None = None, told: Told | None = None
) -> str:
    """Do a job to its end, telling how far it is, and return where the result lies (a path, or the hub's address).

    Raises NotExportable with what went wrong and what to do; nothing half-written is left.
    """
    found = problem(workspace, run_id, job)
    if found is not None:
        raise because(found)
    state, tell = State(job=job), told or (lambda _: None)
    run_dir = workspace.run_dir(run_id)
    if job.what == "merged" and job.to is not None:
        return str(_merge(run_dir, Path(job.to), job, state, tell))
    if job.what == "push" and job.only_adapter:
        return _push(workspace, run_id, made_by(run_dir) or run_dir, job, token, state, tell)
    folder = whole(workspace, run_id)
    if folder is None:
        folder = _merge(run_dir, run_dir / MERGED, job, state, tell)
    if job.what == "gguf":
        return str(_to_gguf(folder, Path(job.to) if job.to else run_dir / "gguf", run_id, job, state, tell))
    if job.what == "push":
        return _push(workspace, run_id, folder, job, token, state, tell)
    return str(folder)


def _environment(workspace: Workspace, run_dir: Path) -> dict[str, str]:
    """Return the environment of the child that merges: the one of training (engine/worker.py)."""
    from engine.runs import environment

    chosen = environment.environment(run_dir, store.load_spec(workspace, run_dir.name))
    return {name: value for name, value in chosen.items() if name != "TUNEBOOK_SUPERVISOR"}


def _merge(run_dir: Path, target: Path, job: Job, state: State, tell: Told) -> Path:
    if target.is_dir():
        target.rmdir()  # empty, by problem()
    workspace = Workspace(run_dir.parents[1])
    with (run_dir / "export.log").open("wb") as log:
        child = processes.start(
            "engine.train.export", str(run_dir), str(target.absolute()), job.dtype,
            env=_environment(workspace, run_dir), stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    assert child.stdout is not None
    failed: events.Failed | None = None
    for line in child.stdout:
        try:
            said = json.loads(line)
        except ValueError:  # a library's own words
            continue
        if not isinstance(said, dict):
            continue
        if "phase" in said:
            state.phase = said["phase"]
            tell(state)
        if "failed" in said:
            failed = msgspec.convert(said["failed"], events.Failed)
    if child.wait() != 0 or not target.is_dir():
        shutil.rmtree(target.with_name(f".{target.name}.partial"), ignore_errors=True)  # it may have been killed
        if failed is None:
            tail = (run_dir / "export.log").read_text("utf-8", "replace")[-4000:]
            failed = failures.from_exit(child.returncode, tail)
        raise NotExportable(later("{message}; {fix}", message=failed.message, fix=failed.fix))
    return target


def _to_gguf(folder: Path, target: Path, run_id: str, job: Job, state: State, tell: Told) -> Path:
    """Let llama.cpp convert the whole model; the Modelfile for Ollama lies beside it."""
    state.phase = "converting"
    tell(state)
    target.mkdir(parents=True, exist_ok=True)
    outfile = target / f"{run_id}.gguf"
    partial = outfile.with_suffix(".partial")
    checkout = Path(job.checkout or "").expanduser().absolute()
    command = gguf_command(folder, checkout, partial, sys.executable)
    done = subprocess.run(command, cwd=checkout, stdin=subprocess.DEVNULL, capture_output=True, text=True)  # noqa: S603 - a list, no shell
    if done.returncode != 0 or not partial.is_file():
        partial.unlink(missing_ok=True)
        said = [line for line in (done.stderr.strip() or done.stdout).splitlines() if line.strip()]
        shown = {"reason": said[-1][:300] if said else str(done.returncode), "command": shlex.join(command)}
        raise _refused("export-gguf", **shown)
    partial.replace(outfile)
    (target / "Modelfile").write_text(modelfile(folder, f"./{outfile.name}"), encoding="utf-8")
    return outfile


def _push(
    workspace: Workspace, run_id: str, folder: Path, job: Job, token: str | None, state: State, tell: Told
) -> str:
    """Upload a folder with its card to a repository of the hub, private unless asked otherwise: file by file, then one
    commit, so that nobody sees half of it. The token stays in this process."""
    import httpx
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    from engine.card import card

    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".bin" and p.name != "README.md"]
    state.phase, state.total_bytes = "uploading", sum(path.stat().st_size for path in files)
    tell(state)
    api = HfApi(token=token or None)
    try:
        repository = api.create_repo(job.repository or "", private=not job.public, exist_ok=True).repo_id
        operations = [
            CommitOperationAdd(
                path_in_repo="README.md", path_or_fileobj=card(workspace, run_id, whole=not job.only_adapter).encode()
            )
        ]
        for path in files:
            one = CommitOperationAdd(path_in_repo=path.relative_to(folder).as_posix(), path_or_fileobj=str(path))
            api.preupload_lfs_files(repository, [one])  # small files wait for the commit
            operations.append(one)
            state.done_bytes += path.stat().st_size
            tell(state)
        state.phase = "committing"
        tell(state)
        made = api.create_commit(repository, operations, commit_message="Add what the run has made")
    except LocalTokenNotFoundError as error:
        raise _refused("export-token") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise _refused("export-token") from None
        raise _refused("export-hub", reason=_without(token, str(error).splitlines()[0])) from None
    except (HFValidationError, httpx.HTTPError, OSError, ValueError) as error:
        reason = _without(token, f"{type(error).__name__}: {error}".splitlines()[0])
        raise _refused("export-hub", reason=reason[:300]) from None
    return str(made.repo_url)


def _without(token: str | None, text: str) -> str:
    return text.replace(token, "...") if token else text


def start(workspace: Workspace, run_id: str, job: Job, *, token: str | None = None) -> None:
    """Let a process of its own carry out a job. The token goes there by a pipe: no file, command line or environment
    holds it. Raises NotExportable when the job cannot start or another one is under way."""
    with lifecycle.one_at_a_time(workspace):  # of two clicks one starts it
        found = problem(workspace, run_id, job)
        if found is not None:
            raise because(found)
        running = progress(workspace, run_id)
        if running is not None and not running.ended:
            raise _refused("export-busy")
        run_dir = workspace.run_dir(run_id)
        try:
            with admission.beside(workspace, run_id) as begun:
                child = processes.start(
                    "engine.export", str(run_dir),
                    stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
                begun(child.pid)
        except limits.Refused as refused:
            raise because(refused.problems[0]) from None
        state = State(job=job, process=processes.identify(child.pid))
        write_atomically(run_dir / STATE, msgspec.json.encode(state))
        assert child.stdin is not None
        child.stdin.write(json.dumps({"job": msgspec.to_builtins(job), "token": token}).encode())
        child.stdin.close()


def progress(workspace: Workspace, run_id: str) -> State | None:
    """Return how far the last job of a run is, or None. One whose process is gone without a word has failed."""
    try:
        state = msgspec.json.decode((workspace.run_dir(run_id) / STATE).read_bytes(), type=State)
    except (OSError, msgspec.MsgspecError):
        return None
    processes.reap()
    if not state.ended and not processes.alive(state.process):
        state.failure = _refused("export-killed").args[0]
    return state


def forget(workspace: Workspace, run_id: str) -> None:
    """Put away how the last job ended."""
    (workspace.run_dir(run_id) / STATE).unlink(missing_ok=True)


def main() -> int:
    """Carry out the job that stands on stdin."""
    limits.limit_this_process()
    run_dir = Path(sys.argv[1]).resolve()
    asked: dict[str, Any] = json.loads(sys.stdin.read())
    job = msgspec.convert(asked["job"], Job)
    process = processes.identify(os.getpid())
    last = State(job=job, process=process)

    def tell(state: State) -> None:
        nonlocal last
        last = msgspec.structs.replace(state, process=process)
        write_atomically(run_dir / STATE, msgspec.json.encode(last))

    try:
        last.made = carry_out(Workspace(run_dir.parents[1]), run_dir.name, job, token=asked.get("token"), told=tell)
    except NotExportable as error:
        last.failure = error.args[0]
    except Exception as error:
        last.failure = _without(asked.get("token"), f"{type(error).__name__}: {error}"[:300])
    write_atomically(run_dir / STATE, msgspec.json.encode(last))
    return 0 if last.failure is None else 1


if __name__ == "__main__":
    sys.exit(main())
