// The slate objective in double precision, written once for a CPU thread and for a block of GPU threads.
//
// Every weighting and normalisation is one formula. With e_i the (shifted) weight and V* the value subtracted by the
// quotient rule (0 without normalisation, the slate's value, or the batch's),
//
//     dV/dl_i = [ weight term + e_i R'_i ] / D
//     weight term = 1{not clipped} e_i (R_i - V*)                      response weights
//                   1{not clipped} e_q sum_j (R_j - V*)                slate weights (times 1/k for geometric)
//     D = S k_q  |  S sum_j e_j  |  k_q sum_q (1/k_q) sum_j e_j        none | slate | batch
//
// Log-weights are shifted by the largest in their quotient, which does not change the quotient and avoids 0/0.
//
// A Team distributes the work over threads: each warp processes slates, its lanes the responses of a slate. Sums are
// combined in a fixed order, so results are the same in every run. Invalid input (a number that is not finite, invalid
// offsets, a log-weight out of bounds) gives NaN and sets `valid` to false.
#pragma once

#include "pope/ops.h"

namespace pope {

// Pointers to the results; Real is their type for the caller.
template <class Real>
struct ObjectiveTarget {
    Real* value;
    Real* utility_value;
    Real* diversity_value;
    Real* log_weights;  // [R] raw log-ratios
    Real* weights;      // [R] omega as used
    Real* effective_sample_size;
    Real* clip_fraction;
    double* coefficients;        // [R] dV / d response_logprobs
    double* largest_log_weight;  // of the raw weights, at the level they act on
    int64_t* largest_slate;
    bool* valid;
};

POPE_HOST_DEVICE inline bool is_finite(double x) { return x - x == 0; }
POPE_HOST_DEVICE inline double smaller(double a, double b) { return a < b ? a : b; }
POPE_HOST_DEVICE inline double larger(double a, double b) { return a > b ? a : b; }

template <class Team>
struct SlateObjective {
    Team& team;
    const ObjectiveInputs& in;
    const ObjectiveOptions& options;

    struct Slate {
        int64_t begin, end;
        double k, log_ratio;  // sum over its responses
        bool valid;
    };
    struct Sums {
        double utility, diversity, weight;
    };

    POPE_HOST_DEVICE double log_ratio(int64_t i) const { return in.response_logprobs[i] - in.logging_logprobs[i]; }

    POPE_HOST_DEVICE Reward reward_of(int64_t i) const {
        return reward(in.response_logprobs[i], in.utility[i], options);
    }

    // An invalid slate is empty, so that no out-of-bounds address is computed.
    POPE_HOST_DEVICE Slate slate_at(int64_t q) const {
        Slate s{in.slate_offsets[q], in.slate_offsets[q + 1], 0, 0, true};
        s.valid = s.begin >= 0 && s.begin < s.end && s.end <= in.num_responses && (q > 0 || s.begin == 0) &&
                  (q + 1 < in.num_slates || s.end == in.num_responses);
        if (!s.valid) s.begin = s.end = 0;
        s.k = s.valid ? static_cast<double>(s.end - s.begin) : 1.0;
        double total = 0;
        for (int64_t i = s.begin + team.lane(); i < s.end; i += team.lanes()) total += log_ratio(i);
        s.log_ratio = team.sum(total);
        return s;
    }

    POPE_HOST_DEVICE double raw(const Slate& s, int64_t i) const {
        return raw_log_weight(log_ratio(i), s.log_ratio, s.k, options.weighting);
    }

    // The end of the responses that have their own weight; the first one stands for a slate that shares one.
    POPE_HOST_DEVICE int64_t weights_end(const Slate& s) const {
        return options.weighting == Weighting::response || s.begin == s.end ? s.end : s.begin + 1;
    }

    POPE_HOST_DEVICE double shift(const Slate& s, double batch_top) const {
        switch (options.normalization) {
            case Normalization::none: return 0.0;
            case Normalization::batch: return batch_top;
            case Normalization::slate: break;
        }
        double top = -kLargest;
        for (int64_t i = s.begin + team.lane(); i < s.end; i += team.lanes()) top = larger(top, raw(s, i));
        return smaller(team.max(top), options.log_clip);
    }

    POPE_HOST_DEVICE Sums slate_sums(const Slate& s, double base) const {
        Sums sums{0, 0, 0};
        for (int64_t i = s.begin + team.lane(); i < s.end; i += team.lanes()) {
            const Reward r = reward_of(i);
            const double e = exp(smaller(raw(s, i), options.log_clip) - base);
            sums.utility += e * r.utility;
            sums.diversity += e * r.diversity;
            sums.weight += e;
        }
        return {team.sum(sums.utility), team.sum(sums.diversity), team.sum(sums.weight)};
    }

