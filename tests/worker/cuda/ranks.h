// The worker ranks of a cell on devices, stepped by hand.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "cli/cell_setup.h"
#include "parallel/thread_communicator.h"
#include "worker/cuda/cuda_worker.h"
#include "worker/device_backend.h"
#include "worker/plan_transport.h"

namespace millrace::testing {

inline CellSetup setup_of(const ClusterConfig& config) {
  Result<CellSetup> setup = make_cell_setup(config);
  if (!setup) throw std::runtime_error(setup.error().to_string());
  return std::move(*setup);
}

// Makes the worker of one rank. Collective; on a thread of its own for each rank, rank 0 included,
// which gets null.
inline Result<std::unique_ptr<StepExecutor>> make_rank(const CellSetup& setup,
                                                       parallel::CellComms& comms) {
  if (!comms.position) return std::unique_ptr<StepExecutor>();
  const RankShard shard = setup.shard(*comms.position);
  const Result<ModelWeights> weights = load_weights(setup.source, setup.model, shard);
  if (!weights) return weights.error();
  const WorkerOptions options = setup.worker_options();
  return device_backend()->make_worker({setup.config,
                                        setup.model,
                                        setup.source,
                                        shard,
                                        *weights,
                                        options.limits,
                                        setup.placement,
                                        comms,
                                        {}});
}

// Runs `body` with the only worker of a cell of one stage and one lane.
inline void with_worker(
    const ClusterConfig& config,
    const std::function<void(const CellSetup&, Result<std::unique_ptr<StepExecutor>>)>& body) {
  const CellSetup setup = setup_of(config);
  parallel::ThreadGroup group(
      2, {.deadline = std::chrono::milliseconds(config.deadlines.collective_ms)});
  const auto grid = parallel::ProcessGrid::make(1, 1, 2);
  std::thread coordinator([&] {
    const auto world = group.take(0);
    parallel::make_cell_comms(*world, *grid);
  });
  {
    const auto world = group.take(1);
    parallel::CellComms comms = parallel::make_cell_comms(*world, *grid);
    coordinator.join();
    body(setup, make_rank(setup, comms));
  }
}

// The same, with the worker itself.
inline void with_cuda_worker(const ClusterConfig& config,
                             const std::function<void(CudaWorker&)>& body) {
  with_worker(config, [&](const CellSetup&, Result<std::unique_ptr<StepExecutor>> worker) {
    ASSERT_TRUE(worker.has_value()) << worker.error().to_string();
    body(dynamic_cast<CudaWorker&>(**worker));
  });
}

// What a worker answers to plans that are all there when it begins, so that it gives the device as
// many steps as it may before it waits for one.
inline std::vector<StepResult> run_ahead(const ClusterConfig& config,
                                         const std::vector<StepPlan>& plans) {
  const CellSetup setup = setup_of(config);
  parallel::ThreadGroup group(
      2, {.deadline = std::chrono::milliseconds(config.deadlines.collective_ms)});
  const auto grid = parallel::ProcessGrid::make(1, 1, 2);
  std::promise<void> sent;
  std::thread rank([&] {
    const auto world = group.take(1);
    parallel::CellComms comms = parallel::make_cell_comms(*world, *grid);
    const auto worker = make_rank(setup, comms);
    sent.get_future().wait();
    ASSERT_TRUE(worker.has_value()) << worker.error().to_string();
    (*worker)->run();
  });
  const auto world = group.take(0);
  parallel::make_cell_comms(*world, *grid);
  PlanSender sender(*world);
  for (const StepPlan& plan : plans) sender.send(plan);
  sent.set_value();
  std::vector<StepResult> results;
  while (results.size() < plans.size()) {
    auto result = sender.receive(std::chrono::seconds(60));
    if (!result) break;
    results.push_back(std::move(*result));
  }
  StepPlan last;
  last.shutdown = true;
  sender.send(last);
  rank.join();
  return results;
}

// Plans for sequences that all start with `prompt` tokens and then go on by one token a step.
class PlanMaker {
 public:
  explicit PlanMaker(std::uint32_t block_tokens) : block_tokens_(block_tokens) {}

  // A step in which `slots` begin.
  StepPlan start(const std::vector<SlotId>& slots, std::uint32_t prompt) {
    StepPlan plan = empty();
    for (const SlotId slot : slots) {
      SequenceStart begin;
      begin.slot = slot;
      begin.sampling.temperature = 0;
      begin.sampling.logprobs = 2;
      plan.lanes[0].starts.push_back(begin);
      lengths_.resize(std::max<std::size_t>(lengths_.size(), slot + 1));
      lengths_[slot] = 0;
      add(plan, slot, prompt);
    }
    return plan;
  }
  // A decode step of `slots`.
  StepPlan decode(const std::vector<SlotId>& slots) {
    StepPlan plan = empty();
    for (const SlotId slot : slots) add(plan, slot, 1);
    return plan;
  }
  // The same with given tokens.
  StepPlan decode(const std::vector<SlotId>& slots, const std::vector<std::int32_t>& tokens) {
    StepPlan plan = decode(slots);
    for (std::size_t i = 0; i < tokens.size(); ++i) plan.lanes[0].chunks[i].tokens = {tokens[i]};
    return plan;
  }
  StepPlan empty() {
    StepPlan plan;
    plan.step = ++step_;
    plan.bucket = 1;
    plan.lanes.resize(1);
    return plan;
  }

 private:
  void add(StepPlan& plan, SlotId slot, std::uint32_t tokens) {
    Chunk chunk;
    chunk.slot = slot;
    chunk.position = lengths_[slot];
    chunk.sample = true;
    for (std::uint32_t i = 0; i < tokens; ++i) {
      // Any tokens, the same whatever else is in the step.
      chunk.tokens.push_back(
          static_cast<std::int32_t>(20 + (slot * 31 + lengths_[slot] * 7) % 250));
      if (lengths_[slot]++ % block_tokens_ == 0) chunk.new_blocks.push_back(next_block_++);
    }
    plan.lanes[0].chunks.push_back(std::move(chunk));
  }

  std::uint32_t block_tokens_;
  std::uint64_t step_ = 0;
  BlockId next_block_ = 0;
  std::vector<std::uint32_t> lengths_;
};

}  // namespace millrace::testing
