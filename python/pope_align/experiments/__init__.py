"""Reproducible studies, one per module."""
