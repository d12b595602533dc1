// Whole cells on devices: against the CPU's kernels in f32, and bit for bit against themselves in
// every arrangement that contract C1 names.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/worker/cuda/device_config.h"

#if defined(MILLRACE_CUDA_EMULATED)
#include "tests/cuda_emulator/control.h"
#endif

namespace millrace {
namespace {

using testing::device_checkpoint;
using testing::device_config;
using testing::device_requests;
using testing::EngineHarness;
using testing::kEmulated;
using testing::Output;

using Outputs = std::map<RequestId, Output>;

Outputs run(const ClusterConfig& config, const std::vector<SequenceRequest>& requests) {
  EngineHarness engine(config);
  return engine.run(requests);
}

Outputs run_one_by_one(const ClusterConfig& config, const std::vector<SequenceRequest>& requests) {
  EngineHarness engine(config);
  Outputs outputs;
  for (const SequenceRequest& request : requests) {
    for (auto& [id, output] : engine.run({request})) outputs[id] = std::move(output);
  }
  return outputs;
}

ClusterConfig cpu_config(const std::string& model) {
  ClusterConfig config = device_config(model);
  config.device = {};
  config.device.backend = DeviceChoice::kCpu;
  config.cache.kv_dtype = KvDtype::kF32;
  return config;
}

// The tokens of a bf16 engine are those of an f32 engine while the f32 engine's choice leads by
// more than rounding can take away. A bf16 rounding errs by 2^-9 of the value at most, by 2^-10.8
// of it in the mean square; a layer has about six of them one behind the other, on values that are
// a part of the residual stream, and they add up like random numbers: sqrt(6 layers * 6) * 2^-10.8
// = 0.34 % of a logit's spread over the vocabulary. Logits here spread over some units: 0.02. Eight
// of those.
constexpr float kLogitTolerance = 0.16F;
// fp8 weights err by 2^-4 at most and 2^-5.8 in the mean square, fresh for every weight, so the
// error of a dot product is that part of its spread; 12 matrices one behind the other.
constexpr float kFp8LogitTolerance = 1.3F;

// Greedy, with the likeliest 20 of every step; what the CPU computes and the device may differ in.
void compare_with_cpu(ClusterConfig device, const std::string& model, float tolerance) {
  std::vector<SequenceRequest> requests = device_requests(320, 4);
  for (SequenceRequest& r : requests) {
    r.sampling = {};
    r.sampling.temperature = 0;
    r.sampling.logprobs = 20;
    r.max_new_tokens = 6;
    r.stop_token_ids.clear();
  }
  const Outputs expected = run(cpu_config(model), requests);
  const Outputs got = run(device, requests);
  int compared = 0;
  for (const SequenceRequest& r : requests) {
    const auto& theirs = expected.at(r.id).events;
    const auto& ours = got.at(r.id).events;
    ASSERT_EQ(ours.size(), theirs.size());
    for (std::size_t i = 0; i < ours.size(); ++i) {
      std::map<std::int32_t, float> logprobs;
      for (const TokenLogprob& t : theirs[i].top) logprobs[t.token] = t.logprob;
      int common = 0;
      for (const TokenLogprob& t : ours[i].top) {
        if (!logprobs.contains(t.token)) continue;
        EXPECT_NEAR(t.logprob, logprobs[t.token], tolerance) << "sequence " << r.id << " at " << i;
        ++common;
      }
      EXPECT_GE(common, 10) << "hardly any token is among the likeliest of both";
      compared += common;
      if (ours[i].token.token == theirs[i].token.token) continue;
      const float lead = theirs[i].top[0].logprob - theirs[i].top[1].logprob;
      EXPECT_LT(lead, 2 * tolerance) << "sequence " << r.id << " takes another way at " << i;
      break;  // from here on they answer different questions
    }
  }
  EXPECT_GT(compared, 100);
}

class OnDevice : public ::testing::TestWithParam<std::string> {};

TEST_P(OnDevice, LogProbabilitiesAreThoseOfTheCpu) {
  const std::string model = device_checkpoint(GetParam());
  compare_with_cpu(device_config(model), model, kLogitTolerance);
}

TEST_P(OnDevice, Fp8IsNearTheCpu) {
  const std::string model = device_checkpoint(GetParam());
  ClusterConfig config = device_config(model);
  config.device.weights = DeviceWeightFormat::kFp8;
  config.cache.kv_dtype = KvDtype::kFp8;
  compare_with_cpu(config, model, kFp8LogitTolerance);
}

TEST_P(OnDevice, AnArrangementChangesNoBit) {
  const bool dense = GetParam() == "dense";
  const ClusterConfig base = device_config(device_checkpoint(GetParam()));
  const std::vector<SequenceRequest> requests = device_requests(320);
  ClusterConfig plain = base;
  plain.scheduler.async = AsyncSteps::kNever;
  const Outputs expected = run_one_by_one(plain, requests);
  int arrangement = 0;
  const auto same = [&](const char* what, const std::function<void(ClusterConfig&)>& change) {
    // What arranges them is the same for all; under the emulator, which takes long, one model goes
    // through every arrangement.
    if (kEmulated && GetParam() != "moe" && arrangement++ % 3 != 0) return;
    ClusterConfig config = base;
    change(config);
    const Outputs got = run(config, requests);
    for (const SequenceRequest& r : requests) {
      EXPECT_EQ(got.at(r.id), expected.at(r.id)) << "sequence " << r.id << ": " << what;
    }
  };
  same("batched, a step ahead wherever there is one stage", [](ClusterConfig&) {});
  same("one step at a time", [](ClusterConfig& c) { c.scheduler.async = AsyncSteps::kNever; });
  same("without graphs, kernels that start early", [](ClusterConfig& c) {
    c.device.graphs = false;
    c.device.overlap_launches = true;
  });
#if defined(MILLRACE_CUDA_EMULATED)
  const std::uint64_t before = cuda_emulator::calls("early launch");
#endif
  same("kernels that start early", [](ClusterConfig& c) { c.device.overlap_launches = true; });
#if defined(MILLRACE_CUDA_EMULATED)
  EXPECT_GT(cuda_emulator::calls("early launch"), before);
#endif
  same("chunks of one token", [](ClusterConfig& c) {
    c.scheduler.max_step_tokens = 11;
    c.scheduler.prefill_chunk_tokens = 1;
  });
  same("chunks of 13 tokens, other blocks", [](ClusterConfig& c) {
    c.scheduler.max_step_tokens = 19;
    c.scheduler.prefill_chunk_tokens = 13;
    c.cache.block_tokens = 16;
  });
  same("preemptions", [](ClusterConfig& c) {
    c.cache.kv_tokens = 96;
    c.cache.max_context_tokens = 96;
    c.cache.max_sequences = 3;
  });
  same("two stages", [](ClusterConfig& c) { c.grid.stages = 2; });
  same("four stages, kernels that start early", [](ClusterConfig& c) {
    c.grid.stages = 4;
    c.device.overlap_launches = true;
  });
  if (dense) return;
  same("two lanes", [](ClusterConfig& c) { c.grid.lanes = 2; });
  for (const auto exchange :
       {ExchangeChoice::kFixed, ExchangeChoice::kExact, ExchangeChoice::kAllGather}) {
    same("two stages, two lanes, one path", [exchange](ClusterConfig& c) {
      c.grid.stages = 2;
      c.grid.lanes = 2;
      c.scheduler.exchange = exchange;
    });
  }
  same("three lanes, kernels that start early", [](ClusterConfig& c) {
    c.grid.lanes = 3;
    c.device.overlap_launches = true;
  });
}

INSTANTIATE_TEST_SUITE_P(Models, OnDevice, ::testing::Values("moe", "dense", "f32"));

TEST(OnDevices, SequencesGoOnFromTheirTokens) {
  EngineHarness engine(device_config(device_checkpoint("moe")));
  for (SequenceRequest request : device_requests(320, 4)) {
    request.sampling.prompt_logprobs = false;
    const Output whole = engine.run({request}).at(request.id);
    const std::vector<std::int32_t> tokens = whole.tokens();
    const auto delivered = static_cast<std::ptrdiff_t>(tokens.size() / 2);
    SequenceRequest resumed = request;
    resumed.tokens.insert(resumed.tokens.end(), tokens.begin(), tokens.begin() + delivered);
    const Output rest = engine.run({resumed}).at(request.id);
    const std::vector<TokenEvent> expected(whole.events.begin() + delivered, whole.events.end());
    EXPECT_EQ(rest.events, expected) << "sequence " << request.id;
  }
}

// The gateway accepts no more either; this is for whatever else talks to a cell.
TEST(OnDevices, MoreAlternativesThanADeviceGivesAreRefusedAtOnce) {
  EngineHarness engine(device_config(device_checkpoint("moe")));
  SequenceRequest request = device_requests(320, 1)[0];
  request.sampling.logprobs = 21;
  const Output refused = engine.run({request}).at(1);
  ASSERT_EQ(refused.events.size(), 1U);
  EXPECT_EQ(refused.events[0].finish, FinishReason::kError);
  EXPECT_NE(refused.events[0].error.find("sampling.logprobs"), std::string::npos)
      << refused.events[0].error;
  request.sampling.logprobs = 20;
  EXPECT_EQ(engine.run({request}).at(1).events.at(0).top.size(), 20U) << "the cell goes on";
}

TEST(OnDevices, Fp8HasTheSameBitsInEveryArrangementToo) {
  ClusterConfig config = device_config(device_checkpoint("moe"));
  config.device.weights = DeviceWeightFormat::kFp8;
  config.cache.kv_dtype = KvDtype::kFp8;
  const std::vector<SequenceRequest> requests = device_requests(320, 4);
  const Outputs expected = run_one_by_one(config, requests);
  config.grid.lanes = 2;
  config.scheduler.prefill_chunk_tokens = 9;
  config.device.overlap_launches = true;
  EXPECT_EQ(run(config, requests), expected);
}

#if defined(MILLRACE_CUDA_EMULATED)
// Kernels that race, or that depend on the number of multiprocessors, would show here.
TEST(OnDevices, TheOrderOfThreadsAndTheSizeOfTheDeviceChangeNoBit) {
  const ClusterConfig config = device_config(device_checkpoint("moe"));
  const std::vector<SequenceRequest> requests = device_requests(320, 4);
  const Outputs expected = run(config, requests);
  cuda_emulator::set_order(cuda_emulator::Order::kShuffled, 5);
  EXPECT_EQ(run(config, requests), expected);
  cuda_emulator::set_order(cuda_emulator::Order::kReverse);
  cuda_emulator::set_sm_count(3);
  EXPECT_EQ(run(config, requests), expected);
  cuda_emulator::reset();
}

// What one step still reads or has not written yet when the next is prepared would show here.
TEST(OnDevices, WorkThatIsDoneLateChangesNoBit) {
  ClusterConfig config = device_config(device_checkpoint("moe"));
  const std::vector<SequenceRequest> requests = device_requests(320);
  config.scheduler.async = AsyncSteps::kNever;
  const Outputs expected = run(config, requests);
  config.scheduler.async = AsyncSteps::kAuto;
  cuda_emulator::set_lazy(true);
  EXPECT_EQ(run(config, requests), expected);
  config.cache.max_sequences = 3;
  EXPECT_EQ(run(config, requests), expected) << "slots are used again at once";
  config.grid.lanes = 2;
  EXPECT_EQ(run(config, requests), expected) << "two lanes";
  config.grid.stages = 2;
  EXPECT_EQ(run(config, requests), expected) << "two stages, two lanes";
  cuda_emulator::reset();
}

TEST(OnDevices, OlderDevicesComputeTheSameModel) {
  const std::string model = device_checkpoint("moe");
  cuda_emulator::set_compute_capability(8, 0);
  compare_with_cpu(device_config(model), model, kLogitTolerance);
  cuda_emulator::reset();
}
#endif

}  // namespace
}  // namespace millrace
