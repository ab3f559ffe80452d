"""What a GGUF file lost against the model it was made of: asked, kept beside the file, and said in words.

asking.ask starts a child that asks both the very questions of the run; lost.read turns their answers into figures, said
says these.
"""

__all__ = ["asking", "lost", "said"]
