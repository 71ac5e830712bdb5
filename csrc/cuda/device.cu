#include <cuda_runtime.h>

#include "pope/cuda_ops.h"

namespace pope::cuda {
namespace {

__global__ void nothing_kernel() {}

}  // namespace

std::vector<Device> devices() {
    std::vector<Device> found;
    int count = 0;
    // Without a driver this is an error code, not a crash: a CUDA build imports on any machine.
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        cudaGetLastError();
        return found;
    }
    for (int index = 0; index < count; ++index) {
        cudaDeviceProp properties{};
        if (cudaGetDeviceProperties(&properties, index) != cudaSuccess) continue;
        found.push_back({properties.name, 10 * properties.major + properties.minor});
    }
    return found;
}

std::string unfit() {
    cudaFuncAttributes attributes{};  // needs code for the device: machine code of its kind, or PTX it can compile
    const cudaError_t error = cudaFuncGetAttributes(&attributes, nothing_kernel);
    if (error == cudaSuccess) return "";
    cudaGetLastError();
    return cudaGetErrorString(error);
}

}  // namespace pope::cuda
