// Sums over responses, and the objective in one block: there is only one number per response, and no atomics are
// needed.
#include "launch.cuh"
#include "segments.cuh"

namespace pope::cuda {
namespace {

constexpr int kLanes = 32;

template <class F>
__device__ double butterfly(double x, const F& join) {
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2) x = join(x, __shfl_xor_sync(~0u, x, distance));
    return x;
}

// A block of kWarps warps.
template <int kWarps>
struct Block {
    double* scratch;  // [kWarps] shared

    __device__ int warp() const { return threadIdx.x / kLanes; }
    __device__ int warps() const { return kWarps; }
    __device__ int lane() const { return threadIdx.x % kLanes; }
    __device__ int lanes() const { return kLanes; }
    __device__ double sum(double x) const {
        return butterfly(x, [](double a, double b) { return a + b; });
    }
    __device__ double max(double x) const { return butterfly(x, larger); }
    __device__ double block_sum(double x) const {
        return across(sum(x), [](double a, double b) { return a + b; });
    }
    __device__ double block_max(double x) const { return across(max(x), larger); }
    __device__ void sync() const { __syncthreads(); }

  private:
    template <class F>
    __device__ double across(double of_warp, const F& join) const {
        if (lane() == 0) scratch[warp()] = of_warp;
        __syncthreads();
        double total = scratch[0];
        for (int other = 1; other < kWarps; ++other) total = join(total, scratch[other]);
        __syncthreads();  // before scratch is written again
        return total;
    }
};

constexpr int kObjectiveWarps = 16;

template <class Real>
__global__ void __launch_bounds__(kObjectiveWarps* kLanes, 1)
    objective_kernel(ObjectiveInputs in, ObjectiveOptions options, ObjectiveTarget<Real> out, Seam<Real> seam) {
    __shared__ double scratch[kObjectiveWarps];
    Block<kObjectiveWarps> block{scratch};
    seam_objective(block, in, options, out, seam);
}

constexpr int kSegmentWarps = 8;  // one per response

template <class Real>
__global__ void __launch_bounds__(kSegmentWarps* kLanes) sums_kernel(const Real* logprobs, Tokens tokens, Real* out) {
    Block<kSegmentWarps> block{nullptr};
    const int64_t r = static_cast<int64_t>(blockIdx.x) * kSegmentWarps + block.warp();
    if (r >= tokens.num_responses) return;
    const double sum = response_sum(block, logprobs, tokens, r);
    if (block.lane() == 0) out[r] = static_cast<Real>(sum);
}

template <class Real>
__global__ void __launch_bounds__(kSegmentWarps* kLanes) spread_kernel(const Real* grad, Tokens tokens, Real* out) {
    Block<kSegmentWarps> block{nullptr};
    const int64_t r = static_cast<int64_t>(blockIdx.x) * kSegmentWarps + block.warp();
    if (r < tokens.num_responses) spread(block, grad[r], tokens, r, out);
}

unsigned segment_blocks(const Tokens& tokens) {
    return static_cast<unsigned>((tokens.num_responses + kSegmentWarps - 1) / kSegmentWarps);
}

template <class Real>
void launch_sums(const void* logprobs, const Tokens& tokens, void* out, void* stream) {
    sums_kernel<<<segment_blocks(tokens), kSegmentWarps * kLanes, 0, as_stream(stream)>>>(
        static_cast<const Real*>(logprobs), tokens, static_cast<Real*>(out));
}

template <class Real>
void launch_spread(const void* grad, const Tokens& tokens, void* out, void* stream) {
    spread_kernel<<<segment_blocks(tokens), kSegmentWarps * kLanes, 0, as_stream(stream)>>>(
        static_cast<const Real*>(grad), tokens, static_cast<Real*>(out));
}

}  // namespace

void response_sums(const void* logprobs_acc, bool is_double, const Tokens& tokens, void* out_acc, void* stream) {
    (is_double ? launch_sums<double> : launch_sums<float>)(logprobs_acc, tokens, out_acc, stream);
    check_launch("response_sums");
}

void token_coefficients(const void* grad_acc, bool is_double, const Tokens& tokens, void* out_acc, void* stream) {
    (is_double ? launch_spread<double> : launch_spread<float>)(grad_acc, tokens, out_acc, stream);
    check_launch("token_coefficients");
}

template <class Real>
void slate_objective(const ObjectiveInputs& in, const ObjectiveOptions& options, const ObjectiveTarget<Real>& out,
                     const Seam<Real>& seam, void* stream) {
    objective_kernel<Real><<<1, kObjectiveWarps * kLanes, 0, as_stream(stream)>>>(in, options, out, seam);
    check_launch("slate_objective");
}

template void slate_objective<float>(const ObjectiveInputs&, const ObjectiveOptions&, const ObjectiveTarget<float>&,
                                     const Seam<float>&, void*);
template void slate_objective<double>(const ObjectiveInputs&, const ObjectiveOptions&, const ObjectiveTarget<double>&,
                                      const Seam<double>&, void*);

}  // namespace pope::cuda
