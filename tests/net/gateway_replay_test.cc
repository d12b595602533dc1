// Contract C2: what a cell has not finished goes on in another, each token delivered once.
#include <gtest/gtest.h>

#include "net/gateway.h"
#include "tests/net/gateway_harness.h"

namespace millrace::net {
namespace {

using namespace test;

double failed(GatewayHarness& h, std::string_view reason) {
  return h.exporter.counter<Metric::kSequencesFailed>(reason).value();
}

TEST(GatewayReplay, AnAnswerGoesOnInAnotherCellWhereItStopped) {
  GatewayHarness h;
  auto a = std::make_unique<ScriptedCell>(h.port(), cell_info("a"), false);
  ASSERT_TRUE(h.wait_ready());
  GenerateRequest request = GatewayHarness::request({3, 4}, 16);
  request.min_new_tokens = 2;
  request.stop_token_ids = {7};
  request.sampling.seed = 11;
  auto stream = h.submit(std::move(request));
  ASSERT_TRUE(a->wait_submitted(1));
  const SequenceRequest first = a->submitted()[0];
  ScriptedCell b(h.port(), cell_info("b"), false);
  ASSERT_TRUE(eventually([&] { return h.exporter.gauge<Metric::kCellsReady>().value() == 2; }));
  a->endpoint->publish({a->event(first, 0), a->event(first, 1)});
  ASSERT_TRUE(h.read_one(*stream));
  a.reset();
  ASSERT_TRUE(b.wait_submitted(1));
  SequenceRequest expected = first;
  for (const std::int32_t token : expected_tokens({3, 4}, 2)) expected.tokens.push_back(token);
  SequenceRequest again = b.submitted()[0];
  again.id = expected.id;  // each endpoint has its own
  EXPECT_EQ(again, expected);
  const SequenceRequest r = b.submitted()[0];
  for (std::uint32_t i = 2; i < 16; ++i) {
    b.endpoint->publish({b.event(r, i, i < 15 ? FinishReason::kNone : FinishReason::kLength)});
  }
  std::vector<std::int32_t> rest;
  for (std::uint32_t i = 1; i < 16; ++i) {
    const auto event = h.read_one(*stream);
    ASSERT_TRUE(event);
    EXPECT_EQ(event->index, i);
    rest.push_back(event->token.token);
  }
  const auto all = expected_tokens({3, 4}, 16);
  EXPECT_EQ(rest, std::vector(all.begin() + 1, all.end()));
  EXPECT_EQ(h.stats().replayed, 1U);
  EXPECT_EQ(h.stats().failed, 0U);
  EXPECT_EQ(h.stats().finished_ok, 1U);
  EXPECT_EQ(h.exporter.counter<Metric::kSequencesReplayed>().value(), 1);
  EXPECT_EQ(h.exporter.counter<Metric::kGenerationTokens>().value(), 16);
  EXPECT_EQ(h.exporter.counter<Metric::kPromptTokens>().value(), 2);
}

// Nothing else can take them, and new requests are refused meanwhile.
TEST(GatewayReplay, AnswersWaitForTheirCellToComeBack) {
  GatewayHarness h;
  auto cell = std::make_unique<ScriptedCell>(h.port(), cell_info("a", 1), false);
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({5}, 12, 3));
  ASSERT_TRUE(cell->wait_submitted(3));
  cell->endpoint->publish({cell->event(cell->submitted()[1], 0)});
  ASSERT_TRUE(h.read_one(*stream));
  cell.reset();
  EXPECT_TRUE(eventually([&] { return h.gateway->status().queued == 3; }));
  EXPECT_FALSE(h.gateway->status().ready);
  EXPECT_EQ(h.gateway->submit(GatewayHarness::request({1})).error().code, ErrorCode::kUnavailable);
  ScriptedCell back(h.port(), cell_info("a", 2));
  std::vector<std::int32_t> tokens[3] = {{}, expected_tokens({5}, 1, 1), {}};
  for (int ends = 0; ends < 3;) {
    const auto next = h.get(stream->next());
    ASSERT_TRUE(next && next->has_value());
    const auto& event = std::get<TokenEvent>((*next)->event);
    tokens[(*next)->choice].push_back(event.token.token);
    ends += event.finish == FinishReason::kLength ? 1 : 0;
  }
  for (std::uint32_t c = 0; c < 3; ++c) EXPECT_EQ(tokens[c], expected_tokens({5}, 12, c)) << c;
  for (std::uint32_t c = 0; c < 3; ++c) EXPECT_EQ(back.submitted()[c].sampling.choice, c);
  EXPECT_EQ(h.stats().replayed, 3U);
  EXPECT_EQ(h.gateway->status().queued, 0U);
}

TEST(GatewayReplay, LostAnswersComeBeforeWaitingOnes) {
  GatewayConfig config;
  config.cell_queue_depth = 1;
  config.max_queued_sequences = 3;
  GatewayHarness h(config);
  auto cell = std::make_unique<ScriptedCell>(h.port(), cell_info("a", 1, 1), false);
  ASSERT_TRUE(h.wait_ready());
  std::vector<std::unique_ptr<GenerationStream>> streams;
  for (std::int32_t i = 0; i < 4; ++i) {
    streams.push_back(h.submit(GatewayHarness::request({i}, 1)));
    if (i < 2) {
      ASSERT_TRUE(cell->wait_submitted(streams.size()));
    }
  }
  cell.reset();
  EXPECT_TRUE(eventually([&] { return h.gateway->status().queued == 4; })) << "past the limit of 3";
  ScriptedCell back(h.port(), cell_info("a", 2, 1));
  for (std::int32_t i = 0; i < 4; ++i) {
    EXPECT_EQ(h.read(*streams[static_cast<std::size_t>(i)]).choices[0].tokens,
              expected_tokens({i}, 1));
    EXPECT_EQ(back.submitted()[static_cast<std::size_t>(i)].tokens[0], i);
  }
  // What came back to the queue has left it again.
  EXPECT_TRUE(eventually([&] {
    return h.exporter.gauge<Metric::kQueuedSequences>().value() == 0 &&
           h.exporter.gauge<Metric::kQueuedPromptTokens>().value() == 0;
  }));
}

TEST(GatewayReplay, WhatACellGivesUpGoesToAnother) {
  GatewayHarness h;
  ScriptedCell a(h.port(), cell_info("a"), false);
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({3}, 4, 2));
  ASSERT_TRUE(a.wait_submitted(2));
  a.set_status({.running = 2, .draining = true});  // as a cell says that ends
  EXPECT_TRUE(eventually([&] { return !h.gateway->status().ready; }));
  ScriptedCell b(h.port(), cell_info("b"));
  ASSERT_TRUE(h.wait_ready());
  std::vector<TokenEvent> events = {a.event(a.submitted()[0], 0)};
  for (const SequenceRequest& r : a.submitted()) {
    events.push_back({.id = r.id,
                      .has_token = false,
                      .finish = FinishReason::kCancelled,
                      .error = "the cell failed: step 5 passed its deadline"});
  }
  a.endpoint->publish(std::move(events));
  const StreamResult result = h.read(*stream, 2);
  for (std::uint32_t c = 0; c < 2; ++c) {
    EXPECT_EQ(result.choices[c].tokens, expected_tokens({3}, 4, c));
    EXPECT_EQ(result.choices[c].finish, FinishReason::kLength);
  }
  EXPECT_EQ(b.submitted().size(), 2U);
  EXPECT_EQ(h.stats().replayed, 2U);
  EXPECT_EQ(failed(h, "cell_lost"), 0);
}

