// What goes where: weights cut into pieces of whole packed tiles.
#include <fmt/format.h>

#include <algorithm>

#include "config/check.h"
#include "worker/cuda/weight_upload.h"

namespace millrace {

namespace {

using kernels::WeightView;
using kernels::cuda::BFloat16;
using kernels::cuda::PackedWeight;
using Kind = UploadPiece::Kind;

// Large enough to keep a copy engine busy, small enough that the buffers of all threads stay a
// small part of a device.
constexpr std::int64_t kPieceBytes = std::int64_t{16} << 20;

// Rows of a piece: a multiple of `step`.
std::int64_t rows_per_piece(std::int64_t cols, std::int64_t step) {
  const std::int64_t rows = kPieceBytes / (cols * static_cast<std::int64_t>(sizeof(BFloat16)));
  return std::max(step, rows / step * step);
}

// Rows [begin, begin + count) of views stacked on each other.
std::vector<WeightView> slice(const std::vector<WeightView>& stack, std::int64_t begin,
                              std::int64_t count) {
  std::vector<WeightView> out;
  for (const WeightView& view : stack) {
    const std::int64_t first = std::clamp<std::int64_t>(begin, 0, view.rows);
    const std::int64_t last = std::clamp<std::int64_t>(begin + count, 0, view.rows);
    if (last > first) out.push_back(view.slice_rows(first, last - first));
    begin -= view.rows;
  }
  return out;
}

class Planner {
 public:
  explicit Planner(const RandomMemory* random) : random_(random) {}

  void floats(const std::string& name, const std::vector<float>& values, const float* target) {
    if (values.empty()) return;
    UploadPiece piece;
    piece.kind = Kind::kFloats;
    piece.name = name;
    piece.floats = &values;
    piece.target = reinterpret_cast<std::byte*>(const_cast<float*>(target));
    pieces_.push_back(std::move(piece));
  }

  void rows(const std::string& name, const WeightView& view, const void* target) {
    const std::int64_t step = rows_per_piece(view.cols, 1);
    for (std::int64_t r = 0; r < view.rows; r += step) {
      UploadPiece piece;
      piece.kind = Kind::kRows;
      piece.name = name;
      piece.rows = slice({view}, r, step);
      piece.random = random_;
      piece.target = static_cast<std::byte*>(const_cast<void*>(target)) +
                     r * view.cols * static_cast<std::int64_t>(sizeof(BFloat16));
      pieces_.push_back(std::move(piece));
    }
  }

  void packed(const std::string& name, const std::vector<WeightView>& stack, const PackedWeight& to,
              int remainder = 0) {
    const std::int64_t step = rows_per_piece(to.cols, kernels::cuda::kGemmTileRows);
    for (std::int64_t r = 0; r < to.rows; r += step) {
      UploadPiece piece;
      piece.kind = Kind::kPacked;
      piece.name = name;
      piece.format = to.format;
      piece.remainder = remainder;
      piece.rows = slice(stack, r, step);
      piece.random = random_;
      piece.target = tile_at(to, r);
      pieces_.push_back(std::move(piece));
    }
  }

  void ffn(const std::string& name, const FfnWeights& from, const DeviceFfn& to,
           std::int64_t slot = 0) {
    PackedWeight w13 = to.w13;
    PackedWeight w2 = to.w2;
    w13.data += slot * w13.bytes();
    w2.data += slot * w2.bytes();
    // Two rows of the packed matrix for each row of a source.
    const std::int64_t step = rows_per_piece(2 * w13.cols, kernels::cuda::kGemmTileRows / 2);
    for (std::int64_t f = 0; f < from.w1.rows; f += step) {
      UploadPiece piece;
      piece.kind = Kind::kGateUp;
      piece.name = name + ".w1 and w3";
      piece.format = w13.format;
      piece.rows = {slice({from.w1}, f, step).at(0), slice({from.w3}, f, step).at(0)};
      piece.random = random_;
      piece.target = tile_at(w13, 2 * f);
      pieces_.push_back(std::move(piece));
    }
    packed(name + ".w2", {from.w2}, w2);
  }

  std::vector<UploadPiece> take() { return std::move(pieces_); }

