"""GGUF files, in which other programs keep models: what a header says, and the tokenizer rebuilt from it. No torch.

headers.read(path) gives the values and tensors; tokenizers.build(header) the tokenizer as the model was trained with it;
kinds names the files that are made of a run; llama_cpp.found() finds the programs that write, ask and serve one; `python -m
engine.gguf.quantize` and `engine.gguf.tokens` are processes that call its libraries, since an error in them ends whoever
calls.
"""

__all__ = ["bindings", "headers", "kinds", "llama_cpp", "pre_tokenizers", "tokenizers"]
