#include "kernels/cuda/embedding.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/vector.cuh"

namespace millrace::kernels::cuda {
namespace {

constexpr int kThreads = 256;

__device__ Vec8 table_values(const EmbeddingTable& table, std::int64_t row, std::int64_t col) {
  const std::int64_t at = row * table.cols + col;
  if (table.type == TableType::kBf16) {
    return load8(static_cast<const __nv_bfloat16*>(table.data) + at);
  }
  const auto* stored = static_cast<const std::uint8_t*>(table.data) + at;
  Vec8 x = unpack_e4m3(*reinterpret_cast<const uint2*>(stored));
  if (table.scales != nullptr) {
    const std::int64_t per_row = (table.cols + table.scale_cols - 1) / table.scale_cols;
    const float scale = table.scales[row / table.scale_rows * per_row + col / table.scale_cols];
#pragma unroll
    for (int i = 0; i < kVec; ++i) x.v[i] = __fmul_rn(x.v[i], scale);
  }
  return x;
}

// A block for each token.
__global__ void __launch_bounds__(kThreads)
    embedding_kernel(const std::int32_t* ids, const std::int32_t* slots,
                     const std::int32_t* last_tokens, EmbeddingTable table, float* out,
                     std::int64_t out_stride) {
  await_previous_kernel();
  const std::int64_t t = blockIdx.x;
  std::int32_t id = ids[t];
  if (id == kTokenOfSlot && last_tokens != nullptr) id = last_tokens[slots[t]];
  const bool known = id >= 0 && id < table.rows;
  for (std::int64_t col = threadIdx.x * kVec; col < table.cols; col += kThreads * kVec) {
    const Vec8 x = known ? table_values(table, id, col) : Vec8{};
    store8(out + t * out_stride + col, x);
  }
}

}  // namespace

void embedding(StreamRef stream, const EmbeddingArgs& a) {
  CHECK(a.table.cols > 0 && a.table.cols % kVec == 0 && a.out.cols() == a.table.cols &&
            a.out.row_stride % 4 == 0 && a.table.scale_rows > 0 && a.table.scale_cols > 0 &&
            (a.table.scales == nullptr || a.table.scale_cols % kVec == 0),
        "table=[{}, {}] scale block [{}, {}] out=[{}, {}] stride {}", a.table.rows, a.table.cols,
        a.table.scale_rows, a.table.scale_cols, a.out.rows(), a.out.cols(), a.out.row_stride);
  const auto tokens = static_cast<unsigned>(a.out.rows());
  launch(embedding_kernel, {dim3(tokens), dim3(kThreads)}, stream, a.ids, a.slots, a.last_tokens,
         a.table, a.out.data, a.out.row_stride);
}

}  // namespace millrace::kernels::cuda
