"""What charts take from the theme that is shown, whose templates leave it to them."""

from __future__ import annotations

from typing import Any

import streamlit as st

# What is read of charts stands in them: no toolbar that covers it, and no wheel that changes what is seen.
STILL = {"displayModeBar": False, "scrollZoom": False}


def _shown() -> str:
    return st.context.theme.type or "light"


def of(name: str) -> Any:
    """Return a value of the theme, by its name in .streamlit/config.toml."""
    return st.get_option(f"theme.{_shown()}.{name}")


def key(name: str) -> str:
    """Return the key of a chart. It names the theme, so that a change of it makes the chart anew: one that is kept is
    now and then left with the ground and the words of the theme before (streamlit 1.67)."""
    return f"{name}~{_shown()}"
