// Shared by the tests of the device's ops: arrays on the device, bf16 data, tolerances of bf16.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "kernels/cuda/runtime.h"
#include "kernels/cuda/types.h"
#include "tests/kernels/cuda/device_memory.h"
#include "tests/kernels/support.h"

namespace millrace::kernels::cuda::testing {

using kernels::testing::expect_same_bits;
using kernels::testing::kNan;
using kernels::testing::poisoned;
using kernels::testing::random_values;

// Half a unit in the last place of bf16, relative: one rounding to nearest.
inline constexpr double kBf16Half = 0x1p-8;
// One rounding of f32.
inline constexpr double kF32Half = 0x1p-24;

inline StreamRef default_stream() { return {}; }

// An array in device memory that starts as the given values.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& values)
      : size_(values.size()), memory_(upload(default_stream(), values)) {}
  DeviceArray(std::size_t size, T value) : DeviceArray(std::vector<T>(size, value)) {}

  T* data() const { return memory_.as<T>(); }
  std::size_t size() const { return size_; }
  std::vector<T> read() const { return download<T>(default_stream(), memory_, size_); }

 private:
  std::size_t size_;
  DeviceBuffer memory_;
};

inline std::vector<BFloat16> to_bf16(const std::vector<float>& values) {
  std::vector<BFloat16> out;
  out.reserve(values.size());
  for (const float v : values) out.push_back(cuda::to_bf16(v));
  return out;
}
inline std::vector<float> to_f32(const std::vector<BFloat16>& values) {
  std::vector<float> out;
  out.reserve(values.size());
  for (const BFloat16 v : values) out.push_back(cuda::to_f32(v));
  return out;
}
inline float round_bf16(float value) { return cuda::to_f32(cuda::to_bf16(value)); }

// Values that bf16 holds exactly.
inline std::vector<float> random_bf16(std::int64_t n, std::uint32_t seed, float scale = 1.0F) {
  std::vector<float> out = random_values(n, seed, scale);
  for (float& v : out) v = round_bf16(v);
  return out;
}

inline constexpr BFloat16 kBf16Nan{0x7fc1};

inline std::vector<float> rows_of(const std::vector<float>& m, std::int64_t begin,
                                  std::int64_t count, std::int64_t width) {
  return {m.begin() + begin * width, m.begin() + (begin + count) * width};
}

}  // namespace millrace::kernels::cuda::testing
