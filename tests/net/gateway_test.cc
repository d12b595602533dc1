#include "net/gateway.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <boost/asio/detached.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cmath>

#include "tests/net/gateway_harness.h"

namespace millrace::net {
namespace {

using namespace test;

TEST(Gateway, TokensArriveInOrderForEveryChoice) {
  GatewayHarness h;
  ScriptedCell cell(h.port(), cell_info());
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({5, 6, 7}, 40, 3));
  const StreamResult result = h.read(*stream, 3);
  ASSERT_FALSE(result.error);
  for (std::uint32_t c = 0; c < 3; ++c) {
    EXPECT_EQ(result.choices[c].tokens, expected_tokens({5, 6, 7}, 40, c));
    EXPECT_EQ(result.choices[c].finish, FinishReason::kLength);
  }
  const auto end = h.get(stream->next());  // and it stays ended
  ASSERT_TRUE(end);
  EXPECT_FALSE(end->has_value());
  EXPECT_EQ(h.gateway->status().queued, 0U);
}

TEST(Gateway, ManyStreamsOverTwoCellsDoNotMix) {
  GatewayConfig config;
  config.cell_queue_depth = 2;
  GatewayHarness h(config);
  ScriptedCell a(h.port(), cell_info("a"));
  ScriptedCell b(h.port(), cell_info("b"));
  ASSERT_TRUE(eventually([&] { return h.get(h.gateway->cells()).size() == 2; }));
  ASSERT_TRUE(h.wait_ready());
  std::vector<std::unique_ptr<GenerationStream>> streams;
  std::vector<std::future<StreamResult>> results;
  for (std::int32_t i = 0; i < 100; ++i) {
    streams.push_back(h.submit(GatewayHarness::request({i, i + 1}, 30)));
    results.push_back(asio::co_spawn(
        asio::make_strand(h.io), GatewayHarness::read_all(*streams.back(), 1), asio::use_future));
  }
  for (std::int32_t i = 0; i < 100; ++i) {
    const StreamResult r = results[static_cast<std::size_t>(i)].get();
    EXPECT_EQ(r.choices[0].tokens, expected_tokens({i, i + 1}, 30)) << i;
  }
  // Both worked, and neither was given more than it runs and keeps waiting.
  EXPECT_GE(a.submitted().size(), 20U);
  EXPECT_GE(b.submitted().size(), 20U);
  EXPECT_LE(a.max_running, 10U);
  EXPECT_LE(b.max_running, 10U);
  const auto stats = h.stats();
  EXPECT_EQ(stats.admitted, 100U);
  EXPECT_EQ(stats.finished_ok, 100U);
  EXPECT_EQ(stats.journal.delivered, 3000U);
}

TEST(Gateway, NotReadyWithoutACell) {
  GatewayHarness h;
  const auto refused = h.gateway->submit(GatewayHarness::request({1}));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(h.gateway->status().reason, "no cell is connected");
  EXPECT_FALSE(h.gateway->status().ready);
}

TEST(Gateway, BadRequestsAreRefusedByField) {
  GatewayHarness h;
  ScriptedCell cell(h.port(), cell_info());
  ASSERT_TRUE(h.wait_ready());
  EXPECT_EQ(h.gateway->status().max_context, 4096U);
  const auto field = [&](GenerateRequest r) {
    return h.gateway->submit(std::move(r)).error().field;
  };
  EXPECT_EQ(field(GatewayHarness::request({})), "prompt");
  EXPECT_EQ(field(GatewayHarness::request(std::vector<std::int32_t>(4096, 1))), "prompt");
  EXPECT_EQ(field(GatewayHarness::request({1}, 0)), "max_tokens");
  EXPECT_EQ(field(GatewayHarness::request({1}, 1, 0)), "n");
  auto scored = GatewayHarness::request(std::vector<std::int32_t>(4097, 1), 0);
  scored.sampling.prompt_logprobs = true;
  EXPECT_EQ(field(std::move(scored)), "prompt");
}

// A prompt as long as the context, of which only the log-probabilities are asked.
TEST(Gateway, APromptIsScoredWithoutAToken) {
  GatewayHarness h;
  ScriptedCell cell(h.port(), cell_info(), false);
  ASSERT_TRUE(h.wait_ready());
  auto request = GatewayHarness::request(std::vector<std::int32_t>(4096, 1), 0);
  request.sampling.prompt_logprobs = true;
  auto stream = h.submit(std::move(request));
  ASSERT_TRUE(cell.wait_submitted(1));
  const SequenceRequest r = cell.submitted()[0];
  EXPECT_EQ(r.max_new_tokens, 0U);
  cell.endpoint->publish(PromptLogprobsEvent{r.id, std::vector<TokenLogprob>(4095), {}});
  cell.endpoint->publish({{.id = r.id, .has_token = false, .finish = FinishReason::kLength}});
  ASSERT_TRUE(h.get(stream->next()));
  const StreamResult result = h.read(*stream);
  EXPECT_TRUE(result.choices[0].tokens.empty());
  EXPECT_EQ(result.choices[0].finish, FinishReason::kLength);
  EXPECT_EQ(h.stats().finished_ok, 1U);
  EXPECT_EQ(h.exporter.counter<Metric::kPromptTokens>().value(), 4096);
  EXPECT_EQ(h.exporter.counter<Metric::kGenerationTokens>().value(), 0);
  EXPECT_EQ(h.exporter.counter<Metric::kRequestSuccess>("length").value(), 1);
}

TEST(Gateway, RepeatedTokensAreDroppedAndAGapEndsTheRequest) {
  GatewayHarness h;
  ScriptedCell cell(h.port(), cell_info(), false);
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({3}));
  ASSERT_TRUE(cell.wait_submitted(1));
  const SequenceRequest r = cell.submitted()[0];
  cell.endpoint->publish({cell.event(r, 0), cell.event(r, 0), cell.event(r, 1)});
  cell.endpoint->publish({cell.event(r, 0), cell.event(r, 1), cell.event(r, 2)});
  cell.endpoint->publish({cell.event(r, 4)});
  const StreamResult result = h.read(*stream);
  EXPECT_EQ(result.choices[0].tokens, expected_tokens({3}, 3));
  EXPECT_EQ(result.choices[0].finish, FinishReason::kError);
  EXPECT_NE(result.choices[0].error.find("out of order"), std::string::npos);
  const auto stats = h.stats();
  EXPECT_EQ(stats.journal.duplicates, 3U);
  EXPECT_EQ(stats.journal.broken, 1U);
  EXPECT_TRUE(eventually([&] { return cell.cancels() == 1; }));
}

