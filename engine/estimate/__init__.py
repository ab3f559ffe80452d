"""What a run takes, before it starts: memory and time as ranges, and what the machine decides by them.

memory.estimate(shape, setup, device=...) and duration.estimate(...) work it out, the time by phases; measured corrects
both by what finished runs took here; load knows what other programs take of the processor now; machine_choices decides
what the spec leaves open; precision knows whether a processor is faster in bf16; cards says what is to be said of the
cards here.
"""

__all__ = ["cards", "duration", "load", "machine_choices", "measured", "memory", "phases", "precision"]