TEST(GatewayReplay, ToGiveUpTwiceIsToGiveUp) {
  GatewayHarness h;
  ScriptedCell cell(h.port(), cell_info(), false);
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({3}, 2));
  ASSERT_TRUE(cell.wait_submitted(1));
  const TokenEvent end{
      .id = cell.submitted()[0].id, .has_token = false, .finish = FinishReason::kCancelled};
  cell.endpoint->publish({cell.event(cell.submitted()[0], 0), end, end});
  ASSERT_TRUE(cell.wait_submitted(2));
  const SequenceRequest r = cell.submitted()[1];
  cell.endpoint->publish({cell.event(r, 1, FinishReason::kLength)});
  EXPECT_EQ(h.read(*stream).choices[0].tokens, expected_tokens({3}, 2));
  EXPECT_EQ(h.stats().replayed, 1U);
}

// It is asked again when it has said that it is there, not at once. That is no loss.
TEST(GatewayReplay, AFullCellIsAskedAgain) {
  GatewayConfig config;
  config.max_replays = 0;
  GatewayHarness h(config);
  ScriptedCell cell(h.port(), cell_info());
  cell.full = 5;
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({3}, 4));
  const StreamResult result = h.read(*stream);
  EXPECT_EQ(result.choices[0].tokens, expected_tokens({3}, 4));
  EXPECT_EQ(cell.full, 0);
  EXPECT_EQ(h.stats().replayed, 0U);
}

