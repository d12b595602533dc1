#include "worker/checkpoint/expected_tensors.h"

#include <fmt/format.h>

#include <set>

#include "kernels/dtype_name.h"
#include "kernels/packed.h"

namespace millrace {
namespace {

using kernels::DType;
using Shape = std::vector<std::int64_t>;

bool is_plain(DType dtype) { return kernels::block_values(dtype) == 1; }

const char* role_dtypes(TensorRole role) {
  return role == TensorRole::kMatrix ? "any weight format" : "f32, f16 or bf16";
}

void add_mixer(const ModelConfig& c, std::int32_t layer, std::vector<ExpectedTensor>& out) {
  const std::int64_t d = c.hidden_size;
  const auto add = [&](const char* name, Shape shape, TensorRole role) {
    out.push_back({layer_tensor(layer, name), std::move(shape), role});
  };
  if (c.layers[layer] == LayerKind::kShortConv) {
    add("conv.in_proj.weight", {3 * d, d}, TensorRole::kMatrix);
    add("conv.conv.weight", {d, 1, c.conv_l_cache}, TensorRole::kTaps);
    add("conv.out_proj.weight", {d, d}, TensorRole::kMatrix);
    return;
  }
  add("self_attn.q_proj.weight", {c.q_width(), d}, TensorRole::kMatrix);
  add("self_attn.k_proj.weight", {c.kv_width(), d}, TensorRole::kMatrix);
  add("self_attn.v_proj.weight", {c.kv_width(), d}, TensorRole::kMatrix);
  add("self_attn.out_proj.weight", {d, c.q_width()}, TensorRole::kMatrix);
  add("self_attn.q_layernorm.weight", {c.head_dim}, TensorRole::kVector);
  add("self_attn.k_layernorm.weight", {c.head_dim}, TensorRole::kVector);
}

// The name under which `source` has a stack of this layer's experts; empty when it has none.
std::string stack_name(const TensorSource& source, std::int32_t layer, const std::string& part) {
  const std::string name = layer_tensor(layer, "feed_forward.experts." + part);
  if (source.find(name) != nullptr) return name;
  return source.find(name + ".weight") != nullptr ? name + ".weight" : std::string();
}

void add_experts(const ModelConfig& c, const TensorSource& source, std::int32_t layer,
                 std::vector<ExpectedTensor>& out) {
  const std::int64_t e = c.num_experts;
  const std::int64_t f = c.moe_intermediate_size;
  const std::int64_t d = c.hidden_size;
  const auto stack_or_single = [&](const char* part, std::int64_t rows, std::int64_t cols) {
    if (const std::string name = stack_name(source, layer, part); !name.empty()) {
      out.push_back({name, {e, rows, cols}, TensorRole::kMatrix});
      return;
    }
    for (std::int64_t i = 0; i < e; ++i) {
      out.push_back({layer_tensor(layer, fmt::format("feed_forward.experts.{}.{}.weight", i, part)),
                     {rows, cols},
                     TensorRole::kMatrix});
    }
  };
  if (const std::string name = stack_name(source, layer, "gate_up_proj"); !name.empty()) {
    out.push_back({name, {e, 2 * f, d}, TensorRole::kMatrix});
  } else {
    stack_or_single("w1", f, d);
    stack_or_single("w3", f, d);
  }
  if (const std::string name = stack_name(source, layer, "down_proj"); !name.empty()) {
    out.push_back({name, {e, d, f}, TensorRole::kMatrix});
  } else {
    stack_or_single("w2", d, f);
  }
}

void add_ffn(const ModelConfig& c, const TensorSource& source, std::int32_t layer,
             std::vector<ExpectedTensor>& out) {
  const std::int64_t d = c.hidden_size;
  const std::int64_t f = c.intermediate_size;
  const auto add = [&](const char* name, Shape shape, TensorRole role) {
    out.push_back({layer_tensor(layer, name), std::move(shape), role});
  };
  if (!c.is_moe_layer(layer)) {
    add("feed_forward.w1.weight", {f, d}, TensorRole::kMatrix);
    add("feed_forward.w3.weight", {f, d}, TensorRole::kMatrix);
    add("feed_forward.w2.weight", {d, f}, TensorRole::kMatrix);
    return;
  }
  add("feed_forward.gate.weight", {c.num_experts, d}, TensorRole::kRouter);
  if (c.use_expert_bias) {
    add("feed_forward.expert_bias", {c.num_experts}, TensorRole::kVector);
  }
  add_experts(c, source, layer, out);
}

// Tiles of packed rows must not reach over the edge of a matrix, or an expert could not be taken
// out of a stack.
Result<void> check_packed(const TensorSource& source, const TensorEntry& entry) {
  if (!kernels::is_packed(entry.dtype)) return {};
  const bool fused = entry.name.find("gate_up_proj") != std::string::npos;
  const std::int64_t rows = entry.shape[entry.shape.size() - 2] / (fused ? 2 : 1);
  if (rows % kernels::kPackedRows == 0) return {};
  return invalid(entry.name, fmt::format("{}: {} needs matrices of a multiple of {} rows, found {}",
                                         source.path(), kernels::dtype_name(entry.dtype),
                                         kernels::kPackedRows, shape_text(entry.shape)));
}

Result<void> check_one(const TensorSource& source, const ExpectedTensor& expected) {
  const TensorEntry* entry = source.find(expected.name);
  if (entry == nullptr) {
    return Error{ErrorCode::kNotFound, expected.name,
                 fmt::format("{}: this tensor is missing, expected shape {}", source.path(),
                             shape_text(expected.shape))};
  }
  if (entry->shape != expected.shape) {
    return invalid(expected.name,
                   fmt::format("{}: expected shape {}, found {}", source.path(),
                               shape_text(expected.shape), shape_text(entry->shape)));
  }
  if (expected.role != TensorRole::kMatrix && !is_plain(entry->dtype)) {
    return invalid(expected.name,
                   fmt::format("{}: expected {}, found {}", source.path(),
                               role_dtypes(expected.role), kernels::dtype_name(entry->dtype)));
  }
  return check_packed(source, *entry);
}

}  // namespace

std::string layer_tensor(std::int32_t layer, const std::string& rest) {
  return fmt::format("model.layers.{}.{}", layer, rest);
}

std::vector<ExpectedTensor> expected_tensors(const ModelConfig& c, const TensorSource& source) {
  const std::int64_t d = c.hidden_size;
  std::vector<ExpectedTensor> out;
  out.push_back({"model.embed_tokens.weight", {c.vocab_size, d}, TensorRole::kMatrix});
  for (std::int32_t layer = 0; layer < c.num_layers(); ++layer) {
    out.push_back({layer_tensor(layer, "operator_norm.weight"), {d}, TensorRole::kVector});
    add_mixer(c, layer, out);
    out.push_back({layer_tensor(layer, "ffn_norm.weight"), {d}, TensorRole::kVector});
    add_ffn(c, source, layer, out);
  }
  out.push_back({"model.embedding_norm.weight", {d}, TensorRole::kVector});
  if (!c.tie_embeddings) {
    out.push_back({"lm_head.weight", {c.vocab_size, d}, TensorRole::kMatrix});
  }
  return out;
}

Result<void> validate_tensors(const TensorSource& source, const ModelConfig& config) {
  std::set<std::string, std::less<>> names;
  for (ExpectedTensor& expected : expected_tensors(config, source)) {
    if (auto checked = check_one(source, expected); !checked) return checked.error();
    names.insert(std::move(expected.name));
  }
  for (const TensorEntry& entry : source.tensors()) {
    if (names.contains(entry.name)) continue;
    const bool head = entry.name == "lm_head.weight";
    return invalid(
        entry.name,
        fmt::format("{}: this {} model has no such tensor{}", source.path(), config.model_type,
                    head ? "; its config says that the head is tied to the embedding" : ""));
  }
  return {};
}

}  // namespace millrace
