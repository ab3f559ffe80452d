"""The starter: a small base language model of our own that ships with the project, its benchmark and its sample data.

It is a toy. It shows the mechanics of fine-tuning and of forgetting in a minute without a GPU or a download, and says
nothing about the quality of a real model. SAMPLES and sample(name) are its data; `python -m engine.starter.build` makes
the model again.
"""

from typing import TYPE_CHECKING

from engine._faces import lazily

if TYPE_CHECKING:
    from engine.starter.stored import (
        BENCHMARK,
        BENCHMARK_NAME,
        MANIFEST,
        MODEL_DIR,
        SAMPLES,
        SAMPLES_DIR,
        Sample,
        manifest,
        sample,
        verify,
    )
else:
    __getattr__ = lazily(
        __name__, stored="BENCHMARK BENCHMARK_NAME manifest MANIFEST MODEL_DIR sample Sample SAMPLES SAMPLES_DIR verify"
    )

__all__ = [
    "BENCHMARK",
    "BENCHMARK_NAME",
    "MANIFEST",
    "MODEL_DIR",
    "SAMPLES",
    "SAMPLES_DIR",
    "Sample",
    "manifest",
    "sample",
    "verify",
    "world",
]
