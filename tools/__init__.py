"""Tools for those who work on Tunebook; nothing here is part of what is installed."""
