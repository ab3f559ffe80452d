"""GGUF files, in which other programs keep models: what a header says, and the tokenizer rebuilt from it. No torch.

headers.read(path) gives the values and tensors; tokenizers.build(header) the tokenizer as the model was trained with it;
llama_cpp.found() the programs that write, ask and serve one, pre_tokenizers how these cut texts. `python -m
engine.gguf.quantize` and `engine.gguf.tokens` are processes that call its libraries, since an error there ends the caller.
"""

__all__ = ["headers", "llama_cpp", "pre_tokenizers", "tokenizers"]
