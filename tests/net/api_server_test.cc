// The API over real sockets, with a scripted engine and the small tokenizer of tests/golden/text.
#include "net/api_server.h"

#include <gtest/gtest.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_future.hpp>

#include "http_test_client.h"
#include "net/openai_types.h"
#include "scripted_engine.h"

namespace millrace::net {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;
using testing::Client;
using testing::IoThread;
using testing::wait_until;

constexpr const char* kTemplate =
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if tools %}Tools: {{ tools | tojson }}\n{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

struct Observed : ApiObserver {
  std::mutex mutex;
  int accepted_count = 0, gaps = 0, firsts = 0;
  std::vector<std::string> rejections;
  std::vector<RequestOutcome> outcomes;
  std::string last_route;

  void accepted(const RequestStart&) override {
    const std::lock_guard lock(mutex);
    ++accepted_count;
  }
  void rejected(std::string_view, unsigned status, std::string_view reason) override {
    const std::lock_guard lock(mutex);
    rejections.push_back(std::to_string(status) + " " + std::string(reason));
  }
  void first_token(double) override {
    const std::lock_guard lock(mutex);
    ++firsts;
  }
  void token_gap(double) override {
    const std::lock_guard lock(mutex);
    ++gaps;
  }
  void finished(const RequestOutcome& outcome) override {
    const std::lock_guard lock(mutex);
    last_route = outcome.start.route;
    outcomes.push_back(outcome);
    outcomes.back().start.route = {};
    outcomes.back().start.request_id = {};
  }
};

class ApiTest : public ::testing::Test {
 protected:
  static const text::Tokenizer& tokenizer() {
    static const text::Tokenizer loaded =
        text::Tokenizer::load(MILLRACE_SOURCE_DIR "/tests/golden/text").value();
    return loaded;
  }
  static const text::ChatTemplate& chat_template() {
    static const text::ChatTemplate loaded =
        text::ChatTemplate::load(kTemplate, "<|startoftext|>", "<|im_end|>").value();
    return loaded;
  }
  static std::vector<std::int32_t> ids(const std::string& text) {
    return tokenizer().encode(text).value();
  }

  ~ApiTest() override { stop(); }

  static ApiConfig config() {
    ApiConfig config;
    config.http.port = 0;
    config.model_names = {"lfm2", "org/alias"};
    config.eos_token_ids = {7};
    config.system_fingerprint = "fp_test";
    return config;
  }

  void start(ApiConfig c = config(), int threads = 1) {
    if (engine_.script.choices.empty()) engine_.script.choices = {ids(kAnswer)};
    io_.emplace(threads);
    server_.emplace(io_->io().get_executor(), std::move(c), tokenizer(), &chat_template(), engine_,
                    &observed_, [] {
                      return std::string(
                          "# HELP a_total x\n# TYPE a_total counter\na_total{m=\"1\"} 1\n"
                          "# TYPE b histogram\nb_bucket{le=\"1\"} 1\nb_sum 2\nb_count 1\nc 5\n");
                    });
    auto port = server_->start();
    ASSERT_TRUE(port.has_value()) << port.error().to_string();
    port_ = *port;
  }

  void stop() {
    if (!server_) return;
    server_->stop();
    EXPECT_TRUE(drained(milliseconds(5000)));
    io_->join();
    server_.reset();
    EXPECT_EQ(engine_.live, 0);
  }

  bool drained(milliseconds limit) {
    return asio::co_spawn(io_->io(), server_->drained(limit), asio::use_future).get();
  }

  static std::string chat(const std::string& fields = {}) {
    return R"({"model":"lfm2","messages":[{"role":"user","content":"Hi there"}])" +
           (fields.empty() ? "" : "," + fields) + "}";
  }
  static std::string completion(const std::string& fields = {}) {
    return R"({"model":"lfm2","prompt":"Once upon a time","max_tokens":500)" +
           (fields.empty() ? "" : "," + fields) + "}";
  }

  Json post(const std::string& path, const std::string& body, unsigned status = 200) {
    Client client(port_);
    const auto answer = client.post(path, body);
    EXPECT_EQ(answer.result_int(), status) << answer.body();
    EXPECT_EQ(answer["Content-Type"], "application/json");
    return Json::parse(answer.body());
  }

  // The events of a whole streamed answer, comments left out; "[DONE]" stays as a string.
  std::vector<Json> stream(const std::string& path, const std::string& body) {
    Client client(port_);
    const auto answer = client.post(path, body);
    EXPECT_EQ(answer.result_int(), 200U) << answer.body();
    EXPECT_TRUE(answer["Content-Type"].starts_with("text/event-stream"));
    EXPECT_EQ(answer["X-Accel-Buffering"], "no");
    return events(answer.body());
  }

  static std::vector<Json> events(std::string_view text) {
    std::vector<Json> out;
    while (!text.empty()) {
      const std::size_t end = text.find("\n\n");
      EXPECT_NE(end, std::string_view::npos);
      const std::string_view event = text.substr(0, end);
      text.remove_prefix(end + 2);
      if (event.starts_with(':')) continue;
      EXPECT_TRUE(event.starts_with("data: ")) << event;
      const std::string_view data = event.substr(6);
      out.push_back(data == "[DONE]" ? Json("[DONE]") : Json::parse(data));
    }
    return out;
  }

  // Puts the chunks of a stream together into what the whole answer would say.
  static std::vector<Json> assemble(const std::vector<Json>& chunks, bool chat_route) {
    std::vector<Json> choices;
    for (const Json& chunk : chunks) {
      if (chunk.is_string()) continue;
      for (const Json& part : chunk.at("choices")) {
        const auto index = part.at("index").get<std::size_t>();
        while (choices.size() <= index) {
          choices.push_back({{"text", ""},
                             {"finish", nullptr},
                             {"logprobs", Json::array()},
                             {"ids", Json::array()},
                             {"stop_reason", nullptr}});
        }
        Json& choice = choices[index];
        EXPECT_TRUE(choice["finish"].is_null()) << "a chunk after the end: " << chunk.dump();
        std::string text;
        if (chat_route) {
          text = part.at("delta").value("content", "");
        } else {
          text = part.at("text").get<std::string>();
        }
        choice["text"] = choice["text"].get<std::string>() + text;
        choice["finish"] = part.at("finish_reason");
        if (part.contains("stop_reason")) choice["stop_reason"] = part["stop_reason"];
        if (part.contains("token_ids")) {
          for (const Json& id : part["token_ids"]) choice["ids"].push_back(id);
        }
        collect_logprobs(part.at("logprobs"), choice["logprobs"]);
      }
    }
    return choices;
  }

  static void collect_logprobs(const Json& logprobs, Json& out) {
    if (logprobs.is_null()) return;
    if (logprobs.contains("content")) {
      for (const Json& entry : logprobs["content"]) out.push_back(entry);
      return;
    }
    for (std::size_t i = 0; i < logprobs.at("tokens").size(); ++i) {
      out.push_back({logprobs["text_offset"][i], logprobs["token_logprobs"][i],
                     logprobs["tokens"][i], logprobs["top_logprobs"][i]});
    }
  }

  // The same of a whole answer.
  static std::vector<Json> flatten(const Json& body, bool chat_route) {
    std::vector<Json> choices;
    for (const Json& part : body.at("choices")) {
      Json choice = {{"text", chat_route ? part.at("message").at("content") : part.at("text")},
                     {"finish", part.at("finish_reason")},
                     {"logprobs", Json::array()},
                     {"ids", part.contains("token_ids") ? part["token_ids"] : Json::array()},
                     {"stop_reason", part.contains("stop_reason") ? part["stop_reason"] : Json()}};
      collect_logprobs(part.at("logprobs"), choice["logprobs"]);
      choices.push_back(std::move(choice));
    }
    return choices;
  }

  static constexpr const char* kAnswer =
      "Hello there! \xC3\xA9t\xC3\xA9 \xF0\x9F\x98\x80\xF0\x9F\x91\x8D, \xE4\xBD\xA0\xE5\xA5\xBD. "
      "This is a longer answer,\nwith lines.";

  testing::ScriptedEngine engine_;
  Observed observed_;
  std::optional<IoThread> io_;
  std::optional<ApiServer> server_;
  std::uint16_t port_ = 0;
};

TEST_F(ApiTest, WholeChat) {
  engine_.script.cached = 3;
  start();
  const Json body = post("/v1/chat/completions", chat("\"seed\":5,\"temperature\":0.5"));
  EXPECT_TRUE(body["id"].get<std::string>().starts_with("chatcmpl-"));
  EXPECT_EQ(body["object"], "chat.completion");
  EXPECT_EQ(body["model"], "lfm2");
  EXPECT_EQ(body["system_fingerprint"], "fp_test");
  EXPECT_NEAR(body["created"].get<double>(), static_cast<double>(std::time(nullptr)), 5);
  ASSERT_EQ(body["choices"].size(), 1U);
  const Json& choice = body["choices"][0];
  EXPECT_EQ(choice["index"], 0);
  EXPECT_EQ(choice["message"]["role"], "assistant");
  EXPECT_EQ(choice["message"]["content"], kAnswer);
  EXPECT_TRUE(choice["logprobs"].is_null());
  EXPECT_EQ(choice["finish_reason"], "stop");
  const auto prompt =
      ids("<|startoftext|><|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n");
  const std::size_t generated = ids(kAnswer).size() + 1;
  EXPECT_EQ(body["usage"]["prompt_tokens"], prompt.size());
  EXPECT_EQ(body["usage"]["completion_tokens"], generated);
  EXPECT_EQ(body["usage"]["total_tokens"], prompt.size() + generated);
  EXPECT_EQ(body["usage"]["prompt_tokens_details"]["cached_tokens"], 3);

  ASSERT_EQ(engine_.requests.size(), 1U);
  const GenerateRequest& asked = engine_.requests[0];
  EXPECT_EQ(asked.prompt, prompt);
  EXPECT_EQ(asked.sampling.seed, 5U);
  EXPECT_EQ(asked.sampling.temperature, 0.5F);
  EXPECT_EQ(asked.max_new_tokens, 2000 - prompt.size());  // the rest of the context
  EXPECT_EQ(asked.stop_token_ids, std::vector<std::int32_t>{7});
}

TEST_F(ApiTest, StreamedChatShape) {
  start();
  const auto chunks = stream("/v1/chat/completions",
                             chat(R"("stream":true,"stream_options":{"include_usage":true})"));
  ASSERT_GE(chunks.size(), 5U);
  EXPECT_EQ(chunks.back(), "[DONE]");
  EXPECT_EQ(chunks[0]["object"], "chat.completion.chunk");
  EXPECT_EQ(chunks[0]["choices"][0]["delta"], Json::parse(R"({"role":"assistant","content":""})"));
  for (std::size_t i = 0; i + 2 < chunks.size(); ++i) {
    EXPECT_TRUE(chunks[i].contains("usage") && chunks[i]["usage"].is_null());
    EXPECT_EQ(chunks[i]["id"], chunks[0]["id"]);
    EXPECT_EQ(chunks[i]["created"], chunks[0]["created"]);
    const bool last = i + 3 == chunks.size();
    EXPECT_EQ(chunks[i]["choices"][0]["finish_reason"], last ? Json("stop") : Json(nullptr));
  }
  EXPECT_EQ(chunks[chunks.size() - 3]["choices"][0]["delta"], Json::object());
  const Json& usage = chunks[chunks.size() - 2];
  EXPECT_EQ(usage["choices"], Json::array());
  EXPECT_EQ(usage["usage"]["completion_tokens"], ids(kAnswer).size() + 1);
  // Without the option there is no usage at all.
  for (const Json& chunk : stream("/v1/chat/completions", chat("\"stream\":true"))) {
    EXPECT_FALSE(chunk.contains("usage"));
  }
  // With continuous_usage_stats every chunk has it, and it grows to the total.
  std::uint64_t seen = 0;
  for (
      const Json& chunk : stream(
          "/v1/completions",
          completion(
              R"("stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true})"))) {
    if (chunk.is_string()) continue;
    ASSERT_GE(chunk["usage"]["completion_tokens"].get<std::uint64_t>(), seen);
    seen = chunk["usage"]["completion_tokens"];
  }
  EXPECT_EQ(seen, ids(kAnswer).size() + 1);
}

// Every combination of what shapes an answer says the same streamed and whole.
TEST_F(ApiTest, StreamEqualsWhole) {
  engine_.script.choices = {ids(kAnswer), ids("Second answer. longer x"), ids("\xF0\x9F\x98\x80")};
  start();
  const char* variants[] = {
      R"("n":1)",
      R"("n":3)",
      R"("stop":["longer"])",
      R"("n":3,"stop":["longer","lo","\u4f60\u597d"])",
      R"("n":2,"stop":"an","include_stop_str_in_output":true)",
      R"("stop":["zzz","lines.never"])",
      R"("skip_special_tokens":false,"include_stop_str_in_output":true)",
      R"("stop":["e"],"min_tokens":10)",
      R"("stop_token_ids":[7])",
      R"("max_tokens":3,"n":2)",
      R"("max_tokens":1)",
  };
  int compared = 0;
  for (const bool is_chat : {false, true}) {
    const std::string path = is_chat ? "/v1/chat/completions" : "/v1/completions";
    for (const char* variant : variants) {
      for (const char* logprobs :
           {"", R"(,"logprobs":0)", R"(,"logprobs":2)", R"(,"logprobs":2,"echo":true)"}) {
        for (const FinishReason finish : {FinishReason::kStop, FinishReason::kLength}) {
          std::string fields = std::string(variant) + logprobs + ",\"return_token_ids\":true";
          if (is_chat && fields.find("echo") != std::string::npos) continue;
          if (is_chat && logprobs[0] != 0) {
            fields = std::string(variant) +
                     ",\"logprobs\":true,\"top_logprobs\":" + std::string(1, logprobs[12]) +
                     ",\"return_token_ids\":true";
          }
          SCOPED_TRACE(path + " " + fields);
          {
            const std::lock_guard lock(engine_.mutex);
            engine_.script.finish = finish;
          }
          const std::string base = is_chat ? chat(fields) : [&] {
            return R"({"model":"lfm2","prompt":"Once upon a time",)" + fields +
                   (fields.find("max_tokens") == std::string::npos ? ",\"max_tokens\":500}" : "}");
          }();
          const std::string streamed = base.substr(0, base.size() - 1) + ",\"stream\":true}";
          const auto whole = flatten(post(path, base), is_chat);
          const auto parts = assemble(stream(path, streamed), is_chat);
          EXPECT_EQ(whole, parts);
          EXPECT_TRUE(whole.at(0)["finish"].is_string());
          ++compared;
        }
      }
    }
  }
  EXPECT_EQ(compared, 11 * (4 + 3) * 2);
}

TEST_F(ApiTest, StopStringCancelsTheEngine) {
  engine_.script.endless = true;
  engine_.script.choices = {ids("one two three END four ")};
  start();
  const Json body = post("/v1/completions", completion(R"("stop":["END"],"n":2)"));
  for (const Json& choice : body["choices"]) {
    EXPECT_EQ(choice["text"], "one two three ");
    EXPECT_EQ(choice["finish_reason"], "stop");
    EXPECT_EQ(choice["stop_reason"], "END");
  }
  EXPECT_EQ(engine_.cancels, 2);
  EXPECT_EQ(engine_.live, 0);
}

TEST_F(ApiTest, SeveralPromptsAndChoices) {
  engine_.script.choices = {ids("first"), ids("second")};
  engine_.script.gap = std::chrono::microseconds(200);
  start();
  const std::string fields =
      R"({"model":"org/alias","prompt":["a","b c","d"],"n":2,"return_token_ids":true,"max_tokens":9)";
  const Json body = post("/v1/completions", fields + "}");
  ASSERT_EQ(body["choices"].size(), 6U);
  EXPECT_EQ(body["model"], "org/alias");
  std::uint64_t prompt_tokens = 0;
  const char* prompts[] = {"a", "b c", "d"};
  for (int i = 0; i < 6; ++i) {
    const Json& choice = body["choices"][i];
    EXPECT_EQ(choice["index"], i);
    EXPECT_EQ(choice["text"], i % 2 == 0 ? "first" : "second");
    auto prompt = ids(prompts[i / 2]);
    prompt.insert(prompt.begin(), 1);  // BOS, as this tokenizer says below
    if (!tokenizer().adds_bos()) prompt.erase(prompt.begin());
    EXPECT_EQ(choice["prompt_token_ids"], prompt);
    if (i % 2 == 0) prompt_tokens += prompt.size();
  }
  EXPECT_EQ(body["usage"]["prompt_tokens"], prompt_tokens);
  const auto parts = assemble(stream("/v1/completions", fields + ",\"stream\":true}"), false);
  EXPECT_EQ(flatten(body, false), parts);
}

TEST_F(ApiTest, Echo) {
  engine_.script.choices = {ids(" answer")};
  start();
  Json body = post("/v1/completions", completion(R"("echo":true,"logprobs":1)"));
  const Json& choice = body["choices"][0];
  EXPECT_EQ(choice["text"], "Once upon a time answer");
  const auto prompt = tokenizer().encode("Once upon a time", {.add_special = true}).value();
  const Json& logprobs = choice["logprobs"];
  ASSERT_EQ(logprobs["tokens"].size(), prompt.size() + ids(" answer").size());
  EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
  EXPECT_EQ(logprobs["token_logprobs"][1], -0.5);
  EXPECT_EQ(logprobs["token_logprobs"][prompt.size()], -0.25);  // the answer's first
  // The offsets are places in the text.
  for (std::size_t i = tokenizer().adds_bos() ? 1 : 0; i < logprobs["tokens"].size(); ++i) {
    const std::string token = logprobs["tokens"][i];
    EXPECT_EQ(choice["text"].get<std::string>().substr(logprobs["text_offset"][i], token.size()),
              token);
  }
  // Only the prompt: no token is asked for.
  body = post(
      "/v1/completions",
      R"({"model":"lfm2","prompt":"Once upon a time","max_tokens":0,"echo":true,"logprobs":1})");
  EXPECT_EQ(body["choices"][0]["text"], "Once upon a time");
  EXPECT_EQ(body["choices"][0]["logprobs"]["tokens"].size(), prompt.size());
  EXPECT_EQ(body["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(body["usage"]["completion_tokens"], 0);
  EXPECT_EQ(engine_.requests.size(), 2U);
  EXPECT_EQ(engine_.requests.back().max_new_tokens, 0U);
  EXPECT_EQ(engine_.cancels, 0) << "it ends by itself";
  body = post("/v1/completions",
              R"({"model":"lfm2","prompt":"Once upon a time","max_tokens":0,"echo":true})");
  EXPECT_EQ(body["choices"][0]["text"], "Once upon a time");
  EXPECT_EQ(engine_.requests.size(), 2U);  // not asked at all
}

TEST_F(ApiTest, PromptLogprobs) {
  start();
  const Json body = post("/v1/chat/completions", chat(R"("prompt_logprobs":1)"));
  const auto& asked = engine_.requests.at(0);
  EXPECT_TRUE(asked.sampling.prompt_logprobs);
  ASSERT_EQ(body["prompt_logprobs"].size(), asked.prompt.size());
  EXPECT_TRUE(body["prompt_logprobs"][0].is_null());
  EXPECT_EQ(body["prompt_logprobs"][2][std::to_string(asked.prompt[2])]["logprob"], -1.0);
  EXPECT_EQ(body["prompt_logprobs"][2][std::to_string(asked.prompt[2])]["rank"], 1);
  EXPECT_TRUE(body["choices"][0]["logprobs"].is_null());
}

TEST_F(ApiTest, Refusals) {
  ApiConfig c = config();
  c.limits.max_context = 50;
  start(c);
  const auto code = [&](const std::string& path, const std::string& body, unsigned status) {
    const Json error = post(path, body, status)["error"];
    EXPECT_EQ(error.size(), 4U);
    return error["type"].get<std::string>() + " " + error["param"].dump() + " " +
           error["code"].get<std::string>();
  };
  EXPECT_EQ(code("/v1/completions", "{\"a\"", 400), "invalid_request_error null invalid_json");
  EXPECT_EQ(code("/v1/completions", "[]", 400), "invalid_request_error null invalid_json");
  EXPECT_EQ(code("/v1/completions", R"({"model":"gpt","prompt":"x"})", 404),
            "not_found_error \"model\" model_not_found");
  std::string words;
  for (int i = 0; i < 60; ++i) words += "word " + std::to_string(i) + " ";
  EXPECT_EQ(code("/v1/completions", R"({"model":"lfm2","prompt":")" + words + "\"}", 400),
            "invalid_request_error \"prompt\" context_length_exceeded");
  EXPECT_EQ(code("/v1/completions",
                 R"({"model":"lfm2","prompt":")" + std::string(1 << 20, 'x') + "\"}", 400),
            "invalid_request_error \"prompt\" context_length_exceeded");
  EXPECT_EQ(code("/v1/completions", R"({"model":"lfm2","prompt":"x","max_tokens":50})", 400),
            "invalid_request_error \"max_tokens\" context_length_exceeded");
  EXPECT_EQ(code("/v1/completions",
                 R"({"model":"lfm2","prompt":"x","max_tokens":9223372036854775807})", 400),
            "invalid_request_error \"max_tokens\" context_length_exceeded");
  EXPECT_EQ(
      code("/v1/chat/completions",
           R"({"model":"lfm2","messages":[{"role":"user","content":")" + words + "\"}]}", 400),
      "invalid_request_error \"messages\" context_length_exceeded");
  EXPECT_EQ(
      code("/v1/completions", R"({"model":"lfm2","prompt":"","add_special_tokens":false})", 400),
      "invalid_request_error \"prompt\" invalid_value");
  EXPECT_TRUE(engine_.requests.empty());
  // A prompt that leaves less than the default length gets what is left.
  post(
      "/v1/completions", R"({"model":"lfm2","prompt":[)" + [] {
        std::string list = "5";
        for (int i = 1; i < 47; ++i) list += ",5";
        return list;
      }() + "]}");
  EXPECT_EQ(engine_.requests.at(0).max_new_tokens, 3U);
  Client client(port_);
  auto answer = client.post("/v1/completions", "x=1", "Content-Type: text/plain\r\n");
  (void)answer;
  Client plain(port_);
  plain.send(
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: "
      "1\r\n\r\nx");
  answer = plain.read();
  EXPECT_EQ(answer.result_int(), 415U);
  EXPECT_EQ(Json::parse(answer.body())["error"]["code"], "unsupported_media_type");
  Client unknown(port_);
  answer = unknown.get("/v1/nothing");
  EXPECT_EQ(answer.result_int(), 404U);
  EXPECT_EQ(Json::parse(answer.body())["error"]["type"], "not_found_error");
  EXPECT_EQ(observed_.accepted_count, 1);
  EXPECT_GE(observed_.rejections.size(), 11U);
}

