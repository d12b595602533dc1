#include "worker/cuda/cuda_stage.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/embedding.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/qk_norm_rope.h"
#include "kernels/cuda/rms_norm.h"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/short_conv.h"

namespace millrace {

namespace cuda = kernels::cuda;

using cuda::BFloat16;
using cuda::GemmOutput;
using cuda::StreamRef;
using kernels::MatrixView;

CudaStage::CudaStage(const DeviceShape& shape, const DeviceWeightMap& weights,
                     const DeviceState& state, const DeviceWorkspace& workspace,
                     parallel::DeviceExpertExchange* exchange)
    : shape_(shape),
      model_(*shape.model),
      weights_(weights),
      state_(state),
      work_(workspace),
      exchange_(exchange) {}

MatrixView<float> CudaStage::hidden(std::int64_t rows) const {
  return kernels::matrix(work_.hidden, rows, std::int64_t{model_.hidden_size});
}

MatrixView<BFloat16> CudaStage::normed(std::int64_t rows) const {
  return kernels::matrix(work_.normed, rows, std::int64_t{model_.hidden_size});
}

cuda::AttentionTokens CudaStage::tokens(const StageStep& step) const {
  return {step.in.rows, step.in.slots, step.in.positions, step.attention};
}

void CudaStage::gemm(StreamRef stream, MatrixView<const BFloat16> x, const cuda::PackedWeight& w,
                     const GemmOutput& y) {
  cuda::GemmArgs args;
  args.x = x;
  args.w = w;
  args.y = y;
  args.workspace = work_.gemm;
  cuda::gemm(stream, args);
}

void CudaStage::norm(StreamRef stream, std::int64_t rows, const float* weight) {
  cuda::RmsNormArgs args;
  args.x = hidden(rows);
  args.weight = weight;
  args.eps = model_.norm_eps;
  args.out = normed(rows);
  cuda::rms_norm(stream, args);
}

void CudaStage::embed(StreamRef stream, const StageStep& step) {
  cuda::EmbeddingArgs args;
  args.ids = step.in.ids;
  args.slots = step.in.slots;
  args.last_tokens = state_.last_tokens;
  args.table = weights_.embed;
  args.out = hidden(step.in.rows);
  cuda::embedding(stream, args);
}

void CudaStage::layers(StreamRef stream, const StageStep& step) {
  const std::int64_t t = step.in.rows;
  if (t > 0) {
    cuda::RopeAnglesArgs angles;
    angles.positions = step.in.positions;
    angles.inverse_frequencies = work_.inverse_frequencies;
    angles.cos = kernels::matrix(work_.cos, t, std::int64_t{model_.head_dim / 2});
    angles.sin = kernels::matrix(work_.sin, t, std::int64_t{model_.head_dim / 2});
    cuda::rope_angles(stream, angles);
    if (!state_.kv.empty()) cuda::attention_plan(stream, work_.attention, tokens(step));
  }
  std::size_t conv_index = 0;
  std::size_t attention_index = 0;
  std::size_t moe_index = 0;
  for (const DeviceLayer& layer : weights_.layers) {
    if (t > 0) {
      norm(stream, t, layer.operator_norm);
      if (layer.conv) {
        short_conv(stream, step, *layer.conv, conv_index);
      } else {
        attention(stream, step, *layer.attention, attention_index);
      }
      norm(stream, t, layer.ffn_norm);
    }
    ++(layer.conv ? conv_index : attention_index);
    if (layer.moe) {
      moe(stream, step, *layer.moe, moe_index++);
    } else if (t > 0) {
      dense_ffn(stream, t, *layer.dense);
    }
  }
}

void CudaStage::short_conv(StreamRef stream, const StageStep& step, const DeviceConv& weights,
                           std::size_t index) {
  const std::int64_t t = step.in.rows;
  const std::int64_t d = model_.hidden_size;
  const auto bcx = kernels::matrix(work_.bcx, t, 3 * d);
  const auto mixed = kernels::matrix(work_.mixed, t, d);
  gemm(stream, normed(t), weights.in_proj, GemmOutput::store(bcx));
  cuda::ShortConvArgs args;
  args.bcx = bcx;
  args.taps = kernels::matrix<const float>(weights.taps, d, model_.conv_l_cache);
  args.chunks = step.in.chunks;
  args.sequences = step.in.chunk_of_row;
  args.state = state_.conv[index];
  args.out = mixed;
  cuda::short_conv(stream, args);
  gemm(stream, mixed, weights.out_proj, GemmOutput::add(hidden(t)));
}

void CudaStage::attention(StreamRef stream, const StageStep& step, const DeviceAttention& weights,
                          std::size_t index) {
  const ModelConfig& m = model_;
  const std::int64_t t = step.in.rows;
  const std::int64_t width = m.q_width() + 2 * m.kv_width();
  const auto qkv = kernels::matrix(work_.qkv, t, width);
  const auto mixed = kernels::matrix(work_.mixed, t, std::int64_t{m.q_width()});
  gemm(stream, normed(t), weights.qkv, GemmOutput::store(qkv));

  cuda::QkNormRopeArgs rope;
  rope.qkv = qkv;
  rope.heads = m.num_heads;
  rope.q_weight = weights.q_norm;
  rope.k_weight = weights.k_norm;
  rope.eps = m.norm_eps;
  rope.cos = kernels::matrix<const float>(work_.cos, t, m.head_dim / 2);
  rope.sin = kernels::matrix<const float>(work_.sin, t, m.head_dim / 2);
  rope.slots = step.in.kv_slots;
  rope.pages = state_.kv[index];
  cuda::qk_norm_rope(stream, rope);

  cuda::AttentionArgs args;
  args.q = kernels::heads<const BFloat16>(work_.qkv, t, m.num_heads, m.head_dim, width);
  args.pages = state_.kv[index];
  args.block_tables = state_.block_tables;
  args.max_blocks = shape_.blocks_per_sequence();
  args.scale = 1.0F / std::sqrt(static_cast<float>(m.head_dim));
  args.out = kernels::heads(work_.mixed, t, m.num_heads, m.head_dim);
  cuda::attention(stream, work_.attention, tokens(step), args);

  gemm(stream, mixed, weights.out_proj, GemmOutput::add(hidden(t)));
}

void CudaStage::dense_ffn(StreamRef stream, std::int64_t rows, const DeviceFfn& weights) {
  const auto gate = kernels::matrix(work_.ffn, rows, std::int64_t{model_.intermediate_size});
  gemm(stream, normed(rows), weights.w13, GemmOutput::swiglu(gate));
  gemm(stream, gate, weights.w2, GemmOutput::add(hidden(rows)));
}

void CudaStage::sample(StreamRef stream, const StageStep& step) {
  const std::int64_t d = model_.hidden_size;
  const std::int64_t tile = shape_.logit_rows();
  for (std::int64_t begin = 0; begin < step.in.logit_rows; begin += tile) {
    const std::int64_t rows = std::min(tile, step.in.logit_rows - begin);
    const auto selected = kernels::matrix(work_.selected, rows, d);
    const auto logits = kernels::matrix(work_.logits, rows, std::int64_t{model_.vocab_size});
    cuda::RmsNormArgs final_norm;
    final_norm.x = hidden(step.in.rows);
    final_norm.weight = weights_.final_norm;
    final_norm.eps = model_.norm_eps;
    final_norm.rows = step.in.logit_index + begin;
    final_norm.out = selected;
    cuda::rms_norm(stream, final_norm);
    gemm(stream, selected, weights_.lm_head, GemmOutput::store(logits));

    cuda::SampleArgs args;
    args.logits = logits;
    args.rows = step.in.samples + begin;
    args.slots = state_.sampling;
    args.bias = state_.bias;
    args.bias_stride = kMaxLogitBias;
    args.bias_scratch = work_.bias_scratch;
    args.counts = state_.counts;
    args.results = work_.samples + begin;
    args.last_tokens = state_.last_tokens;
    cuda::sample(stream, args);
  }
}

}  // namespace millrace
