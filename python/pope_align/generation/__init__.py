"""Answers of models: drawn here or elsewhere, the same for the same seeds, and the file they are kept in."""
