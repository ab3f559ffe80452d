"""What a run optimises: one file an objective, each with prepare, config, trainer, samples and questions."""