// Its end was on the way: another cell would find nothing to do.
TEST(GatewayReplay, AnAnswerThatLacksOnlyItsEndHasEnded) {
  GatewayHarness h;
  auto cell = std::make_unique<ScriptedCell>(h.port(), cell_info(), false);
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({3}, 2));
  ASSERT_TRUE(cell->wait_submitted(1));
  const SequenceRequest r = cell->submitted()[0];
  cell->endpoint->publish({cell->event(r, 0), cell->event(r, 1)});
  cell.reset();
  const StreamResult result = h.read(*stream);
  EXPECT_EQ(result.choices[0].tokens, expected_tokens({3}, 2));
  EXPECT_EQ(result.choices[0].finish, FinishReason::kLength);
  EXPECT_EQ(h.stats().replayed, 0U);
}

// How long an answer may become is settled when it is let in; a smaller cell does not get it.
TEST(GatewayReplay, ACellWithALessContextIsPassedBy) {
  GatewayHarness h;
  auto a = std::make_unique<ScriptedCell>(h.port(), cell_info("a", 1), false);
  ASSERT_TRUE(h.wait_ready());
  auto long_one = h.submit(GatewayHarness::request({3}, 10'000));
  auto short_one = h.submit(GatewayHarness::request({4}, 5));
  ASSERT_TRUE(a->wait_submitted(2));
  EXPECT_EQ(a->submitted()[0].max_new_tokens, 4095U);
  CellInfo small = cell_info("b");
  small.max_context = 1024;
  ScriptedCell b(h.port(), small);
  ASSERT_TRUE(eventually([&] { return h.exporter.gauge<Metric::kCellsReady>().value() == 2; }));
  a.reset();
  EXPECT_EQ(h.read(*short_one).choices[0].tokens, expected_tokens({4}, 5));
  EXPECT_EQ(b.submitted().size(), 1U);
  ScriptedCell back(h.port(), cell_info("a", 2), false);
  ASSERT_TRUE(back.wait_submitted(1));
  EXPECT_EQ(back.submitted()[0].max_new_tokens, 4095U);
}

// It may be what the cells die of. A token in between shows that it is not.
TEST(GatewayReplay, AnAnswerThatCellsDieOfEnds) {
  GatewayConfig config;
  config.max_replays = 2;
  GatewayHarness h(config);
  std::unique_ptr<GenerationStream> stream;
  for (std::uint64_t epoch = 1; epoch <= 4; ++epoch) {
    ScriptedCell cell(h.port(), cell_info("a", epoch), false);
    ASSERT_TRUE(h.wait_ready());
    if (!stream) stream = h.submit(GatewayHarness::request({3}));
    ASSERT_TRUE(cell.wait_submitted(1)) << epoch;
    if (epoch != 2) continue;
    cell.endpoint->publish({cell.event(cell.submitted()[0], 0)});
    ASSERT_TRUE(h.read_one(*stream));
  }
  const auto end = h.read_one(*stream);
  ASSERT_TRUE(end);
  EXPECT_FALSE(end->has_token);
  EXPECT_EQ(end->index, 1U);
  EXPECT_EQ(end->finish, FinishReason::kError);
  EXPECT_NE(end->error.find("3 times without a token"), std::string::npos) << end->error;
  EXPECT_EQ(h.stats().replayed, 3U);
  EXPECT_EQ(h.stats().failed, 1U);
  EXPECT_EQ(failed(h, "cell_lost"), 1);
}

// Of many that were in cells that died, each gets its turn alone; those that get a token are free.
TEST(GatewayReplay, WhoIsNearWhatCellsDieOfLivesOn) {
  GatewayHarness h;
  std::vector<std::unique_ptr<GenerationStream>> streams;
  const auto poison = [](const SequenceRequest& r) { return r.tokens[0] == 2; };
  for (std::uint64_t epoch = 1; epoch <= 4; ++epoch) {
    ScriptedCell cell(h.port(), cell_info("a", epoch), false);
    ASSERT_TRUE(h.wait_ready());
    for (std::int32_t i = 0; streams.size() < 5; ++i) {
      streams.push_back(h.submit(GatewayHarness::request({i}, 3)));
    }
    if (epoch <= 2) {
      ASSERT_TRUE(cell.wait_submitted(5));
    }
    // Answers each with its first token until it has got the one that it dies of.
    for (std::size_t seen = 0; epoch > 2;) {
      ASSERT_TRUE(cell.wait_submitted(seen + 1));
      const SequenceRequest r = cell.submitted()[seen++];
      if (poison(r)) break;
      const auto next = static_cast<std::uint32_t>(r.tokens.size()) - r.prompt_tokens;
      cell.endpoint->publish({cell.event(r, next)});
    }
  }
  ScriptedCell cell(h.port(), cell_info("a", 5));
  for (std::int32_t i = 0; i < 5; ++i) {
    const StreamResult result = h.read(*streams[static_cast<std::size_t>(i)]);
    EXPECT_EQ(result.choices[0].finish, i == 2 ? FinishReason::kError : FinishReason::kLength) << i;
    EXPECT_EQ(result.choices[0].tokens, expected_tokens({i}, i == 2 ? 0 : 3)) << i;
  }
  EXPECT_EQ(h.stats().failed, 1U);
}

TEST(GatewayReplay, WhoWaitsForItsTurnDoesNotStandBehindNewRequests) {
  GatewayHarness h;  // its cells may have eight waiting
  std::vector<std::unique_ptr<GenerationStream>> streams;
  for (std::uint64_t epoch = 1; epoch <= 2; ++epoch) {
    ScriptedCell cell(h.port(), cell_info("a", epoch, 2), false);
    ASSERT_TRUE(h.wait_ready());
    for (std::int32_t i = 0; epoch == 1 && i < 2; ++i) {
      streams.push_back(h.submit(GatewayHarness::request({i}, 3)));
    }
    ASSERT_TRUE(cell.wait_submitted(2));
  }
  ScriptedCell cell(h.port(), cell_info("a", 3, 2), false);
  ASSERT_TRUE(cell.wait_submitted(1));
  for (std::int32_t i = 0; i < 5; ++i) {
    streams.push_back(h.submit(GatewayHarness::request({10 + i}, 3)));
  }
  ASSERT_TRUE(cell.wait_submitted(2));  // one beside the first
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(cell.submitted().size(), 2U);
  cell.endpoint->publish({cell.event(cell.submitted()[0], 0)});
  ASSERT_TRUE(cell.wait_submitted(3));
  EXPECT_EQ(cell.submitted()[0].tokens[0], 0);
  EXPECT_EQ(cell.submitted()[1].tokens[0], 10);
  EXPECT_EQ(cell.submitted()[2].tokens[0], 1);
}

TEST(GatewayReplay, WithoutReplaysAnAnswerEndsWithItsCell) {
  GatewayConfig config;
  config.max_replays = 0;
  GatewayHarness h(config);
  auto cell = std::make_unique<ScriptedCell>(h.port(), cell_info(), false);
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({3}));
  ASSERT_TRUE(cell->wait_submitted(1));
  cell.reset();
  const auto end = h.read_one(*stream);
  ASSERT_TRUE(end);
  EXPECT_EQ(end->finish, FinishReason::kError);
  EXPECT_NE(end->error.find("lost with its cell"), std::string::npos) << end->error;
  EXPECT_EQ(h.stats().replayed, 0U);
  EXPECT_EQ(failed(h, "cell_lost"), 1);
}

// The limit of the queue is not theirs: they were let in long ago.
TEST(GatewayReplay, TheWaitForACellHasALimitOfItsOwn) {
  GatewayConfig config;
  config.queue_timeout = 20ms;
  config.replay_timeout = 400ms;
  GatewayHarness h(config);
  auto cell = std::make_unique<ScriptedCell>(h.port(), cell_info(), false);
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({3}, 16, 2));
  ASSERT_TRUE(cell->wait_submitted(2));
  std::this_thread::sleep_for(30ms);  // no wait of any kind
  const auto lost = std::chrono::steady_clock::now();
  cell.reset();
  const StreamResult result = h.read(*stream, 2);
  EXPECT_GE(std::chrono::steady_clock::now() - lost, 400ms);
  for (const Answer& answer : result.choices) {
    EXPECT_EQ(answer.finish, FinishReason::kError);
    EXPECT_NE(answer.error.find("within 400 ms"), std::string::npos) << answer.error;
  }
  EXPECT_EQ(failed(h, "cell_lost"), 2);
  EXPECT_EQ(failed(h, "queue_timeout"), 0);
}