TEST_F(ApiTest, Overload) {
  engine_.refuse = Error{ErrorCode::kResourceExhausted, "", "the queue is full"};
  start();
  Client client(port_);
  auto answer = client.post("/v1/chat/completions", chat("\"stream\":true"));
  EXPECT_EQ(answer.result_int(), 503U);
  EXPECT_EQ(answer["Retry-After"], "7");
  EXPECT_EQ(Json::parse(answer.body()).dump(),
            R"({"error":{"message":"the queue is full","type":"service_unavailable_error",)"
            R"("param":null,"code":"server_is_overloaded"}})");
  EXPECT_EQ(observed_.rejections.back(), "503 server_is_overloaded");
  stop();
  ApiConfig c = config();
  c.overload_as_429 = true;
  start(c);
  Client again(port_);
  EXPECT_EQ(again.post("/v1/chat/completions", chat()).result_int(), 429U);
  // A refusal of one prompt gives back those already admitted.
  {
    const std::lock_guard lock(engine_.mutex);
    engine_.refuse.reset();
  }
  engine_.refuse_after = 2;
  EXPECT_EQ(
      again.post("/v1/completions", R"({"model":"lfm2","prompt":["a","b","c"]})").result_int(),
      429U);
  EXPECT_EQ(engine_.live, 0);
}

