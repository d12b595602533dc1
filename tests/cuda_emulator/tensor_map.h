// How the emulator keeps a TensorMap, and the permutation of shared addresses that TMA and wgmma
// share.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cuda/tensor_map.h"

namespace millrace::cuda_emulator {

inline constexpr std::uint64_t kTensorMapMagic = 0x74656e736f726d70;

struct TensorMapFields {
  std::uint64_t magic;
  const unsigned char* data;
  std::int64_t rows, cols;
  std::int64_t row_stride_bytes;
  std::uint32_t element_bytes;
  std::uint32_t box_rows, box_cols;
  kernels::cuda::Swizzle swizzle;
};
static_assert(sizeof(TensorMapFields) <= sizeof(kernels::cuda::TensorMap));

inline kernels::cuda::TensorMap pack(const TensorMapFields& fields) {
  kernels::cuda::TensorMap map;
  std::memcpy(map.opaque, &fields, sizeof fields);
  return map;
}
inline TensorMapFields unpack(const kernels::cuda::TensorMap& map) {
  TensorMapFields fields;
  std::memcpy(&fields, map.opaque, sizeof fields);
  return fields;
}

// Bits [4, 4+b) are XORed with bits [7, 7+b).
inline std::uint32_t swizzle_address(std::uint32_t address, kernels::cuda::Swizzle swizzle) {
  const std::uint32_t mask = (1U << static_cast<unsigned>(swizzle)) - 1U;
  return address ^ ((address >> 7 & mask) << 4);
}

}  // namespace millrace::cuda_emulator
