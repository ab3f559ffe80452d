"""A run's whole model as one GGUF file, in 16 bits or fewer, and whether it reads texts as the model does.

llama.cpp's converter makes 16 bits of the model (engine/train/gguf.py), its library fewer of these (engine/gguf). The
file is written beside its place, read back and renamed. The 16 bits that fewer are made of are kept only where they were
asked for; a file of them that is there is used.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

import msgspec

from engine import machine, processes
from engine.check import DatasetError
from engine.data import datasets
from engine.export import ollama, parity
from engine.export.artifacts import refused
from engine.export.job import Job, State, Told
from engine.gguf import headers, kinds, llama_cpp, pre_tokenizers
from engine.quantised import asking
from engine.render import Coder, NotWritten, coder
from engine.render.encode import conversations
from engine.runs import store
from engine.words import Problem, joined, t
from engine.workspace import Workspace, clear_scratch, find_struct, scratch, write_atomically

# As many of the run's own texts at most, so long each.
OWN_TEXTS, MOST_CHARACTERS = 100, 2_000
# The types of tokens that are found in a text before it is cut (llama.h, enum llama_token_type).
_CONTROL, _USER_DEFINED = 3, 4
_SAID_CHARACTERS = 300


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """A GGUF file that was made: how large it is and how many bytes 16 bits take; how llama.cpp cuts texts for it (`found`:
    by comparing ids, since llama.cpp did not know the tokenizer); and how it was read back."""

    quantization: str
    size_bytes: int
    whole_bytes: Annotated[int, msgspec.Meta(gt=0)]
    pre_tokenizer: str
    found: bool
    texts: int
    tokens: int
    differences: list[parity.Difference] = []
    problems: list[Problem] = []

    @property
    def is_same(self) -> bool:
        return not self.differences and not self.problems

    def size(self) -> str:
        """Return how large the file is, in words."""
        size, share = f"{self.size_bytes / 1e6:,.1f}", f"{self.size_bytes / self.whole_bytes:.2f}"
        return t("{size} MB, {share} of the size in 16 bits.", size=size, share=share)

    def lines(self) -> list[str]:
        """Return what was read back from the file, in words."""
        said: list[str] = []
        if self.found:
            said.append(
                t(
                    "llama.cpp does not know this tokenizer; its way “{name}” gives the same tokens and was written.",
                    name=self.pre_tokenizer,
                )
            )
        if self.differences:
            said.append(
                t("{n} of {texts} texts become other tokens in llama.cpp.", n=len(self.differences), texts=self.texts)
            )
            said += [
                t(
                    "At token {token} of “{text}”: “{trained}” in training, “{exported}” in llama.cpp.",
                    token=one.token, text=one.text[:60], trained=one.trained, exported=one.exported,
                )
                for one in self.differences[:3]
            ]  # fmt: skip
        else:
            said.append(
                t("{texts} texts give the same {tokens} token ids in llama.cpp.", texts=self.texts,
                  tokens=f"{self.tokens:,}")
            )  # fmt: skip
        said += [one.sentence for one in self.problems]
        if not self.problems:
            said.append(t("Chat template, end marks and added tokens read back from the file are the model's."))
        return said


class _Made(NamedTuple):
    """What texts the file is asked, the ids that training makes of them, and the model's coder."""

    coder: Coder
    texts: list[str]
    ids: list[list[int]]


def file_of(workspace: Workspace, run_id: str, quantization: str) -> Path:
    """Return where a run's file of a quantisation lies once it is made."""
    return kinds.file_of(workspace.run_dir(run_id), quantization)


def read(file: Path) -> Written | None:
    """Return how a file was made and read back; None where that is not known, or it is no longer so large."""
    found = find_struct(file.with_suffix(".json"), Written) if file.is_file() else None
    return found if found is not None and found.size_bytes == file.stat().st_size else None