TEST_F(ApiTest, EngineFailures) {
  engine_.script.choice_error_after = 3;
  start();
  const Json error = post("/v1/completions", completion(), 500)["error"];
  EXPECT_EQ(error["type"], "server_error");
  EXPECT_EQ(error["message"], "the cell gave up");
  EXPECT_EQ(observed_.outcomes.back().end, RequestEnd::kFailed);
  EXPECT_FALSE(observed_.outcomes.back().began);
  EXPECT_EQ(observed_.rejections, std::vector<std::string>{"500 internal_error"});
  // After the first byte: one event with the error, and no [DONE].
  auto chunks = stream("/v1/completions", completion(R"("stream":true,"n":2)"));
  EXPECT_EQ(chunks.back()["error"]["message"], "the cell gave up");
  EXPECT_EQ(std::count(chunks.begin(), chunks.end(), Json("[DONE]")), 0);
  EXPECT_EQ(observed_.outcomes.back().end, RequestEnd::kFailed);
  EXPECT_TRUE(observed_.outcomes.back().began);
  EXPECT_EQ(observed_.rejections.size(), 1U) << "its status was 200";
  {
    const std::lock_guard lock(engine_.mutex);
    engine_.script.choice_error_after = SIZE_MAX;
    engine_.script.fail_after = 2;
  }
  chunks = stream("/v1/chat/completions", chat("\"stream\":true"));
  EXPECT_EQ(chunks.back()["error"]["code"], "server_is_overloaded");
  EXPECT_EQ(observed_.outcomes.back().end, RequestEnd::kFailed);
  {
    const std::lock_guard lock(engine_.mutex);
    engine_.script.fail_after = SIZE_MAX;
  }
  post("/v1/completions", completion());  // and the server goes on
}

