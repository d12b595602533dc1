// One worker that holds the whole model, driven plan by plan on the calling thread.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <thread>
#include <vector>

#include "parallel/process_grid.h"
#include "parallel/thread_communicator.h"
#include "tests/support/engine_harness.h"
#include "worker/worker.h"

namespace millrace::testing {

// Log-probabilities of the whole vocabulary, in the order of ids.
inline std::vector<float> row_of(const std::vector<TokenLogprob>& top) {
  std::vector<float> row(top.size(), NAN);
  for (const TokenLogprob& t : top) row.at(static_cast<std::size_t>(t.token)) = t.logprob;
  return row;
}

// Runs prompts of up to 64 tokens. `setup` must outlive it; blocks are of 32 positions.
class SoleWorker {
 public:
  // `kernels`: instead of the setup's.
  explicit SoleWorker(const CellSetup& setup, const kernels::KernelTable* kernels = nullptr)
      : setup_(setup), group_(2) {
    // Making communicators takes both ranks; rank 0 has nothing else to do here.
    std::thread coordinator([this] {
      const auto world = group_.take(0);
      parallel::make_cell_comms(*world, *parallel::ProcessGrid::make(1, 1, 2));
    });
    world_ = group_.take(1);
    comms_ = std::make_unique<parallel::CellComms>(
        parallel::make_cell_comms(*world_, *parallel::ProcessGrid::make(1, 1, 2)));
    coordinator.join();
    weights_ = *load_weights(setup.source, setup.model, setup.shard({0, 0}),
                             {.cpu_weights = setup.config.model.cpu_weights});
    WorkerOptions options = setup.worker_options();
    if (kernels != nullptr) options.kernels = kernels;
    worker_ = std::make_unique<Worker>(options, setup.model, weights_, setup.placement, *comms_);
  }

  // The prompt in chunks of these lengths; what the model says after each of its tokens.
  std::vector<std::vector<float>> run(const std::vector<std::int32_t>& ids,
                                      const std::vector<std::size_t>& chunks) {
    std::vector<std::vector<float>> rows;
    std::size_t begin = 0;
    for (const std::size_t length : chunks) {
      const StepResult& result = worker_->execute(plan(ids, begin, length));
      for (const PromptLogprobs& p : result.prompt_logprobs) rows.push_back(row_of(p.top));
      for (const SampledToken& s : result.sampled) rows.push_back(row_of(s.top));
      begin += length;
    }
    EXPECT_EQ(rows.size(), ids.size());
    return rows;
  }

 private:
  StepPlan plan(const std::vector<std::int32_t>& ids, std::size_t begin, std::size_t length) {
    StepPlan plan;
    plan.step = ++step_;
    plan.bucket = 64;
    LanePlan& lane = plan.lanes.emplace_back();
    Chunk chunk;
    chunk.slot = 3;
    chunk.position = static_cast<std::uint32_t>(begin);
    const auto first = ids.begin() + static_cast<std::ptrdiff_t>(begin);
    const auto last = first + static_cast<std::ptrdiff_t>(length);
    chunk.tokens.assign(first, last);
    chunk.sample = begin + length == ids.size();
    chunk.prompt_targets.assign(first + 1, chunk.sample ? last : last + 1);
    if (chunk.sample) chunk.prompt_targets.push_back(-1);
    if (begin == 0) {
      SequenceStart start;
      start.slot = 3;
      start.sampling.temperature = 0;
      start.sampling.prompt_logprobs = true;
      start.sampling.logprobs = setup_.model.vocab_size;
      start.prompt_tokens = static_cast<std::uint32_t>(ids.size());
      lane.starts.push_back(start);
    }
    constexpr BlockId kBlocks[] = {5, 2};  // of 32 positions each
    for (std::size_t b = (begin + 31) / 32; b < (begin + length + 31) / 32; ++b) {
      chunk.new_blocks.push_back(kBlocks[b]);
    }
    lane.chunks.push_back(std::move(chunk));
    return plan;
  }

  const CellSetup& setup_;
  parallel::ThreadGroup group_;
  std::unique_ptr<parallel::Communicator> world_;
  std::unique_ptr<parallel::CellComms> comms_;
  ModelWeights weights_;
  std::unique_ptr<Worker> worker_;
  std::uint64_t step_ = 0;
};

}  // namespace millrace::testing