def parts(named: str | None) -> llama_cpp.LlamaCpp | None:
    """Return llama.cpp's converter, from the folder `named` where it has one, with the libraries and bindings that go
    together; None where something is lacking."""
    there = [one for one in (llama_cpp.found(named), llama_cpp.found(str(llama_cpp.built_at()))) if one is not None]
    converter = next((one for one in there if one.converter), None)
    calls = next((one for one in there if one.libraries and one.bindings), None)
    if converter is None or calls is None or (named and converter.folder == llama_cpp.built_at()):
        return None
    return calls._replace(folder=converter.folder, converter=converter.converter)


def problem(job: Job) -> Problem | None:
    """Return why llama.cpp cannot be used, or None."""
    if parts(job.checkout) is not None:
        return None
    named = job.checkout or os.environ.get(llama_cpp.NAMED_BY)
    if not named or llama_cpp.found(named):
        return Problem(rule="export-no-llama-cpp")
    return Problem(rule="export-checkout", parameters={"folder": named})


def needed_bytes(job: Job, size: int, file16: Path) -> int:
    """Return about how much room a file takes, with the 16 bits it is made of."""
    whole = 0 if job.quantization != "f16" and read(file16) is not None else size
    return whole + (0 if job.quantization == "f16" else round(size * kinds.KINDS[job.quantization].most_share))


def make(workspace: Workspace, run_id: str, folder: Path, job: Job, state: State, tell: Told) -> Path:
    """Make the file of a whole model in `folder`, with a Modelfile and what reading it back found beside it.

    Raises NotExportable; nothing half-written is left.
    """
    there = parts(job.checkout)
    if there is None:
        raise refused("export-no-llama-cpp")
    target = Path(job.to) if job.to else workspace.run_dir(run_id) / "gguf"
    target.mkdir(parents=True, exist_ok=True)
    clear_scratch(target)
    log = workspace.run_dir(run_id) / "export.log"
    log.write_bytes(b"")
    file, whole = target / f"{run_id}-{job.quantization}.gguf", file_of(workspace, run_id, "f16")
    with tempfile.TemporaryDirectory(dir=target, prefix=scratch("gguf")) as made:
        work = _Work(there, Path(made), log, state, tell)
        asked, before = _texts(workspace, run_id, folder), read(whole)
        if job.quantization == "f16" or before is None:
            found, whole = work.converted(folder, asked)
        else:
            found = before.found
        partial = whole if job.quantization == "f16" else work.quantized(whole, job.quantization)
        written = work.read_back(partial, asked, folder, job.quantization, whole, found)
        write_atomically(file.with_suffix(".json"), msgspec.json.encode(written))
        partial.replace(file)
        ollama.modelfile_of(file).write_text(ollama.modelfile(folder, f"./{file.name}"), encoding="utf-8")
        if job.ask:  # while the 16 bits that it was made of are here
            ask(workspace, run_id, file, None if whole == partial else whole, state, tell)
    return file


def ask(workspace: Workspace, run_id: str, file: Path, plain: Path | None, state: State, tell: Told) -> None:
    """Find out what a file lost against the model it was made of (engine/quantised). It is whole whatever comes of that."""
    state.phase, state.total_bytes = "asking", file.stat().st_size

    def told(share: float) -> None:
        state.done_bytes = round(share * state.total_bytes)
        tell(state)

    told(0.0)
    asking.ask(workspace, run_id, file, state.job.quantization, plain, told)


def _texts(workspace: Workspace, run_id: str, folder: Path) -> _Made:
    """Texts of the run's own rows as training rendered them, and hard ones, with the ids that training makes of them."""
    own = Coder.of_folder(folder, run_id)
    dataset, texts = store.load_spec(workspace, run_id).dataset.id, []
    with contextlib.suppress(DatasetError, OSError, ValueError):
        for row in datasets.preview(workspace, dataset, 0, OWN_TEXTS) if dataset else []:
            texts += [row["text"]] if row.get("text") is not None else _rendered(own, row)
    texts = [text[:MOST_CHARACTERS] for text in texts[:OWN_TEXTS]] + list(pre_tokenizers.TEXTS)
    return _Made(own, texts, [own.code(text).ids for text in texts])


