#include "worker/weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "config/check.h"
#include "worker/checkpoint/expected_tensors.h"
#include "worker/checkpoint/prefault.h"
#include "worker/checkpoint/random_tensors.h"

namespace millrace {
namespace {

using kernels::DType;
using kernels::WeightView;

Error bad_shard(const std::string& field, const std::string& what) {
  return invalid("shard." + field, what);
}

Result<void> check_experts(const RankShard& shard, const ModelConfig& config, std::int32_t layer) {
  const auto& slots = shard.experts[static_cast<std::size_t>(layer - shard.layer_begin)];
  const std::string field = fmt::format("experts[{}]", layer - shard.layer_begin);
  if (!config.is_moe_layer(layer)) {
    if (slots.empty()) return {};
    return bad_shard(field, fmt::format("layer {} has a dense FFN, expected no experts", layer));
  }
  std::set<std::int32_t> seen;
  for (const std::int32_t expert : slots) {
    if (expert < -1 || expert >= config.num_experts) {
      return bad_shard(field, fmt::format("expected expert ids below {} or -1, found {}",
                                          config.num_experts, expert));
    }
    if (expert >= 0 && !seen.insert(expert).second) {
      return bad_shard(field, fmt::format("expert {} is in two slots", expert));
    }
  }
  return {};
}

Result<void> check_shard(const RankShard& shard, const ModelConfig& config) {
  if (shard.layer_begin < 0 || shard.layer_begin >= shard.layer_end ||
      shard.layer_end > config.num_layers()) {
    return bad_shard("layers",
                     fmt::format("expected a range within the {} layers, found {} to {}",
                                 config.num_layers(), shard.layer_begin, shard.layer_end));
  }
  if (shard.experts.size() != static_cast<std::size_t>(shard.layer_end - shard.layer_begin)) {
    return bad_shard("experts",
                     fmt::format("expected one list for each of {} layers, found {}",
                                 shard.layer_end - shard.layer_begin, shard.experts.size()));
  }
  for (std::int32_t layer = shard.layer_begin; layer < shard.layer_end; ++layer) {
    if (auto checked = check_experts(shard, config, layer); !checked) return checked;
  }
  return {};
}

// Exact for all three plain types. The bytes may lie at any address.
std::vector<float> to_f32(const TensorEntry& entry) {
  const auto size = static_cast<std::size_t>(kernels::block_bytes(entry.dtype));
  std::vector<float> out(entry.bytes / size);
  if (entry.dtype == DType::kF32) {
    std::memcpy(out.data(), entry.data, entry.bytes);
    return out;
  }
  for (std::size_t i = 0; i < out.size(); ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, entry.data + i * size, size);
    out[i] = entry.dtype == DType::kBF16 ? kernels::bf16_to_f32(bits) : kernels::f16_to_f32(bits);
  }
  return out;
}

// Takes tensors of a source that validate_tensors has passed, so each lookup succeeds.
class Taker {
 public:
  Taker(const TensorSource& source, const ModelConfig& config) : source_(source), config_(config) {}

  WeightView matrix(const std::string& name) { return entry(name).view(); }
  std::vector<float> values(const std::string& name) { return to_f32(entry(name)); }

  LayerWeights layer(std::int32_t layer, const std::vector<std::int32_t>& expert_slots) {
    LayerWeights out;
    out.layer = layer;
    out.operator_norm = values(layer_tensor(layer, "operator_norm.weight"));
    out.ffn_norm = values(layer_tensor(layer, "ffn_norm.weight"));
    if (config_.layers[layer] == LayerKind::kShortConv) {
      out.conv = conv(layer);
    } else {
      out.attention = attention(layer);
    }
    if (config_.is_moe_layer(layer)) {
      out.moe = moe(layer, expert_slots);
    } else {
      out.dense = FfnWeights{matrix(layer_tensor(layer, "feed_forward.w1.weight")),
                             matrix(layer_tensor(layer, "feed_forward.w3.weight")),
                             matrix(layer_tensor(layer, "feed_forward.w2.weight"))};
    }
    return out;
  }

 private:
  const TensorEntry& entry(const std::string& name) const {
    const TensorEntry* found = source_.find(name);
    CHECK(found != nullptr, "{} passed validation but is not there", name);
    return *found;
  }

  ConvWeights conv(std::int32_t layer) {
    return {matrix(layer_tensor(layer, "conv.in_proj.weight")),
            values(layer_tensor(layer, "conv.conv.weight")),
            matrix(layer_tensor(layer, "conv.out_proj.weight"))};
  }

  AttentionWeights attention(std::int32_t layer) {
    return {matrix(layer_tensor(layer, "self_attn.q_proj.weight")),
            matrix(layer_tensor(layer, "self_attn.k_proj.weight")),
            matrix(layer_tensor(layer, "self_attn.v_proj.weight")),
            matrix(layer_tensor(layer, "self_attn.out_proj.weight")),
            values(layer_tensor(layer, "self_attn.q_layernorm.weight")),
            values(layer_tensor(layer, "self_attn.k_layernorm.weight"))};
  }

  MoeWeights moe(std::int32_t layer, const std::vector<std::int32_t>& slots) {
    MoeWeights out;
    out.router = matrix(layer_tensor(layer, "feed_forward.gate.weight"));
    if (config_.use_expert_bias) {
      out.expert_bias = values(layer_tensor(layer, "feed_forward.expert_bias"));
    }
    out.expert_ids = slots;
    for (const std::int32_t expert : slots) {
      FfnWeights& weights = out.experts.emplace_back();
      if (expert < 0) continue;
      weights = expert_weights(source_, layer, expert).value();
    }
    return out;
  }

