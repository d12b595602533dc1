// What a step reads from memory, on its way from a plan to the device.
//
// All of it lies in one block of memory whose addresses depend on the (padded) numbers of rows
// only, so one copy brings it over and a graph recorded for those numbers finds it. Host blocks are
// pinned and used in turn, so the next step is prepared while one is on its way.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "kernels/cuda/block_table.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/short_conv.h"
#include "worker/cuda/device_arena.h"
#include "worker/cuda/device_shape.h"
#include "worker/step_batch.h"

namespace millrace {

// Pointers into a host or a device block. Rows behind those of the batch are padding: id and
// position 0, everything else -1.
struct StepInputs {
  std::int32_t rows = 0;                        // T, padded
  std::int32_t logit_rows = 0;                  // padded
  std::int32_t* ids = nullptr;                  // [rows]
  std::int32_t* positions = nullptr;            // [rows]
  std::int32_t* slots = nullptr;                // [rows] of the sequence
  std::int32_t* chunk_of_row = nullptr;         // [rows]
  std::int64_t* kv_slots = nullptr;             // [rows]
  kernels::cuda::ConvChunk* chunks = nullptr;   // [rows], the first `chunks` of the batch are used
  std::int32_t* logit_index = nullptr;          // [logit_rows]: row whose logits are wanted
  kernels::cuda::SampleRow* samples = nullptr;  // [logit_rows]
};
StepInputs lay_out_inputs(ArenaCursor& cursor, std::int32_t rows, std::int32_t logit_rows);

// The rows of logits that a batch wants, as the sampler takes them: a row that is both drawn from
// and asked for a known token appears twice.
std::int32_t count_sample_rows(const StepBatch& batch);

class StepUploader {
 public:
  explicit StepUploader(const DeviceShape& shape);

  static std::size_t device_bytes(const DeviceShape& shape);

  // Brings the batch to the device, in stream order, padded to `rows` and `logit_rows`, and the
  // plan's new blocks into `block_tables`. Waits, up to the deadline, only for the copy of the step
  // before the last. Returns the device's pointers.
  StepInputs upload(kernels::cuda::StreamRef stream, const LanePlan& plan, const StepBatch& batch,
                    std::int32_t rows, std::int32_t logit_rows,
                    const kernels::cuda::BlockTableArgs& block_tables,
                    std::chrono::milliseconds deadline);

 private:
  struct HostBlock {
    kernels::cuda::PinnedBuffer memory;
    kernels::cuda::PinnedBuffer updates;
    kernels::cuda::Event copied;
    bool used = false;
  };

  std::int64_t fill_updates(const LanePlan& plan, kernels::cuda::BlockTableUpdate* out) const;

  std::int32_t block_tokens_;
  std::int32_t blocks_per_sequence_;
  std::int64_t max_updates_;
  std::vector<HostBlock> host_;
  std::size_t next_ = 0;
  kernels::cuda::DeviceBuffer device_;
  kernels::cuda::DeviceBuffer device_updates_;
};

}  // namespace millrace