TEST_F(ApiTest, DisconnectCancels) {
  engine_.script.endless = true;
  engine_.script.gap = std::chrono::milliseconds(300);  // the client leaves between two tokens
  start();
  for (const std::string& body :
       {chat("\"stream\":true,\"n\":3"), chat("\"n\":3"),
        std::string(R"({"model":"lfm2","prompt":["a","b"],"stream":true,"max_tokens":900})")}) {
    const std::string path =
        body.find("prompt") == std::string::npos ? "/v1/chat/completions" : "/v1/completions";
    const int cancels = engine_.cancels;
    Client client(port_);
    client.send(Client::post_text(path, body));
    ASSERT_TRUE(wait_until([&] { return engine_.live >= 1; }));
    std::this_thread::sleep_for(milliseconds(30));
    const auto begun = std::chrono::steady_clock::now();
    client.close();
    ASSERT_TRUE(wait_until([&] { return engine_.live == 0; }));
    EXPECT_LT(std::chrono::steady_clock::now() - begun, milliseconds(150));
    EXPECT_GE(engine_.cancels - cancels, 2);
  }
  EXPECT_TRUE(wait_until([&] {
    const std::lock_guard lock(observed_.mutex);
    return observed_.outcomes.size() == 3;
  }));
  for (const auto& outcome : observed_.outcomes) EXPECT_EQ(outcome.end, RequestEnd::kClientGone);
}