TEST(GatewayReplay, AWaitingAnswerMayBeCancelledOrLeft) {
  GatewayHarness h;
  auto cell = std::make_unique<ScriptedCell>(h.port(), cell_info("a", 1), false);
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({3}, 16, 3));
  ASSERT_TRUE(cell->wait_submitted(3));
  cell.reset();
  EXPECT_TRUE(eventually([&] { return h.gateway->status().queued == 3; }));
  stream->cancel(1);
  const auto end = h.read_one(*stream);
  ASSERT_TRUE(end);
  EXPECT_EQ(end->finish, FinishReason::kCancelled);
  EXPECT_EQ(h.gateway->status().queued, 2U);
  stream.reset();
  EXPECT_TRUE(eventually([&] { return h.gateway->status().queued == 0; }));
  ScriptedCell back(h.port(), cell_info("a", 2));
  ASSERT_TRUE(h.wait_ready());
  EXPECT_EQ(h.read(*h.submit(GatewayHarness::request({4}, 2))).choices[0].tokens,
            expected_tokens({4}, 2));
  EXPECT_EQ(back.submitted().size(), 1U);
}

// Of one that has its prompt's log-probabilities they are not asked again.
TEST(GatewayReplay, PromptLogprobsAreSentOnce) {
  GatewayHarness h;
  auto cell = std::make_unique<ScriptedCell>(h.port(), cell_info("a", 1), false);
  ASSERT_TRUE(h.wait_ready());
  auto scored = GatewayHarness::request({3, 4, 5}, 0);
  scored.sampling.prompt_logprobs = true;
  auto continued = scored;
  continued.max_new_tokens = 2;
  auto unanswered = continued;
  std::vector<std::unique_ptr<GenerationStream>> streams;
  for (auto* r : {&scored, &continued, &unanswered}) streams.push_back(h.submit(std::move(*r)));
  ASSERT_TRUE(cell->wait_submitted(3));
  for (int i = 0; i < 2; ++i) {
    cell->endpoint->publish(PromptLogprobsEvent{
        cell->submitted()[static_cast<std::size_t>(i)].id, {{4, -1}, {5, -2}}, {}});
    const auto next = h.get(streams[static_cast<std::size_t>(i)]->next());
    ASSERT_TRUE(next && next->has_value());
    EXPECT_TRUE(std::holds_alternative<PromptLogprobsEvent>((*next)->event));
  }
  cell.reset();
  const StreamResult end = h.read(*streams[0]);
  EXPECT_EQ(end.choices[0].finish, FinishReason::kLength);
  EXPECT_TRUE(end.choices[0].tokens.empty());
  ScriptedCell back(h.port(), cell_info("a", 2), false);
  ASSERT_TRUE(back.wait_submitted(2));
  EXPECT_FALSE(back.submitted()[0].sampling.prompt_logprobs);
  EXPECT_TRUE(back.submitted()[1].sampling.prompt_logprobs);
  EXPECT_EQ(h.stats().replayed, 2U);
  EXPECT_EQ(h.stats().finished_ok, 1U);
}

}  // namespace
}  // namespace millrace::net
