// Cells as threads of the test process, driven with many sequences at once.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "cli/embedded_cell.h"
#include "tests/support/patience.h"

namespace millrace::testing {

// Everything one sequence produced.
struct Output {
  std::vector<TokenEvent> events;  // in order; the last one has a finish
  PromptLogprobsEvent prompt;

  std::vector<std::int32_t> tokens() const {
    std::vector<std::int32_t> ids;
    for (const TokenEvent& e : events) {
      if (e.has_token) ids.push_back(e.token.token);
    }
    return ids;
  }
  bool operator==(const Output&) const = default;
};

class EngineHarness {
 public:
  // Fails the test when the cell does not start. `adjust` may change the plan before that.
  explicit EngineHarness(ClusterConfig config,
                         const std::function<void(CellSetup&)>& adjust = nullptr) {
    config.deadlines.step_ms *= kPatience;
    config.deadlines.collective_ms *= kPatience;
    Result<CellSetup> setup = make_cell_setup(std::move(config));
    if (!setup) {
      ADD_FAILURE() << setup.error().to_string();
      return;
    }
    setup_ = std::make_unique<CellSetup>(std::move(*setup));
    if (adjust) adjust(*setup_);
    CoordinatorHooks hooks;
    hooks.on_ready = [this](Cell& cell) { cell_ = &cell; };
    hooks.cell.on_tokens = [this](std::vector<TokenEvent> events) {
      const std::lock_guard lock(mutex_);
      for (TokenEvent& e : events) {
        if (e.finish != FinishReason::kNone) ++finished_;
        // Time and what is known already may differ where all else must not.
        e.since_scheduled_us = 0;
        cached_ += std::exchange(e.cached_tokens, 0);
        outputs_[e.id].events.push_back(std::move(e));
      }
      changed_.notify_all();
    };
    hooks.cell.on_prompt_logprobs = [this](PromptLogprobsEvent e) {
      const std::lock_guard lock(mutex_);
      outputs_[e.id].prompt = std::move(e);
    };
    ranks_ = std::make_unique<EmbeddedCell>(*setup_, std::move(hooks));
    if (!ranks_->wait_ready()) ADD_FAILURE() << ranks_->failure();
  }

  Cell& cell() { return *cell_; }
  // Why the cell ended; waits until it has, up to 120 s.
  std::string wait_failure() {
    for (int i = 0; i < 12'000 * kPatience && ranks_->failure().empty(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return ranks_->failure();
  }
  const CellSetup& setup() const { return *setup_; }
  // Tokens that sequences of all runs had from the prefix cache.
  std::uint64_t cached_tokens() {
    const std::lock_guard lock(mutex_);
    return cached_;
  }

  // Submits all at once and returns what each became, by id.
  std::map<RequestId, Output> run(const std::vector<SequenceRequest>& requests) {
    {
      const std::lock_guard lock(mutex_);
      outputs_.clear();
      finished_ = 0;
    }
    for (const SequenceRequest& request : requests) EXPECT_TRUE(cell_->submit(request));
    std::unique_lock lock(mutex_);
    const std::chrono::seconds limit(120 * kPatience);
    const bool done = changed_.wait_for(lock, limit, [&] { return finished_ == requests.size(); });
    EXPECT_TRUE(done) << finished_ << " of " << requests.size() << " sequences ended within "
                      << limit.count() << " s";
    return outputs_;
  }

 private:
  std::unique_ptr<CellSetup> setup_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<RequestId, Output> outputs_;
  std::size_t finished_ = 0;
  std::uint64_t cached_ = 0;
  Cell* cell_ = nullptr;
  std::unique_ptr<EmbeddedCell> ranks_;
};

// A configuration for tests: embedded, small buffers, bits comparable with Transformers (f32 KV).
inline ClusterConfig test_config(const std::string& model) {
  ClusterConfig config;
  config.model.path = model;
  config.grid.threads_per_rank = 1;
  config.cache.kv_dtype = KvDtype::kF32;
  config.cache.kv_tokens = 4096;
  config.cache.max_sequences = 16;
  config.cache.max_context_tokens = 512;
  config.cache.prefix = false;  // else a second run would look up what it is to compute
  config.scheduler.max_step_tokens = 128;
  config.scheduler.prefill_chunk_tokens = 64;
  config.scheduler.max_gap_ms = 0;  // the machine's speed is not to decide what is tested
  return config;
}

// What a Python script of ours writes to its --out, a file or a folder: made once per build folder
// and kept under `name`.
std::string made_by(const std::string& script, const std::string& name,
                    const std::vector<std::string>& arguments);

// A checkpoint of scripts/make_random_checkpoint.py.
std::string random_checkpoint(const std::string& name, const std::vector<std::string>& arguments);

// The root of the sources, where models/ and scripts/ are.
std::string source_folder();

}  // namespace millrace::testing
