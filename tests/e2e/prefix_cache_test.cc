// Contract C1 through the prefix cache: whatever a sequence finds computed, its tokens and
// log-probabilities are those of a cold run, bit for bit.
#include <gtest/gtest.h>

#include <random>

#include "tests/support/engine_harness.h"
#include "tests/support/workload.h"

namespace millrace {
namespace {

using testing::EngineHarness;
using testing::Output;
using testing::random_checkpoint;
using testing::test_config;

constexpr std::int32_t kVocab = 320;

std::string model_of(const std::string& kind) {
  std::vector<std::string> arguments = {"--vocab", "320", "--tokenizer", "builtin", "--seed", "5"};
  if (kind == "dense") {
    arguments.insert(arguments.end(), {"--preset", "tiny-dense"});
    return random_checkpoint("prefix-dense", arguments);
  }
  arguments.insert(arguments.end(), {"--preset", "tiny-moe"});
  if (kind == "moe") return random_checkpoint("prefix-moe", arguments);
  arguments.insert(arguments.end(), {"--format", "gguf", "--quant", kind});
  return random_checkpoint("packed-" + kind + ".gguf", arguments);
}

struct CacheArrangement {
  int stages = 1;
  int lanes = 1;
  std::int32_t step_tokens = 128;
  std::int32_t chunk = 64;
  std::int64_t kv_tokens = 4096;
  std::int32_t block = 32;
  std::int32_t sequences = 16;
  bool async = false;
  bool prefix = true;
  std::int32_t snapshots = 0;
  KvDtype kv = KvDtype::kF32;
};

ClusterConfig config_of(const std::string& model, const CacheArrangement& a) {
  ClusterConfig config = test_config(model);
  config.grid.stages = a.stages;
  config.grid.lanes = a.lanes;
  config.scheduler.max_step_tokens = a.step_tokens;
  config.scheduler.prefill_chunk_tokens = a.chunk;
  config.scheduler.async = a.async ? AsyncSteps::kAlways : AsyncSteps::kNever;
  config.cache.kv_tokens = a.kv_tokens;
  config.cache.block_tokens = a.block;
  config.cache.max_sequences = a.sequences;
  config.cache.kv_dtype = a.kv;
  config.cache.prefix = a.prefix;
  config.cache.state_snapshots = a.snapshots;
  return config;
}

// Two long beginnings, each with ends of many lengths, two of them the same, and one that leaves
// both early. Sampling of all kinds.
std::vector<SequenceRequest> requests_that_begin_alike() {
  std::mt19937 random(11);
  const std::vector<std::int32_t> beginnings[] = {
      testing::random_request(1, 100, kVocab, random).tokens,
      testing::random_request(1, 75, kVocab, random).tokens};
  std::vector<SequenceRequest> requests;
  for (RequestId id = 1; id <= 12; ++id) {
    const std::uint32_t length = id % 4 == 0 ? 1 : 1 + random() % 60;
    SequenceRequest r = testing::random_request(id, length, kVocab, random);
    const auto& begin = beginnings[id % 2];
    const auto part = static_cast<std::ptrdiff_t>(id == 7 ? 40 : begin.size());
    r.tokens.insert(r.tokens.begin(), begin.begin(), begin.begin() + part);
    if (id == 12) r.tokens = requests.front().tokens;
    r.prompt_tokens = static_cast<std::uint32_t>(r.tokens.size());
    r.max_new_tokens = 2 + random() % 20;
    r.sampling.logprobs = 5;
    r.sampling.prompt_logprobs = id == 5;
    requests.push_back(std::move(r));
  }
  return requests;
}

// What each request becomes in a cell that knows nothing.
std::map<RequestId, Output> cold(const std::string& model, CacheArrangement a,
                                 const std::vector<SequenceRequest>& requests) {
  a.prefix = false;
  EngineHarness engine(config_of(model, a));
  std::map<RequestId, Output> all;
  for (const SequenceRequest& request : requests) all.merge(engine.run({request}));
  EXPECT_EQ(engine.cached_tokens(), 0U);
  return all;
}

class PrefixCacheBits : public ::testing::TestWithParam<std::string> {};

TEST_P(PrefixCacheBits, WhateverIsFoundInEveryGrid) {
  const std::string model = model_of(GetParam());
  const std::vector<SequenceRequest> requests = requests_that_begin_alike();
  const auto expected = cold(model, {}, requests);
  const std::vector<CacheArrangement> arrangements = {
      {},
      {.async = true},
      {.step_tokens = 16, .chunk = 1},
      {.step_tokens = 37, .chunk = 2, .block = 16, .async = true},
      {.chunk = 1000, .block = 16},
      {.block = 16, .snapshots = 1},
      {.stages = 2, .chunk = 7},
      {.stages = 4, .block = 16},
      {.kv_tokens = 256, .sequences = 5},  // preemptions, and blocks that are taken away
      {.kv_tokens = 256, .block = 16, .sequences = 5, .async = true},
      {.lanes = 2, .block = 16, .async = true},
      {.stages = 2, .lanes = 2},
      {.stages = 2, .lanes = 4, .chunk = 7, .block = 16},
      {.stages = 2, .lanes = 2, .kv_tokens = 256, .block = 16, .sequences = 5, .snapshots = 3},
  };
  for (std::size_t i = 0; i < arrangements.size(); ++i) {
    const CacheArrangement& a = arrangements[i];
    if (GetParam() == "dense" && a.lanes > 1) continue;
    // What schedules them is the same for all; one model goes through every arrangement.
    if (GetParam() != "moe" && i % 3 != 0) continue;
    EngineHarness engine(config_of(model, a));
    std::uint64_t cached = 0;
    for (int wave = 0; wave < 2; ++wave) {
      const auto got = engine.run(requests);
      for (const auto& [id, output] : expected) {
        EXPECT_EQ(got.at(id), output)
            << "sequence " << id << ", arrangement " << i << ", wave " << wave;
      }
      // Together and by few tokens at a time, all compute the same until the first wave is over.
      if (wave > 0 || a.chunk > 7) {
        EXPECT_GT(engine.cached_tokens(), cached) << "arrangement " << i << ", wave " << wave;
      }
      cached = engine.cached_tokens();
    }
  }
}

// Each turn's prompt is the one before, its answer and some more: what a chat sends.
TEST_P(PrefixCacheBits, ATurnGoesOnBehindTheAnswerBefore) {
  const std::string model = model_of(GetParam());
  EngineHarness engine(config_of(model, {.block = 16}));
  std::mt19937 random(3);
  std::vector<std::int32_t> talk;
  for (RequestId turn = 1; turn <= 6; ++turn) {
    SequenceRequest r = testing::random_request(turn, 1 + random() % 40, kVocab, random);
    r.tokens.insert(r.tokens.begin(), talk.begin(), talk.end());
    r.prompt_tokens = static_cast<std::uint32_t>(r.tokens.size());
    r.max_new_tokens = 25;
    r.sampling.logprobs = 5;
    const std::uint64_t before = engine.cached_tokens();
    const Output output = engine.run({r}).at(turn);
    EXPECT_EQ(output, cold(model, {.block = 16}, {r}).at(turn)) << "turn " << turn;
    if (turn > 1) {
      // All but the token drawn last, in whole blocks.
      EXPECT_EQ(engine.cached_tokens() - before, (talk.size() - 1) / 16 * 16);
    }
    talk = r.tokens;
    const std::vector<std::int32_t> answer = output.tokens();
    talk.insert(talk.end(), answer.begin(), answer.end());
  }
}

TEST_P(PrefixCacheBits, CachedKeysAndValuesMayBeRounded) {
  const std::string model = model_of(GetParam());
  const std::vector<SequenceRequest> requests = requests_that_begin_alike();
  const CacheArrangement a{.kv = KvDtype::kBf16};
  const auto expected = cold(model, a, requests);
  EngineHarness engine(config_of(model, a));
  EXPECT_EQ(engine.run(requests), expected);
  EXPECT_EQ(engine.run(requests), expected);
  EXPECT_GT(engine.cached_tokens(), 0U);
}

INSTANTIATE_TEST_SUITE_P(Models, PrefixCacheBits, ::testing::Values("moe", "dense", "q4_0"));

}  // namespace
}  // namespace millrace
