"""Answers of models: sampled here or elsewhere, reproducible by seed, and their file format."""
