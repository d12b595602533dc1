// Sequences that begin in a step, or behind what is cached: their conv state, and on the last stage
// how they are sampled and what their penalties have seen.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>

#include "kernels/cuda/runtime.h"
#include "kernels/cuda/short_conv.h"
#include "worker/cuda/device_shape.h"
#include "worker/cuda/device_state.h"
#include "worker/step_batch.h"

namespace millrace {

class SequenceStarter {
 public:
  SequenceStarter(const DeviceShape& shape, const DeviceState& state);

  static std::size_t device_bytes(const DeviceShape& shape);

  // In stream order. StepBatch has checked the slots, and made the moves. Throws
  // std::runtime_error for sampling parameters that no coordinator of ours sends, as it refuses
  // such requests: out of range, or beyond what the device's sampler has room for.
  void start(kernels::cuda::StreamRef stream, std::span<const SequenceStart> starts,
             std::span<const StateMove> moves, std::chrono::milliseconds deadline);

 private:
  void move_conv(std::span<const StateMove> moves);
  void set_sampling(const SequenceStart& start, std::size_t index);
  void add_history(const SequenceStart& start);
  void flush_histories();

  const DeviceShape& shape_;
  const DeviceState& state_;
  std::int64_t history_tokens_;  // room for so many at a time
  kernels::cuda::StreamRef stream_;
  std::chrono::milliseconds deadline_{0};

  // Host and device memory of one step's starts. Used again when `copied` says so.
  struct Block {
    kernels::cuda::ConvMove* moves = nullptr;          // [slots]
    kernels::cuda::SlotSampling* sampling = nullptr;   // [slots], host only
    kernels::cuda::LogitBias* bias = nullptr;          // [slots, kMaxLogitBias], host only
    kernels::cuda::HistoryStart* histories = nullptr;  // [slots]
    std::int32_t* tokens = nullptr;                    // [history_tokens]
  };
  static Block lay_out(ArenaCursor& cursor, const DeviceShape& shape, bool host);

  kernels::cuda::PinnedBuffer host_memory_;
  kernels::cuda::DeviceBuffer device_memory_;
  Block host_, device_;
  kernels::cuda::Event copied_;
  bool used_ = false;
  std::int64_t histories_ = 0;  // collected and not yet given to the device
  std::int64_t tokens_ = 0;
};

}  // namespace millrace
