// Matrices as the copy engine of compute capability 9.0 (TMA) is told of them.
#pragma once

#include <cstdint>

namespace millrace::kernels::cuda {

// How a tile's 16-byte columns are permuted in shared memory, so that eight rows of one column lie
// in different banks: address bits [4, 4+b) are XORed with bits [7, 7+b), b = 0, 1, 2, 3. Rows of a
// tile are as long as the name says; the tile's start is aligned to 8 rows (1024 bytes for k128B).
enum class Swizzle : std::uint8_t { kNone = 0, k32B = 1, k64B = 2, k128B = 3 };

// Describes a row-major matrix in device memory to the copy engine of compute capability 9.0.
// Passed to kernels by value as `const __grid_constant__ TensorMap`.
struct alignas(64) TensorMap {
  std::uint64_t opaque[16] = {};
};

struct TensorMapSpec {
  const void* data = nullptr;  // 16-byte aligned device memory
  int element_bytes = 2;       // 2: bf16, 1: bytes, 4: f32
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;  // elements; its bytes a multiple of 16. 0: cols
  int box_rows = 0;             // 1..256
  // 1..256 columns; their bytes a multiple of 16, and just 32, 64 or 128 with that swizzle.
  int box_cols = 0;
  Swizzle swizzle = Swizzle::kNone;
  // Boxes reach out of the matrix: such elements arrive as zero.
};

// Needs compute capability 9.0; throws CudaError otherwise or when the spec breaks a rule above.
TensorMap make_tensor_map(const TensorMapSpec& spec);
// The part of it that needs no device: throws CudaError naming the rule that the spec breaks.
void check_tensor_map(const TensorMapSpec& spec);

}  // namespace millrace::kernels::cuda
