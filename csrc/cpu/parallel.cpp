#include "common/parallel.h"

#include <atomic>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include "cpu/torch_pool.h"

namespace cmlora {
namespace {

struct Settings {
  cpu::TorchParallelFor torch = cpu::find_torch_pool();
  std::atomic<Pool> pool{torch ? Pool::kTorch : Pool::kThreads};
  std::atomic<int> fallback_threads{1};
};

Settings& settings() {
  static Settings instance;
  return instance;
}

// Exceptions must not cross torch's C interface: the first one waits here.
struct Guarded {
  ParallelBody body;
  void* context;
  std::mutex mutex;
  std::exception_ptr error;

  static void call(int64_t begin, int64_t end, void* self) {
    auto* guarded = static_cast<Guarded*>(self);
    try {
      guarded->body(begin, end, guarded->context);
    } catch (...) {
      std::lock_guard<std::mutex> lock(guarded->mutex);
      if (!guarded->error) guarded->error = std::current_exception();
    }
  }
};

void run_threads(int64_t count, int64_t grain, Guarded* guarded) {
  const int64_t most = (count + grain - 1) / grain;
  const int64_t wanted = settings().fallback_threads;
  const int64_t ranges = wanted < most ? wanted : most;
  const int64_t size = (count + ranges - 1) / ranges;
  std::vector<std::thread> threads;
  for (int64_t begin = size; begin < count; begin += size) {
    const int64_t end = begin + size < count ? begin + size : count;
    threads.emplace_back(Guarded::call, begin, end, guarded);
  }
  Guarded::call(0, size < count ? size : count, guarded);
  for (auto& thread : threads) thread.join();
}

}  // namespace

void run_parallel(int64_t count, int64_t grain, ParallelBody body, void* context) {
  if (count <= 0) return;
  Settings& chosen = settings();
  if (count <= grain || chosen.pool == Pool::kSerial) return body(0, count, context);
  Guarded guarded{body, context, {}, {}};
  if (chosen.pool == Pool::kThreads) {
    run_threads(count, grain, &guarded);
  } else if (chosen.torch(0, count, grain, Guarded::call, &guarded) != 0) {
    throw std::runtime_error("torch_parallel_for failed");
  }
  if (guarded.error) std::rethrow_exception(guarded.error);
}

Pool current_pool() { return settings().pool; }

bool use_pool(Pool pool) {
  if (pool == Pool::kTorch && !settings().torch) return false;
  settings().pool = pool;
  return true;
}

void set_fallback_threads(int count) { settings().fallback_threads = count > 1 ? count : 1; }

}  // namespace cmlora
