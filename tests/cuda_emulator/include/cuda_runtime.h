// Stands in for CUDA's header of this name when .cu files are compiled for the emulator: the words
// and built-in functions of CUDA C++ that our kernels use. What is missing here is not emulated;
// add it with a test, or write the kernel without it.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <source_location>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __constant__ static
// Blocks of one OS thread run one after another, so one copy for each OS thread is one for a block.
#define __shared__ static thread_local

// ---- built-in types and variables -------------------------------------------------------------

#define MILLRACE_VECTOR_TYPES(type, name)                                        \
  struct name##1 {                                                               \
    type x;                                                                      \
  };                                                                             \
  struct alignas(2 * sizeof(type)) name##2 {                                     \
    type x, y;                                                                   \
  };                                                                             \
  struct name##3 {                                                               \
    type x, y, z;                                                                \
  };                                                                             \
  struct alignas(4 * sizeof(type) < 16 ? 4 * sizeof(type) : 16) name##4 {        \
    type x, y, z, w;                                                             \
  };                                                                             \
  constexpr name##1 make_##name##1(type x) { return {x}; }                       \
  constexpr name##2 make_##name##2(type x, type y) { return {x, y}; }            \
  constexpr name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; } \
  constexpr name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

MILLRACE_VECTOR_TYPES(signed char, char)
MILLRACE_VECTOR_TYPES(unsigned char, uchar)
MILLRACE_VECTOR_TYPES(short, short)
MILLRACE_VECTOR_TYPES(unsigned short, ushort)
MILLRACE_VECTOR_TYPES(int, int)
MILLRACE_VECTOR_TYPES(unsigned, uint)
MILLRACE_VECTOR_TYPES(long long, longlong)
MILLRACE_VECTOR_TYPES(unsigned long long, ulonglong)
MILLRACE_VECTOR_TYPES(float, float)
MILLRACE_VECTOR_TYPES(double, double)
#undef MILLRACE_VECTOR_TYPES

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline constinit thread_local uint3 threadIdx{};
inline constinit thread_local uint3 blockIdx{};
inline constinit thread_local dim3 blockDim;
inline constinit thread_local dim3 gridDim;
inline constexpr int warpSize = 32;

#include "tests/cuda_emulator/builtin_math.h"
#include "tests/cuda_emulator/builtin_sync.h"
