#include "kernels/cuda/block_table.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/launch.cuh"

namespace millrace::kernels::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    update_block_tables_kernel(const BlockTableUpdate* updates, std::int64_t count,
                               std::int32_t* table, std::int64_t entries) {
  await_previous_kernel();
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const BlockTableUpdate update = updates[i];
  if (update.index >= 0 && update.index < entries) table[update.index] = update.block;
}

}  // namespace

void update_block_tables(StreamRef stream, const BlockTableArgs& a) {
  CHECK(a.count >= 0 && a.entries >= 0, "count={} entries={}", a.count, a.entries);
  if (a.count == 0) return;
  const auto blocks = static_cast<unsigned>((a.count + kThreads - 1) / kThreads);
  launch(update_block_tables_kernel, {dim3(blocks), dim3(kThreads)}, stream, a.updates, a.count,
         a.table, a.entries);
}

}  // namespace millrace::kernels::cuda
