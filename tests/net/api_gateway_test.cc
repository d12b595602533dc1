// The API over a real gateway, whose cell is scripted: what a client sees of the gateway's errors.
#include <gtest/gtest.h>

#include "http_test_client.h"
#include "net/api_server.h"
#include "net/openai_json.h"
#include "tests/net/gateway_harness.h"

namespace millrace::net {
namespace {

using testing::Client;
using HttpAnswer = testing::Answer;
using namespace test;

const text::Tokenizer& tokenizer() {
  static const text::Tokenizer loaded =
      text::Tokenizer::load(MILLRACE_SOURCE_DIR "/tests/golden/text").value();
  return loaded;
}

// A gateway with one cell of one slot, and the API before it.
struct Service {
  explicit Service(GatewayConfig gateway = {}, bool overload_as_429 = false)
      : h(std::move(gateway)), cell(h.port(), cell_info("a", 1, 1), false) {
    ApiConfig config;
    config.http.port = 0;
    config.model_names = {"m"};
    config.overload_as_429 = overload_as_429;
    api.emplace(h.io.get_executor(), std::move(config), tokenizer(), nullptr, *h.gateway, nullptr,
                [] { return std::string(); });
    port = api->start().value();
    EXPECT_TRUE(h.wait_ready());
  }
  ~Service() {
    api->stop();
    EXPECT_TRUE(h.get(api->drained(10s)));
    h.shut_down();
  }
  HttpAnswer post(const std::string& fields) {
    return Client(port).post("/v1/completions",
                             R"({"model":"m","prompt":"Once upon a time")" + fields + "}");
  }

  GatewayHarness h;
  ScriptedCell cell;
  std::optional<ApiServer> api;
  std::uint16_t port = 0;
};

GatewayConfig impatient() {
  GatewayConfig config;
  config.queue_timeout = 50ms;
  config.cell_queue_depth = 0;
  return config;
}

TEST(ApiOverGateway, AWaitThatIsTooLongIsOverloadWithRetryAfter) {
  for (const bool as_429 : {false, true}) {
    Service service(impatient(), as_429);
    auto running = service.h.submit(GatewayHarness::request({1}));
    ASSERT_TRUE(service.cell.wait_submitted(1));
    const HttpAnswer answer = service.post("");
    EXPECT_EQ(answer.result_int(), as_429 ? 429U : 503U) << answer.body();
    const Json error = Json::parse(answer.body()).at("error");
    EXPECT_EQ(error.at("code"), "server_is_overloaded");
    EXPECT_EQ(error.at("param"), "gateway.queue_timeout");
    EXPECT_NE(error.at("message").get<std::string>().find("50 ms"), std::string::npos);
    const std::string seconds(answer["Retry-After"]);
    ASSERT_FALSE(seconds.empty());
    EXPECT_GE(std::stoi(seconds), 1);
    EXPECT_LE(std::stoi(seconds), 60);
  }
}

// Its status is gone: an event with the same error.
TEST(ApiOverGateway, AStreamThatWaitedTooLongSaysSo) {
  Service service(impatient());
  auto running = service.h.submit(GatewayHarness::request({1}));
  ASSERT_TRUE(service.cell.wait_submitted(1));
  const HttpAnswer answer = service.post(R"(,"stream":true)");
  EXPECT_EQ(answer.result_int(), 200U);
  EXPECT_NE(answer.body().find("server_is_overloaded"), std::string::npos) << answer.body();
  EXPECT_EQ(answer.body().find("[DONE]"), std::string::npos);
}

// After its first token, in words of the cell.
void end_after_a_token(ScriptedCell& cell, FinishReason finish, std::string why) {
  ASSERT_TRUE(cell.wait_submitted(1));
  const SequenceRequest r = cell.submitted()[0];
  cell.endpoint->publish({cell.event(r, 0)});
  cell.endpoint->publish(
      {{.id = r.id, .has_token = false, .finish = finish, .error = std::move(why)}});
}

TEST(ApiOverGateway, AnErrorOfTheCellIsTheAnswersError) {
  Service service;
  std::thread ending(
      [&] { end_after_a_token(service.cell, FinishReason::kError, "not finite logits"); });
  const HttpAnswer answer = service.post("");
  ending.join();
  EXPECT_EQ(answer.result_int(), 500U) << answer.body();
  EXPECT_NE(answer.body().find("not finite logits"), std::string::npos) << answer.body();
}

TEST(ApiOverGateway, OfACellThatGaveTheAnswerUpNothingIsSeen) {
  Service service;
  std::thread ending([&] {
    end_after_a_token(service.cell, FinishReason::kCancelled, "the cell is ending");
    ASSERT_TRUE(service.cell.wait_submitted(2));
    const SequenceRequest r = service.cell.submitted()[1];
    std::vector<TokenEvent> rest;
    for (std::uint32_t i = 1; i < r.max_new_tokens; ++i) {
      const bool last = i + 1 == r.max_new_tokens;
      rest.push_back(service.cell.event(r, i, last ? FinishReason::kLength : FinishReason::kNone));
    }
    service.cell.endpoint->publish(std::move(rest));
  });
  const HttpAnswer answer = service.post(R"(,"max_tokens":6)");
  ending.join();
  ASSERT_EQ(answer.result_int(), 200U) << answer.body();
  const Json body = Json::parse(answer.body());
  EXPECT_EQ(body["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(body["usage"]["completion_tokens"], 6);
}

TEST(ApiOverGateway, APromptOfTheWholeContextIsScored) {
  Service service;
  std::string ids = "1";
  for (int i = 1; i < 4096; ++i) ids += ",1";
  std::thread scoring([&] {
    ASSERT_TRUE(service.cell.wait_submitted(1));
    const SequenceRequest r = service.cell.submitted()[0];
    service.cell.endpoint->publish(
        PromptLogprobsEvent{r.id, std::vector<TokenLogprob>(4095, {1, -1}),
                            std::vector<std::vector<TokenLogprob>>(4095, {{1, -1}})});
    service.cell.endpoint->publish(
        {{.id = r.id, .has_token = false, .finish = FinishReason::kLength}});
  });
  const HttpAnswer answer =
      Client(service.port)
          .post("/v1/completions",
                R"({"model":"m","max_tokens":0,"echo":true,"logprobs":1,"prompt":[)" + ids + "]}");
  scoring.join();
  ASSERT_EQ(answer.result_int(), 200U) << answer.body();
  const Json body = Json::parse(answer.body());
  EXPECT_EQ(body["choices"][0]["logprobs"]["token_logprobs"].size(), 4096U);
  EXPECT_EQ(body["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(body["usage"]["completion_tokens"], 0);
  EXPECT_TRUE(eventually([&] { return service.h.stats().finished_ok == 1; })) << "not cancelled";
}

}  // namespace
}  // namespace millrace::net
