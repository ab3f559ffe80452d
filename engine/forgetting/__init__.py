"""What was forgotten, over one run, its line and many: evaluations, stages, sweeps, claims of the guide, and what to do."""

__all__ = [
    "adoption",
    "claims",
    "evaluations",
    "foresight",
    "recovery",
    "recovery_curve",
    "remedies",
    "stages",
    "sweep_drive",
    "sweep_plan",
]
