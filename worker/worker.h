// One worker on the CPU: the rank at (stage, lane) of a cell. Executes step plans in order until
// the shutdown plan.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "config/model_config.h"
#include "kernels/table.h"
#include "parallel/expert_parallel.h"
#include "parallel/expert_placement.h"
#include "parallel/pipeline.h"
#include "parallel/process_grid.h"
#include "worker/conv_state.h"
#include "worker/kv_cache.h"
#include "worker/lfm2.h"
#include "worker/sampler.h"
#include "worker/step.h"
#include "worker/step_batch.h"
#include "worker/step_executor.h"
#include "worker/weights.h"

namespace millrace {

struct WorkerOptions {
  BatchLimits limits;
  kernels::DType kv_dtype = kernels::DType::kBF16;
  int threads = 1;                                  // compute threads, the caller's included
  std::function<void(int thread)> on_thread_start;  // on each of them; 0 is the caller's
  const kernels::KernelTable* kernels = nullptr;    // kernels/table.h, complete
  bool all_gather = true;                           // reserve the buffers of that exchange path
};

class Worker final : public StepExecutor {
 public:
  // `comms` and the memory behind `weights` must outlive the worker; `placement` is indexed by MoE
  // layer of the whole model. Allocates all buffers here.
  Worker(const WorkerOptions& options, const ModelConfig& model, const ModelWeights& weights,
         const parallel::ExpertPlacement& placement, parallel::CellComms& comms);
  ~Worker() override;

  void run() override;
  const StepResult& execute(const StepPlan& plan) override;
  const WorkerReport& report() const override { return report_; }
  std::string_view transport() const override;

 private:
  void start_sequences(const LanePlan& plan);
  void take_input(const StepPlan& plan);
  void sample();
  void sample_row(const LogitRow& row, std::span<const float> logits);
  MoeExchange exchange_for(const StepPlan& plan);
  bool first_stage() const;
  bool last_stage() const;

  WorkerOptions options_;
  const ModelConfig& model_;
  const ModelWeights& weights_;
  const parallel::ExpertPlacement& placement_;
  parallel::CellComms& comms_;

  kernels::ThreadPool pool_;
  kernels::Buffer quantized_;
  kernels::Context run_;
  std::vector<float> inverse_frequencies_;
  std::vector<MoeLayer> moe_;
  StepBatch batch_;
  KvCache kv_;
  ConvState conv_;
  parallel::PipelineLink pipeline_;
  std::unique_ptr<parallel::ExpertExchange> exchange_;  // null for dense models
  std::unique_ptr<Activations> act_;
  std::unique_ptr<Sampler> sampler_;  // last stage only
  StepResult result_;
  WorkerReport report_;
};

}  // namespace millrace
