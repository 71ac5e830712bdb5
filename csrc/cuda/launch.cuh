// Errors of a launch, and the choice of a kernel by dtype.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "pack.cuh"
#include "pope/dtype.h"

namespace pope::cuda {

inline void check_launch(const char* kernel) {
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) {
        throw std::runtime_error(std::string("pope_core: launch of ") + kernel + ": " + cudaGetErrorString(error));
    }
}

inline cudaStream_t as_stream(void* stream) { return static_cast<cudaStream_t>(stream); }

// f(pointer of the storage type); the pointer is null and only carries the type.
template <class F>
void with_storage(DType dtype, F&& f) {
    switch (dtype) {
        case DType::f32: return f(static_cast<float*>(nullptr));
        case DType::f64: return f(static_cast<double*>(nullptr));
        case DType::bf16: return f(static_cast<__nv_bfloat16*>(nullptr));
        case DType::f16: return f(static_cast<__half*>(nullptr));
    }
}

}  // namespace pope::cuda
