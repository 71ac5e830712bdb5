// Sums over the tokens of a response and their adjoint, by the lanes of a warp (a Team of slate_objective.h).
#pragma once

#include "pope/cuda_ops.h"

namespace pope::cuda {

struct Run {
    int64_t begin, end;
};

// The tokens of response r; none if its offsets are invalid.
POPE_HOST_DEVICE inline Run run_of(const Tokens& tokens, int64_t r) {
    const Run run{tokens.response_offsets[r], tokens.response_offsets[r + 1]};
    const bool valid = run.begin >= 0 && run.begin < run.end && run.end <= tokens.num_tokens &&
                       (r > 0 || run.begin == 0) && (r + 1 < tokens.num_responses || run.end == tokens.num_tokens);
    return valid ? run : Run{0, 0};
}

template <class Team>
POPE_HOST_DEVICE double kept_tokens(Team& team, const Tokens& tokens, Run run) {
    double kept = 0;
    for (int64_t n = run.begin + team.lane(); n < run.end; n += team.lanes()) kept += tokens.labels[n] != kIgnoreIndex;
    return team.sum(kept);
}

// Sum or mean of response r, NaN without a token; every lane gets it.
template <class Real, class Team>
POPE_HOST_DEVICE double response_sum(Team& team, const Real* logprobs, const Tokens& tokens, int64_t r) {
    const Run run = run_of(tokens, r);
    const double kept = kept_tokens(team, tokens, run);
    double total = 0;
    for (int64_t n = run.begin + team.lane(); n < run.end; n += team.lanes()) total += logprobs[n];
    total = team.sum(total);
    if (kept == 0) return static_cast<double>(NAN);
    return tokens.mean ? total / kept : total;
}

// Spreads the response's coefficient over its tokens.
template <class Real, class Team>
POPE_HOST_DEVICE void spread(Team& team, double coefficient, const Tokens& tokens, int64_t r, Real* out) {
    const Run run = run_of(tokens, r);
    const double each = tokens.mean ? coefficient / kept_tokens(team, tokens, run) : coefficient;
    for (int64_t n = run.begin + team.lane(); n < run.end; n += team.lanes())
        out[n] = tokens.labels[n] == kIgnoreIndex ? Real(0) : static_cast<Real>(each);
}

// From the log-probabilities of tokens to the coefficients of their gradients.
template <class Real, class Team>
POPE_HOST_DEVICE void seam_objective(Team& team, const ObjectiveInputs& in, const ObjectiveOptions& options,
                                     const ObjectiveTarget<Real>& out, const Seam<Real>& seam) {
    if (seam.token_logprobs != nullptr) {
        for (int64_t r = team.warp(); r < in.num_responses; r += team.warps()) {
            const double sum = response_sum(team, seam.token_logprobs, seam.tokens, r);
            if (team.lane() == 0) seam.response_logprobs[r] = sum;
        }
        team.sync();
    }
    evaluate_objective(team, in, options, out);
    if (seam.token_coefficients != nullptr) {
        team.sync();
        for (int64_t r = team.warp(); r < in.num_responses; r += team.warps()) {
            const double factor = seam.share == nullptr ? 1.0 : seam.share[r];
            spread(team, out.coefficients[r] * factor, seam.tokens, r, seam.token_coefficients);
        }
    }
}

}  // namespace pope::cuda
