// One worker on a device: the rank at (stage, lane) of a cell, with the steps, plans and results of
// worker/worker.h.
//
// A step is given to the device as a whole: inputs, launches (a graph for steps of decodes alone
// that have come before), results. The host waits only for the results of the last stage, and
// between lanes for what the transport waits for. Up to two steps are on their way, so the next one
// is prepared while one runs.
//
// Steps of decodes are padded to a bucket (worker/cuda/decode_buckets.h). The first of a bucket
// runs launch by launch, which also loads the kernels and connects the lanes; the second is
// recorded; from then on the graph is launched. All give the same bits.
//
// Throws CudaError when the device fails, CommError when a peer does or a deadline passes; the
// process must then leave, since work given to the device cannot be taken back.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/cuda/runtime.h"
#include "parallel/device_expert_exchange.h"
#include "parallel/device_pipeline.h"
#include "parallel/process_grid.h"
#include "worker/cuda/cuda_stage.h"
#include "worker/cuda/decode_buckets.h"
#include "worker/cuda/device_state.h"
#include "worker/cuda/device_transport.h"
#include "worker/cuda/device_weights.h"
#include "worker/cuda/device_workspace.h"
#include "worker/cuda/sequence_starts.h"
#include "worker/cuda/step_inputs.h"
#include "worker/cuda/step_results.h"
#include "worker/step_batch.h"
#include "worker/step_executor.h"

namespace millrace {

class PlanReceiver;

struct CudaWorkerOptions {
  bool graphs = true;
  bool overlap_launches = false;
  std::chrono::milliseconds step_deadline{60'000};
};

class CudaWorker final : public StepExecutor {
 public:
  // `shape.model`, `placement` and `cell` must outlive the worker. The device is the thread's.
  // Allocates everything here.
  CudaWorker(const CudaWorkerOptions& options, const DeviceShape& shape, DeviceWeights weights,
             const parallel::ExpertPlacement& placement, parallel::CellComms& cell,
             DeviceComms comms);
  ~CudaWorker() override;

  void run() override;
  const StepResult& execute(const StepPlan& plan) override;
  const WorkerReport& report() const override { return report_; }
  std::string_view transport() const override;

  // Of the steps so far: how many were launched as a graph, and how many graphs were recorded.
  std::uint64_t graph_launches() const { return graph_launches_; }
  std::uint64_t graphs_recorded() const { return graphs_recorded_; }
  // Logits [rows, V] of the last step's rows (up to those computed at a time), for tests.
  std::vector<float> read_logits(std::int64_t rows) const;

 private:
  struct GraphSlot {
    kernels::cuda::Graph graph;
    bool seen = false;
  };
  struct InFlight {
    std::size_t pending = 0;
    bool counted = false;  // in the report: some lane had tokens
    std::chrono::steady_clock::time_point
        begin;  // given to the device, or the end of the one before
  };

  void submit(const StepPlan& plan);
  const StepResult& collect();
  void answer(PlanReceiver& receiver);
  void check_peers();
  bool oldest_is_done();
  StageStep plan_rows(const StepPlan& plan, int& bucket) const;
  void launch(StageStep step, int bucket);
  void forward(const StageStep& step);
  parallel::DispatchPath path_of(const StepPlan& plan) const;
  void set_up_report(const parallel::GridPosition& position);
  void upload_constants();

  CudaWorkerOptions options_;
  DeviceShape shape_;
  parallel::CellComms& cell_;
  DeviceWeights weights_;
  DeviceComms comms_;
  kernels::cuda::Stream stream_;

  kernels::cuda::DeviceBuffer kv_memory_, slot_memory_, work_memory_;
  DeviceState state_;
  DeviceWorkspace work_;
  std::unique_ptr<parallel::DeviceExpertExchange> exchange_;  // null for dense models
  std::unique_ptr<parallel::DevicePipeline> pipeline_;        // null with one stage
  std::unique_ptr<CudaStage> stage_;

  StepBatch batch_;
  StepUploader uploader_;
  SequenceStarter starter_;
  DecodeBuckets buckets_;
  std::vector<GraphSlot> graphs_;  // by bucket
  std::vector<PendingStep> pending_;
  std::vector<InFlight> in_flight_;  // oldest first
  std::size_t next_pending_ = 0;
  StepResult result_;
  WorkerReport report_;
  std::chrono::steady_clock::time_point reported_;
  std::uint64_t graph_launches_ = 0;
  std::uint64_t graphs_recorded_ = 0;
};

}  // namespace millrace