// What would end so in any cell ends here.
TEST(Gateway, AnErrorOfItsCellEndsAnAnswer) {
  GatewayHarness h;
  ScriptedCell cell(h.port(), cell_info(), false);
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({3}, 16, 2));
  ASSERT_TRUE(cell.wait_submitted(2));
  const auto sequences = cell.submitted();
  cell.endpoint->publish({cell.event(sequences[0], 0),
                          {.id = sequences[0].id,
                           .has_token = false,
                           .finish = FinishReason::kError,
                           .error = "its logits are not finite"},
                          cell.event(sequences[1], 0, FinishReason::kStop)});
  const StreamResult result = h.read(*stream, 2);
  ASSERT_FALSE(result.error);
  EXPECT_EQ(result.choices[0].tokens, expected_tokens({3}, 1));
  EXPECT_EQ(result.choices[0].finish, FinishReason::kError);
  EXPECT_NE(result.choices[0].error.find("not finite"), std::string::npos);
  EXPECT_EQ(result.choices[1].finish, FinishReason::kStop);
  EXPECT_EQ(h.stats().failed, 1U);
  EXPECT_EQ(h.stats().replayed, 0U);
  EXPECT_EQ(h.exporter.counter<Metric::kRequestSuccess>("error").value(), 1);
  EXPECT_EQ(h.exporter.counter<Metric::kSequencesFailed>("cell_error").value(), 1);
}

TEST(Gateway, ACellsRefusalReachesTheClient) {
  GatewayHarness h;
  ScriptedCell cell(h.port(), cell_info());
  cell.refuse = true;
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({3}));
  const StreamResult result = h.read(*stream);
  EXPECT_EQ(result.choices[0].finish, FinishReason::kError);
  EXPECT_NE(result.choices[0].error.find("is not for this cell"), std::string::npos);
}