TEST_F(ApiTest, SlowClientIsCutOffAndItsRequestCancelled) {
  engine_.script.endless = true;
  engine_.script.choices = {ids(std::string(2000, 'x'))};
  engine_.engine_status.max_context = 100'000'000;
  ApiConfig c = config();
  c.http.limits.write_timeout = milliseconds(200);
  start(c);
  Client client(port_, 4096);
  client.send(Client::post_text("/v1/chat/completions", chat("\"stream\":true")));
  ASSERT_TRUE(wait_until([&] { return engine_.live == 1; }));
  EXPECT_TRUE(wait_until([&] { return engine_.live == 0; }, milliseconds(8000)));
  EXPECT_EQ(engine_.cancels, 1);
}

TEST_F(ApiTest, SilentStreamIsKeptAlive) {
  engine_.script.gap = std::chrono::milliseconds(120);
  engine_.script.choices = {ids("x")};
  ApiConfig c = config();
  c.keep_alive = milliseconds(25);
  start(c);
  Client client(port_);
  const auto answer = client.post("/v1/chat/completions", chat("\"stream\":true"));
  std::size_t comments = 0;
  for (std::size_t at = 0; (at = answer.body().find(": keep-alive\n\n", at)) != std::string::npos;
       ++at) {
    ++comments;
  }
  EXPECT_GE(comments, 3U);
  EXPECT_EQ(assemble(events(answer.body()), true).at(0)["text"], "x");
}

