// The weights of one rank in device memory, in the layouts of the kernels.
//
// Matrices are packed for the GEMMs (kernels/cuda/gemm_layout.h) in bf16 or fp8; q, k and v are one
// matrix, gate and up (w1, w3) another. The embedding is bf16 rows. Norms, taps and biases are f32.
// The router is as exact as the checkpoint: its f32 (or f16) values are split in up to three bf16
// matrices that add up to them.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "config/model_config.h"
#include "config/result.h"
#include "kernels/cuda/embedding.h"
#include "kernels/cuda/gemm_layout.h"
#include "kernels/cuda/runtime.h"
#include "worker/cuda/device_arena.h"
#include "worker/weights.h"

namespace millrace {

// What decides sizes and addresses, beside the shard.
struct DeviceWeightOptions {
  kernels::cuda::WeightFormat linears = kernels::cuda::WeightFormat::kBf16;
  kernels::DType router = kernels::DType::kBF16;  // of the checkpoint
};

struct DeviceConv {
  kernels::cuda::PackedWeight in_proj;  // [3D, D]
  float* taps = nullptr;                // [D, L]
  kernels::cuda::PackedWeight out_proj;
};

struct DeviceAttention {
  kernels::cuda::PackedWeight qkv;  // [(H + 2G) * head_dim, D]
  kernels::cuda::PackedWeight out_proj;
  float* q_norm = nullptr;  // [head_dim]
  float* k_norm = nullptr;
};

struct DeviceFfn {
  kernels::cuda::PackedWeight w13;  // [2F, D], gate and up alternating
  kernels::cuda::PackedWeight w2;   // [D, F]
};

struct DeviceMoe {
  std::vector<kernels::cuda::PackedWeight> router;  // [E, D] each; logits are the sum, in order
  float* bias = nullptr;                            // [E], null for none
  DeviceFfn experts;                                // slot 0; the others follow without gaps
  std::int32_t slots = 0;
};

struct DeviceLayer {
  std::int32_t layer = 0;
  float* operator_norm = nullptr;  // [D]
  float* ffn_norm = nullptr;
  std::optional<DeviceConv> conv;
  std::optional<DeviceAttention> attention;
  std::optional<DeviceFfn> dense;
  std::optional<DeviceMoe> moe;
};

// Where everything lies. Addresses are null while the cursor measures.
struct DeviceWeightMap {
  std::vector<DeviceLayer> layers;
  kernels::cuda::EmbeddingTable embed;  // first stage
  float* final_norm = nullptr;          // last stage
  kernels::cuda::PackedWeight lm_head;  // last stage
};
DeviceWeightMap lay_out_weights(ArenaCursor& cursor, const ModelConfig& model,
                                const RankShard& shard, const DeviceWeightOptions& options);

// Bytes on the device. Depends on the shard's layers and numbers of slots only.
std::size_t device_weight_bytes(const ModelConfig& model, const RankShard& shard,
                                const DeviceWeightOptions& options);

// Number of bf16 matrices that hold values of the dtype exactly: 1, 2 (f16) or 3 (f32).
int router_pieces(kernels::DType dtype);

struct DeviceLoadOptions {
  DeviceWeightOptions format;
  int threads = 4;  // that read and convert, each with a stream of its own
  // Source bytes read so far and in all, from the calling thread, never decreasing; the last call
  // has both equal. May be empty.
  std::function<void(std::uint64_t done_bytes, std::uint64_t total_bytes)> progress;
};

class DeviceWeights {
 public:
  // Copies `weights` (views of the mapped checkpoint, which must outlive the call only) to the
  // current device. Errors name the tensor: values that fp8 cannot hold. Throws CudaError.
  static Result<DeviceWeights> load(const ModelConfig& model, const RankShard& shard,
                                    const ModelWeights& weights, const DeviceLoadOptions& options);

  const DeviceWeightMap& map() const { return map_; }
  std::size_t bytes() const { return memory_.bytes(); }
  double load_seconds() const { return load_seconds_; }
  std::uint64_t source_bytes() const { return source_bytes_; }

 private:
  kernels::cuda::DeviceBuffer memory_;
  DeviceWeightMap map_;
  double load_seconds_ = 0;
  std::uint64_t source_bytes_ = 0;
};

}  // namespace millrace
