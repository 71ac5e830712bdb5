// For new buffers of the size of a logits matrix page faults take longer than arithmetic: with 4 KiB pages a 200 MB
// gradient causes 50,000 of them. Requesting huge pages before the first write reduces that to a hundred.
#include "pope/ops.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace pope::cpu {

void advise_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t kPage = 4096;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) & ~(kPage - 1);
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) & ~(kPage - 1);
    // Only a hint: without huge pages the call fails without effect.
    if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)data;
    (void)bytes;
#endif
}

}  // namespace pope::cpu
