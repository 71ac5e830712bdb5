"""The paper's tables and figures as plans over commands of `pope`, with more baselines, controls and intervals."""
