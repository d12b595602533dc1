// Models whose matrices can be packed.
#pragma once

#include "kernels/table.h"
#include "tests/support/checkpoint_writer.h"

namespace millrace::test {

// A model whose matrices are Q4_0 (ggml type 2) and whose tied embedding is Q8_0 (8), as random
// bits with harmless scales. `type`: another of the same block size.
inline std::string quantised_gguf(const ModelConfig& c, std::uint32_t type = 2) {
  GgufBuilder out;
  gguf_metadata(out, c);
  for (const TensorData& t : model_tensors(c, ExpertLayout::kPacked)) {
    std::vector<std::uint64_t> dims(t.shape.rbegin(), t.shape.rend());
    if (t.name.ends_with("conv.conv.weight")) dims.erase(dims.begin() + 1);
    const bool embedding = t.name == "model.embed_tokens.weight";
    const bool plain = dims.size() < 2 || t.name.ends_with("feed_forward.gate.weight") ||
                       t.name.ends_with("conv.conv.weight");
    if (plain) {
      out.tensor(gguf_name(t.name), dims, t.dtype == "F32" ? 0 : 30, t.bytes);
      continue;
    }
    std::uint64_t values = 1;
    for (const std::uint64_t d : dims) values *= d;
    const std::size_t block = embedding ? 34 : 18;
    std::string bytes = filler(t.name, values / 32 * block);
    const std::uint16_t scale = kernels::f32_to_f16(0.01F);
    for (std::size_t at = 0; at < bytes.size(); at += block) std::memcpy(&bytes[at], &scale, 2);
    out.tensor(gguf_name(t.name), dims, embedding ? 8 : type, bytes);
  }
  return out.bytes();
}

// tiny_moe_config in sizes that are whole tiles and blocks.
inline ModelConfig config_of_tiles() {
  ModelConfig c = tiny_moe_config();
  c.hidden_size = 64;
  c.vocab_size = 48;
  c.moe_intermediate_size = 32;
  c.intermediate_size = 96;
  return c;
}

inline std::vector<float> values_of(const kernels::WeightView& view) {
  std::vector<float> out(static_cast<std::size_t>(view.rows * view.cols));
  kernels::reference_table().dequantize({}, view,
                                        kernels::matrix(out.data(), view.rows, view.cols));
  return out;
}

}  // namespace millrace::test
