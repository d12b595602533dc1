// What a step brings back from the device: drawn tokens, log-probabilities, rows per expert.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kernels/cuda/runtime.h"
#include "kernels/cuda/sampling.h"
#include "worker/cuda/device_shape.h"
#include "worker/cuda/device_workspace.h"
#include "worker/step.h"
#include "worker/step_batch.h"

namespace millrace {

// One step given to the device and not read yet. Used again and again.
class PendingStep {
 public:
  PendingStep(const DeviceShape& shape, const DeviceWorkspace& workspace);

  // Remembers what the step asks for and enqueues the copies of what it gives, behind its work.
  // `ran`: the layers were launched.
  void enqueue(kernels::cuda::StreamRef stream, std::uint64_t step, const StepBatch& batch,
               bool ran);

  bool done() const { return copied_.done(); }

  // Once done: appends to the result, in the order of the batch's rows, and adds the rows that each
  // expert has run to `expert_rows` [MoE layers, slots].
  void read(StepResult& result, std::span<std::uint64_t> expert_rows) const;

 private:
  const DeviceWorkspace& work_;
  bool last_stage_;
  std::int32_t slots_;
  kernels::cuda::PinnedBuffer samples_;
  kernels::cuda::PinnedBuffer offsets_;
  kernels::cuda::Event copied_;
  std::uint64_t step_ = 0;
  bool ran_ = false;
  std::vector<LogitRow> rows_;
};

}  // namespace millrace
