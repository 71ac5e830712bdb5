// Log-probability of the label of every row: one block per row, one read.
#include "launch.cuh"
#include "pope/cuda_ops.h"
#include "rows.cuh"

namespace pope::cuda {
namespace {

// With up to 64 registers per thread, at least four blocks share an SM: the last reduction of one row overlaps with the
// reads of another.
constexpr int kThreads = 256;
constexpr int kBlocksPerProcessor = 4;

template <class T, class Acc, bool kSoftcap>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : kBlocksPerProcessor)
    forward_kernel(const T* logits, int64_t row_stride, int64_t cols, const int64_t* labels,
                   Transform<Acc, kSoftcap> transform, Acc* logprobs, double* lse) {
    __shared__ Online<Acc> of_warp[kThreads / 32];
    const int64_t n = blockIdx.x;
    const int64_t label = labels[n];
    if (label == kIgnoreIndex) {
        if (threadIdx.x == 0) {
            logprobs[n] = 0;
            lse[n] = 0;
        }
        return;
    }
    const T* row = logits + n * row_stride;
    Online<Acc> online = scan_row(row, cols, transform, threadIdx.x, kThreads);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        Online<Acc> other;
        other.top = __shfl_xor_sync(~0u, online.top, distance);
        other.sum = __shfl_xor_sync(~0u, online.sum, distance);
        online.merge(other);
    }
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = online;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int warp = 1; warp < kThreads / 32; ++warp) online.merge(of_warp[warp]);
    finish_row(row, cols, label, transform, online, logprobs + n, lse + n);
}

template <class T, class Acc, bool kSoftcap>
void launch(const Matrix& m, const int64_t* labels, LogitTransform t, void* logprobs, double* lse,
            cudaStream_t stream) {
    forward_kernel<T, Acc, kSoftcap><<<static_cast<unsigned>(m.rows), kThreads, 0, stream>>>(
        static_cast<const T*>(m.data), m.row_stride, m.cols, labels, as_transform<Acc, kSoftcap>(t),
        static_cast<Acc*>(logprobs), lse);
}

}  // namespace

void token_logprobs(const Matrix& logits, const int64_t* labels, LogitTransform transform, void* logprobs_acc,
                    double* lse, void* stream) {
    if (logits.rows == 0) return;
    with_storage(logits.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        using Acc = typename Storage<T>::Acc;
        auto* run = transform.softcap > 0 ? launch<T, Acc, true> : launch<T, Acc, false>;
        run(logits, labels, transform, logprobs_acc, lse, as_stream(stream));
    });
    check_launch("token_logprobs");
}

}  // namespace pope::cuda
