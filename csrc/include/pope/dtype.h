// Storage types of the tensors that cross the boundary, and the type their arithmetic is done in.
#pragma once

#include <cstdint>

namespace pope {

enum class DType : int { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };

// float64 inputs are computed in double, everything else in float.
constexpr bool accumulates_in_double(DType dtype) { return dtype == DType::f64; }

}  // namespace pope
