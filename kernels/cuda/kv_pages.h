// The paged KV cache of one attention layer on the device.
//
//   k, v [num_blocks, G, block_size, head_dim]
//
// One row is the key (or value) of one position of one KV head: head_dim contiguous elements, 128
// bytes in bf16 and 64 in fp8 for head_dim 64. Rows of a block and head are adjacent, so a tile of
// `block_size` positions is one dense [block_size, head_dim] matrix: 16-byte cp.async and ldmatrix
// (transposed for V) read it as it lies, and a 2-D tensor map over [num_blocks * G * block_size,
// head_dim] addresses any of them by the row index row(block, g, offset).
//
// Block 0..num_blocks-1, offset in [0, block_size): position p of a sequence lies in block
// table[p / block_size] at offset p % block_size. A token's "slot" is block * block_size + offset;
// kNoKvSlot (-1, kernels/kv_write.h) writes nothing.
//
// Plain values without CUDA types: host code and kernels share this header. Blocks may be copied as
// bytes. Both pointers are aligned to 256 bytes (the base of a device allocation).
#pragma once

#include <cstdint>

#if !defined(MILLRACE_HOST_DEVICE)
#if defined(__CUDACC__)
#define MILLRACE_HOST_DEVICE __host__ __device__
#else
#define MILLRACE_HOST_DEVICE
#endif
#endif

namespace millrace::kernels::cuda {

// Fp8E4M3: OCP 8-bit float with 4 exponent bits, largest value 448, rounded to nearest even and
// saturated; a NaN stays a NaN.
enum class KvType : std::uint8_t { kBf16, kFp8E4M3 };

struct KvPages {
  void* k = nullptr;
  void* v = nullptr;
  KvType type = KvType::kBf16;
  std::int32_t num_blocks = 0;
  std::int32_t block_size = 0;  // a multiple of 16
  std::int32_t kv_heads = 0;    // G
  std::int32_t head_dim = 0;    // 64, or another multiple of 16
  // fp8 only: stored = value / scale, value = stored * scale. Powers of two lose nothing.
  float k_scale = 1.0F;
  float v_scale = 1.0F;

  MILLRACE_HOST_DEVICE constexpr std::int64_t element_bytes() const {
    return type == KvType::kBf16 ? 2 : 1;
  }
  // Bytes of one block in k, and the same in v.
  MILLRACE_HOST_DEVICE constexpr std::int64_t block_bytes() const {
    return std::int64_t{kv_heads} * block_size * head_dim * element_bytes();
  }
  // Row of the [num_blocks * G * block_size, head_dim] matrix; times head_dim it is the element.
  MILLRACE_HOST_DEVICE constexpr std::int64_t row(std::int64_t block, std::int32_t g,
                                                  std::int32_t offset) const {
    return (block * kv_heads + g) * block_size + offset;
  }
};

}  // namespace millrace::kernels::cuda
