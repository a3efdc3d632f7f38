#pragma once

#if defined(__clang__)
#define CMLORA_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define CMLORA_UNROLL _Pragma("GCC unroll 16")
#else
#define CMLORA_UNROLL
#endif
