// Contract C5: after warm-up a worker's step takes no memory from the heap.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "cli/cell_setup.h"
#include "parallel/thread_communicator.h"
#include "tests/support/comm_alloc_counter.h"
#include "tests/support/engine_harness.h"
#include "worker/worker.h"

namespace millrace::testing {
namespace {

constexpr std::uint32_t kPrompt = 20;
constexpr int kWarmUp = 8;
constexpr int kCounted = 60;  // over borders of KV blocks

SamplingParams drawn_with_everything() {
  SamplingParams p;
  p.temperature = 0.8F;
  p.top_k = 40;
  p.top_p = 0.9F;
  p.min_p = 0.01F;
  p.repetition_penalty = 1.1F;
  p.seed = 7;
  return p;
}

// Two sequences in each lane, one greedy: a prefill of both, then one token of each in every step.
std::vector<StepPlan> plans(const CellSetup& setup, ExchangePath exchange) {
  const std::uint32_t block_tokens = setup.worker_options().limits.block_tokens;
  BlockId next_block = 0;
  std::vector<StepPlan> out;
  std::uint32_t length = 0;
  for (int step = 1; step <= 1 + kWarmUp + kCounted; ++step) {
    const std::uint32_t tokens = step == 1 ? kPrompt : 1;
    const std::uint32_t had = (length + block_tokens - 1) / block_tokens;
    const std::uint32_t needs = (length + tokens + block_tokens - 1) / block_tokens;
    LanePlan lane;
    for (SlotId slot = 0; slot < 2; ++slot) {
      if (step == 1) {
        SequenceStart start{
            slot, slot == 0 ? SamplingParams{} : drawn_with_everything(), kPrompt, {}};
        if (start.sampling.uses_history()) start.history.assign(kPrompt, 20);
        lane.starts.push_back(std::move(start));
      }
      Chunk chunk;
      chunk.slot = slot;
      chunk.position = length;
      chunk.sample = true;
      chunk.tokens.assign(tokens, 20 + step + static_cast<std::int32_t>(slot));
      for (std::uint32_t b = had; b < needs; ++b) chunk.new_blocks.push_back(next_block++);
      lane.chunks.push_back(std::move(chunk));
    }
    length += tokens;
    StepPlan plan;
    plan.step = static_cast<std::uint64_t>(step);
    plan.exchange = exchange;
    plan.bucket = 2 * tokens;
    plan.lanes.assign(static_cast<std::size_t>(setup.config.grid.lanes), lane);
    out.push_back(std::move(plan));
  }
  return out;
}

// What the steps after warm-up allocate on each worker's thread, with one compute thread.
std::vector<std::uint64_t> allocations(const CellSetup& setup, ExchangePath exchange) {
  const int workers = setup.config.grid.stages * setup.config.grid.lanes;
  const std::vector<StepPlan> steps = plans(setup, exchange);
  parallel::ThreadGroup group(1 + workers, {});
  std::vector<std::uint64_t> counts(static_cast<std::size_t>(workers));
  std::vector<std::thread> threads;
  for (int rank = 0; rank <= workers; ++rank) {
    threads.emplace_back([&, rank] {
      const auto world = group.take(rank);
      auto grid = parallel::ProcessGrid::make(setup.config.grid.stages, setup.config.grid.lanes,
                                              world->size());
      parallel::CellComms comms = parallel::make_cell_comms(*world, *grid);
      if (rank == 0) return;
      LoadOptions load;
      load.cpu_weights = setup.config.model.cpu_weights;
      auto weights = load_weights(setup.source, setup.model, setup.shard(*comms.position), load);
      ASSERT_TRUE(weights) << weights.error().to_string();
      Worker worker(setup.worker_options(), setup.model, *weights, setup.placement, comms);
      std::uint64_t before = 0;
      for (const StepPlan& plan : steps) {
        if (plan.step == 1 + kWarmUp + 1) before = test::allocations_of_this_thread();
        const StepResult& result = worker.execute(plan);
        if (comms.grid.last_stage(*comms.position)) {
          ASSERT_EQ(result.sampled.size(), 2U);
          ASSERT_NE(result.sampled[1].chosen.token, kNoToken);
        }
      }
      counts[static_cast<std::size_t>(rank - 1)] = test::allocations_of_this_thread() - before;
    });
  }
  for (std::thread& thread : threads) thread.join();
  return counts;
}

TEST(StepAllocations, DecodeTakesNothingFromTheHeap) {
  for (const CpuWeights kind : {CpuWeights::kMapped, CpuWeights::kP8}) {
    for (const auto& [stages, lanes, exchange] : {std::tuple(1, 1, ExchangePath::kAllToAllFixed),
                                                  std::tuple(1, 2, ExchangePath::kAllToAllFixed),
                                                  std::tuple(1, 2, ExchangePath::kAllToAllExact),
                                                  std::tuple(2, 2, ExchangePath::kAllGather)}) {
      ClusterConfig config = test_config(source_folder() + "/models/sample");
      config.grid.stages = stages;
      config.grid.lanes = lanes;
      config.model.cpu_weights = kind;
      if (exchange == ExchangePath::kAllGather) {
        config.scheduler.exchange = ExchangeChoice::kAllGather;  // its buffers are not always there
      }
      Result<CellSetup> setup = make_cell_setup(std::move(config));
      ASSERT_TRUE(setup) << setup.error().to_string();
      EXPECT_EQ(allocations(*setup, exchange),
                std::vector<std::uint64_t>(static_cast<std::size_t>(stages * lanes), 0))
          << stages << "x" << lanes << " exchange " << static_cast<int>(exchange);
    }
  }
}

// The counter sees this thread: without it the test above could not fail.
TEST(StepAllocations, TheCounterCounts) {
  const std::uint64_t before = test::allocations_of_this_thread();
  const auto memory = std::make_unique<std::vector<int>>(1000);
  EXPECT_EQ(test::allocations_of_this_thread() - before, 2U);
}

}  // namespace
}  // namespace millrace::testing
