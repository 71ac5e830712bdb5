"""Every number a verdict depends on, in one place. docs/evaluation.md says why they are what they are."""

from __future__ import annotations

#: Independent clusters: below the first no interval is trusted, below the second it is a caution.
MIN_CLUSTERS = 10
FEW_CLUSTERS = 50

#: Effective sample size of the raw weights the estimator uses.
MIN_ESS = 10.0
FEW_ESS = 100.0
MIN_ESS_FRACTION = 0.01
LOW_ESS_FRACTION = 0.10

#: Share of all weight that one weight has.
MAX_SHARE = 0.25
HIGH_SHARE = 0.05

#: Pareto tail index: at 1 the mean of the weights does not exist; see `pareto_k_threshold` for the caution.
MAX_PARETO_K = 1.0

#: Standard errors by which the mean weight may differ from 1 (true propensities only).
MAX_MEAN_WEIGHT_Z = 5.0
HIGH_MEAN_WEIGHT_Z = 3.0

#: Share of logged responses that are as likely under the target as the target's own (0.9 if the two are alike).
MIN_TARGET_COVERAGE = 0.10
LOW_TARGET_COVERAGE = 0.50

#: Share of weights a clip or switch changed.
HIGH_CLIP_FRACTION = 0.10

#: Correlation of log-weight and length above which the estimate mostly compares lengths.
HIGH_LENGTH_CORRELATION = 0.80

#: What clipping or shrinking moves the estimate by, and one standard error of that, in standard errors of the estimate:
#: half of one costs a 95% interval three points of coverage. Above the second, the bias alone leaves the interval.
HIGH_SHRINKAGE_BIAS = 0.5
MAX_SHRINKAGE_BIAS = 3.0

#: Standard errors by which the logged responses may contradict the reward model of the direct method.
MAX_MODEL_BIAS_Z = 3.0
