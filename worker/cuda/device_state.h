// What a device keeps of its sequences between steps: KV pages and conv state of the stage's
// layers, block tables, and on the last stage how each sequence is sampled. Addressed by slot and
// block id.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/kv_pages.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/types.h"
#include "kernels/tensor_view.h"
#include "worker/cuda/device_arena.h"
#include "worker/cuda/device_shape.h"
#include "worker/device_backend.h"

namespace millrace {

// Entries of one sequence's logit_bias.
inline constexpr std::int32_t kMaxLogitBias = kMaxDeviceLogitBias;

struct DeviceState {
  std::vector<kernels::cuda::KvPages> kv;  // by attention layer of the stage
  // By conv layer of the stage: [slots + snapshots, L - 1, D]. All layers lie behind each other.
  std::vector<kernels::TensorView<kernels::cuda::BFloat16, 3>> conv;
  std::int64_t conv_layer_stride = 0;    // elements
  std::int32_t* block_tables = nullptr;  // [slots, blocks_per_sequence]
  std::int64_t block_table_entries = 0;
  std::int32_t* last_tokens = nullptr;  // [slots]

  // Last stage.
  kernels::cuda::SlotSampling* sampling = nullptr;  // [slots]
  kernels::cuda::LogitBias* bias = nullptr;         // [slots, kMaxLogitBias]
  kernels::MatrixView<kernels::TokenCount> counts;  // [slots, V]
};

// KV pages apart from the rest, because they take what is left of the device.
void lay_out_kv(ArenaCursor& cursor, const DeviceShape& shape, DeviceState& state);
void lay_out_slots(ArenaCursor& cursor, const DeviceShape& shape, DeviceState& state);

// Bytes of one KV block in all attention layers of the stage.
std::int64_t kv_block_bytes(const DeviceShape& shape);

}  // namespace millrace
