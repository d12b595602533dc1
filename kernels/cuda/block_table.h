// Writes what a step adds to the block tables, which stay in device memory between steps.
#pragma once

#include <cstdint>

#include "kernels/cuda/stream_ref.h"

namespace millrace::kernels::cuda {

// Entry `index` of the table, counted over all rows, becomes `block`.
struct BlockTableUpdate {
  std::int32_t index = 0;
  std::int32_t block = 0;
};

struct BlockTableArgs {
  const BlockTableUpdate* updates = nullptr;  // [count], device; indices distinct
  std::int64_t count = 0;
  std::int32_t* table = nullptr;  // device
  std::int64_t entries = 0;       // of the table; indices outside [0, entries) are skipped
};
void update_block_tables(StreamRef stream, const BlockTableArgs& args);

}  // namespace millrace::kernels::cuda