 private:
  static std::byte* tile_at(const PackedWeight& to, std::int64_t row) {
    const std::int64_t tile_bytes =
        kernels::cuda::packed_bytes(to.format, kernels::cuda::kGemmTileRows, to.cols);
    return const_cast<std::byte*>(to.data) + row / kernels::cuda::kGemmTileRows * tile_bytes;
  }

  const RandomMemory* random_;
  std::vector<UploadPiece> pieces_;
};

void plan_moe(const std::string& name, const MoeWeights& from, const DeviceMoe& to, Planner& plan) {
  for (std::size_t i = 0; i < to.router.size(); ++i) {
    plan.packed(name + "gate", {from.router}, to.router[i], static_cast<int>(i));
  }
  plan.floats(name + "expert_bias", from.expert_bias, to.bias);
  CHECK(from.expert_ids.size() == static_cast<std::size_t>(to.slots), "{} experts, {} slots",
        from.expert_ids.size(), to.slots);
  for (std::size_t slot = 0; slot < from.expert_ids.size(); ++slot) {
    if (from.expert_ids[slot] < 0) continue;  // an empty slot: no token is ever sent to it
    plan.ffn(fmt::format("{}experts.{}", name, from.expert_ids[slot]), from.experts[slot],
             to.experts, static_cast<std::int64_t>(slot));
  }
}

void plan_layer(const LayerWeights& from, const DeviceLayer& to, Planner& plan) {
  const std::string name = fmt::format("model.layers.{}.", from.layer);
  plan.floats(name + "operator_norm", from.operator_norm, to.operator_norm);
  plan.floats(name + "ffn_norm", from.ffn_norm, to.ffn_norm);
  if (from.conv) {
    plan.packed(name + "conv.in_proj", {from.conv->in_proj}, to.conv->in_proj);
    plan.floats(name + "conv.conv", from.conv->taps, to.conv->taps);
    plan.packed(name + "conv.out_proj", {from.conv->out_proj}, to.conv->out_proj);
  } else {
    const AttentionWeights& a = *from.attention;
    plan.packed(name + "self_attn.q_proj, k_proj or v_proj", {a.q_proj, a.k_proj, a.v_proj},
                to.attention->qkv);
    plan.packed(name + "self_attn.out_proj", {a.out_proj}, to.attention->out_proj);
    plan.floats(name + "self_attn.q_layernorm", a.q_norm, to.attention->q_norm);
    plan.floats(name + "self_attn.k_layernorm", a.k_norm, to.attention->k_norm);
  }
  if (from.moe) {
    plan_moe(name + "feed_forward.", *from.moe, *to.moe, plan);
  } else {
    plan.ffn(name + "feed_forward", *from.dense, *to.dense);
  }
}

}  // namespace

std::int64_t UploadPiece::row_count() const {
  std::int64_t count = 0;
  for (const WeightView& view : rows) count += view.rows;
  return count;
}

std::int64_t UploadPiece::staged_bytes() const {
  if (kind == Kind::kFloats) return static_cast<std::int64_t>(floats->size() * sizeof(float));
  return row_count() * rows.front().cols * static_cast<std::int64_t>(sizeof(BFloat16));
}

std::uint64_t UploadPiece::source_bytes() const {
  if (kind == Kind::kFloats) return floats->size() * sizeof(float);
  std::uint64_t bytes = 0;
  for (const WeightView& view : rows) bytes += static_cast<std::uint64_t>(view.bytes());
  return bytes;
}

std::vector<UploadPiece> plan_upload(const ModelWeights& weights, const DeviceWeightMap& map) {
  Planner plan(weights.random.get());
  if (map.embed.data != nullptr) {
    plan.rows("model.embed_tokens", weights.embed, map.embed.data);
  }
  CHECK(weights.layers.size() == map.layers.size(), "{} layers, {} on the device",
        weights.layers.size(), map.layers.size());
  for (std::size_t i = 0; i < map.layers.size(); ++i) {
    plan_layer(weights.layers[i], map.layers[i], plan);
  }
  if (map.lm_head.data != nullptr) {
    plan.floats("model.embedding_norm", weights.final_norm, map.final_norm);
    plan.packed("lm_head", {weights.lm_head}, map.lm_head);
  }
  return plan.take();
}

}  // namespace millrace
