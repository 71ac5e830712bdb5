"""The slate objective in one launch of one program: each lane processes one slate, response by response.

So sums within a slate need no reduction, sums over slates are reduced in a fixed order, and there are no atomics. There
is only one number per response, so arithmetic is in float64; formulas and names are those of
``csrc/include/pope/slate_objective.h``. 1024 lanes cover the slates of any training batch; longer logs take several
rounds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..values import (
    DIVERSITY_FORMS,
    MAX_LOG_WEIGHT,
    NORMALIZATIONS,
    UTILITY_FORMS,
    WEIGHTINGS,
    ObjectiveOptions,
    SlateValues,
    new_slate_values,
)
from .numbers import joined, split

LANES = 1024
WARPS = 16
RESPONSE, SLATE, GEOMETRIC = (tl.constexpr(WEIGHTINGS[name]) for name in ("response", "slate", "geometric"))
NONE, BY_SLATE, BATCH = (tl.constexpr(NORMALIZATIONS[name]) for name in ("none", "slate", "batch"))
FEEDBACK, LOG_LIKELIHOOD = (tl.constexpr(UTILITY_FORMS[name]) for name in ("feedback", "log_likelihood"))
NEG_LOG_PROB, ENTROPY = (tl.constexpr(DIVERSITY_FORMS[name]) for name in ("neg_log_prob", "entropy"))


@triton.jit
def finite(x):
    return x - x == 0


@triton.jit
def slates_of(offsets, first, num_slates, num_responses, LANES: tl.constexpr):
    """Begin and size of each lane's slate, and whether its offsets are valid; an invalid slate is empty."""
    q = first + tl.arange(0, LANES)
    mine = q < num_slates
    begin = tl.load(offsets + q, mask=mine, other=0)
    end = tl.load(offsets + q + 1, mask=mine, other=1)
    valid = (begin >= 0) & (begin < end) & (end <= num_responses)
    valid = valid & ((q > 0) | (begin == 0)) & ((q != num_slates - 1) | (end == num_responses))
    return begin, tl.where(mine & valid, end - begin, 0), (~mine) | valid


@triton.jit
def log_ratio(logprobs, logging, at, mine):
    return tl.load(logprobs + at, mask=mine, other=0.0) - tl.load(logging + at, mask=mine, other=0.0)


@triton.jit
def slate_log_ratio(logprobs, logging, begin, size, LANES: tl.constexpr):
    """Sum of the log-ratios of each lane's slate."""
    total = tl.zeros((LANES,), tl.float64)
    for j in range(tl.max(size, 0)):
        total += log_ratio(logprobs, logging, begin + j, j < size)
    return total


@triton.jit
def raw_log_weight(ratio, slate_ratio, k, WEIGHTING: tl.constexpr):
    weight = ratio
    if WEIGHTING == SLATE:
        weight = slate_ratio
    elif WEIGHTING == GEOMETRIC:
        weight = slate_ratio / k
    else:
        tl.static_assert(WEIGHTING == RESPONSE, "a weighting without a formula here")
    return weight


@triton.jit
def reward(logprobs, utility, at, mine, alpha, UTILITY_FORM: tl.constexpr, DIVERSITY_FORM: tl.constexpr):
    """Utility, diversity and the slope of the unified reward."""
    logprob = tl.load(logprobs + at, mask=mine, other=0.0)
    feedback = tl.load(utility + at, mask=mine, other=0.0)
    gain, slope = feedback, tl.zeros_like(feedback)
    if UTILITY_FORM == LOG_LIKELIHOOD:
        gain, slope = feedback * logprob, feedback
    else:
        tl.static_assert(UTILITY_FORM == FEEDBACK, "a utility_form without a formula here")
    diversity, diversity_slope = -logprob, tl.zeros_like(logprob) - 1
    if DIVERSITY_FORM == ENTROPY:
        probability = tl.exp(logprob)
        diversity, diversity_slope = -probability * logprob, -probability * (logprob + 1)
    else:
        tl.static_assert(DIVERSITY_FORM == NEG_LOG_PROB, "a diversity_form without a formula here")
    return gain, diversity, slope + alpha * diversity_slope


