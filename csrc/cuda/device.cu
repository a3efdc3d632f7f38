#include <mutex>
#include <vector>

#include "cuda/launch.h"

namespace cmlora::cuda {

const DeviceLimits& device_limits(int device) {
  static std::mutex mutex;
  static std::vector<DeviceLimits*> known;  // never freed: references stay valid
  std::lock_guard<std::mutex> lock(mutex);
  if (size_t(device) >= known.size()) known.resize(device + 1, nullptr);
  if (!known[device]) {
    DeviceLimits limits{};
    check("device",
          cudaDeviceGetAttribute(&limits.processors, cudaDevAttrMultiProcessorCount, device));
    check("device", cudaDeviceGetAttribute(&limits.shared_bytes,
                                           cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    known[device] = new DeviceLimits(limits);
  }
  return *known[device];
}

}  // namespace cmlora::cuda
