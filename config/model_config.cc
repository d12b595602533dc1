#include "config/model_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "config/model_config_internal.h"
#include "config/random_model.h"

namespace millrace {
namespace model_config_detail {
namespace {

std::optional<Error> check_tokens(const ModelConfig& c, const std::string& source) {
  const auto outside = [&](std::int32_t id) { return id >= c.vocab_size; };
  const auto refuse = [&](const char* field, std::int32_t id) {
    return invalid(field, fmt::format("{}: expected a token id below vocab_size {}, found {}",
                                      source, c.vocab_size, id));
  };
  if (outside(c.bos_token_id)) return refuse("bos_token_id", c.bos_token_id);
  if (outside(c.pad_token_id)) return refuse("pad_token_id", c.pad_token_id);
  for (const std::int32_t id : c.eos_token_ids) {
    if (outside(id)) return refuse("eos_token_id", id);
  }
  return std::nullopt;
}

std::optional<Error> check_experts(const ModelConfig& c, const std::string& source) {
  if (c.num_experts == 0) return std::nullopt;
  if (c.num_experts_per_tok > c.num_experts) {
    return invalid("num_experts_per_tok",
                   fmt::format("{}: expected at most num_experts {}, found {}", source,
                               c.num_experts, c.num_experts_per_tok));
  }
  if (c.num_dense_layers > c.num_layers()) {
    return invalid("num_dense_layers",
                   fmt::format("{}: expected at most the {} layers of the model, found {}", source,
                               c.num_layers(), c.num_dense_layers));
  }
  return std::nullopt;
}

}  // namespace

std::optional<Error> check_consistency(const ModelConfig& c, const std::string& source) {
  if (c.num_heads % c.num_kv_heads != 0) {
    return invalid("num_key_value_heads",
                   fmt::format("{}: expected a divisor of num_attention_heads {}, found {}", source,
                               c.num_heads, c.num_kv_heads));
  }
  // The attention kernels load 16 components at a time.
  if (c.head_dim % 16 != 0) {
    return Error{ErrorCode::kUnsupported, "head_dim",
                 fmt::format("{}: expected a multiple of 16, found {}", source, c.head_dim)};
  }
  if (std::int64_t{c.num_heads} * c.head_dim > kMaxWidth) {
    return invalid("num_attention_heads",
                   fmt::format("{}: {} heads of {} are wider than the limit of {}", source,
                               c.num_heads, c.head_dim, kMaxWidth));
  }
  if (auto error = check_experts(c, source)) return error;
  return check_tokens(c, source);
}

}  // namespace model_config_detail

Result<ModelConfig> load_model_config(const std::string& path) {
  if (is_random_model(path)) return random_model_config(path);
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    return model_config_detail::load_hf_config(path);
  }
  if (!std::filesystem::exists(path, ignored)) {
    return Error{ErrorCode::kNotFound, path,
                 "no such model; expected a folder with config.json or a .gguf file"};
  }
  return model_config_detail::load_gguf_config(path);
}

ParameterCounts count_parameters(const ModelConfig& c) {
  const std::int64_t d = c.hidden_size;
  const std::int64_t expert = 3 * d * c.moe_intermediate_size;
  std::int64_t active_experts = 0;
  ParameterCounts n;
  n.embedding = c.vocab_size * d;
  n.lm_head = c.tie_embeddings ? 0 : n.embedding;
  n.norms = d * (2 * c.num_layers() + 1);
  for (std::int32_t layer = 0; layer < c.num_layers(); ++layer) {
    if (c.layers[layer] == LayerKind::kShortConv) {
      n.conv += 4 * d * d + d * c.conv_l_cache;
    } else {
      n.attention += 2 * d * c.q_width() + 2 * d * c.kv_width() + 2 * c.head_dim;
    }
    if (c.is_moe_layer(layer)) {
      n.router += c.num_experts * d + (c.use_expert_bias ? c.num_experts : 0);
      n.experts += c.num_experts * expert;
      active_experts += c.num_experts_per_tok * expert;
    } else {
      n.dense_ffn += 3 * d * c.intermediate_size;
    }
  }
  const std::int64_t others = n.conv + n.attention + n.dense_ffn + n.router + n.norms;
  n.total = n.embedding + n.lm_head + others + n.experts;
  // One row of the embedding is read for the input and all of the head for the output; the row is
  // part of the head when they are tied and not worth counting when they are not.
  n.active = n.embedding + others + active_experts;
  return n;
}

std::string describe(const ModelConfig& c) {
  const auto attention = std::count(c.layers.begin(), c.layers.end(), LayerKind::kAttention);
  const ParameterCounts n = count_parameters(c);
  std::string text = fmt::format(
      "{}: {} layers ({} short convolution, {} attention), hidden size {}, {} query and {} "
      "key/value heads of {}, vocabulary {}{}",
      c.model_type, c.num_layers(), c.num_layers() - attention, attention, c.hidden_size,
      c.num_heads, c.num_kv_heads, c.head_dim, c.vocab_size,
      c.tie_embeddings ? " (tied head)" : " (own head)");
  if (c.num_experts > 0) {
    text += fmt::format("; {} experts of width {} in {} layers, {} per token", c.num_experts,
                        c.moe_intermediate_size, c.num_layers() - c.num_dense_layers,
                        c.num_experts_per_tok);
  }
  return text + fmt::format("; {:.2f} B parameters, {:.2f} B read per token",
                            static_cast<double>(n.total) * 1e-9,
                            static_cast<double>(n.active) * 1e-9);
}

}  // namespace millrace
