"""Data only: one YAML per recipe, and guide/*.yaml, the guide's decision tables. Read by engine.spec and engine.advisor."""
