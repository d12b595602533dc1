// The numbers that fix every size and address of a worker on a device.
#pragma once

#include <cstdint>

#include "config/cluster_config.h"
#include "config/model_config.h"
#include "config/result.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/kv_pages.h"
#include "parallel/device_expert_exchange.h"
#include "worker/cuda/decode_buckets.h"
#include "worker/cuda/device_weights.h"
#include "worker/step_batch.h"
#include "worker/weights.h"

namespace millrace {

struct DeviceShape {
  const ModelConfig* model = nullptr;
  RankShard shard;
  BatchLimits limits;
  int stages = 1;
  int lanes = 1;
  bool exact_exchange = true;  // lanes > 1: which paths have buffers
  bool all_gather = false;
  DeviceWeightOptions weights;
  kernels::cuda::KvType kv = kernels::cuda::KvType::kBf16;
  int sm_count = 0;  // of the device; sizes the GEMMs' workspace

  // Lanes that step together are padded alike, to the powers of two that plans name; one lane alone
  // has finer sizes.
  DecodeBuckets decode_buckets() const;
  // Most rows of a step: tokens, or the rows of the largest decode graph.
  std::int32_t max_rows() const;
  // Rows of logits computed at a time; a decode graph has at most as many rows.
  std::int32_t logit_rows() const;
  // Rows of logits wanted in a step, at most: a token may be asked for its own log-probability and
  // for the next token.
  std::int32_t max_logit_rows() const { return 2 * max_rows(); }
  std::int32_t blocks_per_sequence() const;
  // Expert rows that this lane may have to compute in a step.
  std::int64_t expert_rows() const;
  std::int32_t expert_slots() const;
  std::int64_t moe_layers() const;    // of the stage
  std::int64_t dense_layers() const;  // with one FFN for all tokens
  kernels::cuda::AttentionShape attention() const;
  parallel::DeviceExchangeShape exchange() const;
};

// What the kernels demand of a model and a configuration; the error names the field and the fix.
Result<void> check_device_model(const ModelConfig& model, std::int64_t block_tokens);

}  // namespace millrace
