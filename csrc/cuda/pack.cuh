// Elements of the storage types, sixteen bytes at a time. Also compiled for the host, so that the row loops can be
// tested on a CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "pope/slate_math.h"

namespace pope::cuda {

template <class T>
struct alignas(16) Pack {
    static constexpr int kWidth = 16 / sizeof(T);
    T x[kWidth];
};

POPE_HOST_DEVICE inline float to_acc(float x) { return x; }
POPE_HOST_DEVICE inline double to_acc(double x) { return x; }
POPE_HOST_DEVICE inline float to_acc(__nv_bfloat16 x) { return __bfloat162float(x); }
POPE_HOST_DEVICE inline float to_acc(__half x) { return __half2float(x); }

template <class T>
struct Storage;
template <>
struct Storage<float> {
    using Acc = float;
    POPE_HOST_DEVICE static float from(float x) { return x; }
};
template <>
struct Storage<double> {
    using Acc = double;
    POPE_HOST_DEVICE static double from(double x) { return x; }
};
template <>
struct Storage<__nv_bfloat16> {
    using Acc = float;
    POPE_HOST_DEVICE static __nv_bfloat16 from(float x) { return __float2bfloat16_rn(x); }
};
template <>
struct Storage<__half> {
    using Acc = float;
    POPE_HOST_DEVICE static __half from(float x) { return __float2half_rn(x); }
};

// Each pass reads the logits once, and they are larger than any cache: loads and stores bypass it.
template <class T>
POPE_HOST_DEVICE inline Pack<T> load_pack(const T* p) {
    Pack<T> pack;
#ifdef __CUDA_ARCH__
    const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(p));
    memcpy(&pack, &bits, sizeof pack);
#else
    std::memcpy(&pack, p, sizeof pack);
#endif
    return pack;
}

template <class T>
POPE_HOST_DEVICE inline void store_pack(T* p, const Pack<T>& pack) {
#ifdef __CUDA_ARCH__
    uint4 bits;
    memcpy(&bits, &pack, sizeof pack);
    __stcs(reinterpret_cast<uint4*>(p), bits);
#else
    std::memcpy(p, &pack, sizeof pack);
#endif
}

// How a run of elements is split into sixteen-byte packs: [0, head) before the first boundary, then `packs` packs, then
// a tail. If two pointers have no common boundary, everything is head.
struct Split {
    int64_t head, packs;
};

template <class T>
POPE_HOST_DEVICE inline Split split(const T* p, int64_t count) {
    const int64_t lead = static_cast<int64_t>((16 - (reinterpret_cast<uintptr_t>(p) & 15)) & 15) / sizeof(T);
    const int64_t head = lead < count ? lead : count;
    return {head, (count - head) / Pack<T>::kWidth};
}

}  // namespace pope::cuda
