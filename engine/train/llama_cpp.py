"""A GGUF file that is asked as a model of transformers is: llama.cpp reads it, and all that scores models scores it too.

Its keys and values are held in fp32 and attention is computed in full, as transformers does it on a processor, so that what
differs comes from the numbers in the file and from how llama.cpp multiplies these. Text becomes tokens by the tokenizer of
the model it was made of; the file's own is not used.
"""

from __future__ import annotations

import ctypes
import itertools
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from transformers import AutoConfig, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from engine.gguf import bindings as gguf_bindings
from engine.gguf import llama_cpp
from engine.runs import failures
from engine.train.scoring import trees
from engine.words import Problem

# So many sequences stand side by side at most (src/llama-cparams.h, LLAMA_MAX_SEQ, knows twice as many).
MOST_ROWS = 128
# So many tokens go through the model at once. Each is held against all that stand in the context, so that what need not
# stand there together is read in portions of about as many.
BATCH_TOKENS = 512
# ggml.h: GGML_TYPE_F32; llama.h: LLAMA_FLASH_ATTN_TYPE_DISABLED
_FP32, _IN_FULL = 0, 0
_WARNING = 3  # ggml.h: GGML_LOG_LEVEL_WARN
# What llama.cpp has last warned of, and the function it tells that: it is called as long as this process lives.
_SAID, _LISTENING = deque[str](maxlen=5), list[Any]()


def bindings() -> Any | None:
    """Return llama.h's functions, None where llama.cpp's libraries or its bindings are not on this machine."""
    there = [llama_cpp.found(), llama_cpp.found(str(llama_cpp.built_at()))]
    calls = next((one for one in there if one is not None and one.libraries and one.bindings), None)
    if calls is None or calls.libraries is None or calls.bindings is None:
        return None
    try:
        return gguf_bindings.load(calls.bindings, calls.libraries)
    except (ImportError, OSError, RuntimeError):
        return None


def named() -> str:
    """Return what names llama.cpp as it computes here: its version, and this processor's instructions, by which it chooses
    how to multiply. Raises RunRefused where it is missing."""
    library = _needed()
    return f"{version()}, {library.llama_print_system_info().decode().strip(' |')}"


def version() -> str:
    """Return llama.cpp's version. Raises RunRefused where it is missing."""
    return _needed().llama_version().decode()


def _needed() -> Any:
    library = bindings()
    if library is None:
        raise failures.RunRefused(Problem(rule="llama-cpp-missing"))
    if not _LISTENING:
        _LISTENING.append(library.llama_log_callback(_listen))
        library.llama_log_set(_LISTENING[0], None)
    return library


def _listen(level: int, text: bytes, _: Any) -> None:
    if level >= _WARNING:
        _SAID.append(text.decode("utf-8", "replace").strip())


class _Read(NamedTuple):
    """One token as it is read: of a row, at a place in it, for all rows that begin alike."""

    token: int
    depth: int
    rows: list[int]


