// Everything that is known of a cell before anything is loaded: the checked configuration with its
// automatic values settled, the model's shape, who holds what, and how much memory that takes.
#pragma once

#include <string>
#include <vector>

#include "cli/machine_limits.h"
#include "config/cluster_config.h"
#include "config/model_config.h"
#include "config/result.h"
#include "coordinator/request.h"
#include "coordinator/scheduler.h"
#include "kernels/table.h"
#include "parallel/expert_placement.h"
#include "worker/checkpoint/tensor_source.h"
#include "worker/memory_plan.h"
#include "worker/sharding.h"
#include "worker/worker.h"

namespace millrace {

struct CellSetup {
  ClusterConfig config;  // no automatic value left: every rank gets the same numbers
  ModelConfig model;
  TensorSource source;
  std::vector<StageRange> stages;
  parallel::ExpertPlacement placement;
  MemoryPlan memory;
  MachineLimits machine;  // from which automatic values were derived
  std::string fingerprint;
  std::string numeric_mode;  // name of the CPU kernels, or "cuda sm_90 bf16"
  std::string tiles_note;    // for people: whether packed weights run on AMX tiles, if one may ask
  const kernels::KernelTable* kernels = nullptr;
  float plan_seconds = 0;  // it took to find all this out

  SchedulerLimits scheduler_limits() const;
  WorkerOptions worker_options() const;
  RankShard shard(parallel::GridPosition position) const;
  CellInfo cell_info(std::uint64_t epoch) const;
};

// Opens the checkpoint's headers and settles the plan; reads no weights. Errors name the field.
Result<CellSetup> make_cell_setup(ClusterConfig config);

// The plan for people: model, grid, memory per rank, KV tokens.
std::string describe(const CellSetup& setup);

}  // namespace millrace
