"""The child process of a run, `python -m engine.train RUN_DIR`: the only part that imports torch and what stands on it."""