class _Context:
    """What llama.cpp has read of up to MOST_ROWS rows."""

    def __init__(self, path: Path, tokens: int):
        library = _needed()
        self._library = library
        settings = library.llama_model_default_params()
        settings.n_gpu_layers = 0
        # weights as they lie in the file: with AMX, on a virtual machine that names it, the process is ended (0.5.0)
        settings.use_extra_bufts = False
        self._model = library.llama_model_load_from_file(str(path).encode(), settings)
        if not self._model:
            raise self._refused(path.name)
        self.tokens = tokens
        self._context = library.llama_init_from_model(self._model, self._settings())
        if not self._context:
            raise self._refused(path.name)
        self._memory = library.llama_get_memory(self._context)
        self.vocabulary = int(library.llama_vocab_n_tokens(library.llama_model_get_vocab(self._model)))
        # states that are not kept by position (Mamba's) cannot be shared by rows that go different ways
        self._by_position = not (
            library.llama_model_is_recurrent(self._model) or library.llama_model_is_hybrid(self._model)
        )
        self._batch = library.llama_batch_init(BATCH_TOKENS, 0, MOST_ROWS)
        self._held: list[list[int]] = []

    def _settings(self) -> Any:
        settings = self._library.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max, settings.kv_unified = self.tokens, MOST_ROWS, True
        settings.n_batch = settings.n_ubatch = BATCH_TOKENS
        settings.n_outputs_max = settings.n_outputs_max_per_seq = 0  # as many as tokens
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        settings.type_k = settings.type_v = _FP32
        settings.flash_attn_type = _IN_FULL
        settings.offload_kqv = settings.op_offload = False
        return settings

    def _refused(self, what: str) -> failures.RunRefused:
        said = " ".join(" ".join(_SAID).split())[-200:] or "llama.cpp"
        return failures.RunRefused(Problem(rule="llama-cpp-refuses", parameters={"file": what, "reason": said}))

    def close(self) -> None:
        """Give the memory back; it cannot be asked any more."""
        self._library.llama_batch_free(self._batch)
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)

    def read(self, rows: list[list[int]], places: list[list[int]], out: numpy.ndarray, *, goes_on: bool) -> None:
        """Write the logits after each token of the rows to `out`, at its place in its row, where that is not negative.
        `goes_on`: the same rows come again, with more tokens; what was read of them is kept then."""
        if self._is_held(rows, places):
            new = [
                _Read(token, depth, [n])
                for n, row in enumerate(rows)
                for depth, token in enumerate(row[len(self._held[n]) :], len(self._held[n]))
            ]
            self._decode(new, places, out)
            self._held = rows
            return
        order, size = sorted(range(len(rows)), key=rows.__getitem__), sum(map(len, rows))
        together = goes_on and len(rows) <= MOST_ROWS and size <= self.tokens
        for members in [order] if together else self._portions(rows, order):
            self._library.llama_memory_clear(self._memory, True)
            names = {row: n for n, row in enumerate(members)} if not together else {row: row for row in members}
            new = [one._replace(rows=[names[row] for row in one.rows]) for one in self._once(rows, members)]
            back = {n: row for row, n in names.items()}
            self._decode(new, {n: places[row] for n, row in back.items()}, out, back)
        self._held = rows if together else []

    def _is_held(self, rows: list[list[int]], places: list[list[int]]) -> bool:
        """Whether rows go on from where they are, and nothing is asked of what was read before."""
        return len(rows) == len(self._held) and all(
            len(held) < len(row) and row[: len(held)] == held and all(at < 0 for at in where[: len(held)])
            for held, row, where in zip(self._held, rows, places, strict=True)
        )

    def _portions(self, rows: list[list[int]], order: list[int]) -> Iterator[list[int]]:
        """Yield neighbours in the order of their tokens, of about BATCH_TOKENS each."""
        members, size = list[int](), 0
        for at in order:
            length = len(rows[at]) - (trees.common(tuple(rows[members[-1]]), tuple(rows[at])) if members else 0)
            if members and (size + length > BATCH_TOKENS or len(members) == MOST_ROWS):
                yield members
                members, size, length = [], 0, len(rows[at])
            members.append(at)
            size += length
        yield members

    def _once(self, rows: list[list[int]], order: list[int]) -> Iterator[_Read]:
        """Yield the tokens of rows, that of several that begin alike once."""
        if not self._by_position:
            yield from (_Read(token, depth, [at]) for at in order for depth, token in enumerate(rows[at]))
            return
        alike = [trees.common(tuple(rows[one]), tuple(other)) for one, other in _neighbours(rows, order)]
        for n, at in enumerate(order):
            for depth in range(alike[n - 1] if n else 0, len(rows[at])):
                share = itertools.takewhile(lambda one, depth=depth: alike[one] > depth, range(n, len(alike)))
                yield _Read(rows[at][depth], depth, [at, *(order[one + 1] for one in share)])

    def _decode(
        self, new: list[_Read], places: Any, out: numpy.ndarray, names: dict[int, int] | None = None
    ) -> None:  # fmt: skip
        for start in range(0, len(new), BATCH_TOKENS):
            part, asked = new[start : start + BATCH_TOKENS], list[list[tuple[int, int]]]()
            for n, one in enumerate(part):
                where = [(row, places[row][one.depth]) for row in one.rows if places[row][one.depth] >= 0]
                self._batch.token[n], self._batch.pos[n] = one.token, one.depth
                self._batch.n_seq_id[n], self._batch.logits[n] = len(one.rows), bool(where)
                for at, row in enumerate(one.rows):
                    self._batch.seq_id[n][at] = row
                asked += [where] if where else []
            self._batch.n_tokens = len(part)
            if self._library.llama_decode(self._context, self._batch) != 0:
                self._held = []
                raise self._refused("llama_decode")
            if not asked:
                continue
            logits = numpy.ctypeslib.as_array(
                ctypes.cast(self._library.llama_get_logits(self._context), ctypes.POINTER(ctypes.c_float)),
                (len(asked), self.vocabulary),
            )
            for told, where in zip(logits, asked, strict=True):
                for row, at in where:
                    out[row if names is None else names[row], at] = told


