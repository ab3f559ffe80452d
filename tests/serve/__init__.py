"""Tests of engine/serve."""
