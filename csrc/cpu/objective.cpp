// The slate objective in double precision: value, parts, weights and dV/dl, in two passes over the responses.
//
// Every weighting and normalisation is one formula. With e_i the (shifted) weight and V* the value subtracted by the
// quotient rule (0 without normalisation, the slate's value, or the batch's),
//
//     dV/dl_i = [ weight term + e_i R'_i ] / D
//     weight term = 1{not clipped} e_i (R_i - V*)                      response weights
//                   1{not clipped} e_q sum_j (R_j - V*)                slate weights (times 1/k for geometric)
//     D = S k_q  |  S sum_j e_j  |  k_q sum_q (1/k_q) sum_j e_j        none | slate | batch
//
// Shifting e by the largest log-weight in its quotient changes no quotient and keeps tiny weights from becoming 0/0.
#include <algorithm>
#include <cmath>
#include <limits>

#include "pope/ops.h"

namespace pope::cpu {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Sums {
    double utility = 0, diversity = 0, weight = 0;
};

// Sum and sum of squares of exp(x - top), with a running top: an effective sample size that cannot overflow.
struct EffectiveSize {
    double top = -kInfinity, sum = 0, squares = 0;

    void add(double log_weight) {
        if (log_weight > top) {
            const double shrink = std::exp(top - log_weight);
            sum *= shrink;
            squares *= shrink * shrink;
            top = log_weight;
        }
        const double weight = std::exp(log_weight - top);
        sum += weight;
        squares += weight * weight;
    }
    double value() const { return sum * sum / squares; }
};

struct Slate {
    int64_t begin, end;
    double k, log_ratio;  // sum over its responses
};

Slate slate_at(const ObjectiveInputs& in, const double* log_weights, int64_t q) {
    Slate slate{in.slate_offsets[q], in.slate_offsets[q + 1], 0, 0};
    slate.k = static_cast<double>(slate.end - slate.begin);
    for (int64_t i = slate.begin; i < slate.end; ++i) slate.log_ratio += log_weights[i];
    return slate;
}

// Raw weights and their diagnostics; returns the largest log-weight after clipping.
double weigh(const ObjectiveInputs& in, const ObjectiveOptions& options, ObjectiveOutputs& out) {
    EffectiveSize size;
    double clipped = 0, counted = 0;
    out.largest_log_weight = -kInfinity;
    out.largest_slate = 0;
    for (int64_t q = 0; q < in.num_slates; ++q) {
        for (int64_t i = in.slate_offsets[q]; i < in.slate_offsets[q + 1]; ++i)
            out.log_weights[i] = in.response_logprobs[i] - in.logging_logprobs[i];
        const Slate slate = slate_at(in, out.log_weights, q);
        const bool one_weight = options.weighting != Weighting::response;
        for (int64_t i = slate.begin; i < (one_weight ? slate.begin + 1 : slate.end); ++i) {
            const double raw = raw_log_weight(out.log_weights[i], slate.log_ratio, slate.k, options.weighting);
            size.add(raw);
            counted += 1;
            clipped += raw > options.log_clip;
            if (raw > out.largest_log_weight) {
                out.largest_log_weight = raw;
                out.largest_slate = q;
            }
        }
    }
    out.effective_sample_size = size.value();
    out.clip_fraction = clipped / counted;
    return std::min(out.largest_log_weight, options.log_clip);
}

}  // namespace

void slate_objective(const ObjectiveInputs& in, const ObjectiveOptions& options, ObjectiveOutputs& out) {
    const double batch_top = weigh(in, options, out);
    const auto raw = [&](const Slate& s, int64_t i) {
        return raw_log_weight(out.log_weights[i], s.log_ratio, s.k, options.weighting);
    };
    const auto shift = [&](const Slate& s) {
        if (options.normalization == Normalization::none) return 0.0;
        if (options.normalization == Normalization::batch) return batch_top;
        double top = -kInfinity;
        for (int64_t i = s.begin; i < s.end; ++i) top = std::max(top, std::min(raw(s, i), options.log_clip));
        return top;
    };
    const auto reward_of = [&](int64_t i) { return reward(in.response_logprobs[i], in.utility[i], options); };
    const auto slate_sums = [&](const Slate& s) {
        const double base = shift(s);
        Sums sums;
        for (int64_t i = s.begin; i < s.end; ++i) {
            const Reward r = reward_of(i);
            const double log_omega = std::min(raw(s, i), options.log_clip);
            const double e = std::exp(log_omega - base);
            out.weights[i] = std::exp(log_omega);
            sums.utility += e * r.utility;
            sums.diversity += e * r.diversity;
            sums.weight += e;
        }
        return sums;
    };

    // First pass: the value.
    Sums total;
    for (int64_t q = 0; q < in.num_slates; ++q) {
        const Slate s = slate_at(in, out.log_weights, q);
        const Sums sums = slate_sums(s);
        const double divisor = options.normalization == Normalization::slate ? sums.weight : s.k;
        total.utility += sums.utility / divisor;
        total.diversity += sums.diversity / divisor;
        total.weight += sums.weight / divisor;
    }
    const double denominator = options.normalization == Normalization::batch ? total.weight : options.num_slates;
    out.utility_value = total.utility / denominator;
    out.diversity_value = total.diversity / denominator;
    out.value = out.utility_value + options.diversity_weight * out.diversity_value;

    // Second pass: dV/dl.
    for (int64_t q = 0; q < in.num_slates; ++q) {
        const Slate s = slate_at(in, out.log_weights, q);
        const Sums sums = slate_sums(s);
        const bool by_slate = options.normalization == Normalization::slate;
        const double own = (sums.utility + options.diversity_weight * sums.diversity) / sums.weight;
        const double baseline = options.normalization == Normalization::none ? 0.0 : (by_slate ? own : out.value);
        const double divisor = by_slate ? options.num_slates * sums.weight : denominator * s.k;
        const double base = shift(s);
        double excess = 0;  // sum_j (R_j - V*)
        for (int64_t i = s.begin; i < s.end; ++i) excess += reward_of(i).total - baseline;
        for (int64_t i = s.begin; i < s.end; ++i) {
            const Reward r = reward_of(i);
            const double log_weight = raw(s, i);
            const double e = std::exp(std::min(log_weight, options.log_clip) - base);
            double gain = options.weighting == Weighting::response ? r.total - baseline : excess;
            if (options.weighting == Weighting::geometric) gain /= s.k;
            const double weight_term = log_weight <= options.log_clip ? e * gain : 0.0;
            out.coefficients[i] = (weight_term + e * r.slope) / divisor;
        }
    }
}

}  // namespace pope::cpu
