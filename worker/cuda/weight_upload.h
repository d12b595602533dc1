// Brings weights from a mapped checkpoint to the device: mapped pages -> pinned memory -> device ->
// packed by a kernel. Several threads, each with a stream and two buffers of its own, so that
// reading, copying and packing overlap. A random model's rows are written by a kernel instead.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "config/result.h"
#include "kernels/tensor_view.h"
#include "worker/cuda/device_weights.h"

namespace millrace {

// A run of rows small enough for one buffer.
struct UploadPiece {
  enum class Kind : std::uint8_t {
    kPacked,  // rows, stacked, to packed tiles in `format`
    kGateUp,  // rows[0] gate, rows[1] up of the same shape, to packed tiles
    kRows,    // rows as bf16, as they are
    kFloats,  // floats as they are
  };
  Kind kind = Kind::kRows;
  std::string name;  // for messages
  kernels::cuda::WeightFormat format = kernels::cuda::WeightFormat::kBf16;
  // 0: the values rounded to bf16; 1: what is left of them, rounded; 2: what is left then.
  int remainder = 0;
  std::vector<kernels::WeightView> rows;
  const RandomMemory* random = nullptr;  // of rows whose values the device makes
  const std::vector<float>* floats = nullptr;
  std::byte* target = nullptr;  // device

  std::int64_t row_count() const;
  std::int64_t staged_bytes() const;  // in a buffer
  std::uint64_t source_bytes() const;
};

// All pieces of a rank's weights, in model order. `map` as from lay_out_weights with memory.
std::vector<UploadPiece> plan_upload(const ModelWeights& weights, const DeviceWeightMap& map);

// Uploads all pieces and waits. Returns the source's bytes. Errors name the tensor with values that
// fp8 cannot hold. What a thread throws (CudaError) is thrown here.
Result<std::uint64_t> upload_weights(
    const std::vector<UploadPiece>& pieces, int threads,
    const std::function<void(std::uint64_t, std::uint64_t)>& progress);

}  // namespace millrace
