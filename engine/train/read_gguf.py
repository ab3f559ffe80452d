"""Read a GGUF file once into a folder that everything else can use: 16-bit safetensors, tokenizer, chat template.

`python -m engine.train.read_gguf JOB` carries out a job of engine/data/jobs.py. Nothing stands in the workspace before
all of it has been checked.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from engine.data import jobs
from engine.gguf import headers, tokenizers
from engine.gguf.headers import Header, Refused, refused
from engine.models import bases, shortlist
from engine.read import OnProgress
from engine.words import t
from engine.workspace import Workspace, scratch

# What a tokenizer must give back as it was: numbers, lines, scripts, signs of several bytes, code.
TEXTS = (
    "Hello world! 123", "\n\n1. One\n2. Two\n", "  two  spaces\tand a tab ", "3.14159 and 2026-11-29",
    "It's what they'd say.", "我们在学习。第12课", "日本語のテキスト", "Žluťoučký kůň", "🙂👩‍🔬🇫🇷",
    "def f(x):\n    return x**2  # ok\n", "<a href='#'>&amp;</a>",
)  # fmt: skip
# The share of a conversion's time by which each part is over (SmolLM2 135M on two cores).
_TOKENIZER_DONE, _WEIGHTS_DONE, _WHOLE = 10, 80, 100
SPARE_BYTES = 100 << 20


def carry_out(call: jobs.Call, progress: OnProgress) -> jobs.Result:
    """Read the file that a call names into the workspace, and put the folder among the models of this machine."""
    workspace = Workspace(call.workspace)
    try:
        folder = convert(
            Path(call.gguf or ""), workspace, name=call.name,
            own=Path(call.tokenizer) if call.tokenizer else None, progress=progress,
        )  # fmt: skip
    except Refused as error:
        return jobs.Result(problem=error.problem)
    shortlist.remember_folder(workspace, str(folder))
    return jobs.Result(folder=str(folder))


def convert(path: Path, workspace: Workspace, *, name: str, own: Path | None, progress: OnProgress) -> Path:
    """Return the folder of a file, made where it is not there yet. `own` is a folder with the model's own tokenizer, which
    is taken instead of the file's. Raises Refused."""
    header = headers.read(path)
    folder = bases.gguf_folder(header, workspace)
    if bases.is_folder(folder):
        return folder
    wrong = header.problem() or headers.package_problem()
    if wrong is not None:
        raise Refused(wrong)
    needed, free = 2 * header.parameters + SPARE_BYTES, shutil.disk_usage(_existing(workspace.root)).free
    if free < needed:
        raise refused("gguf-disk", file=path.name, free=free >> 20, needed=needed >> 20)
    workspace.models_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=scratch("gguf"), dir=workspace.models_dir) as beside:
        made = Path(beside) / "model"
        tokenizer = _tokenizer(header, own)
        progress(_TOKENIZER_DONE, _WHOLE)
        model = _weights(header)
        progress(_WEIGHTS_DONE, _WHOLE)
        _name_tokens(model, tokenizer, header)
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        note = {"name": name or header.name, "held_as": header.kind, "rounded_bits": header.rounded_bits}
        (made / bases.GGUF_NOTE).write_text(json.dumps(note), "utf-8")
        for one in made.iterdir():
            one.chmod(0o644)  # weights are written for the owner alone
        described = bases.describe(str(made), workspace)
        if described.problems:
            raise Refused(described.problems[0])
        made.rename(folder)
    progress(_WHOLE, _WHOLE)
    return folder


def _existing(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.exists())


# --- tokenizer --------------------------------------------------------------------------------------------------------
def _tokenizer(header: Header, own: Path | None) -> Any:
    """Return the tokenizer, of the file or of a folder, once it has given every text back. Raises Refused."""
    if own is not None:
        tokenizer = _of_folder(header, own)
    else:
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.build(header),
            **tokenizers.named(header),
            chat_template=tokenizers.template(header),
            model_max_length=header.values.get(f"{header.architecture}.context_length"),
            clean_up_tokenization_spaces=False,
            padding_side="right",
        )
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text:
            raise refused("gguf-tokenizer-broken", file=header.path.name)
    return tokenizer


def _of_folder(header: Header, folder: Path) -> Any:
    """Read a folder's own tokenizer, which must have the tokens of the file under the same ids. Raises Refused."""
    try:
        core = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the library raises bare Exceptions
        raise refused("gguf-no-tokenizer", folder=str(folder)) from error
    known = dict(enumerate(tokenizers.tokens(header)))
    # a file may hold more, where the embedding has rows that no token uses
    if any(known.get(id) != one for one, id in core.get_vocab().items()):
        raise refused("gguf-other-tokenizer", folder=str(folder), file=header.path.name)
    tokenizer.chat_template = tokenizer.chat_template or tokenizers.template(header)
    return tokenizer


