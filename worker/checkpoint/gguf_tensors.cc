#include "worker/checkpoint/gguf_tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "config/check.h"

namespace millrace {
namespace {

using kernels::DType;

using NamePair = std::pair<std::string_view, std::string_view>;

constexpr NamePair kModelNames[] = {
    {"token_embd.weight", "model.embed_tokens.weight"},
    {"token_embd_norm.weight", "model.embedding_norm.weight"},
    {"output.weight", "lm_head.weight"},
};

constexpr NamePair kLayerNames[] = {
    {"attn_norm.weight", "operator_norm.weight"},
    {"ffn_norm.weight", "ffn_norm.weight"},
    {"shortconv.in_proj.weight", "conv.in_proj.weight"},
    {"shortconv.conv.weight", "conv.conv.weight"},
    {"shortconv.out_proj.weight", "conv.out_proj.weight"},
    {"attn_q.weight", "self_attn.q_proj.weight"},
    {"attn_k.weight", "self_attn.k_proj.weight"},
    {"attn_v.weight", "self_attn.v_proj.weight"},
    {"attn_output.weight", "self_attn.out_proj.weight"},
    {"attn_q_norm.weight", "self_attn.q_layernorm.weight"},
    {"attn_k_norm.weight", "self_attn.k_layernorm.weight"},
    {"ffn_gate.weight", "feed_forward.w1.weight"},
    {"ffn_up.weight", "feed_forward.w3.weight"},
    {"ffn_down.weight", "feed_forward.w2.weight"},
    {"ffn_gate_inp.weight", "feed_forward.gate.weight"},
    {"exp_probs_b.bias", "feed_forward.expert_bias"},
    {"ffn_gate_exps.weight", "feed_forward.experts.w1.weight"},
    {"ffn_up_exps.weight", "feed_forward.experts.w3.weight"},
    {"ffn_down_exps.weight", "feed_forward.experts.w2.weight"},
    {"ffn_gate_up_exps.weight", "feed_forward.experts.gate_up_proj"},
};

constexpr std::pair<GgmlType, DType> kTypes[] = {
    {GgmlType::kF32, DType::kF32},   {GgmlType::kF16, DType::kF16},
    {GgmlType::kBF16, DType::kBF16}, {GgmlType::kQ8_0, DType::kQ8_0},
    {GgmlType::kQ4_0, DType::kQ4_0}, {GgmlType::kQ4_1, DType::kQ4_1},
    {GgmlType::kQ4_K, DType::kQ4_K}, {GgmlType::kQ5_K, DType::kQ5_K},
    {GgmlType::kQ6_K, DType::kQ6_K}, {GgmlType::kP8_0, DType::kP8_0},
    {GgmlType::kP4_0, DType::kP4_0}, {GgmlType::kP4_1, DType::kP4_1},
    {GgmlType::kP4_K, DType::kP4_K}, {GgmlType::kP5_K, DType::kP5_K},
    {GgmlType::kP6_K, DType::kP6_K},
};
static_assert(std::size(kTypes) == kernels::kNumDTypes);

std::optional<DType> dtype_of(GgmlType type) {
  for (const auto& [ggml, dtype] : kTypes) {
    if (ggml == type) return dtype;
  }
  return std::nullopt;
}

Result<TensorEntry> to_entry(const GgufFile& file, const GgufTensor& tensor) {
  const auto dtype = dtype_of(tensor.type);
  if (!dtype) {
    return Error{
        ErrorCode::kUnsupported, tensor.name,
        fmt::format("{}: {} is not computed with, expected F32, F16, BF16, Q8_0, Q4_0, "
                    "Q4_1, Q4_K, Q5_K or Q6_K",
                    file.path(), ggml_type_info(static_cast<std::uint32_t>(tensor.type))->name)};
  }
  TensorEntry entry{hf_name_of_gguf(tensor.name).value_or(tensor.name), tensor.name, *dtype};
  entry.shape.assign(tensor.dims.rbegin(), tensor.dims.rend());
  // The converter squeezes the middle axis out of the taps.
  if (entry.name.ends_with(".conv.conv.weight") && entry.shape.size() == 2) {
    entry.shape.insert(entry.shape.begin() + 1, 1);
  }
  entry.data = file.tensor_bytes(tensor).data();
  entry.bytes = tensor.bytes;
  return entry;
}

}  // namespace

GgmlType ggml_type_of(DType wanted) {
  for (const auto& [ggml, dtype] : kTypes) {
    if (dtype == wanted) return ggml;
  }
  CHECK(false, "dtype={}", static_cast<int>(wanted));
}

std::optional<std::string> hf_name_of_gguf(std::string_view gguf_name) {
  for (const auto& [gguf, hf] : kModelNames) {
    if (gguf_name == gguf) return std::string(hf);
  }
  constexpr std::string_view kBlock = "blk.";
  if (!gguf_name.starts_with(kBlock)) return std::nullopt;
  const char* begin = gguf_name.data() + kBlock.size();
  const char* end = gguf_name.data() + gguf_name.size();
  std::int32_t layer = -1;
  const auto [rest, error] = std::from_chars(begin, end, layer);
  const bool leading_zero = begin != end && *begin == '0' && rest != begin + 1;
  if (error != std::errc() || layer < 0 || leading_zero || rest == end || *rest != '.') {
    return std::nullopt;
  }
  const std::string_view part(rest + 1, static_cast<std::size_t>(end - rest - 1));
  for (const auto& [gguf, hf] : kLayerNames) {
    if (part == gguf) return fmt::format("model.layers.{}.{}", layer, hf);
  }
  return std::nullopt;
}

Result<TensorSource> open_gguf(const std::string& path) {
  auto file = GgufFile::open(path);
  if (!file) return file.error();
  std::vector<TensorEntry> entries;
  for (const GgufTensor& tensor : file->tensors()) {
    auto entry = to_entry(*file, tensor);
    if (!entry) return entry.error();
    entries.push_back(std::move(*entry));
  }
  std::vector<MappedFile> files;
  files.push_back(std::move(*file).take_file());
  return TensorSource::make(path, std::move(files), std::move(entries));
}

}  // namespace millrace
