// One row of logits at a time: the inner loops, compiled once per instruction set and chosen at run time.
#pragma once

#include "pope/ops.h"

namespace pope::cpu {

struct RowKernels {
    const char* isa;
    // Writes logprob (acc) and lse of row `row`.
    void (*forward)(const Matrix& logits, int64_t row, int64_t label, LogitTransform transform, void* logprob,
                    double* lse);
    // Writes coefficient * (onehot - softmax), chained through the transform, into row `row` of `out`.
    void (*backward)(const Matrix& logits, int64_t row, int64_t label, LogitTransform transform, double lse,
                     double coefficient, const Matrix& out);
};

const RowKernels& rows_baseline();
const RowKernels& rows_avx2();
const RowKernels& rows_avx512();

// The build in use.
const RowKernels& row_kernels();

}  // namespace pope::cpu
