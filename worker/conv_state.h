// The state of the short convolutions of one worker: for each conv layer of its stage and each slot
// of its lane the last L - 1 columns of B * x. A slot is addressed by its id, never by a batch row.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/buffer.h"
#include "kernels/tensor_view.h"
#include "worker/step_batch.h"

namespace millrace {

class ConvState {
 public:
  // `slots` with those of snapshots (StepBatch).
  ConvState(std::int64_t conv_layers, std::int64_t slots, std::int64_t taps, std::int64_t hidden);

  // [slots, L - 1, D] of the conv layer `index`, counted within this stage from 0.
  kernels::TensorView<float, 3> layer(std::size_t index) { return layers_[index]; }

  // In every layer.
  void move(const StateMove& move);

 private:
  kernels::Buffer memory_;
  std::vector<kernels::TensorView<float, 3>> layers_;
};

}  // namespace millrace
