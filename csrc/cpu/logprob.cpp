// Token log-probabilities, their gradient and their per-response sums: rows distributed over threads.
#include <algorithm>
#include <cstring>

#include "rows.h"

namespace pope::cpu {
namespace {

template <class F>
decltype(auto) with_acc(bool is_double, F&& f) {
    if (is_double) return f(double{});
    return f(float{});
}

int64_t element_size(DType dtype) {
    switch (dtype) {
        case DType::f64: return 8;
        case DType::f32: return 4;
        default: return 2;
    }
}

int64_t kept_tokens(const int64_t* labels, int64_t begin, int64_t end) {
    int64_t count = 0;
    for (int64_t n = begin; n < end; ++n) count += labels[n] != kIgnoreIndex;
    return count;
}

// At most one thread per 32k elements: waking one costs as much as that.
int useful_threads(const Matrix& m, int threads) {
    constexpr int64_t kGrain = 32768;
    return static_cast<int>(std::min<int64_t>(threads, std::max<int64_t>(1, m.rows * m.cols / kGrain)));
}

}  // namespace

void token_logprobs(const Matrix& logits, const int64_t* labels, LogitTransform transform, void* logprobs_acc,
                    double* lse, int threads) {
    const RowKernels& kernels = row_kernels();
    const int workers = useful_threads(logits, threads);
    with_acc(accumulates_in_double(logits.dtype), [&](auto zero) {
        using Acc = decltype(zero);
        Acc* logprobs = static_cast<Acc*>(logprobs_acc);
#pragma omp parallel for schedule(static) num_threads(workers)
        for (int64_t n = 0; n < logits.rows; ++n) {
            if (labels[n] == kIgnoreIndex) {
                logprobs[n] = lse[n] = 0;
            } else {
                kernels.forward(logits, n, labels[n], transform, logprobs + n, lse + n);
            }
        }
    });
}

void logit_gradient(const Matrix& logits, const int64_t* labels, LogitTransform transform, const double* lse,
                    const void* coefficients_acc, const Matrix& out, int threads) {
    const RowKernels& kernels = row_kernels();
    const int workers = useful_threads(logits, threads);
    const int64_t width = element_size(out.dtype);
    with_acc(accumulates_in_double(logits.dtype), [&](auto zero) {
        using Acc = decltype(zero);
        const Acc* coefficients = static_cast<const Acc*>(coefficients_acc);
#pragma omp parallel for schedule(static) num_threads(workers)
        for (int64_t n = 0; n < logits.rows; ++n) {
            const Acc coefficient = coefficients == nullptr ? Acc(1) : coefficients[n];
            if (labels[n] == kIgnoreIndex || coefficient == 0) {
                std::memset(static_cast<char*>(out.data) + n * out.row_stride * width, 0, out.cols * width);
            } else {
                kernels.backward(logits, n, labels[n], transform, lse[n], coefficient, out);
            }
        }
    });
}

void response_sums(const void* logprobs_acc, bool is_double, const int64_t* labels, const int64_t* response_offsets,
                   int64_t num_responses, bool mean, void* out_acc) {
    with_acc(is_double, [&](auto zero) {
        using Acc = decltype(zero);
        const Acc* logprobs = static_cast<const Acc*>(logprobs_acc);
        for (int64_t r = 0; r < num_responses; ++r) {
            const int64_t begin = response_offsets[r], end = response_offsets[r + 1];
            double total = 0;
            for (int64_t n = begin; n < end; ++n) total += logprobs[n];
            const double divisor = mean ? static_cast<double>(kept_tokens(labels, begin, end)) : 1.0;
            static_cast<Acc*>(out_acc)[r] = static_cast<Acc>(total / divisor);
        }
    });
}

void token_coefficients(const void* grad_acc, bool is_double, const int64_t* labels, const int64_t* response_offsets,
                        int64_t num_responses, bool mean, void* out_acc) {
    with_acc(is_double, [&](auto zero) {
        using Acc = decltype(zero);
        const Acc* grad = static_cast<const Acc*>(grad_acc);
        Acc* out = static_cast<Acc*>(out_acc);
        for (int64_t r = 0; r < num_responses; ++r) {
            const int64_t begin = response_offsets[r], end = response_offsets[r + 1];
            const double divisor = mean ? static_cast<double>(kept_tokens(labels, begin, end)) : 1.0;
            const Acc each = static_cast<Acc>(grad[r] / divisor);
            for (int64_t n = begin; n < end; ++n) out[n] = labels[n] == kIgnoreIndex ? Acc(0) : each;
        }
    });
}

}  // namespace pope::cpu