TEST(Gateway, PromptLogprobsComeBeforeTheFirstToken) {
  GatewayHarness h;
  ScriptedCell cell(h.port(), cell_info(), false);
  ASSERT_TRUE(h.wait_ready());
  auto request = GatewayHarness::request({3, 4, 5}, 1);
  request.sampling.prompt_logprobs = true;
  auto stream = h.submit(std::move(request));
  ASSERT_TRUE(cell.wait_submitted(1));
  const SequenceRequest r = cell.submitted()[0];
  cell.endpoint->publish(PromptLogprobsEvent{r.id, {{4, -1}, {5, -2}}, {}});
  cell.endpoint->publish({cell.event(r, 0, FinishReason::kLength)});
  const auto first = h.get(stream->next());
  ASSERT_TRUE(first);
  const auto& event = std::get<PromptLogprobsEvent>((*first)->event);
  EXPECT_EQ(event.targets, (std::vector<TokenLogprob>{{4, -1}, {5, -2}}));
  EXPECT_EQ(h.read(*stream).choices[0].tokens.size(), 1U);
}

TEST(Gateway, SlowConsumerIsCancelledAndItsBufferBounded) {
  GatewayConfig config;
  config.stream_buffer_tokens = 10;
  GatewayHarness h(config);
  ScriptedCell cell(h.port(), cell_info());
  ASSERT_TRUE(h.wait_ready());
  auto slow = h.submit(GatewayHarness::request({1}, 1000));
  ASSERT_TRUE(eventually([&] { return h.stats().slow_consumers == 1; }));
  const auto result = h.read(*slow);
  ASSERT_TRUE(result.error);
  EXPECT_EQ(result.error->code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(result.error->field, "gateway.stream_buffer_tokens");
  EXPECT_TRUE(eventually([&] { return cell.cancels() == 1 && cell.live() == 0; }));
  EXPECT_LE(h.stats().journal.delivered, 12U);
}

TEST(Gateway, FullQueueRefusesAtOnceAndDrainsInOrder) {
  GatewayConfig config;
  config.max_queued_sequences = 3;
  config.cell_queue_depth = 1;
  GatewayHarness h(config);
  ScriptedCell cell(h.port(), cell_info("a", 1, 1), false);
  ASSERT_TRUE(h.wait_ready());
  std::vector<std::unique_ptr<GenerationStream>> streams;
  for (std::int32_t i = 0; i < 2; ++i) {
    streams.push_back(h.submit(GatewayHarness::request({i}, 1)));
    ASSERT_TRUE(cell.wait_submitted(streams.size()));
  }
  for (std::int32_t i = 2; i < 5; ++i) streams.push_back(h.submit(GatewayHarness::request({i}, 1)));
  const auto refused = h.gateway->submit(GatewayHarness::request({9}));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(refused.error().field, "gateway.max_queued_requests");
  EXPECT_GE(h.gateway->retry_after(), 1s);
  EXPECT_LE(h.gateway->retry_after(), 60s);
  // Three here, and one in the cell behind the one it runs, as the next heartbeat says.
  EXPECT_TRUE(eventually([&] { return h.gateway->status().queued == 4; }));
  // The queue's own fill, beside its capacity, is not that of the cells.
  EXPECT_TRUE(eventually([&] {
    return h.exporter.gauge<Metric::kRequestsWaiting>().value() == 4 &&
           h.exporter.gauge<Metric::kQueuedSequences>().value() == 3;
  }));
  EXPECT_EQ(h.exporter.gauge<Metric::kQueueCapacity>().value(), 3);
  for (std::size_t i = 0; i < 5; ++i) {
    ASSERT_TRUE(cell.wait_submitted(i + 1));
    const SequenceRequest r = cell.submitted()[i];
    EXPECT_EQ(r.tokens[0], static_cast<std::int32_t>(i));  // first come, first served
    cell.endpoint->publish({cell.event(r, 0, FinishReason::kLength)});
    EXPECT_EQ(h.read(*streams[i]).choices[0].tokens.size(), 1U);
  }
  EXPECT_EQ(h.stats().rejected_queue_full, 1U);
}

TEST(Gateway, QueuedTokensAreBounded) {
  GatewayConfig config;
  config.max_queued_tokens = 100;
  config.cell_queue_depth = 0;
  GatewayHarness h(config);
  ScriptedCell cell(h.port(), cell_info("a", 1, 1), false);
  ASSERT_TRUE(h.wait_ready());
  auto running = h.submit(GatewayHarness::request({1}));
  ASSERT_TRUE(cell.wait_submitted(1));
  auto waiting = h.submit(GatewayHarness::request(std::vector<std::int32_t>(30, 1), 1, 3));
  const auto refused = h.gateway->submit(GatewayHarness::request(std::vector<std::int32_t>(11, 1)));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().field, "gateway.max_queued_tokens");
  waiting.reset();  // gives its room back
  EXPECT_TRUE(eventually([&] { return h.gateway->status().queued == 0; }));
  EXPECT_TRUE(h.gateway->submit(GatewayHarness::request(std::vector<std::int32_t>(100, 1))));
}

