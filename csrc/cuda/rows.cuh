// What one thread of a block does with a row of logits. The loops are distributed by (thread, threads) and use no
// shared memory, so a test can run all threads in turn on a CPU.
#pragma once

#include <cfloat>
#include <cmath>

#include "pack.cuh"
#include "pope/ops.h"

namespace pope::cuda {

// Packs in flight per thread before the first is used: 64 bytes, which with 1024 threads per SM covers the memory
// latency several times.
constexpr int kUnroll = 4;

// Within a few ulp; results below the smallest normal float are 0.
POPE_HOST_DEVICE inline float exp_nonpositive(float x) {
#ifdef __CUDA_ARCH__
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * 1.44269504088896341f));
    return power;
#else
    return std::exp(x);
#endif
}
POPE_HOST_DEVICE inline double exp_nonpositive(double x) { return exp(x); }

POPE_HOST_DEVICE inline float tanh_of(float x) {
    const float magnitude = fabsf(x);
    const float decay = exp_nonpositive(-2.0f * magnitude);
    // 1 - decay cancels for small arguments; the series is exact to float there.
    const float square = x * x;
    const float series =
        magnitude * (1.0f - square * (0.333333333f - square * (0.133333333f - square * 0.0539682540f)));
#ifdef __CUDA_ARCH__
    const float ratio = __fdividef(1.0f - decay, 1.0f + decay);
#else
    const float ratio = (1.0f - decay) / (1.0f + decay);
#endif
    return copysignf(magnitude < 0.15f ? series : ratio, x);
}
POPE_HOST_DEVICE inline double tanh_of(double x) { return tanh(x); }

POPE_HOST_DEVICE inline float max_of(float a, float b) { return fmaxf(a, b); }
POPE_HOST_DEVICE inline double max_of(double a, double b) { return fmax(a, b); }
POPE_HOST_DEVICE inline float expm1_of(float x) { return expm1f(x); }
POPE_HOST_DEVICE inline double expm1_of(double x) { return expm1(x); }

template <class Acc, bool kSoftcap>
struct Transform {
    Acc scale, softcap, inverse_softcap;

    POPE_HOST_DEVICE Acc operator()(Acc x) const {
        const Acc scaled = x * scale;
        return kSoftcap ? softcap * tanh_of(scaled * inverse_softcap) : scaled;
    }
    // dz/dx over scale, from z.
    POPE_HOST_DEVICE Acc slope(Acc z) const {
        const Acc ratio = z * inverse_softcap;
        return kSoftcap ? Acc(1) - ratio * ratio : Acc(1);
    }
};

// A sum of exponentials relative to its largest argument.
template <class Acc>
struct Online {
    static constexpr Acc kLowest = sizeof(Acc) == 8 ? static_cast<Acc>(-DBL_MAX) : static_cast<Acc>(-FLT_MAX);
    Acc top = kLowest;
    Acc sum = 0;

    template <int kCount>
    POPE_HOST_DEVICE void add(const Acc (&z)[kCount]) {
        Acc largest = z[0];
#pragma unroll
        for (int i = 1; i < kCount; ++i) largest = max_of(largest, z[i]);
        if (largest > top) {
            sum *= exp_nonpositive(top - largest);
            top = largest;
        }
#pragma unroll
        for (int i = 0; i < kCount; ++i) sum += exp_nonpositive(z[i] - top);
    }

    POPE_HOST_DEVICE void merge(Online other) {
        const Acc largest = max_of(top, other.top);
        sum = sum * exp_nonpositive(top - largest) + other.sum * exp_nonpositive(other.top - largest);
        top = largest;
    }
};

