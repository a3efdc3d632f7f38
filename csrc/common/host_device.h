#pragma once

// Functions that CPU and CUDA kernels share.
#if defined(__CUDACC__)
#define CMLORA_HOST_DEVICE __host__ __device__
#else
#define CMLORA_HOST_DEVICE
#endif
