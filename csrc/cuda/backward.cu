// Gradient of the log-probability of every row's label: one read, one write, in place or out of place.
#include "launch.cuh"
#include "pope/cuda_ops.h"
#include "rows.cuh"

namespace pope::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerProcessor = 4;
// A block takes a piece of a row: pieces fill the device when rows are few, and leave a short tail when they are many.
constexpr int64_t kPieceBytes = 65536;

template <class T, class Acc, bool kSoftcap>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : kBlocksPerProcessor)
    backward_kernel(const T* logits, int64_t row_stride, int64_t cols, int64_t pieces, const int64_t* labels,
                    Transform<Acc, kSoftcap> transform, const double* lse, const Acc* coefficients, T* out,
                    int64_t out_row_stride) {
    constexpr int64_t kPiece = kPieceBytes / sizeof(T);
    const int64_t n = blockIdx.x / pieces;
    const int64_t begin = (blockIdx.x % pieces) * kPiece;
    const int64_t count = cols - begin < kPiece ? cols - begin : kPiece;
    const T* in = logits + n * row_stride + begin;
    T* to = out + n * out_row_stride + begin;
    const int64_t label = labels[n];
    const Acc coefficient = coefficients == nullptr ? Acc(1) : coefficients[n];
    if (label == kIgnoreIndex || coefficient == 0) {
        map_row<false>(in, to, count, ZeroRow<T>{}, threadIdx.x, kThreads);
        return;
    }
    const double log_sum = lse[n];
    const Acc high = static_cast<Acc>(log_sum);
    const Acc low = static_cast<Acc>(log_sum - static_cast<double>(high));
    const RowGradient<T, Acc, kSoftcap> gradient{transform, label - begin, high, low, coefficient * transform.scale};
    map_row<true>(in, to, count, gradient, threadIdx.x, kThreads);
}

template <class T, class Acc, bool kSoftcap>
void launch(const Matrix& m, const int64_t* labels, LogitTransform t, const double* lse, const void* coefficients,
            const Matrix& out, cudaStream_t stream) {
    const Acc cap = static_cast<Acc>(t.softcap);
    const Transform<Acc, kSoftcap> transform{static_cast<Acc>(t.scale), cap, kSoftcap ? Acc(1) / cap : Acc(0)};
    const int64_t piece = kPieceBytes / static_cast<int64_t>(sizeof(T));
    const int64_t pieces = (m.cols + piece - 1) / piece;
    backward_kernel<T, Acc, kSoftcap><<<static_cast<unsigned>(m.rows * pieces), kThreads, 0, stream>>>(
        static_cast<const T*>(m.data), m.row_stride, m.cols, pieces, labels, transform, lse,
        static_cast<const Acc*>(coefficients), static_cast<T*>(out.data), out.row_stride);
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
