// Contract C1 over batch sizes, chunkings, graphs and blocks; and the sample model against what
// Transformers computed of it. On a device with the sample model and up to 512 sequences at once;
// under the emulator with a tiny model, which tests this file rather than the engine.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "cli/text_model.h"
#include "tests/worker/cuda/device_config.h"

namespace millrace {
namespace {

using testing::device_config;
using testing::EngineHarness;
using testing::kEmulated;
using testing::Output;

using Outputs = std::map<RequestId, Output>;

std::string sample_model() { return testing::source_folder() + "/models/sample"; }

ClusterConfig base_config() {
  if (kEmulated) return device_config("random:tiny");
  ClusterConfig config = device_config(sample_model());
  config.cache.kv_tokens = 256 * 1024;
  config.cache.max_sequences = 512;
  config.cache.max_context_tokens = 1024;
  config.scheduler.max_step_tokens = 2048;
  config.scheduler.prefill_chunk_tokens = 512;
  config.scheduler.max_waiting = 1024;
  return config;
}

SequenceRequest random_request(RequestId id, std::uint32_t most_tokens) {
  std::mt19937 random(static_cast<unsigned>(id));
  SequenceRequest r;
  r.id = id;
  const std::uint32_t length = 1 + random() % most_tokens;
  for (std::uint32_t i = 0; i < length; ++i) {
    r.tokens.push_back(static_cast<std::int32_t>(14 + random() % 480));
  }
  r.prompt_tokens = length;
  r.max_new_tokens = kEmulated ? 3 : 4 + random() % 28;
  r.sampling.seed = id;
  r.sampling.temperature = id % 2 == 0 ? 0.0F : 0.9F;
  if (id % 3 == 0) r.sampling.top_p = 0.9F;
  if (id % 5 == 0) r.sampling.repetition_penalty = 1.1F;
  r.sampling.logprobs = 3;
  return r;
}

// Those whose answers are compared: the first of every batch.
constexpr RequestId kProbes = kEmulated ? 2 : 6;

std::vector<SequenceRequest> batch_of(std::size_t sequences) {
  std::vector<SequenceRequest> requests;
  for (RequestId id = 1; id <= sequences; ++id) {
    requests.push_back(random_request(id, kEmulated ? 20 : 200));
  }
  return requests;
}

Outputs alone(const ClusterConfig& config) {
  EngineHarness engine(config);
  Outputs outputs;
  for (const SequenceRequest& request : batch_of(kProbes)) {
    for (auto& [id, output] : engine.run({request})) outputs[id] = std::move(output);
  }
  return outputs;
}

void expect_probes(const Outputs& got, const Outputs& expected, std::size_t probes,
                   const std::string& what) {
  for (RequestId id = 1; id <= probes; ++id) {
    EXPECT_EQ(got.at(id), expected.at(id)) << what << ", sequence " << id;
  }
}

void compare_batches(const ClusterConfig& config, const Outputs& expected) {
  const std::vector<std::size_t> sizes =
      kEmulated
          ? std::vector<std::size_t>{2, 5}
          : std::vector<std::size_t>{2,  3,  4,   5,   7,   8,   13,  16,  24,  31,  32,  48,  64,
                                     65, 96, 100, 128, 129, 192, 256, 257, 320, 384, 448, 511, 512};
  EngineHarness engine(config);
  for (const std::size_t size : sizes) {
    const Outputs got = engine.run(batch_of(size));
    expect_probes(got, expected, std::min<std::size_t>(size, kProbes),
                  fmt::format("among {} sequences", size));
    if (::testing::Test::HasFailure()) return;  // one size is enough to look at
  }
}

TEST(OnDeviceBatches, ASequenceHasTheBitsItHasAlone) {
  const ClusterConfig config = base_config();
  compare_batches(config, alone(config));
}

TEST(OnDeviceBatches, WithoutGraphsToo) {
  ClusterConfig config = base_config();
  const Outputs expected = alone(config);
  config.device.graphs = false;
  compare_batches(config, expected);
}

TEST(OnDeviceBatches, InFp8Too) {
  ClusterConfig config = base_config();
  config.device.weights = DeviceWeightFormat::kFp8;
  config.cache.kv_dtype = KvDtype::kFp8;
  compare_batches(config, alone(config));
}

TEST(OnDeviceBatches, ChunksAndBlocksChangeNoBit) {
  const ClusterConfig base = base_config();
  const Outputs expected = alone(base);
  const std::size_t sequences = kEmulated ? 3 : 96;
  const auto same = [&](const std::string& what, ClusterConfig config) {
    EngineHarness engine(config);
    expect_probes(engine.run(batch_of(sequences)), expected, kProbes, what);
  };
  for (const int chunk : kEmulated ? std::vector<int>{7} : std::vector<int>{1, 2, 17, 64, 333}) {
    ClusterConfig config = base;
    config.scheduler.prefill_chunk_tokens = chunk;
    same(fmt::format("chunks of {}", chunk), config);
  }
  for (const int block : kEmulated ? std::vector<int>{16} : std::vector<int>{16, 64, 128}) {
    ClusterConfig config = base;
    config.cache.block_tokens = block;
    same(fmt::format("blocks of {}", block), config);
  }
  if (kEmulated) return;
  ClusterConfig config = base;
  config.cache.kv_tokens = 4096;
  same("preemptions", config);
}

// Two waves of prompts with one beginning: the second finds the first's, and within the first the
// later ones find what is computed in their own step.
TEST(OnDeviceBatches, WhatIsFoundComputedChangesNoBit) {
  ClusterConfig config = base_config();
  config.cache.block_tokens = 16;
  std::vector<std::int32_t> beginning;
  for (std::int32_t i = 0; i < (kEmulated ? 40 : 300); ++i) beginning.push_back(14 + i * i % 480);
  std::vector<SequenceRequest> requests = batch_of(kEmulated ? 3 : 64);
  for (SequenceRequest& request : requests) {
    request.tokens.insert(request.tokens.begin(), beginning.begin(), beginning.end());
    request.prompt_tokens = static_cast<std::uint32_t>(request.tokens.size());
  }
  const auto cold = [&](const ClusterConfig& with) {
    EngineHarness engine(with);
    Outputs outputs;
    for (const SequenceRequest& request : requests) outputs.merge(engine.run({request}));
    return outputs;
  };
  Outputs expected = cold(config);
  config.cache.prefix = true;
  const auto same = [&](const char* what, const ClusterConfig& with) {
    EngineHarness engine(with);
    std::uint64_t cached = 0;
    for (int wave = 0; wave < 2; ++wave) {
      EXPECT_EQ(engine.run(requests), expected) << what << ", wave " << wave;
      EXPECT_GT(engine.cached_tokens(), cached) << what;
      cached = engine.cached_tokens();
    }
  };
  same("room for all", config);
  ClusterConfig other = config;
  other.cache.kv_tokens = kEmulated ? 128 : 2048;
  same("preemptions", other);
  other = config;
  other.cache.state_snapshots = 1;
  same("states rebuilt", other);
  if (kEmulated) return;
  other = config;
  other.device.graphs = false;
  same("without graphs", other);
  other = config;
  other.scheduler.prefill_chunk_tokens = 64;
  same("chunks of 64", other);
}

TEST(OnDeviceBatches, WhatIsFoundInFp8ChangesNoBitEither) {
  ClusterConfig config = base_config();
  config.cache.block_tokens = 16;
  config.cache.kv_dtype = KvDtype::kFp8;
  SequenceRequest request = random_request(1, 20);
  while (request.tokens.size() < 40) request.tokens.push_back(99);
  request.prompt_tokens = 40;
  const auto run = [&](bool prefix) {
    config.cache.prefix = prefix;
    EngineHarness engine(config);
    const Outputs first = engine.run({request});
    EXPECT_EQ(engine.run({request}), first);
    EXPECT_EQ(engine.cached_tokens(), prefix ? 32U : 0U);
    return first;
  };
  EXPECT_EQ(run(true), run(false));
}

// All tiles, tables and workspaces at their real size: LFM2-8B-A1B's shape with random weights.
TEST(OnDeviceBatches, AtTheSizeOfARealModelToo) {
  if (kEmulated) GTEST_SKIP() << "needs a device";
  ClusterConfig config = base_config();
  config.model.path = "random:8b-a1b";
  config.cache.kv_tokens = 128 * 1024;
  config.cache.max_sequences = 256;
  const Outputs expected = alone(config);
  for (const bool graphs : {true, false}) {
    config.device.graphs = graphs;
    EngineHarness engine(config);
    for (const std::size_t size : {5, 33, 100, 256}) {
      expect_probes(engine.run(batch_of(size)), expected, std::min<std::size_t>(size, kProbes),
                    fmt::format("among {} sequences", size));
    }
  }
}

// ---- the sample model, on devices only: under the emulator it takes too long
// ---------------------

nlohmann::ordered_json reference() {
  std::ifstream file(sample_model() + "/reference.json");
  return nlohmann::ordered_json::parse(file);
}

class SampleOnDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    if (kEmulated) GTEST_SKIP() << "needs a device";
  }
};