TEST(Gateway, QueueTimeoutIsNamed) {
  GatewayConfig config;
  config.queue_timeout = 50ms;
  config.cell_queue_depth = 0;
  GatewayHarness h(config);
  ScriptedCell cell(h.port(), cell_info("a", 1, 1), false);
  ASSERT_TRUE(h.wait_ready());
  auto partly = h.submit(GatewayHarness::request({1}, 4, 2));  // one choice runs, one waits
  auto waiting = h.submit(GatewayHarness::request({2}));
  const auto refused = h.read(*waiting);
  ASSERT_TRUE(refused.error);
  EXPECT_EQ(refused.error->code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(refused.error->field, "gateway.queue_timeout");
  const auto end = h.read_one(*partly);
  ASSERT_TRUE(end);
  EXPECT_EQ(end->finish, FinishReason::kError);
  EXPECT_NE(end->error.find("50 ms"), std::string::npos);
  EXPECT_EQ(h.stats().queue_timeouts, 2U);
}

TEST(Gateway, CancelOfAChoiceFreesItsSlot) {
  GatewayHarness h;
  ScriptedCell cell(h.port(), cell_info(), false);
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({1}, 5, 2));
  ASSERT_TRUE(cell.wait_submitted(2));
  stream->cancel(0);
  stream->cancel(0);
  stream->cancel(7);
  EXPECT_TRUE(eventually([&] { return cell.cancels() == 1 && cell.live() == 1; }));
  const SequenceRequest other = cell.submitted()[1];
  cell.endpoint->publish({cell.event(other, 0), cell.event(other, 1, FinishReason::kStop)});
  const auto result = h.read(*stream, 2);
  EXPECT_EQ(result.choices[0].finish, FinishReason::kCancelled);
  EXPECT_EQ(result.choices[1].tokens, expected_tokens({1}, 2, 1));
  EXPECT_EQ(result.choices[1].finish, FinishReason::kStop);
}

TEST(Gateway, AGoneClientFreesRunningAndQueuedSequences) {
  GatewayConfig config;
  config.cell_queue_depth = 0;
  GatewayHarness h(config);
  ScriptedCell cell(h.port(), cell_info("a", 1, 1), false);
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({1}, 5, 3));
  ASSERT_TRUE(cell.wait_submitted(1));
  stream.reset();
  EXPECT_TRUE(eventually([&] { return cell.live() == 0 && h.gateway->status().queued == 0; }));
  EXPECT_EQ(cell.submitted().size(), 1U);
  auto next = h.submit(GatewayHarness::request({2}));
  EXPECT_TRUE(cell.wait_submitted(2));
}

// A server waits for the next token or a keep-alive, whichever is first: no token may get lost.
TEST(Gateway, WaitingMayBeInterruptedWithoutLoss) {
  using namespace asio::experimental::awaitable_operators;
  GatewayHarness h;
  ScriptedCell cell(h.port(), cell_info());
  cell.step_time_us = 2000;
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({1}, 100));
  const auto work = [&]() -> asio::awaitable<std::pair<std::vector<std::int32_t>, int>> {
    std::vector<std::int32_t> tokens;
    int interruptions = 0;
    const auto executor = co_await asio::this_coro::executor;
    while (true) {
      asio::steady_timer timer(executor, std::chrono::microseconds(tokens.size() % 3 * 300));
      auto won = co_await (stream->next() || timer.async_wait(asio::use_awaitable));
      if (won.index() == 1) {
        ++interruptions;
        continue;
      }
      auto& next = std::get<0>(won);
      if (!next) {
        ++interruptions;
        continue;
      }
      if (!next->has_value()) co_return std::pair(tokens, interruptions);
      tokens.push_back(std::get<TokenEvent>((*next)->event).token.token);
    }
  };
  const auto [tokens, interruptions] = h.get(work());
  EXPECT_EQ(tokens, expected_tokens({1}, 100));
  EXPECT_GT(interruptions, 0);
}

