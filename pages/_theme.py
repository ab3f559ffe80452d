"""What charts take from the theme that is shown, whose templates leave it to them."""

from __future__ import annotations

from typing import Any

import streamlit as st

# What is read of charts stands in them: no toolbar that covers it, and no wheel that changes what is seen.
STILL = {"displayModeBar": False, "scrollZoom": False}


def of(name: str) -> Any:
    """Return a value of the theme, by its name in .streamlit/config.toml."""
    return st.get_option(f"theme.{st.context.theme.type or 'light'}.{name}")
