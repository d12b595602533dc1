#include "worker/cuda/device_weights.h"

#include <spdlog/spdlog.h>

#include <chrono>

#include "config/check.h"
#include "worker/cuda/weight_upload.h"

namespace millrace {

namespace {

using kernels::DType;
using kernels::cuda::BFloat16;
using kernels::cuda::PackedWeight;
using kernels::cuda::WeightFormat;

// Takes the parts of one rank's weights, in one order for measuring and for addresses.
class Layout {
 public:
  Layout(ArenaCursor& cursor, const ModelConfig& model, const DeviceWeightOptions& options)
      : cursor_(cursor), m_(model), options_(options) {}

  DeviceLayer layer(std::int32_t number, std::int32_t slots) {
    DeviceLayer out;
    out.layer = number;
    out.operator_norm = floats(m_.hidden_size);
    out.ffn_norm = floats(m_.hidden_size);
    if (m_.layers[static_cast<std::size_t>(number)] == LayerKind::kShortConv) {
      out.conv = conv();
    } else {
      out.attention = attention();
    }
    if (m_.is_moe_layer(number)) {
      out.moe = moe(slots);
    } else {
      out.dense = ffn(m_.intermediate_size, 1);
    }
    return out;
  }

  PackedWeight packed(WeightFormat format, std::int64_t rows, std::int64_t cols,
                      std::int64_t copies = 1) {
    PackedWeight out{nullptr, format, rows, cols};
    out.data = cursor_.take<std::byte>(out.bytes() * copies);
    return out;
  }
  float* floats(std::int64_t count) { return cursor_.take<float>(count); }

 private:
  DeviceConv conv() {
    const std::int64_t d = m_.hidden_size;
    DeviceConv out;
    out.in_proj = packed(options_.linears, 3 * d, d);
    out.taps = floats(d * m_.conv_l_cache);
    out.out_proj = packed(options_.linears, d, d);
    return out;
  }

  DeviceAttention attention() {
    DeviceAttention out;
    out.qkv = packed(options_.linears, m_.q_width() + 2 * m_.kv_width(), m_.hidden_size);
    out.out_proj = packed(options_.linears, m_.hidden_size, m_.q_width());
    out.q_norm = floats(m_.head_dim);
    out.k_norm = floats(m_.head_dim);
    return out;
  }

  DeviceFfn ffn(std::int64_t width, std::int64_t copies) {
    DeviceFfn out;
    out.w13 = packed(options_.linears, 2 * width, m_.hidden_size, copies);
    out.w2 = packed(options_.linears, m_.hidden_size, width, copies);
    return out;
  }

  DeviceMoe moe(std::int32_t slots) {
    DeviceMoe out;
    for (int i = 0; i < router_pieces(options_.router); ++i) {
      out.router.push_back(packed(WeightFormat::kBf16, m_.num_experts, m_.hidden_size));
    }
    if (m_.use_expert_bias) out.bias = floats(m_.num_experts);
    out.experts = ffn(m_.moe_intermediate_size, slots);
    out.slots = slots;
    return out;
  }

  ArenaCursor& cursor_;
  const ModelConfig& m_;
  const DeviceWeightOptions& options_;
};

}  // namespace

int router_pieces(DType dtype) {
  if (dtype == DType::kBF16) return 1;
  return dtype == DType::kF16 ? 2 : 3;
}

DeviceWeightMap lay_out_weights(ArenaCursor& cursor, const ModelConfig& model,
                                const RankShard& shard, const DeviceWeightOptions& options) {
  Layout layout(cursor, model, options);
  DeviceWeightMap map;
  const std::int64_t v = model.vocab_size;
  const std::int64_t d = model.hidden_size;
  if (shard.first_stage) {
    map.embed.rows = v;
    map.embed.cols = d;
    map.embed.data = cursor.take<BFloat16>(v * d);
  }
  for (std::int32_t i = shard.layer_begin; i < shard.layer_end; ++i) {
    const auto& slots = shard.experts[static_cast<std::size_t>(i - shard.layer_begin)];
    map.layers.push_back(layout.layer(i, static_cast<std::int32_t>(slots.size())));
  }
  if (shard.last_stage) {
    map.final_norm = layout.floats(d);
    map.lm_head = layout.packed(WeightFormat::kBf16, v, d);
  }
  return map;
}

std::size_t device_weight_bytes(const ModelConfig& model, const RankShard& shard,
                                const DeviceWeightOptions& options) {
  return arena_bytes([&](ArenaCursor& cursor) { lay_out_weights(cursor, model, shard, options); });
}

Result<DeviceWeights> DeviceWeights::load(const ModelConfig& model, const RankShard& shard,
                                          const ModelWeights& weights,
                                          const DeviceLoadOptions& options) {
  const auto begin = std::chrono::steady_clock::now();
  DeviceWeights out;
  out.memory_ = make_arena([&](ArenaCursor& cursor) {
    out.map_ = lay_out_weights(cursor, model, shard, options.format);
  });
  Result<std::uint64_t> bytes =
      upload_weights(plan_upload(weights, out.map_), options.threads, options.progress);
  if (!bytes) return bytes.error();
  out.source_bytes_ = *bytes;
  out.load_seconds_ =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const double seconds = std::max(out.load_seconds_, 1e-9);
  spdlog::info("weights: {:.2f} GB {} the device in {:.2f} s, {:.2f} GB/s",
               static_cast<double>(out.source_bytes_) * 1e-9,
               weights.random == nullptr ? "to" : "of random values made on", seconds,
               static_cast<double>(out.source_bytes_) * 1e-9 / seconds);
  return out;
}

}  // namespace millrace
