// Which build of the row kernels this CPU runs.
#include <atomic>
#include <cstring>

#include "rows.h"

namespace pope::cpu {
namespace {

const RowKernels* find(const char* name) {
    const bool any = std::strcmp(name, "auto") == 0;
    const auto wanted = [&](const char* isa) { return any || std::strcmp(name, isa) == 0; };
#ifdef POPE_X86
    if (wanted("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return &rows_avx512();
    if (wanted("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &rows_avx2();
#endif
    return wanted("baseline") ? &rows_baseline() : nullptr;
}

std::atomic<const RowKernels*>& selected() {
    static std::atomic<const RowKernels*> kernels{find("auto")};
    return kernels;
}

}  // namespace

const RowKernels& row_kernels() { return *selected().load(); }

bool is_amd() {
#ifdef POPE_X86
    return __builtin_cpu_is("amd");
#else
    return false;
#endif
}

const char* isa() { return row_kernels().isa; }

bool use_isa(const char* name) {
    const RowKernels* kernels = find(name);
    if (kernels != nullptr) selected().store(kernels);
    return kernels != nullptr;
}

}  // namespace pope::cpu