// The thread's part of the log-sum-exp of row[0, cols).
template <class T, class Acc, bool kSoftcap>
POPE_HOST_DEVICE Online<Acc> scan_row(const T* row, int64_t cols, Transform<Acc, kSoftcap> transform, int thread,
                                      int threads) {
    constexpr int kWidth = Pack<T>::kWidth;
    Online<Acc> online;
    const Split at = split(row, cols);
    const T* body = row + at.head;
    const auto add_one = [&](int64_t i) {
        const Acc z[1] = {transform(to_acc(row[i]))};
        online.add(z);
    };
    for (int64_t i = thread; i < at.head; i += threads) add_one(i);
    int64_t p = thread;
    for (; p + (kUnroll - 1) * threads < at.packs; p += kUnroll * threads) {
        Pack<T> packs[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) packs[u] = load_pack(body + (p + u * threads) * kWidth);
        // The sum is rescaled once for all of them: about one exponential per element.
        Acc z[kUnroll * kWidth];
#pragma unroll
        for (int i = 0; i < kUnroll * kWidth; ++i) z[i] = transform(to_acc(packs[i / kWidth].x[i % kWidth]));
        online.add(z);
    }
    for (; p < at.packs; p += threads) {
        const Pack<T> pack = load_pack(body + p * kWidth);
        Acc z[kWidth];
#pragma unroll
        for (int i = 0; i < kWidth; ++i) z[i] = transform(to_acc(pack.x[i]));
        online.add(z);
    }
    for (int64_t i = at.head + at.packs * kWidth + thread; i < cols; i += threads) add_one(i);
    return online;
}

// The results of a row, from the sum over all its threads.
template <class T, class Acc, bool kSoftcap>
POPE_HOST_DEVICE void finish_row(const T* row, int64_t cols, int64_t label, Transform<Acc, kSoftcap> transform,
                                 Online<Acc> online, Acc* logprob, double* lse) {
    // A row of only -inf has a NaN log-probability.
    const bool masked = online.top == Online<Acc>::kLowest && online.sum == online.sum;
    const double log_sum = masked ? -INFINITY : log(static_cast<double>(online.sum));
    // Read from the same memory as the sum: a target computed separately could exceed it.
    const bool known = label >= 0 && label < cols;
    const Acc target = known ? transform(to_acc(row[label])) : static_cast<Acc>(NAN);
    *logprob = static_cast<Acc>(static_cast<double>(target - online.top) - log_sum);
    *lse = static_cast<double>(online.top) + log_sum;
}

// d logprob / d logits of the elements of a piece of a row, times a coefficient.
template <class T, class Acc, bool kSoftcap>
struct RowGradient {
    Transform<Acc, kSoftcap> transform;
    int64_t label;    // relative to the piece; anything outside it for none
    Acc high, low;    // the log-sum-exp in two parts: its rounding would be an error of every probability
    Acc coefficient;  // times scale

    POPE_HOST_DEVICE Acc log_p(Acc z) const {
        const Acc difference = (z - high) - low;
        return difference > 0 ? Acc(0) : difference;  // rounding may give slightly more than 0 where p is 1; NaN stays
    }
    POPE_HOST_DEVICE T elsewhere(T x) const {
        const Acc z = transform(to_acc(x));
        return Storage<T>::from(-exp_nonpositive(log_p(z)) * coefficient * transform.slope(z));
    }
    // 1 - p is computed before rounding: as p -> 1, 16 bits would lose it.
    POPE_HOST_DEVICE T at_target(T x) const {
        const Acc z = transform(to_acc(x));
        return Storage<T>::from(-expm1_of(log_p(z)) * coefficient * transform.slope(z));
    }

    POPE_HOST_DEVICE T one(T x, int64_t i) const { return i == label ? at_target(x) : elsewhere(x); }

    // Elements are picked by comparison: a run-time index would move the pack out of registers.
    POPE_HOST_DEVICE void pack(Pack<T>& pack, int64_t begin) const {
        const int64_t hit = label - begin;
        const bool here = hit >= 0 && hit < Pack<T>::kWidth;
        T target = pack.x[0];
        if (here) {
#pragma unroll
            for (int i = 1; i < Pack<T>::kWidth; ++i) target = i == hit ? pack.x[i] : target;
            target = at_target(target);
        }
#pragma unroll
        for (int i = 0; i < Pack<T>::kWidth; ++i) pack.x[i] = elsewhere(pack.x[i]);
        if (here) {
#pragma unroll
            for (int i = 0; i < Pack<T>::kWidth; ++i) pack.x[i] = i == hit ? target : pack.x[i];
        }
    }
};

