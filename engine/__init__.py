"""Tunebook's engine: everything but the pages. Never imports streamlit; only engine.train imports torch."""

import os

# Before any library of the hub is imported, which reads it once: nobody is counted.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
__version__ = "0.1.0"
