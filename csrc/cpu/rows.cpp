// The row kernels. This file is compiled once for every instruction set (CMakeLists.txt sets POPE_ISA and the compiler
// flags); the loops are plain C++ that the compiler vectorises, so the same source works for x86 and Arm. Everything
// lives in an unnamed namespace and uses no inline library templates: the linker must not merge code of different sets.
#include "rows.h"

#include <cfloat>
#include <cmath>
#include <cstring>

#define POPE_JOIN(a, b) a##b
#define POPE_FACTORY(isa) POPE_JOIN(rows_, isa)
#define POPE_STRING(x) #x
#define POPE_NAME(isa) POPE_STRING(isa)

namespace pope::cpu {
namespace {

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

inline float as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t as_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float load(const float* p) { return *p; }
inline double load(const double* p) { return *p; }
inline float load(const BFloat16* p) { return as_float(static_cast<uint32_t>(p->bits) << 16); }
inline float load(const Float16* p) {
    // Re-bias the exponent by a multiplication, which also normalises subnormals; inf and NaN keep a full exponent.
    const uint32_t magnitude = static_cast<uint32_t>(p->bits & 0x7fffu) << 13;
    const uint32_t sign = static_cast<uint32_t>(p->bits & 0x8000u) << 16;
    const uint32_t finite = as_bits(as_float(magnitude) * 0x1p112f);
    const uint32_t special = magnitude | 0x7f800000u;
    return as_float((magnitude >= 0x0f800000u ? special : finite) | sign);
}

inline void store(float* p, float value) { *p = value; }
inline void store(double* p, double value) { *p = value; }
inline void store(BFloat16* p, float value) {  // round to nearest even
    const uint32_t bits = as_bits(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t quiet_nan = (bits >> 16) | 0x40u;
    p->bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}
inline void store(Float16* p, float value) {  // round to nearest even
    const uint32_t bits = as_bits(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    // Below the smallest normal half, adding 0.5 lets the float adder do the rounding.
    const uint32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
    const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    p->bits = static_cast<uint16_t>((magnitude >= 0x47800000u ? special : finite) | sign);
}

// exp for arguments <= 0 (after a maximum or log-sum-exp was subtracted; slightly above is fine), within 2 ulp.
// Below the smallest normal float the result is about 1e-38 instead of 0; NaN stays NaN.
inline float exp_nonpositive(float x) {
    x = x < -87.3f ? -87.3f : x;
    const float shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer in the low bits
    const float n = shifted - 12582912.0f;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * r) * r + r + 1.0f;
    const uint32_t power = (as_bits(shifted) - 0x4b400000u + 127u) << 23;
    return p * as_float(power);
}
inline double exp_nonpositive(double x) { return std::exp(x); }

inline float tanh_of(float x) {
    const float magnitude = x < 0 ? -x : x;
    const float decay = exp_nonpositive(-2.0f * magnitude);
    // 1 - decay cancels for small arguments; the series is exact to float there.
    const float square = x * x;
    const float series =
        magnitude * (1.0f - square * (0.333333333f - square * (0.133333333f - square * 0.0539682540f)));
    const float ratio = (1.0f - decay) / (1.0f + decay);
    const float result = magnitude < 0.15f ? series : ratio;
    return x < 0 ? -result : result;
}
inline double tanh_of(double x) { return std::tanh(x); }

template <class Acc>
struct Transform {
    Acc scale, softcap, inverse_softcap;
};

template <bool kSoftcap, class Acc>
inline Acc transformed(Acc x, Transform<Acc> t) {
    const Acc scaled = x * t.scale;
    return kSoftcap ? t.softcap * tanh_of(scaled * t.inverse_softcap) : scaled;
}

// The sum over a block needs its maximum first. One loop computes the sum of a block, which is still in the L1 cache,
// and the maximum of the next, so memory is read once and while the processor computes.
constexpr int64_t kBlock = 2048;

template <class Acc>
constexpr Acc kLowest = static_cast<Acc>(sizeof(Acc) == 8 ? -DBL_MAX : -FLT_MAX);

template <class T, class Acc>
Acc largest_of(const T* block, int64_t count, Acc scale) {
    Acc largest = kLowest<Acc>;
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < count; ++i) {
        const Acc x = load(block + i) * scale;
        largest = x > largest ? x : largest;
    }
    return largest;
}

template <class T, class Acc, bool kSoftcap>
void forward_row(const T* row, int64_t cols, int64_t label, Transform<Acc> t, Acc* logprob, double* lse) {
    const auto block_of = [](int64_t left) { return left < kBlock ? left : kBlock; };
    Acc top = kLowest<Acc>;
    double sum = 0;
    int64_t count = block_of(cols);
    Acc largest = largest_of(row, count, t.scale);
    for (const T* block = row; count > 0;) {
        // The transform is monotone, so the maximum may be taken before it.
        const Acc capped = kSoftcap ? t.softcap * tanh_of(largest * t.inverse_softcap) : largest;
        const Acc new_top = capped > top ? capped : top;
        sum *= static_cast<double>(exp_nonpositive(top - new_top));
        top = new_top;
        const T* next = block + count;
        const int64_t next_count = block_of(row + cols - next);
        Acc partial = 0;
        largest = kLowest<Acc>;
#pragma omp simd reduction(+ : partial) reduction(max : largest)
        for (int64_t i = 0; i < next_count; ++i) {
            partial += exp_nonpositive(transformed<kSoftcap>(static_cast<Acc>(load(block + i)), t) - top);
            const Acc x = load(next + i) * t.scale;
            largest = x > largest ? x : largest;
        }
#pragma omp simd reduction(+ : partial)
        for (int64_t i = next_count; i < count; ++i) {
            partial += exp_nonpositive(transformed<kSoftcap>(static_cast<Acc>(load(block + i)), t) - top);
        }
        sum += static_cast<double>(partial);
        block = next;
        count = next_count;
    }
    // A row of only -inf: exp_nonpositive gives 1e-38 for it, not 0.
    const double log_sum = top == kLowest<Acc> && !std::isnan(sum) ? -INFINITY : std::log(sum);
    *lse = static_cast<double>(top) + log_sum;
    *logprob = (transformed<kSoftcap>(static_cast<Acc>(load(row + label)), t) - top) - static_cast<Acc>(log_sum);
}

template <class T, class Acc, bool kSoftcap>
void backward_row(const T* row, int64_t cols, int64_t label, Transform<Acc> t, double lse, Acc coefficient, T* out) {
    // In two parts, because at logits near 1000 a float has three decimals left; near the maximum, z - high is exact.
    const Acc high = static_cast<Acc>(lse);
    const Acc low = static_cast<Acc>(lse - static_cast<double>(high));
    const Acc target = transformed<kSoftcap>(static_cast<Acc>(load(row + label)), t);
    const Acc scaled_coefficient = coefficient * t.scale;
#pragma omp simd
    for (int64_t i = 0; i < cols; ++i) {
        const Acc z = transformed<kSoftcap>(static_cast<Acc>(load(row + i)), t);
        const Acc log_p = (z - high) - low;
        Acc grad = -scaled_coefficient * exp_nonpositive(log_p);
        if (kSoftcap) {
            const Acc ratio = z * t.inverse_softcap;
            grad *= Acc(1) - ratio * ratio;
        }
        store(out + i, grad);
    }
    // The target's gradient is 1 - p, computed before rounding: as p -> 1 a read-modify-write in 16 bits would lose it.
    Acc at_target = scaled_coefficient * static_cast<Acc>(-std::expm1(static_cast<double>(target) - lse));
    if (kSoftcap) {
        const Acc ratio = target * t.inverse_softcap;
        at_target *= Acc(1) - ratio * ratio;
    }
    store(out + label, at_target);
}

template <class T, class Acc>
Transform<Acc> as(LogitTransform t) {
    const Acc cap = static_cast<Acc>(t.softcap);
    return {static_cast<Acc>(t.scale), cap, cap > 0 ? Acc(1) / cap : Acc(0)};
}

template <class T, class Acc>
void forward_as(const Matrix& m, int64_t row, int64_t label, LogitTransform transform, void* logprob, double* lse) {
    const T* data = static_cast<const T*>(m.data) + row * m.row_stride;
    const auto t = as<T, Acc>(transform);
    auto* kernel = t.softcap > 0 ? forward_row<T, Acc, true> : forward_row<T, Acc, false>;
    kernel(data, m.cols, label, t, static_cast<Acc*>(logprob), lse);
}

template <class T, class Acc>
void backward_as(const Matrix& m, int64_t row, int64_t label, LogitTransform transform, double lse, double coefficient,
                 const Matrix& out) {
    const T* data = static_cast<const T*>(m.data) + row * m.row_stride;
    T* target = static_cast<T*>(out.data) + row * out.row_stride;
    const auto t = as<T, Acc>(transform);
    auto* kernel = t.softcap > 0 ? backward_row<T, Acc, true> : backward_row<T, Acc, false>;
    kernel(data, m.cols, label, t, lse, static_cast<Acc>(coefficient), target);
}

void forward(const Matrix& m, int64_t row, int64_t label, LogitTransform transform, void* logprob, double* lse) {
    switch (m.dtype) {
        case DType::f32: return forward_as<float, float>(m, row, label, transform, logprob, lse);
        case DType::f64: return forward_as<double, double>(m, row, label, transform, logprob, lse);
        case DType::bf16: return forward_as<BFloat16, float>(m, row, label, transform, logprob, lse);
        case DType::f16: return forward_as<Float16, float>(m, row, label, transform, logprob, lse);
    }
}

void backward(const Matrix& m, int64_t row, int64_t label, LogitTransform transform, double lse, double coefficient,
              const Matrix& out) {
    switch (m.dtype) {
        case DType::f32: return backward_as<float, float>(m, row, label, transform, lse, coefficient, out);
        case DType::f64: return backward_as<double, double>(m, row, label, transform, lse, coefficient, out);
        case DType::bf16: return backward_as<BFloat16, float>(m, row, label, transform, lse, coefficient, out);
        case DType::f16: return backward_as<Float16, float>(m, row, label, transform, lse, coefficient, out);
    }
}

}  // namespace

const RowKernels& POPE_FACTORY(POPE_ISA)() {
    static constexpr RowKernels kernels{POPE_NAME(POPE_ISA), forward, backward};
    return kernels;
}

}  // namespace pope::cpu
