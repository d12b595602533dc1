// The model's shape from GGUF metadata. Keys as written by convert_hf_to_gguf of llama.cpp for the
// architectures lfm2 and lfm2moe.
#include <fmt/format.h>

#include <algorithm>

#include "config/gguf_file.h"
#include "config/model_config_internal.h"

namespace millrace::model_config_detail {
namespace {

// As Fields of the JSON reader: keeps the first failure, later reads return harmless values.
class Keys {
 public:
  Keys(const GgufFile& file, std::string architecture)
      : file_(file), prefix_(std::move(architecture) + ".") {}

  const std::optional<Error>& error() const { return error_; }
  std::string key(const char* name) const { return prefix_ + name; }
  bool has(const char* name) const { return file_.has(key(name)); }

  void fail(const std::string& field, const std::string& what,
            ErrorCode code = ErrorCode::kInvalidArgument) {
    if (!error_) error_ = Error{code, field, fmt::format("{}: {}", file_.path(), what)};
  }

  std::int32_t integer(const std::string& full_key, std::int64_t min, std::int64_t max) {
    auto value = file_.get_int(full_key, min, max);
    if (value) return static_cast<std::int32_t>(*value);
    if (!error_) error_ = value.error();
    return static_cast<std::int32_t>(min);
  }

  float positive(const char* name, double max) {
    auto value = file_.get_float(key(name));
    if (!value && !error_) error_ = value.error();
    if (value && (*value <= 0 || *value > max)) {
      fail(key(name), fmt::format("expected a number above 0 and up to {}, found {}", max, *value));
    }
    return value ? static_cast<float>(*value) : 1.0F;
  }

 private:
  const GgufFile& file_;
  std::string prefix_;
  std::optional<Error> error_;
};

// Number of rows (dims[1]) of a tensor, or `otherwise` when it is absent or not of that rank. Some
// published re-quantisations carry wrong widths in their keys beside right tensors, so the tensor
// wins.
std::int64_t rows_of(const GgufFile& file, const std::string& tensor, std::size_t rank,
                     std::int64_t otherwise) {
  const GgufTensor* found = file.find_tensor(tensor);
  return found != nullptr && found->dims.size() == rank
             ? static_cast<std::int64_t>(std::min<std::uint64_t>(found->dims[1], INT32_MAX))
             : otherwise;
}

// attention.head_count_kv has one entry per layer, 0 for short convolutions: the only record of the
// layer pattern.
void read_layers(const GgufFile& file, Keys& in, ModelConfig& out) {
  const std::int32_t layers = in.integer(in.key("block_count"), 1, kMaxLayers);
  const std::string key = in.key("attention.head_count_kv");
  if (in.error()) return;
  auto counts = file.get_int_array(key);
  if (!counts) return in.fail(key, counts.error().message, counts.error().code);
  if (counts->size() != static_cast<std::size_t>(layers)) {
    return in.fail(key, fmt::format("expected one entry for each of the {} layers, found {}",
                                    layers, counts->size()));
  }
  for (const std::int64_t count : *counts) {
    out.layers.push_back(count == 0 ? LayerKind::kShortConv : LayerKind::kAttention);
    if (count == 0) continue;
    const bool differs = out.num_kv_heads != 0 && count != out.num_kv_heads;
    if (count < 0 || count > kMaxWidth || differs) {
      return in.fail(
          key,
          fmt::format("expected 0 or the same positive count in every entry, found {}", count));
    }
    out.num_kv_heads = static_cast<std::int32_t>(count);
  }
  // A model without attention has no heads to speak of; one keeps the arithmetic defined.
  if (out.num_kv_heads == 0) out.num_kv_heads = 1;
}

void read_heads(Keys& in, ModelConfig& out) {
  out.num_heads = in.integer(in.key("attention.head_count"), 1, kMaxWidth);
  if (in.has("attention.key_length")) {
    out.head_dim = in.integer(in.key("attention.key_length"), 1, kMaxWidth);
  } else if (out.hidden_size % out.num_heads == 0) {
    out.head_dim = out.hidden_size / out.num_heads;
  } else {
    in.fail(
        in.key("attention.head_count"),
        fmt::format("expected a divisor of embedding_length {} (there is no key_length), found {}",
                    out.hidden_size, out.num_heads));
  }
  for (const char* name : {"attention.value_length", "rope.dimension_count"}) {
    if (!in.has(name) || in.error()) continue;
    if (in.integer(in.key(name), 1, kMaxWidth) != out.head_dim) {
      in.fail(in.key(name),
              fmt::format("differs from the head size {}, which is not served", out.head_dim),
              ErrorCode::kUnsupported);
    }
  }
}

void read_rope(const GgufFile& file, Keys& in, ModelConfig& out) {
  out.rope_theta = in.positive("rope.freq_base", 1e12);
  if (!in.has("rope.scaling.type")) return;
  auto type = file.get_string(in.key("rope.scaling.type"));
  if (!type || *type != "none") {
    in.fail(in.key("rope.scaling.type"), "RoPE scaling is not served, expected \"none\"",
            ErrorCode::kUnsupported);
  }
}

void read_experts(const GgufFile& file, Keys& in, ModelConfig& out) {
  out.num_experts = in.integer(in.key("expert_count"), 1, kMaxExperts);
  out.num_experts_per_tok = in.integer(in.key("expert_used_count"), 1, kMaxExpertsPerToken);
  out.num_dense_layers = in.integer(in.key("leading_dense_block_count"), 0, kMaxLayers);
  const std::string width = in.key("expert_feed_forward_length");
  const std::string block = fmt::format("blk.{}.", out.num_dense_layers);
  const std::int64_t fused = rows_of(file, block + "ffn_gate_up_exps.weight", 3, 0);
  const std::int64_t rows =
      fused > 0 ? fused / 2 : rows_of(file, block + "ffn_gate_exps.weight", 3, 0);
  out.moe_intermediate_size = rows > 0 ? static_cast<std::int32_t>(std::min(rows, kMaxWidth))
                                       : in.integer(width, 1, kMaxWidth);
  // 2 = sigmoid, the only gating of this architecture; older converters leave the key out.
  if (in.has("expert_gating_func") && in.integer(in.key("expert_gating_func"), 0, 100) != 2) {
    in.fail(in.key("expert_gating_func"), "expected 2 (sigmoid)", ErrorCode::kUnsupported);
  }
  // llama.cpp normalises the chosen weights unless a key says otherwise, and scales by 1.
  out.norm_topk_prob = true;
  if (in.has("expert_weights_norm")) {
    auto norm = file.get_bool(in.key("expert_weights_norm"));
    if (!norm) return in.fail(in.key("expert_weights_norm"), norm.error().message);
    out.norm_topk_prob = *norm;
  }
  out.routed_scaling_factor =
      in.has("expert_weights_scale") ? in.positive("expert_weights_scale", 1e6) : 1.0F;
  out.use_expert_bias = file.find_tensor(block + "exp_probs_b.bias") != nullptr;
}

// Ids come with the tokenizer; a file without one (weights only) has none.
void read_tokens(const GgufFile& file, Keys& in, ModelConfig& out) {
  const auto read = [&](const char* key) {
    return file.has(key) ? in.integer(key, 0, kMaxVocab) : -1;
  };
  out.bos_token_id = read("tokenizer.ggml.bos_token_id");
  out.pad_token_id = read("tokenizer.ggml.padding_token_id");
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    const std::int32_t id = read(key);
    const auto& ids = out.eos_token_ids;
    if (id >= 0 && std::find(ids.begin(), ids.end(), id) == ids.end()) {
      out.eos_token_ids.push_back(id);
    }
  }
  if (out.eos_token_ids.empty() && file.has("tokenizer.ggml.model")) {
    in.fail("tokenizer.ggml.eos_token_id", "is missing; without it no answer ends");
  }
}

}  // namespace