@triton.jit
def objective_kernel(
    logprobs,
    logging,
    utility,
    offsets,
    num_slates,
    num_responses,
    alpha_high,
    alpha_low,
    log_clip_high,
    log_clip_low,
    denominator_high,
    denominator_low,
    max_log_weight,
    value_out,
    utility_out,
    diversity_out,
    log_weights_out,
    weights_out,
    effective_size_out,
    clip_fraction_out,
    coefficients_out,
    largest_out,
    largest_slate_out,
    valid_out,
    WEIGHTING: tl.constexpr,
    NORMALIZATION: tl.constexpr,
    UTILITY_FORM: tl.constexpr,
    DIVERSITY_FORM: tl.constexpr,
    CLIPPED: tl.constexpr,
    LANES: tl.constexpr,
):
    alpha = joined(alpha_high, alpha_low)
    log_clip = joined(log_clip_high, log_clip_low)
    denominator = joined(denominator_high, denominator_low)

    # Raw weights, their maximum, and whether every input is valid.
    largest = tl.full((LANES,), float("-inf"), tl.float64)
    largest_slate = tl.zeros((LANES,), tl.int64)
    invalid = tl.zeros((LANES,), tl.int32)
    for first in range(0, num_slates, LANES):
        begin, size, valid = slates_of(offsets, first, num_slates, num_responses, LANES)
        invalid |= (~valid).to(tl.int32)
        k = tl.maximum(size, 1).to(tl.float64)
        slate_ratio = slate_log_ratio(logprobs, logging, begin, size, LANES)
        for j in range(tl.max(size, 0)):
            at, mine = begin + j, j < size
            ratio = log_ratio(logprobs, logging, at, mine)
            tl.store(log_weights_out + at, ratio, mask=mine)
            feedback = tl.load(utility + at, mask=mine, other=0.0)
            invalid |= (mine & ~(finite(ratio) & finite(feedback))).to(tl.int32)
            raw = raw_log_weight(ratio, slate_ratio, k, WEIGHTING)
            larger = mine & (raw > largest)
            largest = tl.where(larger, raw, largest)
            largest_slate = tl.where(larger, first + tl.arange(0, LANES).to(tl.int64), largest_slate)
    top = tl.max(largest, 0)
    limit = top
    if CLIPPED:
        limit = tl.minimum(top, log_clip)

    # The value. Shifting log-weights by the largest in their quotient does not change the quotient and avoids 0 / 0.
    utility_sum = tl.zeros((LANES,), tl.float64)
    diversity_sum = tl.zeros((LANES,), tl.float64)
    weight_sum = tl.zeros((LANES,), tl.float64)
    counted = tl.zeros((LANES,), tl.int64)
    clipped = tl.zeros((LANES,), tl.int64)
    size_sum = tl.zeros((LANES,), tl.float64)
    size_squares = tl.zeros((LANES,), tl.float64)
    for first in range(0, num_slates, LANES):
        begin, size, valid = slates_of(offsets, first, num_slates, num_responses, LANES)
        k = tl.maximum(size, 1).to(tl.float64)
        slate_ratio = slate_log_ratio(logprobs, logging, begin, size, LANES)
        shift = slate_shift(
            logprobs, logging, begin, size, slate_ratio, log_clip, limit, WEIGHTING, NORMALIZATION, CLIPPED, LANES
        )
        in_utility = tl.zeros((LANES,), tl.float64)
        in_diversity = tl.zeros((LANES,), tl.float64)
        in_weight = tl.zeros((LANES,), tl.float64)
        for j in range(tl.max(size, 0)):
            at, mine = begin + j, j < size
            raw = raw_log_weight(log_ratio(logprobs, logging, at, mine), slate_ratio, k, WEIGHTING)
            log_omega = raw
            if CLIPPED:
                log_omega = tl.minimum(raw, log_clip)
            tl.store(weights_out + at, tl.exp(log_omega), mask=mine)
            gain, diversity, slope = reward(logprobs, utility, at, mine, alpha, UTILITY_FORM, DIVERSITY_FORM)
            e = tl.where(mine, tl.exp(log_omega - shift), 0.0)
            in_utility += e * gain
            in_diversity += e * diversity
            in_weight += e
            once = mine
            if WEIGHTING != RESPONSE:
                once = mine & (j == 0)
            counted += once.to(tl.int64)
            if CLIPPED:
                clipped += (once & (raw > log_clip)).to(tl.int64)
            share = tl.where(once, tl.exp(raw - top), 0.0)
            size_sum += share
            size_squares += share * share
        divisor = k
        if NORMALIZATION == BY_SLATE:
            divisor = tl.where(size > 0, in_weight, 1.0)
        utility_sum += in_utility / divisor
        diversity_sum += in_diversity / divisor
        weight_sum += in_weight / divisor

    is_valid = tl.max(invalid, 0) == 0
    if not CLIPPED:
        is_valid = is_valid & (top <= max_log_weight)
    poison = tl.where(is_valid, 0.0, float("nan")).to(tl.float64)
    if NORMALIZATION == BATCH:
        denominator = tl.sum(weight_sum, 0)
    utility_value = tl.sum(utility_sum, 0) / denominator + poison
    diversity_value = tl.sum(diversity_sum, 0) / denominator + poison
    value = utility_value + alpha * diversity_value
    tl.store(value_out, value)
    tl.store(utility_out, utility_value)
    tl.store(diversity_out, diversity_value)
    total = tl.sum(size_sum, 0)
    tl.store(effective_size_out, total * total / tl.sum(size_squares, 0))
    tl.store(clip_fraction_out, tl.sum(clipped, 0).to(tl.float64) / tl.sum(counted, 0).to(tl.float64))
    tl.store(largest_out, top)
    tl.store(largest_slate_out, tl.min(tl.where(largest == top, largest_slate, num_slates), 0))
    tl.store(valid_out, is_valid)

    # dV/dl.
    for first in range(0, num_slates, LANES):
        begin, size, valid = slates_of(offsets, first, num_slates, num_responses, LANES)
        k = tl.maximum(size, 1).to(tl.float64)
        slate_ratio = slate_log_ratio(logprobs, logging, begin, size, LANES)
        shift = slate_shift(
            logprobs, logging, begin, size, slate_ratio, log_clip, limit, WEIGHTING, NORMALIZATION, CLIPPED, LANES
        )
        baseline = tl.zeros((LANES,), tl.float64)
        divisor = denominator * k
        if NORMALIZATION == BATCH:
            baseline += value
        if NORMALIZATION == BY_SLATE:
            in_reward = tl.zeros((LANES,), tl.float64)
            in_weight = tl.zeros((LANES,), tl.float64)
            for j in range(tl.max(size, 0)):
                at, mine = begin + j, j < size
                log_omega = raw_log_weight(log_ratio(logprobs, logging, at, mine), slate_ratio, k, WEIGHTING)
                if CLIPPED:
                    log_omega = tl.minimum(log_omega, log_clip)
                e = tl.where(mine, tl.exp(log_omega - shift), 0.0)
                gain, diversity, slope = reward(logprobs, utility, at, mine, alpha, UTILITY_FORM, DIVERSITY_FORM)
                in_reward += e * (gain + alpha * diversity)
                in_weight += e
            in_weight = tl.where(size > 0, in_weight, 1.0)
            baseline = in_reward / in_weight
            divisor = denominator * in_weight
        excess = tl.zeros((LANES,), tl.float64)  # sum_j (R_j - V*)
        if WEIGHTING != RESPONSE:
            for j in range(tl.max(size, 0)):
                at, mine = begin + j, j < size
                gain, diversity, slope = reward(logprobs, utility, at, mine, alpha, UTILITY_FORM, DIVERSITY_FORM)
                excess += tl.where(mine, gain + alpha * diversity - baseline, 0.0)
            if WEIGHTING == GEOMETRIC:
                excess = excess / k
        for j in range(tl.max(size, 0)):
            at, mine = begin + j, j < size
            raw = raw_log_weight(log_ratio(logprobs, logging, at, mine), slate_ratio, k, WEIGHTING)
            log_omega = raw
            if CLIPPED:
                log_omega = tl.minimum(raw, log_clip)
            e = tl.exp(log_omega - shift)
            gain, diversity, slope = reward(logprobs, utility, at, mine, alpha, UTILITY_FORM, DIVERSITY_FORM)
            through_weight = excess
            if WEIGHTING == RESPONSE:
                through_weight = gain + alpha * diversity - baseline
            if CLIPPED:
                through_weight = tl.where(raw <= log_clip, through_weight, 0.0)
            tl.store(coefficients_out + at, e * (through_weight + slope) / divisor + poison, mask=mine)


