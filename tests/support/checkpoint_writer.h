// Writes small checkpoints: safetensors and GGUF bytes from a list of tensors, and the tensor lists
// of tiny LFM2 models in every layout that the readers accept. Written from the format
// descriptions, not from our readers.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "config/model_config.h"

namespace millrace::test {

// Where files lie that other programs wrote (make.py there).
inline const std::string kGoldenCheckpoints = MILLRACE_SOURCE_DIR "/tests/golden/checkpoint";

struct TensorData {
  std::string name;
  std::string dtype;  // "F32", "F16", "BF16"
  std::vector<std::int64_t> shape;
  std::string bytes;
};

template <class T>
void append(std::string& out, T value) {
  char raw[sizeof(T)];
  std::memcpy(raw, &value, sizeof(T));
  out.append(raw, sizeof(T));
}

// Data in list order, header padded with spaces to a multiple of 8. `edit` may damage the header.
inline std::string safetensors_bytes(const std::vector<TensorData>& tensors,
                                     const std::function<void(nlohmann::json&)>& edit = {}) {
  nlohmann::json header = {{"__metadata__", {{"format", "pt"}}}};
  std::string data;
  for (const TensorData& t : tensors) {
    header[t.name] = {{"dtype", t.dtype},
                      {"shape", t.shape},
                      {"data_offsets", {data.size(), data.size() + t.bytes.size()}}};
    data += t.bytes;
  }
  if (edit) edit(header);
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string out;
  append(out, std::uint64_t{text.size()});
  return out + text + data;
}

// Builds a GGUF file, version 3 and alignment 32 unless changed.
class GgufBuilder {
 public:
  std::uint32_t version = 3;
  std::uint64_t alignment = 32;

  static std::string str(std::string_view text) {
    std::string out;
    append(out, std::uint64_t{text.size()});
    return out + std::string(text);
  }

  void raw(std::string_view key, std::uint32_t type, const std::string& value) {
    keys_ += str(key);
    append(keys_, type);
    keys_ += value;
    ++key_count_;
  }
  void u32(std::string_view key, std::uint32_t value) { raw(key, 4, pack(value)); }
  void f32(std::string_view key, float value) { raw(key, 6, pack(value)); }
  void flag(std::string_view key, bool value) { raw(key, 7, std::string(1, value ? 1 : 0)); }
  void string(std::string_view key, std::string_view value) { raw(key, 8, str(value)); }
  void i32s(std::string_view key, const std::vector<std::int32_t>& values) {
    std::string out = pack(std::uint32_t{5}) + pack(std::uint64_t{values.size()});
    for (const std::int32_t value : values) out += pack(value);
    raw(key, 9, out);
  }
  void strings(std::string_view key, const std::vector<std::string>& values) {
    std::string out = pack(std::uint32_t{8}) + pack(std::uint64_t{values.size()});
    for (const std::string& value : values) out += str(value);
    raw(key, 9, out);
  }

  // dims in ggml order. Placed at the next aligned offset, or at `offset` when that is given.
  void tensor(std::string_view name, const std::vector<std::uint64_t>& dims, std::uint32_t type,
              const std::string& bytes, std::int64_t offset = -1) {
    const std::uint64_t at = offset >= 0 ? static_cast<std::uint64_t>(offset) : data_.size();
    infos_ += str(name);
    append(infos_, static_cast<std::uint32_t>(dims.size()));
    for (const std::uint64_t dim : dims) append(infos_, dim);
    append(infos_, type);
    append(infos_, at);
    ++tensor_count_;
    data_ += bytes;
    data_.resize((data_.size() + alignment - 1) / alignment * alignment, '\0');
  }

  std::string bytes() const {
    std::string out = "GGUF" + pack(version) + pack(tensor_count_) + pack(key_count_);
    out += keys_ + infos_;
    out.resize((out.size() + alignment - 1) / alignment * alignment, '\0');
    return out + data_;
  }

  template <class T>
  static std::string pack(T value) {
    std::string out;
    append(out, value);
    return out;
  }