def _rendered(own: Coder, row: dict[str, Any]) -> list[str]:
    found = []
    for messages in conversations(row):
        with contextlib.suppress(NotWritten):
            found.append(own.write(messages, row.get("tools")).text)
    return found


class _Work(NamedTuple):
    """The processes that make one file in a folder `made`."""

    there: llama_cpp.LlamaCpp
    made: Path
    log: Path
    state: State
    tell: Told

    def converted(self, folder: Path, asked: _Made) -> tuple[bool, Path]:
        """Convert to 16 bits, and return whether the pre-tokenizer had to be found, with the file."""
        tokens, whole = self.made / "tokens.gguf", self.made / "f16.gguf"
        self._phase("converting")
        unknown = self._convert(folder, tokens, "tokens")
        chosen = self._found(tokens, asked) if unknown else None
        self._phase("converting")
        self._convert(folder, whole, "f16", *([chosen] if chosen else []))
        return unknown, whole

    def quantized(self, whole: Path, kind: str) -> Path:
        """Make fewer bits of the 16 and return the file."""
        self._phase("quantizing")
        target, size = self.made / f"{kind}.gguf", whole.stat().st_size
        threads = str(machine.facts().cores)
        for told in self._run("engine.gguf.quantize", *self._calls(), str(whole), str(target), kind, threads):
            self._told(round(size * told["done"] / told["total"]), size)
        return target

    def read_back(self, file: Path, asked: _Made, folder: Path, kind: str, whole: Path, found: bool) -> Written:
        """Compare what llama.cpp reads of a file with the model's own."""
        self._phase("reading")
        try:
            header = headers.read(file)
        except headers.Refused as error:
            self._failed(error.problem.message)
        answer = next(iter(self._tokens(file, asked, ())), None)
        if answer is None or "ids" not in answer:
            self._failed()
        differences = [
            _difference(asked, answer["ids"], one) for one in pre_tokenizers.differs(answer["ids"], asked.ids)
        ]
        return Written(
            quantization=kind, size_bytes=file.stat().st_size, whole_bytes=whole.stat().st_size,
            pre_tokenizer=str(header.values.get("tokenizer.ggml.pre", "")), found=found,
            texts=len(asked.texts), tokens=sum(map(len, asked.ids)), differences=differences,
            problems=problems(header.values, folder, asked.coder, answer),
        )  # fmt: skip

    def _found(self, tokens: Path, asked: _Made) -> str:
        """Return the way of llama.cpp that gives the ids of training. Raises NotExportable where none does."""
        self._phase("cutting")
        found = pre_tokenizers.best(self._every_answer(tokens, asked), asked.ids)
        if found is None:
            self._failed()
        answer, wrong = found
        if wrong:
            first = _difference(asked, answer["ids"], wrong[0])
            raise refused(
                "export-pre-tokenizer", name=answer["pre_tokenizer"], n=len(wrong), texts=len(asked.texts),
                token=first.token, text=first.text[:60], trained=first.trained, exported=first.exported,
            )  # fmt: skip
        return answer["pre_tokenizer"]

    def _every_answer(self, tokens: Path, asked: _Made) -> Iterator[dict[str, Any]]:
        """Yield the answer with each pre-tokenizer; the one that ended the process is left out."""
        names: list[str] = list(pre_tokenizers.NAMES)
        while names:
            for answer in self._tokens(tokens, asked, names):
                names.remove(answer["pre_tokenizer"])
                yield answer
            names = names[1:]

    def _tokens(self, file: Path, asked: _Made, names: list[str] | tuple[()]) -> Iterator[dict[str, Any]]:
        ends = {"ends": list(asked.coder.stops), "texts": asked.texts, "pre_tokenizers": list(names)}
        with tempfile.TemporaryFile(dir=self.made) as question:
            question.write(json.dumps(ends).encode())
            question.seek(0)
            yield from self._run("engine.gguf.tokens", *self._calls(), str(file), given=question, may_fail=True)

    def _convert(self, folder: Path, outfile: Path, what: str, *pre_tokenizer: str) -> bool:
        """Convert, and return whether llama.cpp does not know the tokenizer."""
        arguments, unknown = (str(self.there.folder), str(folder.absolute()), str(outfile), what), False
        for told in self._run("engine.train.gguf", *arguments, *pre_tokenizer):
            unknown |= "unknown" in told
            if "done" in told:
                self._told(told["done"], told["total"])
        if not outfile.is_file():
            self._failed()
        return unknown

    def _calls(self) -> tuple[str, str]:
        return str(self.there.bindings), str(self.there.libraries)

    def _run(self, module: str, *arguments: str, given: Any = None, may_fail: bool = False) -> Iterator[dict[str, Any]]:
        """Start a process and yield the objects it tells. Raises NotExportable where it failed."""
        refusal = ""
        with self.log.open("ab") as said:
            child = processes.start(
                module,
                *arguments,
                env=_offline(),
                stdin=given or subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
            )
        assert child.stdout is not None
        try:
            for line in child.stdout:
                with contextlib.suppress(ValueError):
                    told = json.loads(line)
                    if isinstance(told, dict):
                        refusal = told.get("refused", refusal)
                        yield told
        except BaseException:
            child.kill()
            raise
        finally:
            child.stdout.close()
            child.wait()
        if child.returncode and not may_fail:
            self._failed(refusal)

    def _failed(self, reason: str = "") -> NoReturn:
        said = [line for line in self.log.read_text("utf-8", "replace").splitlines() if line.strip()]
        raise refused(
            "export-gguf", reason=(reason or (said[-1] if said else "?"))[:_SAID_CHARACTERS], log=self.log.name
        )

    def _phase(self, name: str) -> None:
        self.state.phase = name
        self._told(0, 0)

    def _told(self, done_bytes: int, total_bytes: int) -> None:
        self.state.done_bytes, self.state.total_bytes = done_bytes, total_bytes
        self.tell(self.state)