// A logit errs by up to 0.16 (engine_test.cc), so tokens that lead by less than twice that may
// change places, and what follows is another text.
constexpr double kNearTie = 0.32;

TEST_F(SampleOnDevice, GreedyTokensAreTransformers) {
  EngineHarness engine(base_config());
  std::size_t compared = 0, whole = 0, prompts = 0;
  for (const auto& prompt : reference().at("prompts")) {
    SequenceRequest r;
    r.id = 1;
    r.tokens = prompt.at("ids").get<std::vector<std::int32_t>>();
    r.prompt_tokens = static_cast<std::uint32_t>(r.tokens.size());
    const auto greedy = prompt.at("greedy").get<std::vector<std::int32_t>>();
    const auto gaps = prompt.at("greedy_logit_gaps").get<std::vector<double>>();
    r.max_new_tokens = static_cast<std::uint32_t>(greedy.size());
    r.sampling.temperature = 0;
    const std::vector<std::int32_t> got = engine.run({r}).at(1).tokens();
    ASSERT_EQ(got.size(), greedy.size());
    ++prompts;
    std::size_t i = 0;
    while (i < greedy.size() && got[i] == greedy[i]) ++i;
    compared += i;
    whole += i == greedy.size() ? 1 : 0;
    if (i == greedy.size()) continue;
    EXPECT_LT(gaps[i], kNearTie) << prompt.at("name") << " takes another way at token " << i;
  }
  fmt::print("{} of {} texts are Transformers' to the end, {} tokens compared\n", whole, prompts,
             compared);
  EXPECT_GT(compared, 10 * prompts);
}

double perplexity(const ClusterConfig& config) {
  EngineHarness engine(config);
  return testing::held_out_nll(engine, sample_model(), sample_model()).perplexity();
}

TEST_F(SampleOnDevice, PerplexityIsTransformersWithinAPercent) {
  const double expected = reference().at("held_out").at("perplexity");
  const double bf16 = perplexity(base_config());
  ClusterConfig config = base_config();
  config.device.weights = DeviceWeightFormat::kFp8;
  config.cache.kv_dtype = KvDtype::kFp8;
  const double fp8 = perplexity(config);
  fmt::print("perplexity: f32 {:.4f} (Transformers), bf16 {:.4f}, fp8 {:.4f}\n", expected, bf16,
             fp8);
  EXPECT_NEAR(bf16 / expected, 1.0, 0.01);
  EXPECT_NEAR(fp8 / expected, 1.0, 0.05);
}

}  // namespace
}  // namespace millrace
