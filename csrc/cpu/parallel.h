#pragma once

#include <cstdint>
#include <type_traits>

namespace cmlora::cpu {

using ParallelBody = void (*)(int64_t begin, int64_t end, void* context);

// Calls body on the pieces of `grain` that make up [0, count), the last one shorter, from several
// threads where there are several pieces and this is not such a piece itself. An exception thrown
// by the body is rethrown here.
void run_parallel(int64_t count, int64_t grain, ParallelBody body, void* context);

template <typename Body>
void parallel_for(int64_t count, int64_t grain, Body&& body) {
  auto call = [](int64_t begin, int64_t end, void* context) {
    (*static_cast<std::remove_reference_t<Body>*>(context))(begin, end);
  };
  run_parallel(count, grain, call, &body);
}

// Units of work worth one thread: each costs `unit` vector operations, and waking a thread of a
// pool costs about ten microseconds, some 30 000 of them.
inline int64_t grain_for(int64_t unit) {
  constexpr int64_t kWorthAThread = 30000;
  return unit >= kWorthAThread ? 1 : kWorthAThread / (unit > 0 ? unit : 1);
}

enum class Pool : int { kTorch, kThreads, kSerial };

// The pool in use: torch's own when the loaded torch exports one (2.10 and later), else threads.
Pool current_pool();

// Chooses a pool; returns false, changing nothing, when torch's was asked for and is not there.
bool use_pool(Pool pool);

// Number of threads of the Pool::kThreads fallback.
void set_fallback_threads(int count);

}  // namespace cmlora::cpu