def _offline() -> dict[str, str]:
    """The environment of a process that reads a model: no network, no card, no token, and an end with ours."""
    kept = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")}
    return {
        **kept,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TUNEBOOK_SUPERVISOR": str(os.getpid()),
    }


def _difference(asked: _Made, ids: list[list[int]], first: pre_tokenizers.First) -> parity.Difference:
    decode = asked.coder.tokenizer.decode
    ours, theirs = (
        decode(one[first.text][first.token : first.token + 5], skip_special_tokens=False) for one in (asked.ids, ids)
    )
    return parity.Difference(asked.texts[first.text][:200], first.token, ours, theirs)


def problems(values: dict[str, Any], folder: Path, own: Coder, answer: dict[str, Any]) -> list[Problem]:
    """Return what the values of a file say otherwise than the model in `folder`: its chat template, what begins a text and
    ends an answer, and its added tokens."""
    found, tokens = [], own.tokenizer.get_added_tokens_decoder()
    if (coder.own_template(folder) or "") != (values.get("tokenizer.chat_template") or ""):
        found.append(Problem(rule="gguf-read-template", severity="warning"))
    if bool(answer["begins"]) != own.starts_with_bos:
        rule = "gguf-read-bos-added" if answer["begins"] else "gguf-read-bos-missing"
        found.append(Problem(rule=rule, severity="warning"))
    silent = [own.tokenizer.id_to_token(one) for one in own.stops if one not in answer["ends"]]
    if silent:
        found.append(Problem(rule="gguf-read-ends", severity="warning", parameters={"marks": joined(*silent)}))
    texts, kinds = values.get("tokenizer.ggml.tokens", []), values.get("tokenizer.ggml.token_type", [])
    wrong = [
        token.content
        for number, token in tokens.items()
        if texts[number : number + 1] != [token.content]
        or kinds[number : number + 1] not in ([_CONTROL], [_USER_DEFINED])
    ]
    if wrong:
        shown = {"n": len(wrong), "all": len(tokens), "first": wrong[0]}
        found.append(Problem(rule="gguf-read-added", severity="warning", parameters={**shown}))
    return found
