// The operations on the current GPU, enqueued on `stream` (a cudaStream_t) without synchronisation.
//
// Nothing is checked on the host: a label out of range, NaN in a row, invalid offsets and empty responses give NaN,
// never an out-of-bounds access. A failed launch throws std::runtime_error. Otherwise as in ops.h.
#pragma once

#include <string>
#include <vector>

#include "pope/slate_objective.h"

namespace pope::cuda {

struct Device {
    std::string name;
    int capability;  // 10 * major + minor
};

// The visible GPUs; none without a driver.
std::vector<Device> devices();

// Why the kernels of this build cannot run on the current device; empty if they can.
std::string unfit();

void token_logprobs(const Matrix& logits, const int64_t* labels, LogitTransform transform, void* logprobs_acc,
                    double* lse, void* stream);

void logit_gradient(const Matrix& logits, const int64_t* labels, LogitTransform transform, const double* lse,
                    const void* coefficients_acc, const Matrix& out, void* stream);

// Responses as runs of tokens.
struct Tokens {
    const int64_t* labels;            // [N]
    const int64_t* response_offsets;  // [R + 1]
    int64_t num_tokens;
    int64_t num_responses;
    bool mean;
};

void response_sums(const void* logprobs_acc, bool is_double, const Tokens& tokens, void* out_acc, void* stream);

void token_coefficients(const void* grad_acc, bool is_double, const Tokens& tokens, void* out_acc, void* stream);

// Additional steps before and after the objective in the same launch, so that a chunk needs one launch between its
// token log-probabilities and the coefficients of its gradient. All null if only the objective is computed.
template <class Real>
struct Seam {
    const Real* token_logprobs;  // [N] summed to ObjectiveInputs::response_logprobs first
    double* response_logprobs;   // [R] the same array, to write
    const double* share;         // [R] factor of the coefficients; null for ones
    Real* token_coefficients;    // [N] the coefficients spread over tokens
    Tokens tokens;
};

template <class Real>
void slate_objective(const ObjectiveInputs& in, const ObjectiveOptions& options, const ObjectiveTarget<Real>& out,
                     const Seam<Real>& seam, void* stream);

}  // namespace pope::cuda
