// The bodies of the CUDA kernels, run by CPU threads: rows by one thread after another, the objective by real threads,
// for its warps wait for each other. Loaded with ctypes by tests/test_cuda_bodies.py.
#include <barrier>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#include "rows.cuh"
#include "segments.cuh"

namespace {

using namespace pope;
using namespace pope::cuda;

template <class F>
void with_row_types(int dtype, double softcap, F&& f) {
    const auto capped = [&](auto* type) { softcap > 0 ? f(type, std::true_type{}) : f(type, std::false_type{}); };
    switch (static_cast<DType>(dtype)) {
        case DType::f32: return capped(static_cast<float*>(nullptr));
        case DType::f64: return capped(static_cast<double*>(nullptr));
        case DType::bf16: return capped(static_cast<__nv_bfloat16*>(nullptr));
        case DType::f16: return capped(static_cast<__half*>(nullptr));
    }
}

struct Shared {
    Shared(int warps, int lanes) : slots(warps * lanes), block(warps * lanes) {
        for (int w = 0; w < warps; ++w) warp.push_back(std::make_unique<std::barrier<>>(lanes));
    }
    std::vector<double> slots;
    std::barrier<> block;
    std::vector<std::unique_ptr<std::barrier<>>> warp;
};

struct Member {
    Shared& shared;
    int my_warp, my_lane, num_warps, num_lanes;

    int warp() const { return my_warp; }
    int warps() const { return num_warps; }
    int lane() const { return my_lane; }
    int lanes() const { return num_lanes; }
    double sum(double x) { return over(x, my_warp * num_lanes, num_lanes, *shared.warp[my_warp], std::plus<>{}); }
    double max(double x) { return over(x, my_warp * num_lanes, num_lanes, *shared.warp[my_warp], larger); }
    double block_sum(double x) { return over(x, 0, num_warps * num_lanes, shared.block, std::plus<>{}); }
    double block_max(double x) { return over(x, 0, num_warps * num_lanes, shared.block, larger); }
    void sync() { shared.block.arrive_and_wait(); }

    template <class F>
    double over(double x, int first, int count, std::barrier<>& together, const F& join) {
        shared.slots[my_warp * num_lanes + my_lane] = x;
        together.arrive_and_wait();
        double total = shared.slots[first];
        for (int i = 1; i < count; ++i) total = join(total, shared.slots[first + i]);
        together.arrive_and_wait();
        return total;
    }
};

}  // namespace

extern "C" {

void emulate_forward(const void* logits, int dtype, int64_t rows, int64_t cols, int64_t row_stride,
                     const int64_t* labels, double scale, double softcap, void* logprobs, double* lse, int threads) {
    with_row_types(dtype, softcap, [&](auto* type, auto capped) {
        using T = std::remove_pointer_t<decltype(type)>;
        using Acc = typename Storage<T>::Acc;
        const auto transform = as_transform<Acc, capped>({scale, softcap});
        for (int64_t n = 0; n < rows; ++n) {
            const T* row = static_cast<const T*>(logits) + n * row_stride;
            Online<Acc> online;
            for (int thread = 0; thread < threads; ++thread)
                online.merge(scan_row(row, cols, transform, thread, threads));
            finish_row(row, cols, labels[n], transform, online, static_cast<Acc*>(logprobs) + n, lse + n);
        }
    });
}

void emulate_backward(const void* logits, int dtype, int64_t rows, int64_t cols, int64_t row_stride,
                      const int64_t* labels, double scale, double softcap, const double* lse, const void* coefficients,
                      void* out, int64_t out_row_stride, int threads) {
    with_row_types(dtype, softcap, [&](auto* type, auto capped) {
        using T = std::remove_pointer_t<decltype(type)>;
        using Acc = typename Storage<T>::Acc;
        const Backward<T, Acc, capped> work{static_cast<const T*>(logits),
                                            row_stride,
                                            cols,
                                            labels,
                                            as_transform<Acc, capped>({scale, softcap}),
                                            lse,
                                            static_cast<const Acc*>(coefficients),
                                            static_cast<T*>(out),
                                            out_row_stride};
        for (int64_t block = 0; block < rows * work.pieces(); ++block)
            for (int thread = 0; thread < threads; ++thread) work.run(block, thread, threads);
    });
}

// scalars: value, utility_value, diversity_value, effective_sample_size, clip_fraction, largest_log_weight.
void emulate_objective(const double* token_logprobs, const int64_t* labels, const int64_t* response_offsets,
                       int64_t num_tokens, bool mean, double* response_logprobs, const double* logging_logprobs,
                       const double* utility, const int64_t* slate_offsets, int64_t num_slates, int64_t num_responses,
                       double diversity_weight, int weighting, int normalization, double log_clip, int utility_form,
                       int diversity_form, double slate_denominator, double* scalars, double* log_weights,
                       double* weights, double* coefficients, double* token_coefficients, int64_t* largest_slate,
                       bool* valid, int warps, int lanes) {
    const ObjectiveInputs in{response_logprobs, logging_logprobs, utility, slate_offsets, num_slates, num_responses};
    const ObjectiveOptions options{
        diversity_weight, static_cast<Weighting>(weighting),      static_cast<Normalization>(normalization),
        log_clip,         static_cast<UtilityForm>(utility_form), static_cast<DiversityForm>(diversity_form),
        slate_denominator};
    const ObjectiveTarget<double> out{scalars,     scalars + 1,  scalars + 2, log_weights,   weights, scalars + 3,
                                      scalars + 4, coefficients, scalars + 5, largest_slate, valid};
    const Tokens tokens{labels, response_offsets, num_tokens, num_responses, mean};
    const Seam<double> seam{token_logprobs, response_logprobs, nullptr, token_coefficients, tokens};
    Shared shared(warps, lanes);
    std::vector<std::thread> threads;
    for (int w = 0; w < warps; ++w)
        for (int l = 0; l < lanes; ++l)
            threads.emplace_back([&, w, l] {
                Member member{shared, w, l, warps, lanes};
                seam_objective(member, in, options, out, seam);
            });
    for (auto& thread : threads) thread.join();
}
}