TEST_F(ApiTest, HundredStreamsAtOnce) {
  engine_.script.gap = std::chrono::milliseconds(3);
  start();
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 100; ++i) {
    clients.push_back(std::make_unique<Client>(port_));
    clients.back()->send(Client::post_text("/v1/chat/completions", chat("\"stream\":true")));
  }
  for (auto& client : clients) {
    EXPECT_EQ(assemble(events(client->read().body()), true).at(0)["text"], kAnswer);
  }
  EXPECT_GE(engine_.max_live, 50);
  EXPECT_EQ(observed_.firsts, 100);
  EXPECT_EQ(observed_.gaps, 100 * static_cast<int>(ids(kAnswer).size()));
}

TEST_F(ApiTest, LargeBodiesArePreparedAside) {
  ApiConfig c = config();
  c.offload_body_bytes = 100;
  engine_.engine_status.max_context = 1'000'000;
  start(c);
  std::vector<std::thread> threads;
  std::atomic<int> right{0};
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      Client client(port_);
      std::string words;
      for (int i = 0; i < 2000; ++i) words += "word ";
      for (int i = 0; i < 5; ++i) {
        const auto answer = client.post(
            "/v1/chat/completions",
            R"({"model":"lfm2","messages":[{"role":"user","content":")" + words + "\"}]}");
        if (Json::parse(answer.body())["choices"][0]["message"]["content"] == kAnswer) ++right;
        const auto counted = client.post("/tokenize", R"({"prompt":")" + words + "\"}");
        if (Json::parse(counted.body())["count"] > 2000) ++right;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(right, 80);
}

