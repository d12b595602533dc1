// Whole cells: against Transformers' logits, and bit for bit against themselves in every
// arrangement that contract C1 names.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "tests/e2e/tiny_golden.h"
#include "tests/support/temp_dir.h"
#include "tests/support/workload.h"
#include "worker/checkpoint/packed_file.h"

namespace millrace {
namespace {

using testing::EngineHarness;
using testing::Output;
using testing::random_checkpoint;
using testing::test_config;

std::string checkpoint_of(const std::string& name, const std::vector<std::string>& more = {}) {
  std::vector<std::string> arguments =
      testing::tiny_golden(name).at("make_random_checkpoint_arguments");
  std::string folder = name;
  for (const std::string& word : more) {
    arguments.push_back(word);
    folder += word;
  }
  return random_checkpoint(folder, arguments);
}

double log_sum_exp(const std::vector<double>& logits) {
  const double most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const double l : logits) sum += std::exp(l - most);
  return most + std::log(sum);
}

// The log-probabilities of every token after `ids`, as the engine reports them.
std::vector<double> engine_logprobs(EngineHarness& engine, const std::vector<std::int32_t>& ids) {
  SequenceRequest request;
  request.id = 1;
  request.tokens = ids;
  request.prompt_tokens = static_cast<std::uint32_t>(ids.size());
  request.max_new_tokens = 1;
  request.sampling.temperature = 0;
  const std::int32_t vocab = engine.setup().model.vocab_size;
  request.sampling.logprobs = vocab;
  const Output out = engine.run({request}).at(1);
  std::vector<double> logprobs(static_cast<std::size_t>(vocab), NAN);
  for (const TokenLogprob& t : out.events.at(0).top) {
    logprobs[static_cast<std::size_t>(t.token)] = static_cast<double>(t.logprob);
  }
  return logprobs;
}

class Golden : public ::testing::TestWithParam<std::tuple<std::string, std::pair<int, int>>> {};

TEST_P(Golden, LogitsAreThoseOfTransformers) {
  const auto& [name, grid] = GetParam();
  if (name == "dense" && grid.second > 1) GTEST_SKIP() << "a dense model has no experts to shard";
  const nlohmann::json data = testing::tiny_golden(name);
  ClusterConfig config = test_config(checkpoint_of(name));
  config.grid.stages = grid.first;
  config.grid.lanes = grid.second;
  EngineHarness engine(config);
  double worst = 0;
  for (const auto& prompt : data.at("prompts")) {
    const std::vector<std::int32_t> ids = prompt.at("ids");
    for (const auto& [position, values] : prompt.at("logits").items()) {
      const std::vector<double> expected = values;
      const std::vector<std::int32_t> prefix(ids.begin(), ids.begin() + std::stol(position) + 1);
      const std::vector<double> got = engine_logprobs(engine, prefix);
      const double normaliser = log_sum_exp(expected);
      ASSERT_EQ(got.size(), expected.size());
      for (std::size_t v = 0; v < got.size(); ++v) {
        worst = std::max(worst, std::abs(got[v] - (expected[v] - normaliser)));
      }
    }
  }
  // f32 on both sides with sums in different orders over rows of at most a few hundred terms and
  // logits up to about 10: a few hundred ulps of 10.
  EXPECT_LT(worst, 1e-4);
  RecordProperty("worst_difference", std::to_string(worst));
}

INSTANTIATE_TEST_SUITE_P(Grids, Golden,
                         ::testing::Combine(::testing::Values("dense", "moe", "moe-untied"),
                                            ::testing::Values(std::pair(1, 1), std::pair(2, 2))));

// A mixed load: long and short prompts, greedy and random sampling, penalties, log-probabilities.
std::vector<SequenceRequest> mixed_requests(std::int32_t vocab) {
  std::vector<SequenceRequest> requests;
  std::mt19937 random(7);
  for (RequestId id = 1; id <= 14; ++id) {
    const std::uint32_t length = id % 5 == 0 ? 1 + random() % 2 : 1 + random() % 150;
    SequenceRequest r = testing::random_request(id, length, vocab, random);
    r.max_new_tokens = 4 + random() % 24;
    r.sampling.prompt_logprobs = id % 6 == 0;
    if (id % 3 == 2) {
      testing::stop_at_one_token_in(6, vocab, r);
      r.max_new_tokens = 40;
    }
    requests.push_back(r);
  }
  return requests;
}

struct Arrangement {
  int stages = 1;
  int lanes = 1;
  int threads = 1;
  std::int32_t step_tokens = 128;
  std::int32_t chunk = 64;
  std::int64_t kv_tokens = 4096;
  std::int32_t block = 32;
  std::int32_t sequences = 16;
  ExchangeChoice exchange = ExchangeChoice::kAuto;
  bool shuffled_experts = false;  // homes other than runs of ids
  Isa isa = Isa::kAuto;
  bool async = true;
};

// Expert e lives where a fixed shuffle of the contiguous placement puts it.
void shuffle_experts(CellSetup& setup) {
  const parallel::ExpertPlacement& before = setup.placement;
  std::vector<parallel::ExpertHome> homes(before.layer(0).begin(), before.layer(0).end());
  std::mt19937 random(3);
  for (std::size_t i = homes.size() - 1; i > 0; --i) std::swap(homes[i], homes[random() % (i + 1)]);
  const std::vector<std::vector<parallel::ExpertHome>> tables(
      static_cast<std::size_t>(before.layers()), homes);
  ASSERT_NE(before.to_tables(), tables);
  auto shuffled =
      parallel::ExpertPlacement::from_tables(tables, before.lanes(), before.slots_per_lane());
  ASSERT_TRUE(shuffled) << shuffled.error().to_string();
  setup.placement = std::move(*shuffled);
}

std::map<RequestId, Output> run_in(const std::string& model, const Arrangement& a,
                                   const std::vector<SequenceRequest>& requests, bool together) {
  ClusterConfig config = test_config(model);
  config.grid.stages = a.stages;
  config.grid.lanes = a.lanes;
  config.grid.threads_per_rank = a.threads;
  config.scheduler.max_step_tokens = a.step_tokens;
  config.scheduler.prefill_chunk_tokens = a.chunk;
  config.cache.kv_tokens = a.kv_tokens;
  config.cache.block_tokens = a.block;
  config.cache.max_sequences = a.sequences;
  config.scheduler.exchange = a.exchange;
  config.grid.isa = a.isa;
  config.scheduler.async = a.async && a.stages == 1 ? AsyncSteps::kAlways : AsyncSteps::kNever;
  EngineHarness engine(config, a.shuffled_experts ? shuffle_experts : nullptr);
  if (together) return engine.run(requests);
  std::map<RequestId, Output> all;
  for (const SequenceRequest& request : requests) all.merge(engine.run({request}));
  return all;
}

class SameTokens : public ::testing::TestWithParam<std::string> {};

TEST_P(SameTokens, WhateverTheGridLoadChunksBlocksAndThreads) {
  const std::string model = checkpoint_of(GetParam());
  const bool dense = GetParam() == "dense";
  const std::vector<SequenceRequest> requests = mixed_requests(320);
  const auto alone = run_in(model, {.async = false}, requests, /*together=*/false);
  ASSERT_EQ(alone.size(), requests.size());
  const auto ended = [&](FinishReason reason) {
    return std::ranges::count_if(
        alone, [reason](const auto& entry) { return entry.second.events.back().finish == reason; });
  };
  EXPECT_GE(ended(FinishReason::kStop), 2);
  EXPECT_GE(ended(FinishReason::kLength), 2);
  const std::vector<Arrangement> arrangements = {
      {},  // batched, with a step ahead wherever there is one stage
      {.async = false},
      {.threads = 3},
      {.step_tokens = 16, .chunk = 1},  // chunks of one token
      {.step_tokens = 37, .chunk = 2, .block = 16},
      {.stages = 2},
      {.stages = 3, .step_tokens = 24, .chunk = 7},
      {.kv_tokens = 256, .sequences = 5},  // preemptions
      {.kv_tokens = 256, .sequences = 5, .async = false},
      {.lanes = 2},
      {.lanes = 2, .async = false},
      {.stages = 2, .lanes = 2, .exchange = ExchangeChoice::kFixed},
      {.stages = 2, .lanes = 2, .exchange = ExchangeChoice::kExact},
      {.stages = 2, .lanes = 2, .exchange = ExchangeChoice::kAllGather},
      {.lanes = 4, .step_tokens = 19, .chunk = 5},
      {.lanes = 3, .kv_tokens = 256, .sequences = 4},
      {.lanes = 2, .shuffled_experts = true},
      {.stages = 2, .lanes = 4, .exchange = ExchangeChoice::kExact, .shuffled_experts = true},
      {.chunk = 1000},  // whole prompts
      {.lanes = 4},
      {.stages = 2, .lanes = 4},
      {.stages = 4},
      {.stages = 4, .lanes = 2},
      {.stages = 4, .lanes = 4, .chunk = 7},
  };
  for (std::size_t i = 0; i < arrangements.size(); ++i) {
    const Arrangement& a = arrangements[i];
    if (dense && a.lanes > 1) continue;
    const auto together = run_in(model, a, requests, /*together=*/true);
    for (const SequenceRequest& request : requests) {
      EXPECT_EQ(together.at(request.id), alone.at(request.id))
          << "sequence " << request.id << " in arrangement " << i << " (" << a.stages << "x"
          << a.lanes << ")";
    }
  }
}

TEST_P(SameTokens, WhenASequenceIsResumedFromItsTokens) {
  const std::string model = checkpoint_of(GetParam());
  EngineHarness engine(test_config(model));
  for (const SequenceRequest& request : mixed_requests(320)) {
    if (request.sampling.prompt_logprobs) continue;
    const Output whole = engine.run({request}).at(request.id);
    const std::vector<std::int32_t> tokens = whole.tokens();
    SequenceRequest resumed = request;
    const std::size_t delivered = tokens.size() / 2;
    resumed.tokens.insert(resumed.tokens.end(), tokens.begin(),
                          tokens.begin() + static_cast<std::ptrdiff_t>(delivered));
    const Output rest = engine.run({resumed}).at(request.id);
    const std::vector<TokenEvent> expected(
        whole.events.begin() + static_cast<std::ptrdiff_t>(delivered), whole.events.end());
    EXPECT_EQ(rest.events, expected) << "sequence " << request.id;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, SameTokens, ::testing::Values("moe", "dense", "moe-untied"));

// One request among 64 others that come and go around it, in every grid. Chunk, exchange and
// placement turn with grid and model: where there is more than one lane, every chunk meets every
// exchange, and each of them both placements and both counts of lanes.
class AmongOthers : public ::testing::TestWithParam<std::tuple<std::string, std::pair<int, int>>> {
};

TEST_P(AmongOthers, SameTokens) {
  constexpr ExchangeChoice kExchanges[] = {ExchangeChoice::kFixed, ExchangeChoice::kExact,
                                           ExchangeChoice::kAllGather};
  constexpr std::int32_t kChunks[] = {1, 7, 64, 1000};  // the last takes prompts whole
  const auto& [name, grid] = GetParam();
  Arrangement a{
      .stages = grid.first, .lanes = grid.second, .step_tokens = 256, .kv_tokens = 16'384};
  a.sequences = a.lanes == 1 ? 65 : 33;  // of each lane
  const int stage_turn = a.stages / 2;   // 0, 1, 2
  const int model_turn = name == "moe" ? 0 : 1;
  if (a.lanes == 1) {
    a.chunk = kChunks[(stage_turn + (name == "dense" ? 2 : model_turn)) % 4];
  } else {
    const int turn = (a.lanes == 2 ? 0 : 6) + 2 * stage_turn + model_turn;  // 0 ... 11
    a.chunk = kChunks[turn % 4];
    a.exchange = kExchanges[turn % 3];
    a.shuffled_experts = turn / 4 % 2 == 1;
  }

  const std::string model = checkpoint_of(name);
  const RequestId chosen = 33;
  std::vector<SequenceRequest> requests;
  for (RequestId id = 1; id <= 65; ++id) {
    requests.push_back(mixed_requests(320)[id % 14]);
    requests.back().id = id;
    requests.back().sampling.seed = id;
  }
  std::mt19937 random(33);
  SequenceRequest& request = requests[chosen - 1];
  request = testing::random_request(chosen, 150, 320, random);
  request.max_new_tokens = 16;
  request.sampling.temperature = 0.8F;
  request.sampling.logprobs = 20;
  request.sampling.prompt_logprobs = true;
  const Output alone = run_in(model, {}, {request}, true).at(chosen);
  EXPECT_EQ(alone.prompt.targets.size(), 149U);
  EXPECT_EQ(run_in(model, a, requests, true).at(chosen), alone)
      << a.stages << "x" << a.lanes << ", chunk " << a.chunk << ", exchange "
      << static_cast<int>(a.exchange) << (a.shuffled_experts ? ", shuffled" : "");
}

INSTANTIATE_TEST_SUITE_P(
    Moe, AmongOthers,
    ::testing::Combine(::testing::Values("moe", "moe-untied"),
                       ::testing::Values(std::pair(1, 1), std::pair(1, 2), std::pair(1, 4),
                                         std::pair(2, 1), std::pair(2, 2), std::pair(2, 4),
                                         std::pair(4, 1), std::pair(4, 2), std::pair(4, 4))));
// No experts to shard.
INSTANTIATE_TEST_SUITE_P(Dense, AmongOthers,
                         ::testing::Combine(::testing::Values("dense"),
                                            ::testing::Values(std::pair(1, 1), std::pair(2, 1),
                                                              std::pair(4, 1))));

// Quantised weights, packed at the start for 8-bit dot products: contract C1 for their kernels.
class PackedSameTokens : public ::testing::TestWithParam<std::string> {};

TEST_P(PackedSameTokens, WhateverTheGridLoadChunksAndThreads) {
  const std::string quant = GetParam();
  const std::string model = random_checkpoint(
      "packed-" + quant + ".gguf", {"--preset", "tiny-moe", "--format", "gguf", "--quant", quant,
                                    "--vocab", "320", "--tokenizer", "builtin", "--seed", "5"});
  const std::vector<SequenceRequest> requests = mixed_requests(320);
  const auto alone = run_in(model, {}, requests, /*together=*/false);
  ASSERT_EQ(alone.size(), requests.size());
  const std::vector<Arrangement> arrangements = {
      {},
      {.threads = 3},
      {.step_tokens = 16, .chunk = 1},
      {.stages = 2, .step_tokens = 24, .chunk = 7},
      {.kv_tokens = 256, .sequences = 5},
      {.lanes = 2, .exchange = ExchangeChoice::kFixed},
      {.stages = 2, .lanes = 2, .threads = 2, .exchange = ExchangeChoice::kExact},
      {.lanes = 4, .exchange = ExchangeChoice::kAllGather, .shuffled_experts = true},
      {.chunk = 1000},
  };
  for (std::size_t i = 0; i < arrangements.size(); ++i) {
    EXPECT_EQ(run_in(model, arrangements[i], requests, /*together=*/true), alone)
        << "arrangement " << i;
  }
  // Packed once and mapped: the same weights, so the same bits.
  test::TempDir folder;
  const std::string packed = folder / "packed.gguf";
  const auto written = write_packed({.model = model, .out = packed, .threads = 2});
  ASSERT_TRUE(written) << written.error().to_string();
  EXPECT_EQ(run_in(packed, {.stages = 2, .lanes = 2}, requests, /*together=*/true), alone);
  // The sets that fuse have the same bits.
  if (kernels::isa_supported(kernels::Isa::kAvx512)) {
    EXPECT_EQ(run_in(model, {.isa = Isa::kAvx2}, requests, /*together=*/true), alone);
  }
}

INSTANTIATE_TEST_SUITE_P(Quants, PackedSameTokens, ::testing::Values("q4_0", "q4_k_m", "q8_0"));

TEST(Layouts, PackedExpertsAndShardsGiveTheSameBits) {
  const std::vector<SequenceRequest> requests = mixed_requests(320);
  const auto expected = run_in(checkpoint_of("moe"), {.lanes = 2}, requests, true);
  EXPECT_EQ(run_in(checkpoint_of("moe", {"--experts", "packed"}), {.lanes = 2}, requests, true),
            expected);
  EXPECT_EQ(run_in(checkpoint_of("moe", {"--shard-mb", "1"}), {.lanes = 2}, requests, true),
            expected);
}

}  // namespace
}  // namespace millrace