  const TensorSource& source_;
  const ModelConfig& config_;
};

std::vector<MatrixUse> matrices_of(LayerWeights& layer) {
  std::vector<MatrixUse> out;
  const auto add = [&out](auto&... views) {
    (out.push_back({&views, WeightUse::kProjection}), ...);
  };
  const auto add_ffn = [&add](FfnWeights& ffn) { add(ffn.w1, ffn.w3, ffn.w2); };
  if (layer.conv) add(layer.conv->in_proj, layer.conv->out_proj);
  if (layer.attention) {
    AttentionWeights& a = *layer.attention;
    add(a.q_proj, a.k_proj, a.v_proj, a.out_proj);
  }
  if (layer.dense) add_ffn(*layer.dense);
  if (!layer.moe) return out;
  out.push_back({&layer.moe->router, WeightUse::kRouter});
  for (FfnWeights& expert : layer.moe->experts) {
    if (expert.w1.data != nullptr) add_ffn(expert);
  }
  return out;
}

// Every distinct matrix, in model order. A tied embedding of a rank that has the head as well comes
// as the head only.
std::vector<MatrixUse> matrices_of(ModelWeights& weights) {
  std::vector<MatrixUse> out;
  const bool shared = weights.embed.data == weights.lm_head.data;
  if (weights.embed.data != nullptr && !shared) out.push_back({&weights.embed, WeightUse::kLookup});
  for (LayerWeights& layer : weights.layers) {
    const auto of_layer = matrices_of(layer);
    out.insert(out.end(), of_layer.begin(), of_layer.end());
  }
  if (weights.lm_head.data != nullptr) out.push_back({&weights.lm_head, WeightUse::kHead});
  return out;
}

using Range = std::span<const std::byte>;

Range range_of(const WeightView& view) {
  return {view.data, static_cast<std::size_t>(view.bytes())};
}

std::uint64_t total_of(const std::vector<Range>& ranges) {
  std::uint64_t bytes = 0;
  for (const Range range : ranges) bytes += range.size();
  return bytes;
}

// Gives a random model's matrices their values.
Result<void> make_values(ModelWeights& weights, const LoadOptions& options) {
  if (weights.random == nullptr || !options.random_values) return {};
  // Packing gives a source's pages back, which only a file has a second time.
  if (options.cpu_weights == CpuWeights::kP4 || options.cpu_weights == CpuWeights::kP8) {
    return Error{ErrorCode::kUnsupported, "model.cpu_weights",
                 "random models are not quantised: use auto or mapped"};
  }
  std::vector<WeightView> views;
  for (const MatrixUse& matrix : matrices_of(weights)) views.push_back(*matrix.view);
  return weights.random->fill(views, options.threads);
}

// Packs what `options` asks for and reads the rest into memory.
void bring_in(ModelWeights& weights, const LoadOptions& options) {
  const std::vector<MatrixUse> matrices = matrices_of(weights);
  const bool shared = weights.embed.data == weights.lm_head.data;
  std::vector<Range> stay;
  std::uint64_t to_pack = 0;
  for (const MatrixUse& matrix : matrices) {
    const WeightView& view = *matrix.view;
    const bool stays = loaded_dtype(view, matrix.use, options.cpu_weights) == view.dtype;
    if (stays) stay.push_back(range_of(view));
    if (!stays) to_pack += static_cast<std::uint64_t>(view.bytes());
  }
  const std::vector<Range> mapped = merge_ranges(std::move(stay));
  weights.mapped_bytes = total_of(mapped);
  const std::uint64_t total = to_pack + (options.prefault ? weights.mapped_bytes : 0);
  const auto progress = [&](std::uint64_t before) -> LoadProgress {
    if (!options.progress) return nullptr;
    return
        [&, before](std::uint64_t done, std::uint64_t) { options.progress(before + done, total); };
  };
  weights.packed = pack_matrices(matrices, options.cpu_weights, options.threads, progress(0));
  if (shared && weights.embed.data != nullptr) weights.embed = weights.lm_head;
  weights.any_packed = std::ranges::any_of(
      matrices, [](const MatrixUse& m) { return kernels::is_packed(m.view->dtype); });
  if (options.prefault) {
    prefault(mapped, options.threads, progress(to_pack));
  } else if (to_pack > 0 && options.progress) {
    options.progress(total, total);
  }
}

}  // namespace

Result<FfnWeights> expert_weights(const TensorSource& source, std::int32_t layer,
                                  std::int32_t expert) {
  auto w1 = source.expert(layer, expert, ExpertPart::kGate);
  if (!w1) return w1.error();
  auto w3 = source.expert(layer, expert, ExpertPart::kUp);
  if (!w3) return w3.error();
  auto w2 = source.expert(layer, expert, ExpertPart::kDown);
  if (!w2) return w2.error();
  return FfnWeights{*w1, *w3, *w2};
}

Result<ModelWeights> load_weights(const TensorSource& source, const ModelConfig& config,
                                  const RankShard& shard, const LoadOptions& options) {
  if (auto checked = check_shard(shard, config); !checked) return checked.error();
  if (auto checked = validate_tensors(source, config); !checked) return checked.error();

  ModelWeights out;
  Taker take(source, config);
  if (shard.first_stage) out.embed = take.matrix("model.embed_tokens.weight");
  for (std::int32_t layer = shard.layer_begin; layer < shard.layer_end; ++layer) {
    out.layers.push_back(
        take.layer(layer, shard.experts[static_cast<std::size_t>(layer - shard.layer_begin)]));
  }
  if (shard.last_stage) {
    out.final_norm = take.values("model.embedding_norm.weight");
    out.lm_head =
        take.matrix(config.tie_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");
  }
  out.random = source.random();
  if (auto made = make_values(out, options); !made) return made.error();
  bring_in(out, options);
  return out;
}

}  // namespace millrace