TEST(Gateway, DrainFinishesWhatRunsAndTellsTheCells) {
  GatewayHarness h;
  ScriptedCell cell(h.port(), cell_info());
  cell.step_time_us = 2000;
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({1}, 50));
  auto drained = asio::co_spawn(h.io, h.gateway->drain(10s), asio::use_future);
  ASSERT_TRUE(eventually([&] { return h.gateway->status().reason == "draining"; }));
  const auto refused = h.gateway->submit(GatewayHarness::request({2}));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kUnavailable);
  EXPECT_FALSE(cell.drained);
  EXPECT_EQ(h.read(*stream).choices[0].tokens, expected_tokens({1}, 50));
  EXPECT_TRUE(drained.get());
  EXPECT_TRUE(eventually([&] { return cell.drained.load(); }));
}

TEST(Gateway, DrainHasADeadlineAndStopEndsStreams) {
  GatewayHarness h;
  ScriptedCell cell(h.port(), cell_info(), false);
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({1}));
  ASSERT_TRUE(cell.wait_submitted(1));
  EXPECT_FALSE(h.get(h.gateway->drain(50ms)));
  auto pending = asio::co_spawn(h.io, GatewayHarness::read_all(*stream, 1), asio::use_future);
  h.gateway->stop();
  const auto result = pending.get();
  ASSERT_TRUE(result.error);
  EXPECT_EQ(result.error->code, ErrorCode::kUnavailable);
  EXPECT_TRUE(eventually([&] { return cell.cancels() == 1; }));
}

TEST(Gateway, AWaitEndsWithItsIoContext) {
  std::weak_ptr<int> frame;
  {
    GatewayHarness h({}, 0);
    ScriptedCell cell(h.port(), cell_info(), false);
    const auto poll_until = [&](const std::function<bool()>& done) {
      return eventually([&] { return h.io.poll(), done(); });
    };
    ASSERT_TRUE(poll_until([&] { return h.gateway->status().ready; }));
    auto owned = std::make_shared<int>();
    frame = owned;
    constexpr auto wait = [](auto stream, auto) -> asio::awaitable<void> {
      co_await stream->next();
    };
    asio::co_spawn(h.io, wait(h.submit(GatewayHarness::request({1})), std::move(owned)),
                   asio::detached);
    ASSERT_TRUE(poll_until([&] { return cell.submitted().size() == 1; }));
    EXPECT_FALSE(frame.expired());
  }
  EXPECT_TRUE(frame.expired());
}

