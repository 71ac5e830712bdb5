"""Metrics of a model's answers: pluralism, helpfulness, relevance, diversity, faithfulness (docs/metrics.md).

One small file per family. Metrics are pure functions of vectors, votes or texts; `evaluate` computes them all for the
generations of one or more models.
"""
