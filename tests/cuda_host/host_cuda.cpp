#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <vector>

#include "cuda/launch.h"
#include "cuda/ptx.h"
#include "ops/cuda_status.h"

namespace {

constexpr size_t kStack = 128 << 10;
constexpr size_t kLargest = 64;  // bytes that a lane exchanges at most

struct Barrier {
  int members = 0;
  int waiting = 0;
  int generation = 0;

  // Whether everybody has come; they all go on then.
  bool complete() {
    if (members == 0 || waiting < members) return false;
    waiting = 0;
    ++generation;
    return true;
  }
};

// A warp's exchanges alternate between two buffers: while a slow lane still reads one of them,
// the fast ones are at most one exchange ahead.
struct Warp {
  Barrier barrier;
  unsigned char buffers[2][32 * kLargest];
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  int exchanges = 0;
  bool done = false;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Barrier barrier;
  std::vector<unsigned char> shared;
  const std::function<void()>* kernel = nullptr;
  ucontext_t scheduler;
  int current = 0;
  bool moved = false;
};

Block* block = nullptr;
bool last_first = false;
cmlora::cuda::DeviceLimits limits{132, 227 << 10};

void wait(Barrier& barrier) {
  const int generation = barrier.generation;
  ++barrier.waiting;
  block->moved = true;
  barrier.complete();
  while (barrier.generation == generation) {
    swapcontext(&block->fibers[block->current].context, &block->scheduler);
  }
}

void thread_main() {
  (*block->kernel)();
  block->fibers[block->current].done = true;
  block->moved = true;
  --block->barrier.members;  // a block's barrier no longer counts it; a warp's exchange has to
  block->barrier.complete();
}

void start(Fiber& fiber) {
  fiber.done = false;
  fiber.exchanges = 0;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = &block->scheduler;
  makecontext(&fiber.context, thread_main, 0);
}

void run_block(int threads) {
  for (Fiber& fiber : block->fibers) start(fiber);
  for (Warp& warp : block->warps) warp.barrier = {32, 0, 0};
  block->barrier = {threads, 0, 0};
  std::fill(block->shared.begin(), block->shared.end(), 0xff);  // NaN, whatever the type
  for (int left = threads; left > 0;) {
    block->moved = false;
    left = 0;
    for (int i = 0; i < threads; ++i) {
      const int thread = last_first ? threads - 1 - i : i;
      if (block->fibers[thread].done) continue;
      block->current = thread;
      threadIdx = dim3(unsigned(thread), 0, 0);
      swapcontext(&block->scheduler, &block->fibers[thread].context);
      left += !block->fibers[thread].done;
    }
    if (!block->moved) throw std::runtime_error("threads of a block wait for one another");
  }
}

}  // namespace

namespace host_cuda {

void device(int processors, int shared_bytes, bool reversed) {
  limits = {processors, shared_bytes};
  last_first = reversed;
}

void block_barrier() { wait(block->barrier); }

const unsigned char* exchange(const void* bytes, size_t size) {
  Warp& warp = block->warps[threadIdx.x / 32];
  unsigned char* buffer = warp.buffers[block->fibers[block->current].exchanges++ % 2];
  std::memcpy(buffer + threadIdx.x % 32 * size, bytes, size);
  wait(warp.barrier);
  return buffer;
}

void run(dim3 grid, int threads, int shared_bytes, const std::function<void()>& kernel) {
  Block running;
  running.fibers = std::vector<Fiber>(size_t(threads));
  running.warps = std::vector<Warp>(size_t(threads / 32));
  running.shared.resize(size_t(shared_bytes) + 16);
  running.kernel = &kernel;
  block = &running;
  gridDim = grid;
  for (unsigned i = 0; i < grid.z * grid.y; ++i) {
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = dim3(x, i % grid.y, i / grid.y);
      run_block(threads);
    }
  }
}

}  // namespace host_cuda

namespace cmlora::cuda {

unsigned char* shared_memory() {
  const auto address = reinterpret_cast<uintptr_t>(block->shared.data());
  return reinterpret_cast<unsigned char*>((address + 15) / 16 * 16);
}

const DeviceLimits& device_limits(int) { return limits; }

std::string missing() { return ""; }

}  // namespace cmlora::cuda