    template <class Real>
    POPE_HOST_DEVICE void run(const ObjectiveTarget<Real>& out) const {
        const bool by_slate = options.normalization == Normalization::slate;

        // Raw weights, their maximum, and whether every input is valid.
        double top = -kLargest;
        int64_t top_slate = 0;
        bool valid = true;
        for (int64_t q = team.warp(); q < in.num_slates; q += team.warps()) {
            const Slate s = slate_at(q);
            valid = valid && s.valid;
            for (int64_t i = s.begin + team.lane(); i < s.end; i += team.lanes()) {
                out.log_weights[i] = static_cast<Real>(log_ratio(i));
                valid = valid && is_finite(log_ratio(i)) && is_finite(in.utility[i]);
                const double weight = raw(s, i);
                if (weight > top) {
                    top = weight;
                    top_slate = q;
                }
            }
        }
        const double all_top = team.block_max(top);
        const double first = -team.block_max(top == all_top ? -static_cast<double>(top_slate) : -kLargest);
        valid = team.block_max(valid ? 0.0 : 1.0) == 0.0 && (options.log_clip < kLargest || all_top <= kMaxLogWeight);
        const double poison = valid ? 0.0 : static_cast<double>(NAN);
        const double batch_top = smaller(all_top, options.log_clip);

        // The value.
        Sums total{0, 0, 0};
        double size = 0, squares = 0, counted = 0, clipped = 0;
        for (int64_t q = team.warp(); q < in.num_slates; q += team.warps()) {
            const Slate s = slate_at(q);
            const Sums sums = slate_sums(s, shift(s, batch_top));
            const double divisor = by_slate ? sums.weight : s.k;
            if (team.lane() == 0 && s.valid) {
                total.utility += sums.utility / divisor;
                total.diversity += sums.diversity / divisor;
                total.weight += sums.weight / divisor;
            }
            for (int64_t i = s.begin + team.lane(); i < s.end; i += team.lanes())
                out.weights[i] = static_cast<Real>(exp(smaller(raw(s, i), options.log_clip)));
            for (int64_t i = s.begin + team.lane(); i < weights_end(s); i += team.lanes()) {
                const double share = exp(raw(s, i) - all_top);
                size += share;
                squares += share * share;
                counted += 1;
                clipped += raw(s, i) > options.log_clip;
            }
        }
        size = team.block_sum(size);
        total = {team.block_sum(total.utility), team.block_sum(total.diversity), team.block_sum(total.weight)};
        const double denominator = options.normalization == Normalization::batch ? total.weight : options.num_slates;
        const double utility_value = total.utility / denominator + poison;
        const double diversity_value = total.diversity / denominator + poison;
        const double value = utility_value + options.diversity_weight * diversity_value;
        const double effective_size = size * size / team.block_sum(squares);
        const double clip_fraction = team.block_sum(clipped) / team.block_sum(counted);
        if (team.warp() == 0 && team.lane() == 0) {
            *out.value = static_cast<Real>(value);
            *out.utility_value = static_cast<Real>(utility_value);
            *out.diversity_value = static_cast<Real>(diversity_value);
            *out.effective_sample_size = static_cast<Real>(effective_size);
            *out.clip_fraction = static_cast<Real>(clip_fraction);
            *out.largest_log_weight = all_top;
            *out.largest_slate = static_cast<int64_t>(first);
            *out.valid = valid;
        }

        // dV/dl.
        for (int64_t q = team.warp(); q < in.num_slates; q += team.warps()) {
            const Slate s = slate_at(q);
            const double base = shift(s, batch_top);
            double baseline = options.normalization == Normalization::batch ? value : 0.0;
            double divisor = denominator * s.k;
            if (by_slate) {
                const Sums sums = slate_sums(s, base);
                baseline = (sums.utility + options.diversity_weight * sums.diversity) / sums.weight;
                divisor = options.num_slates * sums.weight;
            }
            double excess = 0;  // sum_j (R_j - V*)
            for (int64_t i = s.begin + team.lane(); i < s.end; i += team.lanes())
                excess += reward_of(i).total - baseline;
            excess = team.sum(excess);
            for (int64_t i = s.begin + team.lane(); i < s.end; i += team.lanes()) {
                const Reward r = reward_of(i);
                const double log_weight = raw(s, i);
                const double e = exp(smaller(log_weight, options.log_clip) - base);
                double gain = options.weighting == Weighting::response ? r.total - baseline : excess;
                if (options.weighting == Weighting::geometric) gain /= s.k;
                const double through_weight = log_weight <= options.log_clip ? e * gain : 0.0;
                out.coefficients[i] = (through_weight + e * r.slope) / divisor + poison;
            }
        }
    }
};

template <class Real, class Team>
POPE_HOST_DEVICE void evaluate_objective(Team& team, const ObjectiveInputs& in, const ObjectiveOptions& options,
                                         const ObjectiveTarget<Real>& out) {
    SlateObjective<Team>{team, in, options}.run(out);
}

}  // namespace pope
