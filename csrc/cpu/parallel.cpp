#include "cpu/parallel.h"

#include <atomic>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "cpu/torch_pool.h"

namespace cmlora::cpu {
namespace {

struct Settings {
  TorchParallelFor torch = find_torch_pool();
  std::atomic<Pool> pool{torch ? Pool::kTorch : Pool::kThreads};
  std::atomic<int> fallback_threads{1};
};

Settings& settings() {
  static Settings instance;
  return instance;
}

thread_local bool inside = false;  // a job: calls from there have this thread alone

// The work of one call. Whichever range the pool gives a thread, it takes pieces of `grain` until
// none is left: a thread that the system holds back then keeps the others waiting for one piece,
// not for its share. Exceptions must not cross torch's C interface: the first one waits here.
struct Job {
  ParallelBody body;
  void* context;
  int64_t count;
  int64_t grain;
  std::atomic<int64_t> next{0};
  std::mutex mutex{};
  std::exception_ptr error{};

  void run() {
    const bool outside = !std::exchange(inside, true);
    try {
      for (int64_t begin; (begin = next.fetch_add(grain)) < count;) {
        body(begin, begin + grain < count ? begin + grain : count, context);
      }
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
    }
    if (outside) inside = false;
  }
};

void run_range(int64_t, int64_t, void* job) { static_cast<Job*>(job)->run(); }

void run_threads(Job* job) {
  const int64_t pieces = (job->count + job->grain - 1) / job->grain;
  std::vector<std::thread> threads;
  try {
    for (int64_t i = 1; i < pieces && i < settings().fallback_threads; ++i) {
      threads.emplace_back(&Job::run, job);
    }
  } catch (const std::system_error&) {  // the system gives no more threads: these will do
  }
  job->run();
  for (auto& thread : threads) thread.join();
}

}  // namespace

void run_parallel(int64_t count, int64_t grain, ParallelBody body, void* context) {
  if (count <= 0) return;
  Settings& chosen = settings();
  if (count <= grain || inside || chosen.pool == Pool::kSerial) return body(0, count, context);
  Job job{body, context, count, grain};
  if (chosen.pool == Pool::kThreads) {
    run_threads(&job);
  } else if (chosen.torch(0, count, grain, run_range, &job) != 0) {
    throw std::runtime_error("torch_parallel_for failed");
  }
  if (job.error) std::rethrow_exception(job.error);
}

Pool current_pool() { return settings().pool; }

bool use_pool(Pool pool) {
  if (pool == Pool::kTorch && !settings().torch) return false;
  settings().pool = pool;
  return true;
}

void set_fallback_threads(int count) { settings().fallback_threads = count > 1 ? count : 1; }

}  // namespace cmlora::cpu
