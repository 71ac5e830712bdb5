// The contract of the native operations: plain pointers and sizes, no torch, no Python.
//
// N rows (one per response token), V columns (the vocabulary), R responses, S slates. "acc" is double for float64
// logits and float otherwise; a log-sum-exp is always double, because exp(z - lse) inherits its absolute error, which
// in float grows with the logits. Outputs are written completely; no allocation grows with N * V.
#pragma once

#include <cstdint>

#include "pope/dtype.h"
#include "pope/slate_math.h"

namespace pope {

constexpr int64_t kIgnoreIndex = -100;

struct Matrix {
    void* data;
    DType dtype;
    int64_t rows;
    int64_t cols;
    int64_t row_stride;  // in elements; columns are contiguous
};

// z = softcap * tanh(scale * x / softcap), or scale * x when softcap is 0.
struct LogitTransform {
    double scale = 1.0;
    double softcap = 0.0;
};

struct ObjectiveInputs {
    const double* response_logprobs;  // [R]
    const double* logging_logprobs;   // [R]
    const double* utility;            // [R]
    const int64_t* slate_offsets;     // [S + 1]
    int64_t num_slates;
    int64_t num_responses;
};

struct ObjectiveOutputs {
    double* log_weights;   // [R] raw log-ratios
    double* weights;       // [R] omega as used
    double* coefficients;  // [R] dV / d response_logprobs
    double value, utility_value, diversity_value;
    double effective_sample_size, clip_fraction;
    double largest_log_weight;  // of the raw weights, at the level they act on
    int64_t largest_slate;
};

namespace cpu {

// logprobs[n] = z[n, labels[n]] - logsumexp(z[n, :]); 0 for ignored rows, whose logits are not read.
void token_logprobs(const Matrix& logits, const int64_t* labels, LogitTransform transform, void* logprobs_acc,
                    double* lse, int threads);

// out[n, :] = coefficients[n] * d logprobs[n] / d logits[n, :]. `coefficients` may be null (all ones); `out` may be
// `logits`. Ignored rows and rows with a zero coefficient become exact zeros.
void logit_gradient(const Matrix& logits, const int64_t* labels, LogitTransform transform, const double* lse,
                    const void* coefficients_acc, const Matrix& out, int threads);

// out[r] = sum (or mean over its kept tokens) of logprobs in response r.
void response_sums(const void* logprobs_acc, bool is_double, const int64_t* labels, const int64_t* response_offsets,
                   int64_t num_responses, bool mean, void* out_acc);

// Its adjoint: out[n] = grad[r] (divided by the number of kept tokens for the mean), 0 for ignored rows.
void token_coefficients(const void* grad_acc, bool is_double, const int64_t* labels, const int64_t* response_offsets,
                        int64_t num_responses, bool mean, void* out_acc);

void slate_objective(const ObjectiveInputs& in, const ObjectiveOptions& options, ObjectiveOutputs& out);

// Hint that a freshly allocated buffer will be written completely.
void advise_huge_pages(void* data, int64_t bytes);

// Whether this is an AMD processor, where Intel's MKL does not use its widest instructions.
bool is_amd();

// The instruction set the row kernels run with: "avx512", "avx2" or "baseline".
const char* isa();
// Force one (for tests); false if this CPU lacks it or the name is unknown. "auto" restores the best.
bool use_isa(const char* name);

}  // namespace cpu

}  // namespace pope