// Maps the thread's part of in[0, count) to out, which may be `in`. F is RowGradient, or ZeroRow, which reads nothing.
template <bool kReads, class T, class F>
POPE_HOST_DEVICE void map_row(const T* in, T* out, int64_t count, const F& f, int thread, int threads) {
    constexpr int kWidth = Pack<T>::kWidth;
    const bool together = !kReads || ((reinterpret_cast<uintptr_t>(in) ^ reinterpret_cast<uintptr_t>(out)) & 15) == 0;
    const Split at = together ? split(out, count) : Split{count, 0};
    const auto map_one = [&](int64_t i) { out[i] = f.one(kReads ? in[i] : T(), i); };
    for (int64_t i = thread; i < at.head; i += threads) map_one(i);
    int64_t p = thread;
    for (; p + (kUnroll - 1) * threads < at.packs; p += kUnroll * threads) {
        Pack<T> packs[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u)
            if (kReads) packs[u] = load_pack(in + at.head + (p + u * threads) * kWidth);
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            const int64_t begin = at.head + (p + u * threads) * kWidth;
            f.pack(packs[u], begin);
            store_pack(out + begin, packs[u]);
        }
    }
    for (; p < at.packs; p += threads) {
        const int64_t begin = at.head + p * kWidth;
        Pack<T> pack;
        if (kReads) pack = load_pack(in + begin);
        f.pack(pack, begin);
        store_pack(out + begin, pack);
    }
    for (int64_t i = at.head + at.packs * kWidth + thread; i < count; i += threads) map_one(i);
}

template <class T>
struct ZeroRow {
    POPE_HOST_DEVICE T one(T, int64_t) const { return Storage<T>::from(0); }
    POPE_HOST_DEVICE void pack(Pack<T>& pack, int64_t) const {
#pragma unroll
        for (int i = 0; i < Pack<T>::kWidth; ++i) pack.x[i] = Storage<T>::from(0);
    }
};

// What a block does in backward: one piece of one row. With few rows pieces fill the device; with many they leave a
// short tail.
constexpr int64_t kPieceBytes = 65536;

template <class T, class Acc, bool kSoftcap>
struct Backward {
    const T* logits;
    int64_t row_stride, cols;
    const int64_t* labels;
    Transform<Acc, kSoftcap> transform;
    const double* lse;
    const Acc* coefficients;  // null for ones
    T* out;
    int64_t out_row_stride;

    static constexpr int64_t kPiece = kPieceBytes / sizeof(T);

    POPE_HOST_DEVICE int64_t pieces() const { return (cols + kPiece - 1) / kPiece; }

    POPE_HOST_DEVICE void run(int64_t block, int thread, int threads) const {
        const int64_t n = block / pieces();
        const int64_t begin = (block % pieces()) * kPiece;
        const int64_t count = cols - begin < kPiece ? cols - begin : kPiece;
        const T* in = logits + n * row_stride + begin;
        T* to = out + n * out_row_stride + begin;
        const int64_t label = labels[n];
        const Acc coefficient = coefficients == nullptr ? Acc(1) : coefficients[n];
        if (label == kIgnoreIndex || coefficient == 0) {
            map_row<false>(in, to, count, ZeroRow<T>{}, thread, threads);
            return;
        }
        const double log_sum = lse[n];
        const Acc high = static_cast<Acc>(log_sum);
        const Acc low = static_cast<Acc>(log_sum - static_cast<double>(high));
        const RowGradient<T, Acc, kSoftcap> gradient{transform, label - begin, high, low,
                                                     coefficient * transform.scale};
        map_row<true>(in, to, count, gradient, thread, threads);
    }
};

template <class Acc, bool kSoftcap>
Transform<Acc, kSoftcap> as_transform(LogitTransform t) {
    const Acc cap = static_cast<Acc>(t.softcap);
    return {static_cast<Acc>(t.scale), cap, kSoftcap ? Acc(1) / cap : Acc(0)};
}

}  // namespace pope::cuda
