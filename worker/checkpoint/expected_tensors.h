// Which tensors a model must have, and the check that a checkpoint has exactly those.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/model_config.h"
#include "config/result.h"
#include "worker/checkpoint/tensor_source.h"

namespace millrace {

enum class TensorRole : std::uint8_t {
  kVector,  // norms and the expert bias: f32, f16 or bf16
  kTaps,    // [D, 1, L]: f32, f16 or bf16
  kRouter,  // [E, D]: f32, f16 or bf16; never quantised, since rounding flips experts
  kMatrix,  // any dtype
};

struct ExpectedTensor {
  std::string name;
  std::vector<std::int64_t> shape;
  TensorRole role = TensorRole::kMatrix;
};

// "model.layers.{layer}." + rest.
std::string layer_tensor(std::int32_t layer, const std::string& rest);

// In model order. Experts in the form in which `source` stores them, decided per layer and part;
// the per-expert form where it has none of them.
std::vector<ExpectedTensor> expected_tensors(const ModelConfig& config, const TensorSource& source);

// Refuses by name, with expected and found, the first tensor that is missing (kNotFound), misshapen
// or of a wrong dtype, and then any that the model does not have. Reads no tensor data.
Result<void> validate_tensors(const TensorSource& source, const ModelConfig& config);

}  // namespace millrace