def _name_tokens(model: Any, tokenizer: Any, header: Header) -> None:
    """Let the end of a turn be what the chat template writes there: a file may name the end of a document, and
    transformers 5.17, reading SmolLM2's itself, takes <|im_start|>."""
    named = tokenizers.named(header)
    tokenizer.eos_token = _end_of_turn(tokenizer) or tokenizer.eos_token or named.get("eos_token")
    ends = [tokenizer.eos_token, named.get("eos_token")]
    ids = list(dict.fromkeys(tokenizer.convert_tokens_to_ids(one) for one in ends if one))
    for settings in (model.config, model.generation_config):
        settings.bos_token_id, settings.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
        settings.eos_token_id = ids[0] if len(ids) == 1 else ids or None
    model.generation_config._from_model_config = False


def _end_of_turn(tokenizer: Any) -> str | None:
    """Return the special token that the chat template writes after an answer."""
    if not tokenizer.chat_template:
        return None
    answer = "An answer."
    try:
        shown = tokenizer.apply_chat_template(
            [{"role": "user", "content": "A question?"}, {"role": "assistant", "content": answer}], tokenize=False
        )
    except Exception:  # a template may refuse anything, and raises what it likes
        return None
    after = tokenizer.encode(shown.rpartition(answer)[2].strip(), add_special_tokens=False)
    found = tokenizer.added_tokens_decoder.get(after[0]) if after else None
    return found.content if found is not None and found.special else None


# --- weights ----------------------------------------------------------------------------------------------------------
def _weights(header: Header) -> Any:
    """Return the model with all weights of a file in 16 bits. Half precision holds what a GGUF file has, whose scales
    are in it, bfloat16 what was in that or in 32 bits. Raises Refused where one is missing or no number."""
    dtype = torch.bfloat16 if header.kind in ("BF16", "F32") else torch.float16
    place: dict[str, Any] = {"gguf_file": "model.gguf", "local_files_only": True}
    try:
        with tempfile.TemporaryDirectory() as alone:  # an adapter beside it would be laid on it, or another model read
            (Path(alone) / "model.gguf").symlink_to(header.path.resolve())
            config = transformers.AutoConfig.from_pretrained(alone, **place)
            width = header.values.get(f"{header.architecture}.attention.key_length")
            if width is not None and hasattr(config, "head_dim"):
                config.head_dim = width  # which transformers 5.17 leaves at 128 for Qwen3
            _stretch(config, header)
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                alone, config=config, dtype=dtype, output_loading_info=True, **place
            )
    except (ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        raise _bad_weights(header, str(error)) from error
    model, told = loaded
    with torch.device("meta"):
        wanted: Any = type(model)(config)
    shapes = {name: one.shape for name, one in wanted.named_parameters()}  # a tied head stands there once
    held = sum(math.prod(shape) for shape in shapes.values())
    if told["missing_keys"] or held != header.parameters:
        raise _bad_weights(header, t("{n} numbers instead of {wanted}", n=header.parameters, wanted=held))
    for name, parameter in model.named_parameters():
        if parameter.shape != shapes[name]:
            raise _bad_weights(header, t("{name} is of another shape", name=name))
        if not torch.isfinite(parameter).all():
            raise _bad_weights(header, t("{name} holds what is no number", name=name))
    # read, it is an ordinary model, which transformers would not write otherwise
    model.hf_quantizer = None
    del model.config.quantization_config
    model.config._name_or_path = header.name
    return model


def _stretch(config: Any, header: Header) -> None:
    """Stretch the positions as Llama 3.1 and its followers do, where the file's factors are theirs; transformers 5.17 takes
    no notice of them. Raises Refused for any others."""
    if header.stretched is None:
        return
    factors = torch.from_numpy(
        np.fromfile(header.path, "<f4", header.stretched.numbers, offset=header.data_at + header.stretched.offset)
    )
    theirs = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    plain = dict(config.rope_parameters)
    config.rope_parameters = {**plain, **theirs, "rope_type": "llama3", "factor": float(factors.max())}
    width = config.head_dim
    usual = 1.0 / plain["rope_theta"] ** (torch.arange(0, width, 2).float() / width)
    wanted, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    if factors.shape != wanted.shape or not torch.allclose(usual / factors, wanted, rtol=1e-3, atol=0):
        raise refused("gguf-positions", file=header.path.name)


def _bad_weights(header: Header, reason: str) -> Refused:
    return refused("gguf-weights", file=header.path.name, reason=(reason.splitlines() or [""])[0][:200])


if __name__ == "__main__":
    sys.exit(jobs.main(Path(sys.argv[1]), carry_out))
