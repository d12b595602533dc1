#include "net/prefix_affinity.h"

#include <gtest/gtest.h>

#include <numeric>

#include "tests/net/gateway_harness.h"

namespace millrace::net {
namespace {

using namespace test;

using Tokens = std::vector<std::int32_t>;

Tokens prompt(std::int32_t first, std::size_t n) {
  Tokens tokens(n);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

TEST(PrefixAffinity, FindsTheLongestBeginningInWholeStrides) {
  PrefixAffinity affinity;
  affinity.note(PrefixAffinity::trail(prompt(0, 128)), "a");
  affinity.note(PrefixAffinity::trail(prompt(0, 400)), "b");
  const auto find = [&](const Tokens& tokens) {
    const std::string* cell = affinity.find(PrefixAffinity::trail(tokens));
    return cell == nullptr ? "" : *cell;
  };
  EXPECT_EQ(find(prompt(0, 127)), "");
  EXPECT_EQ(find(prompt(0, 2000)), "b");
  EXPECT_EQ(find(prompt(1, 2000)), "") << "the same tokens, one further";
  Tokens leaves_early = prompt(0, 300);
  leaves_early[150] = 7;
  EXPECT_EQ(find(leaves_early), "b") << "who was given this beginning last";
  affinity.note(PrefixAffinity::trail(prompt(0, 128)), "a");
  EXPECT_EQ(find(leaves_early), "a");
  EXPECT_EQ(find(prompt(0, 256)), "b");
}

TEST(PrefixAffinity, ForgetsWhatWasUsedLongestAgoEndsFirst) {
  PrefixAffinity affinity(4);
  const auto old_one = PrefixAffinity::trail(prompt(0, 384));
  const auto new_one = PrefixAffinity::trail(prompt(5000, 256));
  affinity.note(old_one, "a");
  affinity.note(new_one, "b");
  EXPECT_EQ(*affinity.find(new_one), "b");
  EXPECT_EQ(affinity.find({old_one.back()}), nullptr);
  EXPECT_EQ(*affinity.find(old_one), "a") << "by its first 256 tokens";
}

TEST(GatewayAffinity, APromptGoesWhereItsBeginningWasWhileThatIsNotMuchFuller) {
  GatewayHarness h;
  ScriptedCell a(h.port(), cell_info("a"), false);
  ScriptedCell b(h.port(), cell_info("b"), false);
  const auto say = [&](std::uint64_t queried) {
    for (ScriptedCell* cell : {&a, &b}) {
      cell->set_status({.steps = 1, .prefix_queried_tokens = queried});
    }
  };
  say(1);
  ASSERT_TRUE(eventually([&] { return h.exporter.gauge<Metric::kCellsReady>().value() == 2; }));
  std::vector<std::unique_ptr<GenerationStream>> streams;
  std::size_t in_a = 0, in_b = 0;
  const auto submit = [&](const Tokens& tokens) {
    streams.push_back(h.submit(GatewayHarness::request(tokens, 5)));
    EXPECT_TRUE(
        eventually([&] { return a.submitted().size() + b.submitted().size() == in_a + in_b + 1; }));
    const bool went_to_b = b.submitted().size() > in_b;
    ++(went_to_b ? in_b : in_a);
    return went_to_b ? "b" : "a";
  };
  EXPECT_STREQ(submit({1}), "a");
  // Heartbeats tell what cells have looked for.
  ASSERT_TRUE(
      eventually([&] { return h.exporter.counter<Metric::kPrefixCacheQueries>().value() == 2; }));
  EXPECT_STREQ(submit(prompt(0, 200)), "b") << "the freer one";
  EXPECT_STREQ(submit(prompt(0, 300)), "b") << "as free as the other";
  EXPECT_STREQ(submit(prompt(0, 300)), "b");
  EXPECT_STREQ(submit(prompt(0, 300)), "b") << "two of eight slots fuller";
  EXPECT_STREQ(submit(prompt(0, 300)), "a") << "three";
  EXPECT_STREQ(submit(prompt(0, 300)), "a") << "it has been there now";
}

TEST(GatewayAffinity, NoPromptWaitsForASlotWhereAnotherCellHasOne) {
  GatewayHarness h;
  ScriptedCell a(h.port(), cell_info("a", 1, 2), false);
  a.set_status({.steps = 1, .prefix_queried_tokens = 1});
  ASSERT_TRUE(h.wait_ready());
  std::vector<std::unique_ptr<GenerationStream>> streams;
  for (int i = 0; i < 2; ++i) {
    streams.push_back(h.submit(GatewayHarness::request(prompt(0, 200), 5)));
  }
  ASSERT_TRUE(a.wait_submitted(2));
  ScriptedCell b(h.port(), cell_info("b", 1, 1), false);
  ASSERT_TRUE(eventually([&] { return h.exporter.gauge<Metric::kCellsReady>().value() == 2; }));
  streams.push_back(h.submit(GatewayHarness::request(prompt(0, 200), 5)));
  EXPECT_TRUE(b.wait_submitted(1)) << "though it has been in a, which is only one fuller";
}

TEST(GatewayAffinity, ACellThatKeepsNothingIsNotPreferred) {
  GatewayHarness h;
  ScriptedCell a(h.port(), cell_info("a"), false);
  ASSERT_TRUE(h.wait_ready());
  auto first = h.submit(GatewayHarness::request({1}, 5));
  ASSERT_TRUE(a.wait_submitted(1));
  ScriptedCell b(h.port(), cell_info("b"), false);
  ASSERT_TRUE(eventually([&] { return h.exporter.gauge<Metric::kCellsReady>().value() == 2; }));
  auto second = h.submit(GatewayHarness::request(prompt(0, 200), 5));
  ASSERT_TRUE(b.wait_submitted(1));
  auto third = h.submit(GatewayHarness::request(prompt(0, 200), 5));
  EXPECT_TRUE(a.wait_submitted(2)) << "as free as the other, and before it in order";
}

TEST(GatewayAffinity, WhatWasNotComputedIsToldAndCounted) {
  GatewayHarness h;
  ScriptedCell cell(h.port(), cell_info(), false);
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request(prompt(0, 40), 2, 2));
  ASSERT_TRUE(cell.wait_submitted(2));
  for (const SequenceRequest& r : cell.submitted()) {
    TokenEvent first = cell.event(r, 0);
    first.cached_tokens = r.sampling.choice == 0 ? 30 : 77;  // the second found the first's, too
    cell.endpoint->publish({first, cell.event(r, 1, FinishReason::kLength)});
  }
  h.read(*stream, 2);
  EXPECT_EQ(stream->cached_prompt_tokens(), 30U);
  EXPECT_EQ(h.exporter.counter<Metric::kPromptTokens>().value(), 80);
  EXPECT_EQ(h.exporter.counter<Metric::kPromptTokensCached>().value(), 30 + 40);
  EXPECT_NE(h.exporter.render().find("request_prefill_kv_computed_tokens_sum{engine=\"0\","
                                     "model_name=\"test-model\"} 10\n"),
            std::string::npos);
}

}  // namespace
}  // namespace millrace::net