@triton.jit
def slate_shift(
    logprobs,
    logging,
    begin,
    size,
    slate_ratio,
    log_clip,
    limit,
    WEIGHTING: tl.constexpr,
    NORMALIZATION: tl.constexpr,
    CLIPPED: tl.constexpr,
    LANES: tl.constexpr,
):
    """The largest log-weight in the quotient that a slate belongs to; 0 without normalisation."""
    shift = tl.zeros((LANES,), tl.float64)
    if NORMALIZATION == BATCH:
        shift += limit
    elif NORMALIZATION == BY_SLATE:
        shift = tl.full((LANES,), float("-inf"), tl.float64)
        for j in range(tl.max(size, 0)):
            mine = j < size
            ratio = log_ratio(logprobs, logging, begin + j, mine)
            raw = raw_log_weight(ratio, slate_ratio, tl.maximum(size, 1).to(tl.float64), WEIGHTING)
            if CLIPPED:
                raw = tl.minimum(raw, log_clip)
            shift = tl.where(mine, tl.maximum(shift, raw), shift)
        shift = tl.where(size > 0, shift, 0.0)
    else:
        tl.static_assert(NORMALIZATION == NONE, "a normalization without a formula here")
    return shift


def slate_objective(
    response_logprobs: torch.Tensor,
    logging_logprobs: torch.Tensor,
    utility: torch.Tensor,
    slate_offsets: torch.Tensor,
    options: ObjectiveOptions,
    dtype: torch.dtype,
) -> SlateValues:
    """As ``native.slate_objective``; invalid inputs give NaN and ``valid`` false."""
    num_responses, codes = response_logprobs.numel(), options.codes
    values = new_slate_values(response_logprobs, dtype)
    objective_kernel[(1,)](
        response_logprobs,
        logging_logprobs,
        utility,
        slate_offsets,
        slate_offsets.numel() - 1,
        num_responses,
        *split(options.diversity_weight),
        *split(0.0 if options.clip is None else options.log_clip),
        *split(float(options.num_slates)),
        MAX_LOG_WEIGHT,
        *values,
        WEIGHTING=codes.weighting,
        NORMALIZATION=codes.normalization,
        UTILITY_FORM=codes.utility_form,
        DIVERSITY_FORM=codes.diversity_form,
        CLIPPED=options.clip is not None,
        LANES=LANES,
        num_warps=WARPS,
    )
    return values
