// The weights that one rank works with, under the checkpoint's names.
//
// Matrices are views into the checkpoint's maps, which cost no memory of ours and need a
// TensorSource that outlives them, or into packed memory that the weights own. Norms, taps and the
// expert bias are small and become owned f32, which holds f16 and bf16 exactly. Plain values,
// immutable after loading, read by any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "config/model_config.h"
#include "config/result.h"
#include "kernels/tensor_view.h"
#include "worker/checkpoint/tensor_source.h"
#include "worker/packing.h"

namespace millrace {

// What one rank holds of the model.
struct RankShard {
  std::int32_t layer_begin = 0;
  std::int32_t layer_end = 0;
  bool first_stage = true;  // needs the embedding
  bool last_stage = true;   // needs the final norm and the head
  // experts[layer - layer_begin]: the expert in each of this lane's weight slots, -1 for an empty
  // slot. Empty for layers with a dense FFN. Layout of parallel/expert_placement.h's local_experts.
  std::vector<std::vector<std::int32_t>> experts;
};

struct ConvWeights {
  kernels::WeightView in_proj;   // [3D, D]: row blocks B, C, x
  std::vector<float> taps;       // [D, L]; the last tap multiplies the current token
  kernels::WeightView out_proj;  // [D, D]
};

struct AttentionWeights {
  kernels::WeightView q_proj;    // [H * head_dim, D]
  kernels::WeightView k_proj;    // [G * head_dim, D]
  kernels::WeightView v_proj;    // [G * head_dim, D]
  kernels::WeightView out_proj;  // [D, H * head_dim]
  std::vector<float> q_norm;     // [head_dim], shared by all heads
  std::vector<float> k_norm;     // [head_dim]
};

// A SwiGLU: w2 (silu(w1 u) * (w3 u)). Of a dense layer or of one expert.
struct FfnWeights {
  kernels::WeightView w1;  // [F, D] gate
  kernels::WeightView w3;  // [F, D] up
  kernels::WeightView w2;  // [D, F] down
};

struct MoeWeights {
  kernels::WeightView router;            // [E, D]
  std::vector<float> expert_bias;        // [E]; empty when the model has none
  std::vector<std::int32_t> expert_ids;  // [slots], -1 where the slot is empty
  std::vector<FfnWeights> experts;       // [slots]; empty views where the slot is empty
};

struct LayerWeights {
  std::int32_t layer = 0;            // number in the model
  std::vector<float> operator_norm;  // [D]
  std::vector<float> ffn_norm;       // [D]
  std::optional<ConvWeights> conv;   // exactly one of conv and attention
  std::optional<AttentionWeights> attention;
  std::optional<FfnWeights> dense;  // exactly one of dense and moe
  std::optional<MoeWeights> moe;
};

struct ModelWeights {
  std::vector<LayerWeights> layers;  // [layer_begin, layer_end) of the shard
  kernels::WeightView embed;         // [V, D]; empty unless first stage
  std::vector<float> final_norm;     // [D] (the checkpoint's embedding_norm); last stage
  kernels::WeightView lm_head;       // [V, D]; the embedding when tied; empty unless last stage
  std::uint64_t mapped_bytes = 0;    // of all distinct views into the maps
  std::shared_ptr<const AnonymousMemory> packed;  // of the other views; null when there are none
  std::shared_ptr<const RandomMemory> random;     // of a random model's views; else null

  bool any_packed = false;  // some matrix is of a packed type, whether packed here or in the file

  std::uint64_t packed_bytes() const { return packed == nullptr ? 0 : packed->bytes(); }
};

struct LoadOptions {
  // False: of a random model nothing but addresses, since a device makes the values.
  bool random_values = true;
  // Reads every page of the views now, so that no request waits for the disk.
  bool prefault = false;
  int threads = 1;
  CpuWeights cpu_weights = CpuWeights::kMapped;  // random models: mapped or auto
  // While packing and prefaulting: bytes of the checkpoint read so far and in all, from the calling
  // thread, never decreasing; the last call has both equal. May be empty.
  LoadProgress progress;
};

// Checks the complete tensor list (validate_tensors), also of layers and experts that this rank
// does not own, then takes what the shard names; of the rest no page is read. The shard itself is
// checked against the config: an error's field is then "shard...".
Result<ModelWeights> load_weights(const TensorSource& source, const ModelConfig& config,
                                  const RankShard& shard, const LoadOptions& options = {});

// One expert's matrices, for moving an expert to another lane. The source must have passed
// validate_tensors.
Result<FfnWeights> expert_weights(const TensorSource& source, std::int32_t layer,
                                  std::int32_t expert);

}  // namespace millrace
