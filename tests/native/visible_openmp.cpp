// What gcc's `#pragma omp parallel for schedule(static)` calls, on threads that ThreadSanitizer sees start and end.
// Built into the extension in place of libgomp where POPE_SANITIZE is "thread".
#include <thread>
#include <vector>

namespace {

thread_local int number = 0, count = 1;

}  // namespace

extern "C" {

int omp_get_thread_num() { return number; }

int omp_get_num_threads() { return count; }

void GOMP_parallel(void (*body)(void*), void* data, unsigned num_threads, unsigned) {
    const auto run = [=](int index) {
        number = index;
        count = static_cast<int>(num_threads);
        body(data);
        number = 0;
        count = 1;
    };
    std::vector<std::thread> others;
    for (unsigned index = 1; index < num_threads; ++index) others.emplace_back(run, index);
    run(0);
    for (auto& other : others) other.join();
}
}