 private:
  std::string keys_, infos_, data_;
  std::uint64_t key_count_ = 0, tensor_count_ = 0;
};

// Layers: conv + dense, attention + MoE, conv + MoE.
inline ModelConfig tiny_moe_config() {
  ModelConfig c;
  c.model_type = "lfm2_moe";
  c.hidden_size = 32;
  c.vocab_size = 40;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = 16;
  c.intermediate_size = 64;
  c.conv_l_cache = 3;
  c.max_position_embeddings = 128;
  c.rope_theta = 1e6F;
  c.norm_eps = 1e-5F;
  c.num_dense_layers = 1;
  c.num_experts = 4;
  c.num_experts_per_tok = 2;
  c.moe_intermediate_size = 32;
  c.bos_token_id = 1;
  c.pad_token_id = 0;
  c.eos_token_ids = {7};
  c.layers = {LayerKind::kShortConv, LayerKind::kAttention, LayerKind::kShortConv};
  return c;
}

inline ModelConfig tiny_dense_config() {
  ModelConfig c = tiny_moe_config();
  c.model_type = "lfm2";
  c.num_dense_layers = c.num_experts = c.num_experts_per_tok = c.moe_intermediate_size = 0;
  return c;
}

inline nlohmann::json config_json(const ModelConfig& c) {
  nlohmann::json layer_types = nlohmann::json::array();
  for (const LayerKind kind : c.layers) {
    layer_types.push_back(kind == LayerKind::kShortConv ? "conv" : "full_attention");
  }
  nlohmann::json out = {{"model_type", c.model_type},
                        {"hidden_size", c.hidden_size},
                        {"vocab_size", c.vocab_size},
                        {"num_attention_heads", c.num_heads},
                        {"num_key_value_heads", c.num_kv_heads},
                        {"head_dim", c.head_dim},
                        {"num_hidden_layers", c.num_layers()},
                        {"layer_types", layer_types},
                        {"intermediate_size", c.intermediate_size},
                        {"conv_L_cache", c.conv_l_cache},
                        {"conv_bias", false},
                        {"max_position_embeddings", c.max_position_embeddings},
                        {"rope_theta", c.rope_theta},
                        {"norm_eps", 1e-5},
                        {"tie_word_embeddings", c.tie_embeddings},
                        {"bos_token_id", c.bos_token_id},
                        {"pad_token_id", c.pad_token_id},
                        {"eos_token_id", c.eos_token_ids.at(0)}};
  if (c.num_experts == 0) {
    out["block_auto_adjust_ff_dim"] = false;
    return out;
  }
  out.update({{"num_dense_layers", c.num_dense_layers},
              {"num_experts", c.num_experts},
              {"num_experts_per_tok", c.num_experts_per_tok},
              {"moe_intermediate_size", c.moe_intermediate_size},
              {"norm_topk_prob", c.norm_topk_prob},
              {"use_expert_bias", c.use_expert_bias},
              {"routed_scaling_factor", c.routed_scaling_factor}});
  return out;
}

// Bytes that depend on the tensor's name only, so that a test can tell which tensor it looks at.
// Every 16-bit pattern has a small exponent: the values are finite in all three types.
inline std::string filler(const std::string& name, std::size_t bytes) {
  std::uint64_t state = 1469598103934665603ULL;
  for (const char c : name) state = (state ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
  std::string out(bytes, '\0');
  for (std::size_t i = 0; i < bytes; ++i) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    out[i] = static_cast<char>(i % 2 == 0 ? state >> 56 : 0x3c + (state >> 63));
  }
  return out;
}

enum class ExpertLayout { kPerExpert, kPacked, kPackedWithSuffix };

// All tensors of the model under Hugging Face's names, matrices of `dtype`, expert bias F32.
inline std::vector<TensorData> model_tensors(const ModelConfig& c, ExpertLayout layout,
                                             const std::string& dtype = "BF16") {
  std::vector<TensorData> out;
  const auto make = [&](const std::string& name, std::vector<std::int64_t> shape,
                        const std::string& type) {
    std::size_t bytes = type == "F32" ? 4 : 2;
    for (const std::int64_t n : shape) bytes *= static_cast<std::size_t>(n);
    return TensorData{name, type, std::move(shape), filler(name, bytes)};
  };
  const auto add = [&](const std::string& name, std::vector<std::int64_t> shape) {
    out.push_back(make(name, std::move(shape), dtype));
  };
  const std::int64_t d = c.hidden_size, f = c.moe_intermediate_size, e = c.num_experts;
  add("model.embed_tokens.weight", {c.vocab_size, d});
  for (std::int32_t l = 0; l < c.num_layers(); ++l) {
    const std::string p = "model.layers." + std::to_string(l) + ".";
    add(p + "operator_norm.weight", {d});
    add(p + "ffn_norm.weight", {d});
    if (c.layers[l] == LayerKind::kShortConv) {
      add(p + "conv.in_proj.weight", {3 * d, d});
      add(p + "conv.conv.weight", {d, 1, c.conv_l_cache});
      add(p + "conv.out_proj.weight", {d, d});
    } else {
      add(p + "self_attn.q_proj.weight", {c.q_width(), d});
      add(p + "self_attn.k_proj.weight", {c.kv_width(), d});
      add(p + "self_attn.v_proj.weight", {c.kv_width(), d});
      add(p + "self_attn.out_proj.weight", {d, c.q_width()});
      add(p + "self_attn.q_layernorm.weight", {c.head_dim});
      add(p + "self_attn.k_layernorm.weight", {c.head_dim});
    }
    const std::string ff = p + "feed_forward.";
    if (!c.is_moe_layer(l)) {
      add(ff + "w1.weight", {c.intermediate_size, d});
      add(ff + "w3.weight", {c.intermediate_size, d});
      add(ff + "w2.weight", {d, c.intermediate_size});
      continue;
    }
    add(ff + "gate.weight", {e, d});
    if (c.use_expert_bias) out.push_back(make(ff + "expert_bias", {e}, "F32"));
    TensorData gate_up{ff + "experts.gate_up_proj", dtype, {e, 2 * f, d}, ""};
    TensorData down{ff + "experts.down_proj", dtype, {e, d, f}, ""};
    for (std::int64_t i = 0; i < e; ++i) {
      const std::string x = ff + "experts." + std::to_string(i) + ".";
      const TensorData w1 = make(x + "w1.weight", {f, d}, dtype);
      const TensorData w3 = make(x + "w3.weight", {f, d}, dtype);
      const TensorData w2 = make(x + "w2.weight", {d, f}, dtype);
      if (layout == ExpertLayout::kPerExpert) out.insert(out.end(), {w1, w3, w2});
      gate_up.bytes += w1.bytes + w3.bytes;
      down.bytes += w2.bytes;
    }
    if (layout == ExpertLayout::kPerExpert) continue;
    if (layout == ExpertLayout::kPackedWithSuffix) {
      gate_up.name += ".weight";
      down.name += ".weight";
    }
    out.insert(out.end(), {gate_up, down});
  }
  add("model.embedding_norm.weight", {d});
  if (!c.tie_embeddings) add("lm_head.weight", {c.vocab_size, d});
  return out;
}

// Metadata of a GGUF file for the model, without tokenizer.
inline void gguf_metadata(GgufBuilder& out, const ModelConfig& c) {
  const std::string arch = c.num_experts > 0 ? "lfm2moe" : "lfm2";
  const auto key = [&](const char* name) { return arch + "." + name; };
  const auto u32 = [&](const char* name, std::int32_t value) {
    out.u32(key(name), static_cast<std::uint32_t>(value));
  };
  out.string("general.architecture", arch);
  u32("block_count", c.num_layers());
  u32("context_length", c.max_position_embeddings);
  u32("embedding_length", c.hidden_size);
  u32("feed_forward_length", c.intermediate_size);
  u32("attention.head_count", c.num_heads);
  u32("attention.key_length", c.head_dim);
  std::vector<std::int32_t> kv;
  for (const LayerKind kind : c.layers) {
    kv.push_back(kind == LayerKind::kAttention ? c.num_kv_heads : 0);
  }
  out.i32s(key("attention.head_count_kv"), kv);
  out.f32(key("rope.freq_base"), c.rope_theta);
  out.f32(key("attention.layer_norm_rms_epsilon"), c.norm_eps);
  u32("vocab_size", c.vocab_size);
  u32("shortconv.l_cache", c.conv_l_cache);
  out.u32("tokenizer.ggml.bos_token_id", 1);
  out.u32("tokenizer.ggml.eos_token_id", 7);
  out.u32("tokenizer.ggml.padding_token_id", 0);
  if (c.num_experts == 0) return;
  u32("expert_count", c.num_experts);
  u32("expert_used_count", c.num_experts_per_tok);
  u32("expert_feed_forward_length", c.moe_intermediate_size);
  u32("leading_dense_block_count", c.num_dense_layers);
  u32("expert_gating_func", 2);
}

// The GGUF name of a Hugging Face one, by the table of the converter.
inline std::string gguf_name(const std::string& hf) {
  static const std::map<std::string, std::string> kModel = {
      {"model.embed_tokens.weight", "token_embd.weight"},
      {"model.embedding_norm.weight", "token_embd_norm.weight"},
      {"lm_head.weight", "output.weight"}};
  static const std::map<std::string, std::string> kLayer = {
      {"operator_norm.weight", "attn_norm.weight"},
      {"ffn_norm.weight", "ffn_norm.weight"},
      {"conv.in_proj.weight", "shortconv.in_proj.weight"},
      {"conv.conv.weight", "shortconv.conv.weight"},
      {"conv.out_proj.weight", "shortconv.out_proj.weight"},
      {"self_attn.q_proj.weight", "attn_q.weight"},
      {"self_attn.k_proj.weight", "attn_k.weight"},
      {"self_attn.v_proj.weight", "attn_v.weight"},
      {"self_attn.out_proj.weight", "attn_output.weight"},
      {"self_attn.q_layernorm.weight", "attn_q_norm.weight"},
      {"self_attn.k_layernorm.weight", "attn_k_norm.weight"},
      {"feed_forward.w1.weight", "ffn_gate.weight"},
      {"feed_forward.w3.weight", "ffn_up.weight"},
      {"feed_forward.w2.weight", "ffn_down.weight"},
      {"feed_forward.gate.weight", "ffn_gate_inp.weight"},
      {"feed_forward.expert_bias", "exp_probs_b.bias"},
      {"feed_forward.experts.gate_up_proj", "ffn_gate_up_exps.weight"},
      {"feed_forward.experts.down_proj", "ffn_down_exps.weight"}};
  if (kModel.contains(hf)) return kModel.at(hf);
  const std::size_t dot = hf.find('.', sizeof("model.layers.") - 1);
  const std::string layer =
      hf.substr(sizeof("model.layers.") - 1, dot - sizeof("model.layers.") + 1);
  return "blk." + layer + "." + kLayer.at(hf.substr(dot + 1));
}

// The packed tensors as a GGUF file. `split_gate_up`: two stacks instead of the fused one.
inline GgufBuilder gguf_model(const ModelConfig& c, bool split_gate_up) {
  GgufBuilder out;
  gguf_metadata(out, c);
  for (const TensorData& t : model_tensors(c, ExpertLayout::kPacked)) {
    std::vector<std::uint64_t> dims(t.shape.rbegin(), t.shape.rend());
    if (t.name.ends_with("conv.conv.weight")) dims.erase(dims.begin() + 1);
    const std::uint32_t type = t.dtype == "F32" ? 0 : t.dtype == "F16" ? 1 : 30;
    if (!split_gate_up || !t.name.ends_with("gate_up_proj")) {
      out.tensor(gguf_name(t.name), dims, type, t.bytes);
      continue;
    }
    std::string gate, up;
    const std::size_t half = t.bytes.size() / static_cast<std::size_t>(2 * c.num_experts);
    for (std::size_t at = 0; at < t.bytes.size(); at += 2 * half) {
      gate += t.bytes.substr(at, half);
      up += t.bytes.substr(at + half, half);
    }
    dims[1] /= 2;
    const std::string block = gguf_name(t.name).substr(0, gguf_name(t.name).find("ffn_"));
    out.tensor(block + "ffn_gate_exps.weight", dims, type, gate);
    out.tensor(block + "ffn_up_exps.weight", dims, type, up);
  }
  return out;
}

}  // namespace millrace::test
