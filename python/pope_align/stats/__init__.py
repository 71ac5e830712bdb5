"""Uncertainty of means and ratios over independent clusters, for metrics and off-policy evaluation."""
