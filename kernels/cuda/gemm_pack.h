// From matrices as checkpoints hold them to packed weights (kernels/cuda/gemm_layout.h) and back.
#pragma once

#include "kernels/cuda/gemm_layout.h"
#include "kernels/cuda/stream_ref.h"
#include "kernels/tensor_view.h"

namespace millrace::kernels::cuda {

// The rows of a packed weight in device memory. `first` alone [N, K]: packed row n is row n. With
// `second` of the same shape [F, K] (N = 2F, F a multiple of 8): first is the gate (w1), second the
// up projection (w3). Rows may be strided; no alignment beyond the element's is needed.
struct WeightRows {
  MatrixView<const BFloat16> first;
  MatrixView<const BFloat16> second;

  std::int64_t rows() const { return first.rows() + second.rows(); }
  std::int64_t cols() const { return first.cols(); }
};

// Writes packed_bytes(kBf16, rows, cols) bytes. `packed` is 16-byte aligned and does not overlap
// the source. K is any positive count.
void pack_weight(StreamRef stream, const WeightRows& rows, std::byte* packed);

// The inverse, of either format: packed row n to first, or to first and second. Exact: every fp8
// weight is a bf16 value.
struct WeightRowsOut {
  MatrixView<BFloat16> first;
  MatrixView<BFloat16> second;
};
void unpack_weight(StreamRef stream, const PackedWeight& packed, const WeightRowsOut& rows);

}  // namespace millrace::kernels::cuda