Result<ModelConfig> load_gguf_config(const std::string& path) {
  auto file = GgufFile::open(path);
  if (!file) return file.error();
  auto architecture = file->get_string("general.architecture");
  if (!architecture) return architecture.error();
  if (*architecture != "lfm2" && *architecture != "lfm2moe") {
    return Error{
        ErrorCode::kUnsupported, "general.architecture",
        fmt::format("{}: architecture \"{}\" is not served, expected \"lfm2\" or \"lfm2moe\"", path,
                    *architecture)};
  }
  ModelConfig out;
  out.model_type = *architecture == "lfm2" ? "lfm2" : "lfm2_moe";
  Keys in(*file, std::string(*architecture));
  out.hidden_size = in.integer(in.key("embedding_length"), 1, kMaxWidth);
  read_layers(*file, in, out);
  read_heads(in, out);
  read_rope(*file, in, out);
  out.norm_eps = in.positive("attention.layer_norm_rms_epsilon", 1.0);
  out.conv_l_cache = in.integer(in.key("shortconv.l_cache"), 2, kMaxTaps);
  out.max_position_embeddings = in.integer(in.key("context_length"), 1, kMaxPositions);
  if (out.model_type == "lfm2_moe") read_experts(*file, in, out);

  const std::int64_t vocab = rows_of(*file, "token_embd.weight", 2, 0);
  out.vocab_size = vocab > 0 ? static_cast<std::int32_t>(std::min(vocab, kMaxVocab))
                             : in.integer(in.key("vocab_size"), 1, kMaxVocab);
  const std::int64_t width = rows_of(*file, "blk.0.ffn_gate.weight", 2, 0);
  out.intermediate_size = width > 0 ? static_cast<std::int32_t>(std::min(width, kMaxWidth))
                                    : in.integer(in.key("feed_forward_length"), 1, kMaxWidth);
  out.tie_embeddings = file->find_tensor("output.weight") == nullptr;
  read_tokens(*file, in, out);
  if (in.error()) return *in.error();
  if (auto error = check_consistency(out, path)) return *error;
  return out;
}

}  // namespace millrace::model_config_detail
