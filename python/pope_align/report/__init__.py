"""The page of a run: what the estimates, the metrics and the answers say, for those who decide."""
