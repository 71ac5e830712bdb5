"""Training on slates: the trainer, its loss, metrics and safeguards, whole runs, and baselines on the same slates."""
