// Writing a model in the packed form once, so that ranks map it and are ready without packing.
#pragma once

#include <string>

#include "config/cluster_config.h"
#include "config/model_config.h"
#include "config/result.h"
#include "worker/checkpoint/tensor_source.h"
#include "worker/packing.h"

namespace millrace {

struct PackOptions {
  std::string model;  // a .gguf file, or a Hugging Face folder
  std::string out;    // must not exist
  CpuWeights weights = CpuWeights::kAuto;
  int threads = 1;
  LoadProgress progress;  // bytes of the result; may be empty
};

struct PackSummary {
  std::uint64_t tensors = 0;
  std::uint64_t packed_tensors = 0;
  std::uint64_t bytes = 0;  // of all tensors, as written
};

// A GGUF file becomes a GGUF file: metadata and names as they are, tensors that the CPU kernels use
// packed under type numbers of our own, the others unchanged. A folder becomes a folder: its other
// files copied, and kPackedFile (worker/checkpoint/safetensors.h) in place of the safetensors.
// The result appears under its name when it is complete. Errors name the tensor, or "out" when it
// exists or cannot be written.
Result<PackSummary> write_packed(const PackOptions& options);

}  // namespace millrace
