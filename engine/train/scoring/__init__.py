"""What a model is asked, and how its answers are scored: the same questions in the same words, before and after."""

__all__ = ["harness", "likelihood", "lm", "losses", "scores"]