def _neighbours(rows: list[list[int]], order: list[int]) -> Iterator[tuple[int, list[int]]]:
    return ((one, rows[other]) for one, other in itertools.pairwise(order))


class GgufModel(PreTrainedModel, GenerationMixin):
    """A GGUF file with the face of a transformers model. It takes token ids and a mask of what is padding, and answers with
    logits in fp32; it keeps what it has read of rows by itself, and takes no cache."""

    def __init__(self, path: Path, made_of: Path, tokens: int):
        """`made_of` is the folder of the model it was made of; `tokens` of all rows stand in its context at once. Raises
        RunRefused where llama.cpp is missing or cannot read the file."""
        super().__init__(AutoConfig.from_pretrained(str(made_of), trust_remote_code=False).get_text_config())
        if (made_of / "generation_config.json").is_file():
            self.generation_config = GenerationConfig.from_pretrained(str(made_of))
        # says where it lies and how it computes; the weights are llama.cpp's
        self.nothing = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self._context = _Context(path, tokens)
        self.eval()

    def close(self) -> None:
        """Give the memory back; it cannot be asked any more."""
        self._context.close()

    @torch.no_grad()
    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, logits_to_keep: int = 0,
        past_key_values: Any = None, **_: Any,
    ) -> CausalLMOutput:  # fmt: skip
        """Return the logits after each token of rows, of the last `logits_to_keep` alone where that is not 0. Raises
        ValueError where it is asked otherwise than plainly."""
        if past_key_values is not None or (attention_mask is not None and attention_mask.ndim != 2):
            raise ValueError("a GGUF file is asked plainly: no cache, and a mask of what is padding")
        count, width = input_ids.shape
        kept = logits_to_keep or width
        shown = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).bool()
        rows = [ids[seen].tolist() for ids, seen in zip(input_ids, shown, strict=True)]
        places = [(seen.nonzero()[:, 0] - (width - kept)).tolist() for seen in shown]
        out = torch.zeros(count, kept, self._context.vocabulary)
        self._context.read(rows, places, out.numpy(), goes_on=logits_to_keep == 1)
        return CausalLMOutput(logits=out)  # pyright: ignore[reportArgumentType]

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, logits_to_keep: int = 1, **_: Any
    ) -> dict[str, Any]:  # fmt: skip
        """Return all tokens of the rows: what was read of them is known to llama.cpp."""
        return {"input_ids": input_ids, "attention_mask": attention_mask, "logits_to_keep": logits_to_keep}

    def generate(self, *inputs: Any, **settings: Any) -> Any:
        """Write, as transformers does it, without its cache."""
        return super().generate(*inputs, **{**settings, "use_cache": False})  # pyright: ignore[reportAttributeAccessIssue]
