// The only file that knows pybind11. Pointers arrive as integers; kernels/pope_kernels/native.py is responsible for
// shapes, dtypes and lifetimes. The GIL is released around every kernel.
#include <pybind11/pybind11.h>

#include <string>

#include "pope/cuda_ops.h"

namespace py = pybind11;

namespace {

using pope::DType;
using pope::LogitTransform;
using pope::Matrix;

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

Matrix matrix(uintptr_t data, int dtype, int64_t rows, int64_t cols, int64_t row_stride) {
    return {pointer<void>(data), static_cast<DType>(dtype), rows, cols, row_stride};
}

void token_logprobs(uintptr_t logits, int dtype, int64_t rows, int64_t cols, int64_t row_stride, uintptr_t labels,
                    double scale, double softcap, uintptr_t logprobs, uintptr_t lse, int threads) {
    pope::cpu::token_logprobs(matrix(logits, dtype, rows, cols, row_stride), pointer<int64_t>(labels),
                              LogitTransform{scale, softcap}, pointer<void>(logprobs), pointer<double>(lse), threads);
}

void logit_gradient(uintptr_t logits, int dtype, int64_t rows, int64_t cols, int64_t row_stride, uintptr_t labels,
                    double scale, double softcap, uintptr_t lse, uintptr_t coefficients, uintptr_t out,
                    int64_t out_row_stride, int threads) {
    pope::cpu::logit_gradient(matrix(logits, dtype, rows, cols, row_stride), pointer<int64_t>(labels),
                              LogitTransform{scale, softcap}, pointer<double>(lse), pointer<void>(coefficients),
                              matrix(out, dtype, rows, cols, out_row_stride), threads);
}

void response_sums(uintptr_t logprobs, bool is_double, uintptr_t labels, uintptr_t response_offsets,
                   int64_t num_responses, bool mean, uintptr_t out) {
    pope::cpu::response_sums(pointer<void>(logprobs), is_double, pointer<int64_t>(labels),
                             pointer<int64_t>(response_offsets), num_responses, mean, pointer<void>(out));
}

void token_coefficients(uintptr_t grad, bool is_double, uintptr_t labels, uintptr_t response_offsets,
                        int64_t num_responses, bool mean, uintptr_t out) {
    pope::cpu::token_coefficients(pointer<void>(grad), is_double, pointer<int64_t>(labels),
                                  pointer<int64_t>(response_offsets), num_responses, mean, pointer<void>(out));
}

template <class Option>
Option option(const char* name, int code) {
    const auto value = static_cast<Option>(code);
    if (!pope::is_known(value))
        throw std::invalid_argument(std::string(name) + ": code " + std::to_string(code) +
                                    " has no formula in csrc/include/pope/slate_math.h");
    return value;
}

pope::ObjectiveOptions objective_options(double diversity_weight, int weighting, int normalization, double log_clip,
                                         int utility_form, int diversity_form, double slate_denominator) {
    return {diversity_weight,
            option<pope::Weighting>("weighting", weighting),
            option<pope::Normalization>("normalization", normalization),
            log_clip,
            option<pope::UtilityForm>("utility_form", utility_form),
            option<pope::DiversityForm>("diversity_form", diversity_form),
            slate_denominator};
}

// Returns (value, utility_value, diversity_value, effective_sample_size, clip_fraction, largest_log_weight, its slate).
py::tuple slate_objective(uintptr_t response_logprobs, uintptr_t logging_logprobs, uintptr_t utility,
                          uintptr_t slate_offsets, int64_t num_slates, int64_t num_responses, double diversity_weight,
                          int weighting, int normalization, double log_clip, int utility_form, int diversity_form,
                          double slate_denominator, uintptr_t log_weights, uintptr_t weights, uintptr_t coefficients) {
    const pope::ObjectiveInputs in{pointer<double>(response_logprobs),
                                   pointer<double>(logging_logprobs),
                                   pointer<double>(utility),
                                   pointer<int64_t>(slate_offsets),
                                   num_slates,
                                   num_responses};
    const auto options = objective_options(diversity_weight, weighting, normalization, log_clip, utility_form,
                                           diversity_form, slate_denominator);
    pope::ObjectiveOutputs out{};
    out.log_weights = pointer<double>(log_weights);
    out.weights = pointer<double>(weights);
    out.coefficients = pointer<double>(coefficients);
    {
        py::gil_scoped_release release;
        pope::cpu::slate_objective(in, options, out);
    }
    return py::make_tuple(out.value, out.utility_value, out.diversity_value, out.effective_sample_size,
                          out.clip_fraction, out.largest_log_weight, out.largest_slate);
}

#ifdef POPE_CUDA
void cuda_token_logprobs(uintptr_t logits, int dtype, int64_t rows, int64_t cols, int64_t row_stride, uintptr_t labels,
                         double scale, double softcap, uintptr_t logprobs, uintptr_t lse, uintptr_t stream) {
    pope::cuda::token_logprobs(matrix(logits, dtype, rows, cols, row_stride), pointer<int64_t>(labels),
                               LogitTransform{scale, softcap}, pointer<void>(logprobs), pointer<double>(lse),
                               pointer<void>(stream));
}

void cuda_logit_gradient(uintptr_t logits, int dtype, int64_t rows, int64_t cols, int64_t row_stride, uintptr_t labels,
                         double scale, double softcap, uintptr_t lse, uintptr_t coefficients, uintptr_t out,
                         int64_t out_row_stride, uintptr_t stream) {
    pope::cuda::logit_gradient(matrix(logits, dtype, rows, cols, row_stride), pointer<int64_t>(labels),
                               LogitTransform{scale, softcap}, pointer<double>(lse), pointer<void>(coefficients),
                               matrix(out, dtype, rows, cols, out_row_stride), pointer<void>(stream));
}

pope::cuda::Tokens cuda_tokens(uintptr_t labels, uintptr_t response_offsets, int64_t num_tokens, int64_t num_responses,
                               bool mean) {
    return {pointer<int64_t>(labels), pointer<int64_t>(response_offsets), num_tokens, num_responses, mean};
}

void cuda_response_sums(uintptr_t logprobs, bool is_double, uintptr_t labels, uintptr_t response_offsets,
                        int64_t num_tokens, int64_t num_responses, bool mean, uintptr_t out, uintptr_t stream) {
    pope::cuda::response_sums(pointer<void>(logprobs), is_double,
                              cuda_tokens(labels, response_offsets, num_tokens, num_responses, mean),
                              pointer<void>(out), pointer<void>(stream));
}

void cuda_token_coefficients(uintptr_t grad, bool is_double, uintptr_t labels, uintptr_t response_offsets,
                             int64_t num_tokens, int64_t num_responses, bool mean, uintptr_t out, uintptr_t stream) {
    pope::cuda::token_coefficients(pointer<void>(grad), is_double,
                                   cuda_tokens(labels, response_offsets, num_tokens, num_responses, mean),
                                   pointer<void>(out), pointer<void>(stream));
}

void cuda_slate_objective(uintptr_t response_logprobs, uintptr_t logging_logprobs, uintptr_t utility,
                          uintptr_t slate_offsets, int64_t num_slates, int64_t num_responses, double diversity_weight,
                          int weighting, int normalization, double log_clip, int utility_form, int diversity_form,
                          double slate_denominator, bool is_double, uintptr_t value, uintptr_t utility_value,
                          uintptr_t diversity_value, uintptr_t log_weights, uintptr_t weights,
                          uintptr_t effective_sample_size, uintptr_t clip_fraction, uintptr_t coefficients,
                          uintptr_t largest_log_weight, uintptr_t largest_slate, uintptr_t valid,
                          uintptr_t token_logprobs, uintptr_t share, uintptr_t token_coefficients, uintptr_t labels,
                          uintptr_t response_offsets, int64_t num_tokens, bool mean, uintptr_t stream) {
    const pope::ObjectiveInputs in{pointer<double>(response_logprobs),
                                   pointer<double>(logging_logprobs),
                                   pointer<double>(utility),
                                   pointer<int64_t>(slate_offsets),
                                   num_slates,
                                   num_responses};
    const auto options = objective_options(diversity_weight, weighting, normalization, log_clip, utility_form,
                                           diversity_form, slate_denominator);
    const auto tokens = cuda_tokens(labels, response_offsets, num_tokens, num_responses, mean);
    const auto run = [&](auto zero) {
        using Real = decltype(zero);
        const pope::ObjectiveTarget<Real> out{pointer<Real>(value),
                                              pointer<Real>(utility_value),
                                              pointer<Real>(diversity_value),
                                              pointer<Real>(log_weights),
                                              pointer<Real>(weights),
                                              pointer<Real>(effective_sample_size),
                                              pointer<Real>(clip_fraction),
                                              pointer<double>(coefficients),
                                              pointer<double>(largest_log_weight),
                                              pointer<int64_t>(largest_slate),
                                              pointer<bool>(valid)};
        const pope::cuda::Seam<Real> seam{pointer<Real>(token_logprobs), pointer<double>(response_logprobs),
                                          pointer<double>(share), pointer<Real>(token_coefficients), tokens};
        pope::cuda::slate_objective(in, options, out, seam, pointer<void>(stream));
    };
    if (is_double) return run(double{});
    run(float{});
}
#endif

// None in a build without CUDA, otherwise one (name, compute capability) per visible device.
py::object cuda_devices() {
#ifdef POPE_CUDA
    py::list devices;
    for (const auto& device : pope::cuda::devices()) devices.append(py::make_tuple(device.name, device.capability));
    return devices;
#else
    return py::none();
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "Native kernels of pope_core; call them through pope_kernels.native.";
    const auto no_gil = py::call_guard<py::gil_scoped_release>();
    m.def("token_logprobs", &token_logprobs, no_gil);
    m.def("logit_gradient", &logit_gradient, no_gil);
    m.def("response_sums", &response_sums, no_gil);
    m.def("token_coefficients", &token_coefficients, no_gil);
    m.def("slate_objective", &slate_objective);
    m.def("advise_huge_pages",
          [](uintptr_t data, int64_t bytes) { pope::cpu::advise_huge_pages(pointer<void>(data), bytes); });
    m.def("cpu_is_amd", &pope::cpu::is_amd);
    m.def("isa", &pope::cpu::isa);
    m.def("use_isa", [](const std::string& name) { return pope::cpu::use_isa(name.c_str()); });
    m.def("cuda_devices", &cuda_devices);
#ifdef POPE_CUDA
    m.def("cuda_unfit", &pope::cuda::unfit);
    m.def("cuda_token_logprobs", &cuda_token_logprobs, no_gil);
    m.def("cuda_logit_gradient", &cuda_logit_gradient, no_gil);
    m.def("cuda_response_sums", &cuda_response_sums, no_gil);
    m.def("cuda_token_coefficients", &cuda_token_coefficients, no_gil);
    m.def("cuda_slate_objective", &cuda_slate_objective, no_gil);
#endif
    m.attr("compiler") = POPE_COMPILER;
}
