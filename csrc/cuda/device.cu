#include "pope/device.h"

namespace pope::cuda {

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

}  // namespace pope::cuda
