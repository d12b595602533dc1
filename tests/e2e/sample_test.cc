// The sample model against what Transformers computed of it (models/sample/reference.json):
// perplexity of the held-out text, greedy continuations, logits; and the same through GGUF files of
// it.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "cli/text_model.h"
#include "tests/support/workload.h"

namespace millrace {
namespace {

using testing::EngineHarness;
using testing::held_out_nll;
using testing::Nll;
using testing::Output;

const std::string kSample = std::string(MILLRACE_SOURCE_DIR) + "/models/sample";

nlohmann::ordered_json reference() {
  std::ifstream file(kSample + "/reference.json");
  return nlohmann::ordered_json::parse(file);
}

ClusterConfig sample_config(const std::string& path) {
  ClusterConfig config = testing::test_config(path);
  config.cache.kv_tokens = 16'384;
  config.scheduler.max_step_tokens = 512;
  config.scheduler.prefill_chunk_tokens = 512;
  config.cache.max_context_tokens = 1024;
  config.grid.threads_per_rank = 2;
  return config;
}

// The sample as a GGUF file, made once per build folder.
std::string gguf_of_sample(const std::string& quant) {
  const std::filesystem::path path = std::filesystem::path(MILLRACE_BINARY_DIR) / "tests" /
                                     "checkpoints" / ("sample-" + quant + ".gguf");
  if (std::filesystem::exists(path)) return path;
  std::filesystem::create_directories(path.parent_path());
  const std::string part = path.string() + "." + std::to_string(getpid()) + ".part.gguf";
  const std::string command = std::string(MILLRACE_PYTHON) + " " + MILLRACE_SOURCE_DIR +
                              "/scripts/make_random_checkpoint.py --convert " + kSample +
                              " --quant " + quant + " --out " + part + " > /dev/null";
  EXPECT_EQ(std::system(command.c_str()), 0) << command;
  std::filesystem::rename(part, path);
  return path;
}

TEST(Sample, PerplexityIsTransformers) {
  const nlohmann::ordered_json expected = reference().at("held_out");
  EngineHarness engine(sample_config(kSample));
  const Nll nll = held_out_nll(engine, kSample, kSample);
  EXPECT_EQ(nll.tokens, expected.at("tokens").get<std::uint64_t>());
  // Both in f32 with different orders of summation; a router near-tie may flip an expert somewhere.
  EXPECT_NEAR(nll.perplexity() / expected.at("perplexity").get<double>(), 1.0, 2e-5);
}

TEST(Sample, PerplexityWithTheCacheInBf16StaysWithinOnePercent) {
  ClusterConfig config = sample_config(kSample);
  config.cache.kv_dtype = KvDtype::kBf16;
  EngineHarness engine(config);
  const double expected = reference().at("held_out").at("perplexity");
  const double got = held_out_nll(engine, kSample, kSample).perplexity();
  EXPECT_NEAR(got / expected, 1.0, 0.01);
  EXPECT_NE(got, expected);  // it is another numeric mode
}

TEST(Sample, PerplexityThroughGgufIsTransformersOnTheSameWeights) {
  const nlohmann::ordered_json expected = reference().at("held_out_perplexity_through_gguf");
  ASSERT_FALSE(expected.empty());
  for (const auto& [quant, perplexity] : expected.items()) {
    const std::string path = gguf_of_sample(quant);
    ClusterConfig config = sample_config(path);
    config.model.cpu_weights = CpuWeights::kMapped;  // f32 activations, as Transformers'
    EngineHarness engine(config);
    const Nll nll = held_out_nll(engine, path, kSample);
    EXPECT_NEAR(nll.perplexity() / perplexity.get<double>(), 1.0, 1e-4) << quant;
  }
}

double perplexity_with(const std::string& path, CpuWeights weights) {
  ClusterConfig config = sample_config(path);
  config.model.cpu_weights = weights;
  EngineHarness engine(config);
  EXPECT_EQ(engine.setup().memory.ranks[0].packed_bytes > 0, weights != CpuWeights::kMapped);
  return held_out_nll(engine, path, kSample).perplexity();
}

// 8-bit activations against 32-bit ones, on the same weights.
TEST(Sample, PackedWeightsKeepThePerplexity) {
  for (const std::string quant : {"q4_0", "q4_1", "q8_0", "q4_k", "q5_k", "q6_k"}) {
    const std::string path = gguf_of_sample(quant);
    const double mapped = perplexity_with(path, CpuWeights::kMapped);
    const double packed = perplexity_with(path, CpuWeights::kAuto);
    EXPECT_NEAR(packed / mapped, 1.0, 0.005) << quant;
    EXPECT_NE(packed, mapped) << quant << ": nothing was packed";
    RecordProperty(quant, fmt::format("mapped {:.5f} packed {:.5f}", mapped, packed));
  }
}

// bf16 weights rounded to 8 and 4 bits at the start, against the bf16 weights.
TEST(Sample, QuantisingAtTheStartCostsLittle) {
  const double original = reference().at("held_out").at("perplexity");
  const double p8 = perplexity_with(kSample, CpuWeights::kP8);
  const double p4 = perplexity_with(kSample, CpuWeights::kP4);
  EXPECT_NEAR(p8 / original, 1.0, 0.005);
  EXPECT_NEAR(p4 / original, 1.0, 0.05);
  RecordProperty("perplexity", fmt::format("bf16 {:.5f} p8 {:.5f} p4 {:.5f}", original, p8, p4));
}

TEST(Sample, EveryGgufTypeLoadsAndStaysCloseToTheOriginal) {
  const double original = reference().at("held_out").at("perplexity");
  for (const std::string quant : {"f32", "f16", "bf16", "q4_1", "q5_k", "q6_k"}) {
    const std::string path = gguf_of_sample(quant);
    EngineHarness engine(sample_config(path));
    const Nll nll = held_out_nll(engine, path, kSample);
    const double limit = quant == "f32" || quant == "bf16" ? 2e-5 : 0.02;
    EXPECT_NEAR(nll.perplexity() / original, 1.0, limit) << quant;
  }
}

TEST(Sample, GreedyTokensAreTransformers) {
  EngineHarness engine(sample_config(kSample));
  const nlohmann::ordered_json prompts = reference().at("prompts");
  ASSERT_FALSE(prompts.empty());
  for (const auto& prompt : prompts) {
    SequenceRequest r;
    r.id = 1;
    r.tokens = prompt.at("ids").get<std::vector<std::int32_t>>();
    r.prompt_tokens = static_cast<std::uint32_t>(r.tokens.size());
    const auto greedy = prompt.at("greedy").get<std::vector<std::int32_t>>();
    r.max_new_tokens = static_cast<std::uint32_t>(greedy.size());
    r.sampling.temperature = 0;
    const std::vector<std::int32_t> got = engine.run({r}).at(1).tokens();
    // Sums in another order move a logit by less than 1e-4 (chunk_split_test.cc): where the two
    // likeliest tokens were closer than twice that, either would be right.
    const auto gaps = prompt.at("greedy_logit_gaps").get<std::vector<double>>();
    EXPECT_GT(*std::ranges::min_element(gaps), 2e-4) << prompt.at("name");
    EXPECT_EQ(got, greedy) << prompt.at("name");
  }
}

TEST(Sample, TokenizerGivesTheReferenceIds) {
  const Result<TextModel> text = load_text_model(kSample);
  ASSERT_TRUE(text) << text.error().to_string();
  ASSERT_TRUE(text->chat_template.has_value());
  const nlohmann::ordered_json prompts = reference().at("prompts");
  ASSERT_FALSE(prompts.empty());
  for (const auto& prompt : prompts) {
    std::string written = prompt.value("text", "");
    const bool chat = prompt.contains("messages");
    if (chat) {
      const Result<std::string> rendered = text->chat_template->render(
          prompt.at("messages"), prompt.value("tools", nlohmann::ordered_json()));
      ASSERT_TRUE(rendered) << rendered.error().to_string();
      written = *rendered;
    }
    const auto ids = text->tokenizer.encode(written, {.add_special = !chat});
    ASSERT_TRUE(ids) << ids.error().to_string();
    EXPECT_EQ(*ids, prompt.at("ids").get<std::vector<std::int32_t>>()) << prompt.at("name");
  }
}

}  // namespace
}  // namespace millrace