TEST_F(ApiTest, KeepAliveAfterAStreamAndPipelining) {
  start();
  Client client(port_);
  client.send(Client::post_text("/v1/chat/completions", chat("\"stream\":true")) +
              Client::post_text("/v1/completions", completion()) +
              Client::post_text("/v1/completions", "{bad") +
              Client::post_text("/v1/chat/completions", chat()));
  EXPECT_EQ(assemble(events(client.read().body()), true).at(0)["text"], kAnswer);
  EXPECT_EQ(Json::parse(client.read().body())["choices"][0]["text"], kAnswer);
  EXPECT_EQ(client.read().result_int(), 400U);
  EXPECT_EQ(Json::parse(client.read().body())["choices"][0]["message"]["content"], kAnswer);
}

TEST_F(ApiTest, OtherRoutes) {
  start();
  Client client(port_);
  Json models = Json::parse(client.get("/v1/models").body());
  ASSERT_EQ(models["data"].size(), 2U);
  EXPECT_EQ(models["data"][0]["id"], "lfm2");
  EXPECT_EQ(models["data"][0]["max_model_len"], 2000);
  EXPECT_EQ(models["data"][0]["vocab_size"], tokenizer().vocab_size());
  EXPECT_EQ(Json::parse(client.get("/v1/models/org/alias").body())["id"], "org/alias");
  EXPECT_EQ(Json::parse(client.get("/v1/models/org%2Falias").body())["id"], "org/alias");
  EXPECT_EQ(client.get("/v1/models/none").result_int(), 404U);
  EXPECT_EQ(Json::parse(client.get("/version").body())["version"], std::string(kVersion));

  const Json tokens = post("/tokenize", R"({"prompt":"Hi there","return_token_strs":true})");
  const auto expected = tokenizer().encode("Hi there", {.add_special = true}).value();
  EXPECT_EQ(tokens["tokens"], expected);
  EXPECT_EQ(tokens["count"], expected.size());
  EXPECT_EQ(tokens["max_model_len"], 2000);
  EXPECT_EQ(tokens["token_strs"].size(), expected.size());
  EXPECT_EQ(post("/tokenize", R"({"messages":[{"role":"user","content":"Hi there"}]})")["tokens"],
            ids("<|startoftext|><|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n"));
  EXPECT_EQ(post("/detokenize",
                 Json({{"tokens", ids("a \xF0\x9F\x98\x80 <|im_end|>")}}).dump())["prompt"],
            "a \xF0\x9F\x98\x80 <|im_end|>");
  post("/tokenize", R"({"prompt":"x","model":"other"})", 404);

  EXPECT_TRUE(client.get("/metrics").body().ends_with("b_sum 2\nb_count 1\nc 5\n"));
  EXPECT_EQ(client.get("/metrics?name[]=b_sum").body(),
            "# TYPE b histogram\nb_bucket{le=\"1\"} 1\nb_sum 2\nb_count 1\n");
  EXPECT_EQ(client.get("/metrics?name%5B%5D=a_total&name[]=c").body(),
            "# HELP a_total x\n# TYPE a_total counter\na_total{m=\"1\"} 1\nc 5\n");
  EXPECT_EQ(client.get("/metrics?name[]=b_").body(), "");
}

