// What every block of a layer gets for one step, besides its weights and state.
#pragma once

#include "config/model_config.h"
#include "kernels/table.h"
#include "parallel/communicator.h"
#include "worker/activations.h"
#include "worker/step_batch.h"

namespace millrace {

struct StepContext {
  const kernels::KernelTable& ops;
  const kernels::Context& run;
  const ModelConfig& model;
  const StepBatch& batch;
  Activations& act;
  // Where the result of the step before may still be on its way: moved on once a layer. May be
  // null.
  parallel::Communicator* world = nullptr;

  std::int64_t tokens() const { return batch.tokens(); }
  kernels::MatrixView<float> hidden() const { return act.hidden.view(tokens()); }
  kernels::MatrixView<float> normed() const { return act.normed.view(tokens()); }
};

}  // namespace millrace
