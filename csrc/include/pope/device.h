// The GPUs that a CUDA build sees; an empty list where there is no driver.
#pragma once

#include <string>
#include <vector>

namespace pope::cuda {

struct Device {
    std::string name;
    int capability;  // 10 * major + minor
};

std::vector<Device> devices();

}  // namespace pope::cuda
