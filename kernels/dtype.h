// Element types of weights and caches, and their sizes. Quantised types are the block formats of
// GGUF (ggml): a row is a whole number of blocks, each block holds its own scales. Packed types (P)
// hold the blocks of 16 rows interleaved, bit for bit the same information: kernels/packed.h.
#pragma once

#include <bit>
#include <cstdint>

namespace millrace::kernels {

enum class DType : std::uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kP8_0,
  kP4_0,
  kP4_1,
  kP4_K,
  kP5_K,
  kP6_K,
};

inline constexpr int kNumDTypes = 15;

// Values in one block: 1 for the plain types, 32 for Q8_0, Q4_0 and Q4_1, 256 for the K types. A
// packed type has the numbers of the type it was made from.
std::int64_t block_values(DType dtype);
// Bytes of one block, scales included; of a packed type, each row's share of a unit.
std::int64_t block_bytes(DType dtype);
bool is_packed(DType dtype);
// Bytes of a row of `values` values. `values` must be a multiple of block_values(dtype) (CHECK);
// readers of files ask row_fits first.
std::int64_t row_bytes(DType dtype, std::int64_t values);
bool row_fits(DType dtype, std::int64_t values);

// bfloat16 is the upper half of a float. Rounding is to nearest, ties to even; NaN stays a quiet
// NaN. always_inline: these are also compiled into files built for newer instruction sets, and a
// shared out-of-line copy could be one that the running CPU does not have.
[[gnu::always_inline]] inline float bf16_to_f32(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}
[[gnu::always_inline]] inline std::uint16_t f32_to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

// IEEE half precision, in integer arithmetic: subnormals, infinities and NaN are kept.
float f16_to_f32(std::uint16_t bits);
std::uint16_t f32_to_f16(float value);

}  // namespace millrace::kernels
