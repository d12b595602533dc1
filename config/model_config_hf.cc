// config.json and generation_config.json of a Hugging Face folder.
// Source of the field names and rules: configuration_lfm2.py and configuration_lfm2_moe.py of
// huggingface/transformers; the FFN width rule is that of Lfm2MLP in modeling_lfm2.py.
#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "config/json_text.h"
#include "config/model_config_internal.h"

namespace millrace::model_config_detail {
namespace {

using nlohmann::json;

constexpr std::uint64_t kMaxConfigBytes = 16U << 20;

std::string found(const json& value) {
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  return text.size() > 60 ? text.substr(0, 57) + "..." : text;
}

// Typed access to one JSON object. The first failure is kept and later reads return harmless
// values, so that a reader can take all fields in a row and check once.
class Fields {
 public:
  Fields(const json& object, std::string file) : object_(object), file_(std::move(file)) {}

  const std::optional<Error>& error() const { return error_; }

  // Absent and null are the same to Hugging Face's classes.
  const json* get(const char* name) const {
    const auto it = object_.find(name);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  bool has(const char* name) const { return get(name) != nullptr; }

  void fail(const char* name, const std::string& what,
            ErrorCode code = ErrorCode::kInvalidArgument) {
    if (!error_) error_ = Error{code, name, fmt::format("{}: {}", file_, what)};
  }

  std::int32_t integer(const char* name, std::int64_t min, std::int64_t max) {
    const json* value = require(name, fmt::format("an integer from {} to {}", min, max));
    if (value == nullptr) return static_cast<std::int32_t>(min);
    return to_integer(name, *value, min, max);
  }

  std::int32_t to_integer(const char* name, const json& value, std::int64_t min, std::int64_t max) {
    const bool fits = value.is_number_integer() &&
                      (!value.is_number_unsigned() || value.get<std::uint64_t>() <= INT64_MAX);
    if (!fits || value.get<std::int64_t>() < min || value.get<std::int64_t>() > max) {
      fail(name,
           fmt::format("expected an integer from {} to {}, found {}", min, max, found(value)));
      return static_cast<std::int32_t>(min);
    }
    return static_cast<std::int32_t>(value.get<std::int64_t>());
  }

  // A finite number in (0, max].
  double positive(const char* name, double max) {
    const json* value = require(name, fmt::format("a number above 0 and up to {}", max));
    if (value == nullptr) return 1;
    const double number = value->is_number() ? value->get<double>() : 0;
    if (!(number > 0) || !(number <= max)) {
      fail(name,
           fmt::format("expected a number above 0 and up to {}, found {}", max, found(*value)));
      return 1;
    }
    return number;
  }

  bool flag(const char* name) {
    const json* value = require(name, "true or false");
    if (value == nullptr) return false;
    if (!value->is_boolean()) {
      fail(name, fmt::format("expected true or false, found {}", found(*value)));
      return false;
    }
    return value->get<bool>();
  }

 private:
  const json* require(const char* name, const std::string& expected) {
    const json* value = get(name);
    if (value == nullptr) fail(name, fmt::format("is missing, expected {}", expected));
    return value;
  }

  const json& object_;
  std::string file_;
  std::optional<Error> error_;
};

void read_architecture(Fields& in, ModelConfig& out) {
  const json* type = in.get("model_type");
  if (type == nullptr || !type->is_string()) {
    return in.fail("model_type", "is missing, expected \"lfm2\" or \"lfm2_moe\"");
  }
  out.model_type = type->get<std::string>();
  if (out.model_type != "lfm2" && out.model_type != "lfm2_moe") {
    return in.fail("model_type",
                   fmt::format("architecture {} is not served, expected \"lfm2\" or \"lfm2_moe\"",
                               found(*type)),
                   ErrorCode::kUnsupported);
  }
  if (in.has("quantization_config")) {
    in.fail("quantization_config",
            "quantised safetensors are not served; use the bf16 checkpoint or a GGUF file",
            ErrorCode::kUnsupported);
  }
  if (in.flag("conv_bias")) {
    in.fail("conv_bias", "short convolutions with bias are not served, expected false",
            ErrorCode::kUnsupported);
  }
  if (in.has("use_pos_enc") && !in.flag("use_pos_enc")) {
    in.fail("use_pos_enc", "attention without RoPE is not served, expected true",
            ErrorCode::kUnsupported);
  }
}

void read_sizes(Fields& in, ModelConfig& out) {
  out.hidden_size = in.integer("hidden_size", 1, kMaxWidth);
  out.vocab_size = in.integer("vocab_size", 1, kMaxVocab);
  out.num_heads = in.integer("num_attention_heads", 1, kMaxWidth);
  out.num_kv_heads = in.integer("num_key_value_heads", 1, kMaxWidth);
  if (in.has("head_dim")) {
    out.head_dim = in.integer("head_dim", 1, kMaxWidth);
  } else if (out.hidden_size % out.num_heads == 0) {
    out.head_dim = out.hidden_size / out.num_heads;
  } else {
    in.fail("num_attention_heads",
            fmt::format("expected a divisor of hidden_size {} (there is no head_dim), found {}",
                        out.hidden_size, out.num_heads));
  }
  out.conv_l_cache = in.integer("conv_L_cache", 2, kMaxTaps);
  out.max_position_embeddings = in.integer("max_position_embeddings", 1, kMaxPositions);
  out.norm_eps = static_cast<float>(in.positive("norm_eps", 1.0));
}

// The width that the weights really have: see Lfm2MLP. Divisions truncate toward zero as there.
std::int32_t dense_ffn_width(Fields& in) {
  const char* name = in.has("block_ff_dim") ? "block_ff_dim" : "intermediate_size";
  std::int64_t width = in.integer(name, 1, kMaxWidth);
  if (!in.flag("block_auto_adjust_ff_dim")) return static_cast<std::int32_t>(width);
  width = 2 * width / 3;
  if (in.has("block_ffn_dim_multiplier")) {
    width = static_cast<std::int64_t>(in.positive("block_ffn_dim_multiplier", 1024.0) *
                                      static_cast<double>(width));
  }
  const std::int64_t multiple = in.integer("block_multiple_of", 1, kMaxWidth);
  width = (width + multiple - 1) / multiple * multiple;
  if (width < 1 || width > kMaxWidth) {
    in.fail(name,
            fmt::format("gives the adjusted FFN width {}, expected 1 to {}", width, kMaxWidth));
    return 1;
  }
  return static_cast<std::int32_t>(width);
}

void read_ffn(Fields& in, ModelConfig& out) {
  if (out.model_type == "lfm2") {
    out.intermediate_size = dense_ffn_width(in);
    return;
  }
  out.intermediate_size = in.integer("intermediate_size", 1, kMaxWidth);
  out.moe_intermediate_size = in.integer("moe_intermediate_size", 1, kMaxWidth);
  out.num_experts = in.integer("num_experts", 1, kMaxExperts);
  out.num_experts_per_tok = in.integer("num_experts_per_tok", 1, kMaxExpertsPerToken);
  out.num_dense_layers = in.integer("num_dense_layers", 0, kMaxLayers);
  out.norm_topk_prob = in.flag("norm_topk_prob");
  out.use_expert_bias = in.flag("use_expert_bias");
  out.routed_scaling_factor = static_cast<float>(in.positive("routed_scaling_factor", 1e6));
}

std::vector<LayerKind> kinds_from_types(Fields& in, const json& types, std::int32_t layers) {
  if (!types.is_array() || types.size() != static_cast<std::size_t>(layers)) {
    in.fail("layer_types", fmt::format("expected a list of {} names (num_hidden_layers), found {}",
                                       layers, found(types)));
    return {};
  }
  std::vector<LayerKind> kinds;
  for (const json& type : types) {
    if (type == "conv") {
      kinds.push_back(LayerKind::kShortConv);
    } else if (type == "full_attention") {
      kinds.push_back(LayerKind::kAttention);
    } else {
      in.fail("layer_types",
              fmt::format("entry {} is {}, expected \"conv\" or \"full_attention\"", kinds.size(),
                          found(type)),
              type.is_string() ? ErrorCode::kUnsupported : ErrorCode::kInvalidArgument);
      return {};
    }
  }
  return kinds;
}

std::vector<LayerKind> kinds_from_indices(Fields& in, const json& indices, std::int32_t layers) {
  std::vector<LayerKind> kinds(static_cast<std::size_t>(layers), LayerKind::kShortConv);
  if (!indices.is_array()) {
    in.fail("full_attn_idxs", fmt::format("expected a list of layers, found {}", found(indices)));
    return kinds;
  }
  for (const json& index : indices) {
    const std::int32_t layer = in.to_integer("full_attn_idxs", index, 0, layers - 1);
    if (in.error()) return kinds;
    if (kinds[layer] == LayerKind::kAttention) {
      in.fail("full_attn_idxs", fmt::format("names layer {} twice", layer));
    }
    kinds[layer] = LayerKind::kAttention;
  }
  return kinds;
}

void read_layers(Fields& in, ModelConfig& out) {
  const std::int32_t layers = in.integer("num_hidden_layers", 1, kMaxLayers);
  const json* types = in.get("layer_types");
  const json* indices = in.get("full_attn_idxs");
  if (types == nullptr && indices == nullptr) {
    return in.fail("layer_types",
                   "is missing, as is full_attn_idxs: which layers are attention is "
                   "not known");
  }
  if (types != nullptr) out.layers = kinds_from_types(in, *types, layers);
  if (indices == nullptr || in.error()) return;
  const std::vector<LayerKind> kinds = kinds_from_indices(in, *indices, layers);
  if (types == nullptr) {
    out.layers = kinds;
  } else if (kinds != out.layers) {
    in.fail("full_attn_idxs", "contradicts layer_types");
  }
}

// RoPE in its old form (rope_theta, rope_scaling) and its new one (rope_parameters).
void read_rope(Fields& in, ModelConfig& out, const std::string& file) {
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    const json* value = in.get(name);
    if (value == nullptr) continue;
    if (!value->is_object()) {
      return in.fail(name, fmt::format("expected an object, found {}", found(*value)));
    }
    for (const char* key : {"rope_type", "type"}) {
      if (value->contains(key) && value->at(key) != "default") {
        return in.fail(
            name,
            fmt::format("{} {} is not served, expected \"default\"", key, found(value->at(key))),
            ErrorCode::kUnsupported);
      }
    }
    for (const auto& [key, entry] : value->items()) {
      if (key == "rope_type" || key == "type" || key == "rope_theta") continue;
      if (key == "partial_rotary_factor" && entry == 1.0) continue;
      return in.fail(name,
                     fmt::format("{} = {} is not served; only rope_theta is", key, found(entry)),
                     ErrorCode::kUnsupported);
    }
  }
  const json* parameters = in.get("rope_parameters");
  const bool inside = parameters != nullptr && parameters->contains("rope_theta");
  if (!inside || in.has("rope_theta")) {
    out.rope_theta = static_cast<float>(in.positive("rope_theta", 1e12));
  }
  if (!inside) return;
  Fields inner(*parameters, file);
  const auto theta = static_cast<float>(inner.positive("rope_theta", 1e12));
  if (inner.error()) return in.fail("rope_parameters", inner.error()->message);
  if (in.has("rope_theta") && theta != out.rope_theta) {
    return in.fail("rope_theta", fmt::format("{} contradicts rope_parameters.rope_theta {}",
                                             out.rope_theta, theta));
  }
  out.rope_theta = theta;
}

// `tie_embedding` is the older name and, as in the reference, wins where it is present. Hugging
// Face leaves tie_word_embeddings out of the file when it is true, so its absence means true; a
// checkpoint that has a head of its own after all is refused when its tensors are listed.
void read_tie(Fields& in, ModelConfig& out) {
  out.tie_embeddings = true;
  if (in.has("tie_embedding")) {
    out.tie_embeddings = in.flag("tie_embedding");
  } else if (in.has("tie_word_embeddings")) {
    out.tie_embeddings = in.flag("tie_word_embeddings");
  }
}

std::int32_t read_token(Fields& in, const char* name, std::int32_t otherwise) {
  return in.has(name) ? in.integer(name, 0, kMaxVocab) : otherwise;
}

std::vector<std::int32_t> read_eos(Fields& in) {
  const json* value = in.get("eos_token_id");
  std::vector<std::int32_t> ids;
  if (value == nullptr) return ids;
  if (!value->is_array()) return {in.to_integer("eos_token_id", *value, 0, kMaxVocab)};
  for (const json& id : *value) {
    ids.push_back(in.to_integer("eos_token_id", id, 0, kMaxVocab));
    if (in.error()) break;
  }
  return ids;
}

std::optional<Error> read_generation_config(const std::string& file, ModelConfig& out) {
  std::error_code ignored;
  if (!std::filesystem::exists(file, ignored)) return std::nullopt;
  auto object = load_json_file(file, kMaxConfigBytes);
  if (!object) return object.error();
  if (!object->is_object()) return invalid(file, "expected a JSON object");
  Fields in(*object, file);
  out.bos_token_id = read_token(in, "bos_token_id", out.bos_token_id);
  out.pad_token_id = read_token(in, "pad_token_id", out.pad_token_id);
  if (in.has("eos_token_id")) out.eos_token_ids = read_eos(in);
  return in.error();
}

}  // namespace

Result<ModelConfig> load_hf_config(const std::string& folder) {
  const std::string file = (std::filesystem::path(folder) / "config.json").string();
  auto object = load_json_file(file, kMaxConfigBytes);
  if (!object) return object.error();
  if (!object->is_object()) return invalid(file, "expected a JSON object");

  ModelConfig out;
  Fields in(*object, file);
  read_architecture(in, out);
  if (in.error()) return *in.error();
  read_sizes(in, out);
  read_ffn(in, out);
  read_layers(in, out);
  read_rope(in, out, file);
  read_tie(in, out);
  out.bos_token_id = read_token(in, "bos_token_id", -1);
  out.pad_token_id = read_token(in, "pad_token_id", -1);
  out.eos_token_ids = read_eos(in);
  if (in.error()) return *in.error();

  const std::string generation =
      (std::filesystem::path(folder) / "generation_config.json").string();
  if (auto error = read_generation_config(generation, out)) return *error;
  if (out.eos_token_ids.empty()) {
    return invalid(
        "eos_token_id",
        fmt::format("{}: is missing, as in {}; without it no answer ends", file, generation));
  }
  if (auto error = check_consistency(out, file)) return *error;
  return out;
}

}  // namespace millrace::model_config_detail
