"""Uncertainty of means and ratios over independent clusters, shared by metrics and off-policy evaluation."""
