// The model's shape, as its own files state it (config.json or GGUF metadata).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/result.h"

namespace millrace {

enum class LayerKind : std::uint8_t { kShortConv, kAttention };

// Sizes of an LFM2 or LFM2-MoE model. Field names follow config.json of Hugging Face's Lfm2Config
// and Lfm2MoeConfig; nothing here is a class default of theirs: the loader fills every field from
// the checkpoint or refuses it.
struct ModelConfig {
  std::string model_type;              // "lfm2" (dense) or "lfm2_moe"
  std::int32_t hidden_size = 0;        // D
  std::int32_t vocab_size = 0;         // V
  std::int32_t num_heads = 0;          // H, query heads
  std::int32_t num_kv_heads = 0;       // G; H is a multiple of G
  std::int32_t head_dim = 0;           // 64 in every released model
  std::int32_t intermediate_size = 0;  // width of the dense FFN, after the auto-adjust rule
  std::int32_t conv_l_cache = 3;  // taps of the short convolution; the state keeps one column less
  std::int32_t max_position_embeddings = 0;
  float rope_theta = 0;
  float norm_eps = 0;
  bool tie_embeddings = true;

  // Mixture of experts; num_experts == 0 for dense models.
  std::int32_t num_dense_layers = 0;       // layers [0, num_dense_layers) have a dense FFN
  std::int32_t num_experts = 0;            // E
  std::int32_t num_experts_per_tok = 0;    // K
  std::int32_t moe_intermediate_size = 0;  // F
  bool norm_topk_prob = true;
  bool use_expert_bias = true;
  float routed_scaling_factor = 1.0F;

  std::int32_t bos_token_id = -1;  // -1: none
  std::int32_t pad_token_id = -1;
  std::vector<std::int32_t> eos_token_ids;

  std::vector<LayerKind> layers;

  std::int32_t num_layers() const { return static_cast<std::int32_t>(layers.size()); }
  bool is_moe_layer(std::int32_t layer) const {
    return num_experts > 0 && layer >= num_dense_layers;
  }
  std::int32_t q_width() const { return num_heads * head_dim; }
  std::int32_t kv_width() const { return num_kv_heads * head_dim; }
};

// Reads the shape from a Hugging Face folder (config.json, and generation_config.json when it is
// there) or from a .gguf file. `field` of an error is the field's name in that file; the message
// names the file, what was expected and what was found. kUnsupported: a well-formed model of
// another architecture, or a variant of this one (RoPE scaling, conv bias, ...) that is not served.
Result<ModelConfig> load_model_config(const std::string& path);

// Number of parameters, by part. Every count is the sum over all layers.
struct ParameterCounts {
  std::int64_t embedding = 0;  // [V, D]
  std::int64_t lm_head = 0;    // [V, D] when it is not tied to the embedding, else 0
  std::int64_t conv = 0;       // in_proj, taps, out_proj
  std::int64_t attention = 0;  // q, k, v, out and the two head norms
  std::int64_t dense_ffn = 0;
  std::int64_t router = 0;  // gate and expert bias
  std::int64_t experts = 0;
  std::int64_t norms = 0;  // two per layer and the final one
  std::int64_t total = 0;
  std::int64_t active =
      0;  // read for one token: K of the E experts; the embedding once (as the head)
};
ParameterCounts count_parameters(const ModelConfig& config);

// One paragraph for people: type, sizes, layer pattern, parameters.
std::string describe(const ModelConfig& config);

}  // namespace millrace
