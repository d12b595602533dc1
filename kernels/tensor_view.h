// Views: small copyable descriptions of memory that somebody else owns (kernels/buffer.h, a mapped
// file). Valid as long as the owner is; no view frees, checks or synchronises anything.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/dtype.h"

// Views are used in files compiled for different instruction sets, so nothing of them may end up as
// a shared out-of-line function.
#define MILLRACE_ALWAYS_INLINE [[gnu::always_inline]] inline

namespace millrace::kernels {

// A dense tensor whose inner dimensions are contiguous; only the first dimension may be strided, as
// with the q part [T, H, head_dim] of a fused qkv row. row_stride counts elements.
template <class T, int Rank>
struct TensorView {
  static_assert(Rank >= 1);
  T* data = nullptr;
  std::int64_t shape[Rank] = {};
  std::int64_t row_stride = 0;

  MILLRACE_ALWAYS_INLINE std::int64_t rows() const { return shape[0]; }
  // Elements of one row: the product of the inner dimensions.
  MILLRACE_ALWAYS_INLINE std::int64_t cols() const {
    std::int64_t n = 1;
    for (int i = 1; i < Rank; ++i) n *= shape[i];
    return n;
  }
  MILLRACE_ALWAYS_INLINE T* row(std::int64_t i) const { return data + i * row_stride; }
  MILLRACE_ALWAYS_INLINE bool empty() const { return shape[0] == 0 || cols() == 0; }

  MILLRACE_ALWAYS_INLINE TensorView slice_rows(std::int64_t begin, std::int64_t count) const {
    TensorView out = *this;
    out.data = data + begin * row_stride;
    out.shape[0] = count;
    return out;
  }
  // Columns [begin, begin + count) of every row.
  MILLRACE_ALWAYS_INLINE TensorView slice_cols(std::int64_t begin, std::int64_t count) const
      requires(Rank == 2) {
    TensorView out = *this;
    out.data = data + begin;
    out.shape[1] = count;
    return out;
  }

  MILLRACE_ALWAYS_INLINE operator TensorView<const T, Rank>() const  // NOLINT: widening to const
      requires(!std::is_const_v<T>) {
    TensorView<const T, Rank> out;
    out.data = data;
    for (int i = 0; i < Rank; ++i) out.shape[i] = shape[i];
    out.row_stride = row_stride;
    return out;
  }
};

template <class T>
using MatrixView = TensorView<T, 2>;

// [rows, cols]; row_stride 0 means contiguous.
template <class T>
MILLRACE_ALWAYS_INLINE TensorView<T, 2> matrix(T* data, std::int64_t rows, std::int64_t cols,
                                               std::int64_t row_stride = 0) {
  return {data, {rows, cols}, row_stride == 0 ? cols : row_stride};
}

// [rows, heads, head_dim]; row_stride 0 means contiguous.
template <class T>
MILLRACE_ALWAYS_INLINE TensorView<T, 3> heads(T* data, std::int64_t rows, std::int64_t num_heads,
                                              std::int64_t head_dim, std::int64_t row_stride = 0) {
  return {data, {rows, num_heads, head_dim}, row_stride == 0 ? num_heads * head_dim : row_stride};
}

// A row-major weight [rows = N outputs, cols = K inputs] as it lies in a mapped checkpoint, any
// dtype. No alignment beyond the byte is assumed: GGUF aligns tensors to 32 bytes, safetensors to 8
// or less.
struct WeightView {
  const std::byte* data = nullptr;
  DType dtype = DType::kF32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;

  MILLRACE_ALWAYS_INLINE std::int64_t row_bytes() const { return kernels::row_bytes(dtype, cols); }
  MILLRACE_ALWAYS_INLINE std::int64_t bytes() const { return rows * row_bytes(); }
  MILLRACE_ALWAYS_INLINE const std::byte* row(std::int64_t i) const {
    return data + i * row_bytes();
  }
  MILLRACE_ALWAYS_INLINE WeightView slice_rows(std::int64_t begin, std::int64_t count) const {
    return {row(begin), dtype, count, cols};
  }
};

}  // namespace millrace::kernels
