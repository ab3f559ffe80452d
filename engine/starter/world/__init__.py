"""The toy world: everything the starter model knows, and the data made from it.

A world is a list of relations ("capital of", "opposite of", ...), each with phrasings to train on, other phrasings kept
for the benchmark, and facts. All texts are generated from a seed with the standard library alone, so that the same seed
gives the same world on every machine and the page can mix in replay rows without importing torch.
"""

from typing import TYPE_CHECKING

from engine._faces import lazily

if TYPE_CHECKING:
    from engine.starter.world.benchmark import benchmark_items
    from engine.starter.world.dialogues import Dialogue, replay_rows, training_dialogues, watch_rows
    from engine.starter.world.questions import SEED
    from engine.starter.world.samples import sample_files
else:
    __getattr__ = lazily(
        __name__,
        benchmark="benchmark_items",
        dialogues="Dialogue replay_rows training_dialogues watch_rows",
        questions="SEED",
        samples="sample_files",
    )

__all__ = ["SEED", "Dialogue", "benchmark_items", "replay_rows", "sample_files", "training_dialogues", "watch_rows"]
