// Gradient of the log-probability of every row's label: one read, one write, in place or out of place.
#include "launch.cuh"
#include "pope/cuda_ops.h"
#include "rows.cuh"

namespace pope::cuda {
namespace {

// Three blocks with up to 80 registers per thread: with four they would spill, and 48 KB in flight are enough.
constexpr int kThreads = 256;
constexpr int kBlocksPerProcessor = 3;

template <class T, class Acc, bool kSoftcap>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : kBlocksPerProcessor)
    backward_kernel(Backward<T, Acc, kSoftcap> work) {
    work.run(blockIdx.x, threadIdx.x, kThreads);
}

template <class T, class Acc, bool kSoftcap>
void launch(const Matrix& m, const int64_t* labels, LogitTransform t, const double* lse, const void* coefficients,
            const Matrix& out, cudaStream_t stream) {
    const Backward<T, Acc, kSoftcap> work{static_cast<const T*>(m.data),
                                          m.row_stride,
                                          m.cols,
                                          labels,
                                          as_transform<Acc, kSoftcap>(t),
                                          lse,
                                          static_cast<const Acc*>(coefficients),
                                          static_cast<T*>(out.data),
                                          out.row_stride};
    backward_kernel<<<static_cast<unsigned>(m.rows * work.pieces()), kThreads, 0, stream>>>(work);
}

}  // namespace

void logit_gradient(const Matrix& logits, const int64_t* labels, LogitTransform transform, const double* lse,
                    const void* coefficients_acc, const Matrix& out, void* stream) {
    if (logits.rows == 0) return;
    with_storage(logits.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        using Acc = typename Storage<T>::Acc;
        auto* run = transform.softcap > 0 ? launch<T, Acc, true> : launch<T, Acc, false>;
        run(logits, labels, transform, lse, coefficients_acc, out, as_stream(stream));
    });
    check_launch("logit_gradient");
}

}  // namespace pope::cuda
