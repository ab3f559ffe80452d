"""What a model is asked before and after, to see what it forgot.

library.find(name) and library.docs(one) give a benchmark and its questions; own.check reads a person's own; forms says
whether an answer has the form asked for; speeds how long scoring takes here.
"""

__all__ = ["forms", "library", "own", "shares", "shipped", "speeds", "watch"]