TEST_F(ApiTest, HealthAndDrain) {
  start();
  Client client(port_);
  EXPECT_EQ(client.get("/health").result_int(), 200U);
  {
    const std::lock_guard lock(engine_.mutex);
    engine_.engine_status.ready = false;
    engine_.engine_status.reason = "no step for 12 s";
  }
  auto answer = client.get("/health/ready");
  EXPECT_EQ(answer.result_int(), 503U);
  EXPECT_EQ(Json::parse(answer.body())["reason"], "no step for 12 s");
  EXPECT_EQ(client.get("/health/live").result_int(), 200U);
  {
    const std::lock_guard lock(engine_.mutex);
    engine_.engine_status.ready = true;
    engine_.script.gap = milliseconds(5);
  }
  server_->announce_drain();
  answer = client.get("/health/ready");
  EXPECT_EQ(answer.result_int(), 503U);
  EXPECT_EQ(Json::parse(answer.body())["reason"], "draining");
  EXPECT_EQ(client.post("/v1/chat/completions", chat()).result_int(), 200U);  // still served

  Client busy(port_);
  busy.send(Client::post_text("/v1/chat/completions", chat("\"stream\":true")) +
            Client::post_text("/v1/chat/completions", chat()));
  ASSERT_TRUE(wait_until([&] { return engine_.live == 1; }));
  server_->begin_drain();
  EXPECT_TRUE(client.at_end());
  // What runs is finished in full.
  EXPECT_EQ(assemble(events(busy.read().body()), true).at(0)["text"], kAnswer);
  EXPECT_TRUE(drained(milliseconds(5000)));
}

TEST_F(ApiTest, ApiKeys) {
  ApiConfig c = config();
  c.api_keys = {"secret-one", "secret-two"};
  start(c);
  Client client(port_);
  const auto status = [&](const std::string& path, const std::string& headers) {
    return client.get(path, headers).result_int();
  };
  EXPECT_EQ(status("/v1/models", "Authorization: Bearer secret-one\r\n"), 200U);
  EXPECT_EQ(status("/v1/models", "authorization: bearer  secret-two\r\n"), 200U);
  EXPECT_EQ(status("/v1/models", "x-api-key: secret-two\r\n"), 200U);
  for (const char* wrong : {"", "Authorization: Bearer secret-on\r\n", "x-api-key: secret-onee\r\n",
                            "Authorization: Basic secret-one\r\n", "Authorization: Bearer \r\n",
                            "x-api-key:\r\n", "Authorization: secret-one\r\n"}) {
    EXPECT_EQ(status("/v1/models", wrong), 401U) << wrong;
    EXPECT_EQ(status("/version", wrong), 401U);
  }
  EXPECT_EQ(status("/health", ""), 200U);
  EXPECT_EQ(status("/health/live", ""), 200U);
  EXPECT_EQ(status("/metrics", ""), 200U);
  // Refused before the body is read, in OpenAI's form.
  client.send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n");
  const auto answer = client.read();
  EXPECT_EQ(answer.result_int(), 401U);
  EXPECT_EQ(answer["WWW-Authenticate"], "Bearer");
  EXPECT_EQ(Json::parse(answer.body())["error"]["type"], "authentication_error");
  stop();
  c.guard_metrics = true;
  start(c);
  Client guarded(port_);
  EXPECT_EQ(guarded.get("/metrics").result_int(), 401U);
  EXPECT_EQ(guarded.get("/metrics", "x-api-key: secret-one\r\n").result_int(), 200U);
}

TEST_F(ApiTest, ObserverSeesWhatHappened) {
  engine_.script.cached = 2;
  start();
  post("/v1/chat/completions", chat("\"n\":2"));
  ASSERT_EQ(observed_.outcomes.size(), 1U);
  const RequestOutcome& outcome = observed_.outcomes[0];
  EXPECT_EQ(observed_.last_route, "/v1/chat/completions");
  EXPECT_EQ(outcome.end, RequestEnd::kComplete);
  EXPECT_EQ(outcome.finish_reasons, (std::vector<std::string>{"stop", "stop"}));
  EXPECT_EQ(outcome.generated_tokens, 2 * (ids(kAnswer).size() + 1));
  EXPECT_EQ(outcome.cached_tokens, 2U);
  EXPECT_GE(outcome.first_token_seconds, 0);
  EXPECT_GE(outcome.seconds, outcome.first_token_seconds);
}

}  // namespace
}  // namespace millrace::net
