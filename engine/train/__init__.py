"""The child, python -m engine.train RUN_DIR: the only part of the project that imports torch and what imports it.

Reached as a process alone; objectives/ has one file for each thing a run can optimise, scoring/ what is asked before and
after. Only bench/ imports from here.
"""

__all__ = ["adapters", "backend", "batches", "load", "objectives", "oft", "scoring", "tokenize"]
