#include "cli/local_engine.h"

#include <gtest/gtest.h>

#include "tests/support/engine_harness.h"

namespace millrace {
namespace {

constexpr std::uint32_t kPrompt = 400;

// The step's deadline passes with its first plan: no machine runs 400 tokens in a millisecond.
ClusterConfig too_slow() {
  ClusterConfig config = testing::test_config(testing::source_folder() + "/models/sample");
  config.scheduler.max_step_tokens = config.scheduler.prefill_chunk_tokens = kPrompt;
  config.deadlines.step_ms = 1;
  return config;
}

SequenceRequest request() {
  SequenceRequest r;
  r.tokens.assign(kPrompt, 100);
  r.prompt_tokens = kPrompt;
  r.max_new_tokens = 8;
  r.sampling.temperature = 0;
  return r;
}

void expect_deadline(const Error& error) {
  EXPECT_NE(error.message.find("deadline of 1 ms"), std::string::npos) << error.message;
}

TEST(LocalEngine, AFailedCellIsAnErrorNowAndLater) {
  auto engine = LocalEngine::start(too_slow(), {});
  ASSERT_TRUE(engine) << engine.error().to_string();
  const auto on_token = [](const TokenEvent&) { return true; };
  const Result<FinishReason> first = (*engine)->generate(request(), on_token);
  ASSERT_FALSE(first) << "a cut text passed for a whole one";
  expect_deadline(first.error());
  // The cell is gone, or going: a further sequence finds that out instead of its memory.
  for (int i = 0; i < 20; ++i) {
    ASSERT_FALSE((*engine)->generate(request(), on_token)) << i;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  const Result<FinishReason> last = (*engine)->generate(request(), on_token);
  ASSERT_FALSE(last);
  expect_deadline(last.error());
}

TEST(LocalEngine, AFailedCellFailsEveryRun) {
  auto engine = LocalEngine::start(too_slow(), {});
  ASSERT_TRUE(engine) << engine.error().to_string();
  const auto run = [&] { return (*engine)->run({request(), request()}, [](auto) {}); };
  const Result<void> first = run();
  ASSERT_FALSE(first) << "what did not run was counted";
  expect_deadline(first.error());
  EXPECT_FALSE(run());
}

// The context holds the prompt, and nothing else is asked for. A shorter prompt is the oracle: the
// bits of a position do not depend on what follows it.
TEST(LocalEngine, APromptThatFillsTheContextIsScored) {
  const ClusterConfig config = testing::test_config(testing::source_folder() + "/models/sample");
  const auto context = static_cast<std::uint32_t>(config.cache.max_context_tokens);
  auto engine = LocalEngine::start(config, {});
  ASSERT_TRUE(engine) << engine.error().to_string();
  const auto score = [&](std::uint32_t tokens, std::vector<TokenLogprob>& out) {
    SequenceRequest r;
    for (std::uint32_t i = 0; i < tokens; ++i) {
      r.tokens.push_back(static_cast<std::int32_t>(100 + i * 7 % 300));
    }
    r.prompt_tokens = tokens;
    r.max_new_tokens = 0;
    r.sampling.prompt_logprobs = true;
    return (*engine)->generate(
        std::move(r),
        [](const TokenEvent& event) {
          EXPECT_FALSE(event.has_token);
          return true;
        },
        [&](const PromptLogprobsEvent& event) { out = event.targets; });
  };
  std::vector<TokenLogprob> whole, shorter, none;
  const Result<FinishReason> end = score(context, whole);
  ASSERT_TRUE(end) << end.error().to_string();
  EXPECT_EQ(*end, FinishReason::kLength);
  ASSERT_EQ(whole.size(), context - 1);
  ASSERT_TRUE(score(context - 100, shorter));
  whole.resize(shorter.size());
  EXPECT_EQ(whole, shorter);
  EXPECT_FALSE(score(context + 1, none));
}

}  // namespace
}  // namespace millrace
