"""What was forgotten, over one run and over many: evaluations, sweeps, claims of the guide, and what to do."""

__all__ = ["adoption", "claims", "evaluations", "remedies", "sweep_drive", "sweep_plan"]
