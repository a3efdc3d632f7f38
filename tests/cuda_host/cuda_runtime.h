#pragma once

// CUDA C++ on the CPU, as far as the kernels in csrc/cuda need it: a block's threads are fibers
// that take turns, so that barriers and exchanges inside warps work as on a GPU.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct float2 {
  float x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

inline dim3 threadIdx, blockIdx, gridDim;

namespace host_cuda {

// The GPU to be, and whether a block's last thread runs first.
void device(int processors, int shared_bytes, bool last_first);

// Runs a kernel block by block; throws when its threads wait for one another for ever.
void run(dim3 grid, int threads, int shared_bytes, const std::function<void()>& kernel);

void block_barrier();

// Every lane of the warp gives `bytes` and sees what the others gave: `size` bytes a lane.
const unsigned char* exchange(const void* bytes, size_t size);

template <typename Value>
Value shuffle(Value value, int lane) {
  const unsigned char* all = exchange(&value, sizeof(Value));
  std::memcpy(&value, all + size_t(lane) * sizeof(Value), sizeof(Value));
  return value;
}

}  // namespace host_cuda

inline void __syncthreads() { host_cuda::block_barrier(); }
inline void __syncwarp() { host_cuda::exchange("", 1); }

template <typename Value>
Value __shfl_sync(unsigned, Value value, int lane) {
  return host_cuda::shuffle(value, lane % 32);
}

template <typename Value>
Value __shfl_xor_sync(unsigned, Value value, int mask) {
  return host_cuda::shuffle(value, int(threadIdx.x % 32) ^ mask);
}

template <typename Value>
Value __shfl_up_sync(unsigned, Value value, int distance) {
  const int lane = int(threadIdx.x % 32);
  return host_cuda::shuffle(value, lane >= distance ? lane - distance : lane);
}

inline void sincospi(double x, double* sine, double* cosine) {
  *sine = std::sin(x * std::acos(-1.0));
  *cosine = std::cos(x * std::acos(-1.0));
}
