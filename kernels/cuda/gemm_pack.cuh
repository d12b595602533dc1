// Rows of a packed weight as they lie in one or two source matrices.
#pragma once

#include "kernels/cuda/gemm_pack.h"
#include "kernels/cuda/launch.cuh"

namespace millrace::kernels::cuda {

// T is __nv_bfloat16, or const of it.
template <class T>
struct PackedRows {
  T* first = nullptr;
  T* second = nullptr;  // null: rows are those of first
  std::int64_t first_stride = 0;
  std::int64_t second_stride = 0;
  int rows = 0;  // packed rows, of both
  int cols = 0;

  // The inverse of gate_row and up_row.
  __device__ T* row(int n) const {
    if (second == nullptr) return first + n * first_stride;
    const std::int64_t f = n / 16 * 8 + n % 8;
    return n % 16 < 8 ? first + f * first_stride : second + f * second_stride;
  }
  // 0 beyond the matrix.
  __device__ __nv_bfloat16 at(int n, int k) const {
    return n < rows && k < cols ? row(n)[k] : __ushort_as_bfloat16(0);
  }
};

// CHECKs the shapes of the two matrices (gemm_pack.h) and describes them to kernels.
PackedRows<const __nv_bfloat16> packed_rows(const WeightRows& rows);

}  // namespace millrace::kernels::cuda
