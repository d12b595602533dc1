// Embedding on the device: out[t] = row of the table, as f32 (kernels/embedding.h).
#pragma once

#include <cstdint>

#include "kernels/cuda/stream_ref.h"
#include "kernels/tensor_view.h"

namespace millrace::kernels::cuda {

// In place of an id: take the newest token of the row's slot, which the sampler left on the device.
// The host need not know it, so the next step can be given to the device before this one is read.
inline constexpr std::int32_t kTokenOfSlot = -2;

enum class TableType : std::uint8_t { kBf16, kFp8E4M3 };

// The matrix [V, D], 16-byte aligned. fp8: value = stored * scale of its block of scale_rows x
// scale_cols values; scales [ceil(V / scale_rows), ceil(D / scale_cols)] f32, null for 1.
struct EmbeddingTable {
  const void* data = nullptr;
  TableType type = TableType::kBf16;
  std::int64_t rows = 0;  // V
  std::int64_t cols = 0;  // D
  const float* scales = nullptr;
  std::int32_t scale_rows = 1;
  std::int32_t scale_cols = 1;  // a multiple of 8
};

// All pointers are device memory.
struct EmbeddingArgs {
  const std::int32_t* ids = nullptr;          // [T]
  const std::int32_t* slots = nullptr;        // [T]; read where ids[t] is kTokenOfSlot
  const std::int32_t* last_tokens = nullptr;  // [slots]: newest token of each slot
  EmbeddingTable table;
  MatrixView<float> out;  // [T, D]
};

// D is a multiple of 8. A token outside [0, V) gives a row of zeros: after a draw that failed
// (kNoToken) the sequence ends anyway, and a step already given to the device must do no harm.
void embedding(StreamRef stream, const EmbeddingArgs& args);

}  // namespace millrace::kernels::cuda