TEST(Gateway, MetricsCountWhatHappened) {
  GatewayHarness h;
  {
    ScriptedCell cell(h.port(), cell_info());
    ASSERT_TRUE(h.wait_ready());
    auto stream = h.submit(GatewayHarness::request({1, 2, 3}, 10));
    h.read(*stream);
    auto cancelled = h.submit(GatewayHarness::request({1}, 1000));
    ASSERT_TRUE(h.read_one(*cancelled));
    cancelled->cancel(0);
    ASSERT_TRUE(eventually([&] { return h.stats().cancelled == 1; }));
    ASSERT_TRUE(eventually([&] { return h.exporter.gauge<Metric::kCellsReady>().value() == 1; }));
    EXPECT_EQ(h.exporter.counter<Metric::kPromptTokens>().value(), 4);
    EXPECT_GE(h.exporter.counter<Metric::kGenerationTokens>().value(), 11);
    EXPECT_EQ(h.exporter.counter<Metric::kRequestSuccess>("length").value(), 1);
    EXPECT_EQ(h.exporter.counter<Metric::kRequestSuccess>("abort").value(), 1);
    EXPECT_EQ(h.exporter.gauge<Metric::kReady>().value(), 1);
    EXPECT_EQ(h.exporter.gauge<Metric::kCellEpoch>("a").value(), 1);
    EXPECT_TRUE(eventually(
        [&] { return h.exporter.gauge<Metric::kCellKvTokens>("a").value() == 100'000; }));
    EXPECT_EQ(h.exporter.gauge<Metric::kCellSlots>("a").value(), 8);
    EXPECT_EQ(h.exporter.gauge<Metric::kCellWorkers>("a").value(), 1);
    EXPECT_EQ(h.exporter.gauge<Metric::kCellInfo>("a", "cpu", "mpi").value(), 1);
    EXPECT_EQ(h.exporter.gauge<Metric::kQueueCapacity>().value(),
              GatewayConfig{}.max_queued_sequences);
    EXPECT_TRUE(
        eventually([&] { return h.exporter.counter<Metric::kCellSteps>("a").value() > 0; }));
    const std::string text = h.exporter.render();
    EXPECT_NE(
        text.find(
            "vllm:time_to_first_token_seconds_count{engine=\"0\",model_name=\"test-model\"} 2"),
        std::string::npos);
    EXPECT_NE(text.find("vllm:request_prompt_tokens_sum{engine=\"0\",model_name=\"test-model\"} 3"),
              std::string::npos);
  }
  EXPECT_TRUE(eventually([&] { return h.exporter.gauge<Metric::kReady>().value() == 0; }));
  EXPECT_EQ(h.exporter.counter<Metric::kCellLosses>("a").value(), 0);  // it said goodbye
  EXPECT_TRUE(eventually(
      [&] { return std::isnan(h.exporter.gauge<Metric::kCellHeartbeatAge>("a").value()); }));
  EXPECT_EQ(h.exporter.gauge<Metric::kCellSlots>("a").value(), 0);
  EXPECT_EQ(h.exporter.gauge<Metric::kCellInfo>("a", "cpu", "mpi").value(), 0);
}

// A sequence may wait in its cell as well: its queue ends with its first step.
TEST(Gateway, TimesOfARequestAddUp) {
  GatewayHarness h;
  ScriptedCell cell(h.port(), cell_info(), false);
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({1, 2, 3}, 2));
  ASSERT_TRUE(cell.wait_submitted(1));
  const SequenceRequest r = cell.submitted()[0];
  std::this_thread::sleep_for(60ms);
  TokenEvent first = cell.event(r, 0);
  first.since_scheduled_us = 20'000;
  cell.endpoint->publish({first});
  ASSERT_TRUE(h.read_one(*stream));
  cell.endpoint->publish({cell.event(r, 1, FinishReason::kLength)});
  ASSERT_TRUE(h.read_one(*stream));
  const std::string text = h.exporter.render();
  const auto sum = [&](const std::string& name) {
    const std::string series = "\nvllm:" + name + "_sum{engine=\"0\",model_name=\"test-model\"} ";
    const std::size_t at = text.find(series);
    EXPECT_NE(at, std::string::npos) << name;
    return at == std::string::npos ? -1 : std::stod(text.substr(at + series.size()));
  };
  const double queue = sum("request_queue_time_seconds");
  const double prefill = sum("request_prefill_time_seconds");
  EXPECT_NEAR(prefill, 0.02, 1e-6);
  EXPECT_GE(queue, 0.04 - 1e-6) << "it waited in the cell for that long";
  EXPECT_NEAR(queue + prefill, sum("time_to_first_token_seconds"), 1e-6);
  EXPECT_NEAR(prefill + sum("request_decode_time_seconds"), sum("request_inference_time_seconds"),
              1e-6);
  EXPECT_EQ(sum("request_prefill_kv_computed_tokens"), 3);
}

TEST(Gateway, WhatCellsCountBecomesMetrics) {
  GatewayHarness h;
  ScriptedCell cell(h.port(), cell_info());
  CellStatus status{.steps = 1,
                    .recomputed_tokens = 5,
                    .prefix_queried_tokens = 40,
                    .prefix_hit_tokens = 30,
                    .prefix_rebuilt_tokens = 6,
                    .corrupted_sequences = 2};
  cell.set_status(status);
  const auto value = [&] {
    return std::array{h.exporter.counter<Metric::kPromptTokensRecomputed>().value(),
                      h.exporter.counter<Metric::kPrefixCacheQueries>().value(),
                      h.exporter.counter<Metric::kPrefixCacheHits>().value(),
                      h.exporter.counter<Metric::kPrefixCacheRebuilt>().value(),
                      h.exporter.counter<Metric::kCorruptedRequests>().value()};
  };
  EXPECT_TRUE(eventually([&] { return value() == std::array{5.0, 40.0, 30.0, 6.0, 2.0}; }));
  status.recomputed_tokens = 12;
  status.prefix_rebuilt_tokens = 7;
  cell.set_status(status);
  EXPECT_TRUE(eventually([&] { return value() == std::array{12.0, 40.0, 30.0, 7.0, 2.0}; }));
}

TEST(Gateway, WhatCellsMeasureBecomesMetrics) {
  GatewayHarness h;
  CellTelemetry t;
  t.start_phases = {{"load", 2.0F}};
  t.busy_ns = 1'500'000'000;
  t.pipeline_bubble = 0.25F;
  t.step_seconds = {{0, 3}, 0.0025};
  t.step_tokens = {{3}, 3};
  t.workers = {{0, 0, 500'000'000, 250'000'000, 0}, {1, 0, 400'000'000, 0, 100'000'000}};
  t.expert_load = {{2, 0, 100}, {2, 1, 60}};
  t.imbalance = {{2, 1.5F, 1.25F}};
  ScriptedCell cell(h.port(), cell_info());
  cell.set_telemetry(t);
  Exporter& e = h.exporter;
  const auto rows = [&](const char* lane) {
    return e.counter<Metric::kExpertRows>("a", "2", lane).value();
  };
  ASSERT_TRUE(eventually([&] { return rows("1") == 60; }));
  t.expert_load[1].rows = 75;  // later reports include earlier ones
  t.workers[0].step_ns += 500'000'000;
  cell.set_telemetry(t);
  ASSERT_TRUE(eventually([&] { return rows("1") == 75; }));
  EXPECT_EQ(rows("0"), 100);
  EXPECT_NEAR(e.counter<Metric::kCellBusy>("a").value(), 1.5, 1e-9);
  EXPECT_EQ(e.gauge<Metric::kPipelineBubble>("a").value(), 0.25);
  EXPECT_NEAR(e.counter<Metric::kWorkerStepTime>("a", "0", "0").value(), 1.0, 1e-9);
  EXPECT_NEAR(e.counter<Metric::kWorkerExchangeTime>("a", "0", "0").value(), 0.25, 1e-9);
  EXPECT_NEAR(e.counter<Metric::kWorkerPipelineWait>("a", "1", "0").value(), 0.1, 1e-9);
  EXPECT_EQ(e.gauge<Metric::kExpertImbalance>("a", "2").value(), 1.5);
  EXPECT_EQ(e.gauge<Metric::kLaneImbalance>("a", "2").value(), 1.25);
  EXPECT_EQ(e.gauge<Metric::kStartPhase>("a", "load").value(), 2);
  const std::string text = e.render();
  EXPECT_NE(text.find("millrace_step_seconds_bucket{cell=\"a\",le=\"0.001\"} 3\n"),
            std::string::npos);
  EXPECT_NE(
      text.find("vllm:iteration_tokens_total_count{engine=\"0\",model_name=\"test-model\"} 3"),
      std::string::npos);
}

// Not a pass mark but a figure: 256 streams, one token each per step, as fast as the parts go.
TEST(Gateway, ThroughputWith256Streams) {
  constexpr std::uint32_t kStreams = 256;
  constexpr std::uint32_t kTokens = 400;
  GatewayHarness h;
  ScriptedCell cell(h.port(), cell_info("a", 1, kStreams), false);
  ASSERT_TRUE(h.wait_ready());
  std::vector<std::unique_ptr<GenerationStream>> streams;
  std::vector<std::future<StreamResult>> results;
  for (std::uint32_t i = 0; i < kStreams; ++i) {
    streams.push_back(h.submit(GatewayHarness::request({static_cast<std::int32_t>(i)}, kTokens)));
    results.push_back(asio::co_spawn(
        asio::make_strand(h.io), GatewayHarness::read_all(*streams.back(), 1), asio::use_future));
  }
  ASSERT_TRUE(cell.wait_submitted(kStreams));
  const auto requests = cell.submitted();
  const auto start = std::chrono::steady_clock::now();
  for (std::uint32_t t = 0; t < kTokens; ++t) {
    std::vector<TokenEvent> events;
    events.reserve(kStreams);
    for (const auto& r : requests) {
      events.push_back(
          cell.event(r, t, t + 1 == kTokens ? FinishReason::kLength : FinishReason::kNone));
    }
    ASSERT_TRUE(cell.endpoint->publish(std::move(events)));
  }
  for (std::uint32_t i = 0; i < kStreams; ++i) {
    EXPECT_EQ(results[i].get().choices[0].tokens,
              expected_tokens({static_cast<std::int32_t>(i)}, kTokens));
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  fmt::print("{} streams, {} tokens: {:.0f} tokens/s through cell link, gateway and streams\n",
             kStreams, kStreams * kTokens, kStreams * kTokens / seconds);
}

}  // namespace
}  // namespace millrace::net
