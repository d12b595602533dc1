// A model that is a shape alone: its weights made by a kernel, on the device, are those that the
// CPU's workers make.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/worker/cuda/device_config.h"
#include "tests/worker/cuda/ranks.h"

namespace millrace {
namespace {

using testing::device_config;
using testing::device_requests;
using testing::EngineHarness;
using testing::Output;

constexpr char kModel[] = "random:tiny:3";

std::map<RequestId, Output> run(const ClusterConfig& config) {
  std::vector<SequenceRequest> requests = device_requests(512, 4);
  for (SequenceRequest& r : requests) {
    r.sampling = {};
    r.sampling.temperature = 0;
    r.sampling.logprobs = 20;
    r.max_new_tokens = 4;
  }
  EngineHarness engine(config);
  return engine.run(requests);
}

// As in engine_test: the roundings of bf16 move a logit by about 0.02; eight of those.
TEST(RandomModelOnDevices, AnswersAsOnTheCpu) {
  ClusterConfig cpu = testing::test_config(kModel);
  cpu.device.backend = DeviceChoice::kCpu;
  cpu.grid.embedded = true;
  const auto expected = run(cpu);
  const auto got = run(device_config(kModel));
  int compared = 0;
  for (const auto& [id, theirs] : expected) {
    const auto& ours = got.at(id).events;
    ASSERT_EQ(ours.size(), theirs.events.size());
    for (std::size_t i = 0; i < ours.size(); ++i) {
      std::map<std::int32_t, float> logprobs;
      for (const TokenLogprob& t : theirs.events[i].top) logprobs[t.token] = t.logprob;
      for (const TokenLogprob& t : ours[i].top) {
        if (!logprobs.contains(t.token)) continue;
        EXPECT_NEAR(t.logprob, logprobs[t.token], 0.16F) << "sequence " << id << " at " << i;
        ++compared;
      }
      if (ours[i].token.token != theirs.events[i].token.token) break;
    }
  }
  EXPECT_GT(compared, 80);
}

TEST(RandomModelOnDevices, LanesAndStagesChangeNoBit) {
  ClusterConfig config = device_config(kModel);
  const auto expected = run(config);
  config.grid.lanes = 2;
  config.grid.stages = 2;
  EXPECT_EQ(run(config), expected);
}

TEST(RandomModelOnDevices, EveryExpertGetsItsShare) {
  testing::with_cuda_worker(device_config(kModel), [](CudaWorker& worker) {
    testing::PlanMaker plans(32);
    for (int i = 0; i < 4; ++i) {
      // Slots start anew with other tokens each time.
      worker.execute(
          plans.start({static_cast<SlotId>(2 * i % 8), static_cast<SlotId>(2 * i % 8 + 1)}, 20));
    }
    const WorkerReport& report = worker.report();
    const double mean = 4.0 * 40 * 4 / 8;
    for (const std::uint64_t rows : report.expert_rows) {
      EXPECT_GT(static_cast<double>(rows), 0.3 * mean);
      EXPECT_LT(static_cast<double>(rows), 2.0 * mean);
    }
    // Logits are of a size that can be sampled from.
    double squares = 0;
    const std::vector<float> logits = worker.read_logits(1);
    for (const float v : logits) squares += static_cast<double>(v) * v;
    EXPECT_NEAR(std::sqrt(squares / static_cast<double>(logits.size())), 1.0, 0.3);
  });
}

}  // namespace
}  // namespace millrace
