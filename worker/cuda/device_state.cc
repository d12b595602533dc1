#include "worker/cuda/device_state.h"

#include <algorithm>

namespace millrace {

namespace {

std::int64_t count_layers(const DeviceShape& shape, LayerKind kind) {
  const auto& layers = shape.model->layers;
  return std::count(layers.begin() + shape.shard.layer_begin,
                    layers.begin() + shape.shard.layer_end, kind);
}

kernels::cuda::KvPages pages_of(const DeviceShape& shape) {
  kernels::cuda::KvPages pages;
  pages.type = shape.kv;
  pages.num_blocks = static_cast<std::int32_t>(shape.limits.blocks);
  pages.block_size = static_cast<std::int32_t>(shape.limits.block_tokens);
  pages.kv_heads = shape.model->num_kv_heads;
  pages.head_dim = shape.model->head_dim;
  return pages;
}

}  // namespace

std::int64_t kv_block_bytes(const DeviceShape& shape) {
  return 2 * pages_of(shape).block_bytes() * count_layers(shape, LayerKind::kAttention);
}

void lay_out_kv(ArenaCursor& cursor, const DeviceShape& shape, DeviceState& state) {
  state.kv.clear();
  const std::int64_t layers = count_layers(shape, LayerKind::kAttention);
  for (std::int64_t i = 0; i < layers; ++i) {
    kernels::cuda::KvPages pages = pages_of(shape);
    pages.k = cursor.take<std::byte>(pages.num_blocks * pages.block_bytes());
    pages.v = cursor.take<std::byte>(pages.num_blocks * pages.block_bytes());
    state.kv.push_back(pages);
  }
}

void lay_out_slots(ArenaCursor& cursor, const DeviceShape& shape, DeviceState& state) {
  const ModelConfig& m = *shape.model;
  const std::int64_t slots = shape.limits.max_sequences;
  const std::int64_t states = slots + shape.limits.snapshots;
  const std::int64_t row = std::int64_t{m.conv_l_cache - 1} * m.hidden_size;
  const std::int64_t layers = count_layers(shape, LayerKind::kShortConv);
  state.conv.clear();
  state.conv_layer_stride = states * row;
  auto* conv = cursor.take<kernels::cuda::BFloat16>(layers * state.conv_layer_stride);
  for (std::int64_t i = 0; i < layers; ++i) {
    auto* data = cursor.measuring() ? nullptr : conv + i * state.conv_layer_stride;
    state.conv.push_back({data, {states, m.conv_l_cache - 1, m.hidden_size}, row});
  }
  state.block_table_entries = slots * shape.blocks_per_sequence();
  state.block_tables = cursor.take<std::int32_t>(state.block_table_entries);
  state.last_tokens = cursor.take<std::int32_t>(slots);
  if (!shape.shard.last_stage) return;
  state.sampling = cursor.take<kernels::cuda::SlotSampling>(slots);
  state.bias = cursor.take<kernels::cuda::LogitBias>(slots * kMaxLogitBias);
  state.counts = kernels::matrix(cursor.take<kernels::TokenCount>(slots * m.vocab_size), slots,
                                 std::int64_t{m.vocab_size});
}

}  // namespace millrace
