// The statistics against hand-computed values, the stream parser against cut and odd streams, and
// the whole run against a scripted server on loopback.
#include "cli/bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <climits>
#include <fstream>
#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <thread>

#include "cli/bench_load.h"
#include "cli/bench_prompts.h"
#include "cli/bench_stats.h"
#include "cli/bench_stream.h"

namespace millrace::cli {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using nlohmann::json;
using std::chrono::milliseconds;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(BenchStatsTest, PercentilesInterpolateLikeNumpy) {
  // numpy.percentile([1, 2, 4, 8, 16], [50, 90, 99]) = [4, 12.8, 15.68]
  const Spread s = spread_of({16, 1, 8, 2, 4});
  EXPECT_EQ(s.count, 5U);
  EXPECT_DOUBLE_EQ(s.mean, 6.2);
  EXPECT_DOUBLE_EQ(s.median, 4);
  EXPECT_DOUBLE_EQ(s.p90, 12.8);
  EXPECT_DOUBLE_EQ(s.p99, 15.68);
  EXPECT_DOUBLE_EQ(s.min, 1);
  EXPECT_DOUBLE_EQ(s.max, 16);
  EXPECT_DOUBLE_EQ(spread_of({7}).p99, 7);
  EXPECT_EQ(spread_of({}).count, 0U);
}

TEST(BenchStatsTest, FollowsTheDefinitions) {
  const BenchClock::time_point t0{};
  // Sent at 0, tokens at 100, 150, 250 ms (two tokens in the last chunk), end at 300 ms.
  RequestRecord a{.prompt_tokens = 10,
                  .output_tokens = 4,
                  .token_chunks = 3,
                  .sent = t0,
                  .first_token = t0 + milliseconds(100),
                  .last_token = t0 + milliseconds(250),
                  .end = t0 + milliseconds(300),
                  .gaps_ms = {50, 100}};
  // One token only: no TPOT, no gap.
  RequestRecord b{.prompt_tokens = 20,
                  .output_tokens = 1,
                  .token_chunks = 1,
                  .sent = t0 + milliseconds(200),
                  .first_token = t0 + milliseconds(500),
                  .last_token = t0 + milliseconds(500),
                  .end = t0 + milliseconds(1000)};
  RequestRecord failed{.failure = "http 503",
                       .detail = "full",
                       .output_tokens = 3,
                       .sent = t0 + milliseconds(300),
                       .end = t0 + milliseconds(2000)};
  const BenchSummary s = summarize({a, b, failed});
  EXPECT_EQ(s.completed, 2U);
  EXPECT_EQ(s.failed, 1U);
  EXPECT_EQ(s.failures.at("http 503"), 1U);
  EXPECT_EQ(s.failure_examples.at("http 503"), "full");
  EXPECT_DOUBLE_EQ(s.duration_s, 2.0) << "first send to last end, failures included";
  EXPECT_EQ(s.prompt_tokens, 30U);
  EXPECT_EQ(s.output_tokens, 5U) << "of successful requests only";
  EXPECT_DOUBLE_EQ(s.requests_per_s, 1.0);
  EXPECT_DOUBLE_EQ(s.output_tokens_per_s, 2.5);
  EXPECT_DOUBLE_EQ(s.total_tokens_per_s, 17.5);
  EXPECT_DOUBLE_EQ(s.tokens_per_chunk, 1.25);
  EXPECT_DOUBLE_EQ(s.ttft_ms.mean, 200);
  EXPECT_DOUBLE_EQ(s.itl_ms.mean, 75);
  EXPECT_EQ(s.tpot_ms.count, 1U);
  EXPECT_DOUBLE_EQ(s.tpot_ms.mean, 50) << "(250 - 100) / (4 - 1)";
  EXPECT_DOUBLE_EQ(s.e2e_ms.mean, 550);
  EXPECT_THAT(to_table(s), HasSubstr("1 x http 503: full"));
  EXPECT_DOUBLE_EQ(to_json(s)["tpot_ms"]["median"].get<double>(), 50);
  EXPECT_EQ(summarize({}).completed, 0U);
}

std::vector<std::string> events_of(const std::string& text, std::size_t piece) {
  SseParser parser;
  std::vector<std::string> events;
  for (std::size_t i = 0; i < text.size(); i += piece) {
    EXPECT_TRUE(parser.feed(std::string_view(text).substr(i, piece),
                            [&](std::string_view data) { events.emplace_back(data); }));
  }
  return events;
}

TEST(SseParserTest, GivesTheSameEventsHoweverTheBytesAreCut) {
  const std::string text =
      ": keep-alive\n\ndata: {\"a\":1}\n\ndata:x\r\n\r\ndata: one\ndata: two\n\n"
      "event: error\nid: 7\ndata:  spaced\r\rdata\n\ndata: [DONE]\n\ndata: not ended\n";
  for (std::size_t piece = 1; piece <= text.size(); ++piece) {
    EXPECT_THAT(events_of(text, piece),
                ElementsAre("{\"a\":1}", "x", "one\ntwo", " spaced", "", "[DONE]"))
        << piece;
  }
}

TEST(SseParserTest, RefusesAnEventWithoutEnd) {
  SseParser parser;
  const std::string piece(1 << 20, 'x');
  const auto ignore = [](std::string_view) {};
  Result<void> fed;
  for (int i = 0; i < 5 && fed; ++i) fed = parser.feed(piece, ignore);
  EXPECT_FALSE(fed);
  SseParser lines;  // many short data lines without an empty one
  const std::string line = "data: " + std::string(1000, 'y') + "\n";
  fed = {};
  for (int i = 0; i < 5000 && fed; ++i) fed = lines.feed(line, ignore);
  EXPECT_FALSE(fed);
}

TEST(StreamProgressTest, CountsTokensOfAChunk) {
  StreamProgress p;
  const auto tokens = [&](const std::string& data) { return p.chunk(data).value().tokens; };
  EXPECT_EQ(tokens(R"({"choices":[{"delta":{"role":"assistant","content":""}}]})"), 0U);
  EXPECT_EQ(tokens(R"({"choices":[{"delta":{"content":"a b c"}}]})"), 1U);
  EXPECT_EQ(tokens(R"({"choices":[{"text":"x"}],"usage":null})"), 1U);
  EXPECT_EQ(tokens(R"({"choices":[{"text":"","token_ids":[4,5,6]}]})"), 3U);
  EXPECT_EQ(tokens(R"({"choices":[{"text":"ab","logprobs":{"tokens":["a","b"]}}]})"), 2U);
  EXPECT_EQ(tokens(R"({"choices":[{"delta":{"content":"ab"},"logprobs":{"content":[{},{}]}}]})"),
            2U);
  EXPECT_EQ(tokens(R"({"choices":[{"text":"abc"}],"usage":{"completion_tokens":12}})"), 3U);
  EXPECT_FALSE(p.finished());
  EXPECT_EQ(tokens(R"({"choices":[{"text":"","finish_reason":"length"}]})"), 0U);
  EXPECT_TRUE(p.finished());
  EXPECT_EQ(tokens(R"({"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":14}})"), 0U);
  EXPECT_EQ(p.output_tokens(), 14U) << "the final usage overrules the sum";
  EXPECT_EQ(p.prompt_tokens(), 7U);
  EXPECT_TRUE(p.chunk("[DONE]")->done);
}

TEST(StreamProgressTest, RefusesWhatIsNotAChunk) {
  StreamProgress p;
  EXPECT_EQ(p.chunk("{").error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(p.chunk("[1]").error().code, ErrorCode::kInvalidArgument);
  const auto error = p.chunk(R"({"error":{"message":"cell lost","code":null}})");
  EXPECT_EQ(error.error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(error.error().message, "cell lost");
  for (const char* odd : {R"({"choices":{}})", R"({"choices":[7]})", R"({"choices":[{"delta":3}]})",
                          R"({"usage":[]})", R"({"choices":[{"logprobs":{}}]})", "{}"}) {
    EXPECT_EQ(p.chunk(odd).value().tokens, 0U) << odd;
  }
}

TEST(BenchPromptsTest, AreReproducibleAndOfExactLength) {
  const PromptShape shape{
      .seed = 5, .tokens = 200, .prefix_tokens = 60, .first_id = 10, .last_id = 90};
  const auto a = random_ids(shape, 0);
  const auto b = random_ids(shape, 1);
  EXPECT_EQ(a.size(), 200U);
  EXPECT_EQ(a, random_ids(shape, 0));
  EXPECT_TRUE(std::equal(a.begin(), a.begin() + 60, b.begin())) << "the shared prefix";
  EXPECT_FALSE(std::equal(a.begin() + 60, a.end(), b.begin() + 60));
  for (const int id : a) EXPECT_TRUE(id >= 10 && id < 90);
  PromptShape other = shape;
  other.seed = 6;
  EXPECT_NE(random_ids(other, 0), a);

  const std::string words = random_words(shape, 3, 50);
  EXPECT_EQ(std::count(words.begin(), words.end(), ' '), 49);
  EXPECT_EQ(words, random_words(shape, 3, 50));
  EXPECT_EQ(next_word_count(100, 110, 100), 90U);
  EXPECT_EQ(next_word_count(5, 20, 10), 0U);
}

TEST(BenchTargetTest, ParsesUrls) {
  const auto t = parse_target("http://localhost:8000/v1/");
  ASSERT_TRUE(t);
  EXPECT_EQ(t->host, "localhost");
  EXPECT_EQ(t->port, "8000");
  EXPECT_EQ(t->base_path, "");
  EXPECT_EQ(parse_target("http://h")->port, "80");
  EXPECT_EQ(parse_target("http://h:1/proxy/v1")->base_path, "/proxy");
  EXPECT_EQ(parse_target("http://[::1]:9")->host, "::1");
  for (const char* bad :
       {"https://h", "h:80", "http://", "http://:80", "http://h:", "http://h:8x"}) {
    EXPECT_FALSE(parse_target(bad)) << bad;
  }
}

// A server on loopback, a thread per connection, whose answers a test scripts. Counts a prompt's
// tokens as its words, plus 3 for a chat.
class ScriptedServer {
 public:
  using Request = http::request<http::string_body>;
  // Returns the raw bytes of the answer to a generation request; "" closes the connection.
  using Script = std::function<std::vector<std::string>(const Request&, int number)>;

  explicit ScriptedServer(Script script)
      : script_(std::move(script)), acceptor_(io_, {asio::ip::address_v4::loopback(), 0}) {
    thread_ = std::thread([this] { accept(); });
  }

  ~ScriptedServer() {
    stopping_ = true;
    boost::system::error_code ignored;
    asio::ip::tcp::socket wake(io_);
    wake.connect(acceptor_.local_endpoint(), ignored);
    thread_.join();
    {
      const std::lock_guard lock(mutex_);
      for (auto& socket : sockets_) socket->shutdown(asio::socket_base::shutdown_both, ignored);
    }
    for (auto& t : connections_) t.join();
  }

  std::string url() const {
    return "http://127.0.0.1:" + std::to_string(acceptor_.local_endpoint().port());
  }

  std::vector<json> bodies() {
    const std::lock_guard lock(mutex_);
    return bodies_;
  }
  int max_running() const { return max_running_; }
  int connections() const { return static_cast<int>(connections_.size()); }

  bool has_tokenize = true;
  std::string models = R"({"data":[{"id":"tiny"}]})";

 private:
  void accept() {
    while (true) {
      auto socket = std::make_shared<asio::ip::tcp::socket>(io_);
      boost::system::error_code error;
      acceptor_.accept(*socket, error);
      if (stopping_ || error) return;
      socket->set_option(asio::ip::tcp::no_delay(true), error);
      const std::lock_guard lock(mutex_);
      sockets_.push_back(socket);
      connections_.emplace_back([this, socket] { serve(*socket); });
    }
  }

  std::vector<std::string> answer(const Request& request) {
    if (request.target() == "/v1/models") return {whole(models)};
    const json body = json::parse(request.body());
    if (request.target() == "/tokenize") {
      if (!has_tokenize) return {"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"};
      const bool chat = body.contains("messages");
      std::istringstream words(chat ? body["messages"][0]["content"].get<std::string>()
                                    : body["prompt"].get<std::string>());
      int count = chat ? 3 : 0;
      for (std::string word; words >> word;) ++count;
      return {whole("{\"count\":" + std::to_string(count) + "}")};
    }
    int number = 0;
    {
      const std::lock_guard lock(mutex_);
      number = static_cast<int>(bodies_.size());
      bodies_.push_back(body);
    }
    return script_(request, number);
  }

  void serve(asio::ip::tcp::socket& socket) {
    boost::beast::flat_buffer buffer;
    boost::system::error_code error;
    while (true) {
      Request request;
      http::read(socket, buffer, request, error);
      if (error) return;
      const int running = ++running_;
      int seen = max_running_;
      while (running > seen && !max_running_.compare_exchange_weak(seen, running)) {
      }
      bool closed = false;
      const std::vector<std::string> pieces = answer(request);
      for (const std::string& piece : pieces) {
        // Before the client can have all of it and go on.
        if (&piece == &pieces.back()) --running_;
        if (piece.empty()) {
          closed = true;
          break;
        }
        if (piece == "wait") {
          std::this_thread::sleep_for(milliseconds(20));
          continue;
        }
        asio::write(socket, asio::buffer(piece), error);
      }
      if (pieces.empty()) --running_;
      if (closed || error) {
        socket.shutdown(asio::socket_base::shutdown_both, error);
        return;
      }
    }
  }

  static std::string whole(const std::string& body) {
    return "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: " +
           std::to_string(body.size()) + "\r\n\r\n" + body;
  }

  Script script_;
  asio::io_context io_;
  asio::ip::tcp::acceptor acceptor_;
  std::thread thread_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<asio::ip::tcp::socket>> sockets_;
  std::vector<std::thread> connections_;
  std::vector<json> bodies_;
  std::atomic<bool> stopping_ = false;
  std::atomic<int> running_ = 0;
  std::atomic<int> max_running_ = 0;
};

const char* const kStreamHead =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

std::string http_chunk(const std::string& data) {
  std::ostringstream out;
  out << std::hex << data.size() << "\r\n" << data << "\r\n";
  return out.str();
}

std::string event(const std::string& data) { return http_chunk("data: " + data + "\n\n"); }

// A well-formed answer of `tokens` tokens, a pause before each of the first two.
std::vector<std::string> good_answer(const json& body, int tokens) {
  std::vector<std::string> out = {kStreamHead};
  if (body.contains("messages"))
    out.push_back(event(R"({"choices":[{"delta":{"role":"assistant"}}]})"));
  for (int i = 0; i < tokens; ++i) {
    if (i < 2) out.push_back("wait");
    out.push_back(body.contains("messages") ? event(R"({"choices":[{"delta":{"content":"x"}}]})")
                                            : event(R"({"choices":[{"text":"x"}]})"));
  }
  out.push_back(event(R"({"choices":[{"text":"","delta":{},"finish_reason":"length"}]})"));
  const int prompt = body.contains("prompt") && body["prompt"].is_array()
                         ? static_cast<int>(body["prompt"].size())
                         : 42;
  out.push_back(event("{\"choices\":[],\"usage\":{\"prompt_tokens\":" + std::to_string(prompt) +
                      ",\"completion_tokens\":" + std::to_string(tokens) + "}}"));
  out.push_back(event("[DONE]"));
  out.push_back("0\r\n\r\n");
  return out;
}

std::vector<std::string> obedient(const ScriptedServer::Request& request, int) {
  const json body = json::parse(request.body());
  return good_answer(body, body["max_tokens"].get<int>());
}

BenchOptions small_options(const std::string& url) {
  BenchOptions o;
  o.url = url;
  o.num_prompts = 12;
  o.concurrency = 4;
  o.input_tokens = 20;
  o.output_tokens = 3;
  o.warmup = 1;
  o.timeout_s = 20;
  return o;
}

TEST(BenchRunTest, ClosedLoopMeasuresAScriptedServer) {
  ScriptedServer server(obedient);
  const BenchOptions o = small_options(server.url());
  const auto load = run_load(o);
  ASSERT_TRUE(load) << load.error().to_string();
  EXPECT_EQ(load->model, "tiny");
  EXPECT_TRUE(load->prompt_length_exact);
  const BenchSummary s = summarize(load->records);
  EXPECT_EQ(s.completed, 12U) << to_table(s);
  EXPECT_EQ(s.prompt_tokens, 12U * 20);
  EXPECT_EQ(s.output_tokens, 12U * 3);
  EXPECT_EQ(s.itl_ms.count, 12U * 2);
  // The server pauses 20 ms before the first and before the second token.
  EXPECT_GE(s.ttft_ms.min, 19);
  EXPECT_GE(s.itl_ms.max, 19);
  EXPECT_GE(s.e2e_ms.min, 39);
  EXPECT_EQ(server.max_running(), 4) << "the concurrency asked for";
  EXPECT_EQ(server.connections(), 5) << "one to prepare, one a client: connections are kept";

  const auto bodies = server.bodies();
  ASSERT_EQ(bodies.size(), 13U);
  std::set<std::string> prompts;
  for (const json& body : bodies) {
    EXPECT_EQ(body["prompt"].size(), 20U);
    EXPECT_EQ(body["model"], "tiny");
    EXPECT_EQ(body["max_tokens"], 3);
    EXPECT_EQ(body["stream"], true);
    EXPECT_EQ(body["ignore_eos"], true);
    EXPECT_EQ(body["stream_options"]["include_usage"], true);
    prompts.insert(body["prompt"].dump());
  }
  EXPECT_EQ(prompts.size(), 13U) << "every prompt is its own";
}

TEST(BenchRunTest, ChatPromptsGetTheirExactLengthFromTokenize) {
  ScriptedServer server(obedient);
  BenchOptions o = small_options(server.url());
  o.endpoint = BenchEndpoint::kChat;
  o.extra_body = R"({"top_k": 1, "temperature": 0.5})";
  const auto load = run_load(o);
  ASSERT_TRUE(load) << load.error().to_string();
  EXPECT_TRUE(load->prompt_length_exact);
  EXPECT_EQ(summarize(load->records).completed, 12U);
  EXPECT_EQ(summarize(load->records).itl_ms.count, 24U) << "the role's chunk is no token";
  for (const json& body : server.bodies()) {
    const auto text = body["messages"][0]["content"].get<std::string>();
    EXPECT_EQ(std::count(text.begin(), text.end(), ' '), 16) << "17 words and 3 of the template";
    EXPECT_EQ(body["top_k"], 1);
    EXPECT_EQ(body["temperature"], 0.5);
  }
}

TEST(BenchRunTest, SaysWhenAPromptLengthIsNotKnown) {
  ScriptedServer server(obedient);
  server.has_tokenize = false;
  BenchOptions o = small_options(server.url());
  o.prompt = BenchPrompt::kText;
  const auto load = run_load(o);
  ASSERT_TRUE(load) << load.error().to_string();
  EXPECT_FALSE(load->prompt_length_exact);
  EXPECT_EQ(summarize(load->records).prompt_tokens, 12U * 42) << "as the server's usage says";
}

TEST(BenchRunTest, OpenLoopDoesNotWaitForTheServer) {
  ScriptedServer server(obedient);
  BenchOptions o = small_options(server.url());
  o.num_prompts = 40;
  o.concurrency = 1;
  o.request_rate = 400;  // 40 requests in about 100 ms, of 40 ms each: several at a time
  const auto load = run_load(o);
  ASSERT_TRUE(load) << load.error().to_string();
  EXPECT_EQ(summarize(load->records).completed, 40U);
  EXPECT_GT(server.max_running(), 2);
}

// Each kind of failure, once, among successes.
TEST(BenchRunTest, CountsFailuresByKind) {
  ScriptedServer server(
      [](const ScriptedServer::Request& request, int number) -> std::vector<std::string> {
        const json body = json::parse(request.body());
        const std::string text = event(R"({"choices":[{"text":"x"}]})");
        switch (number) {
          case 1:
            return {
                "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 29\r\n\r\n"
                R"({"error":{"message":"full!"}})"};
          case 2:
            return {kStreamHead, text, event(R"({"error":{"message":"cell lost"}})"), "0\r\n\r\n"};
          case 3:
            return {kStreamHead, text, ""};  // cut in the middle of the body
          case 4:
            return {kStreamHead, text, "0\r\n\r\n"};  // a clean end without a finish
          case 5:
            return {kStreamHead, event("nonsense"), "0\r\n\r\n"};
          case 6:
            return good_answer(body, 2);  // one token short
          case 7:
            return {kStreamHead, event("[DONE]"), "0\r\n\r\n"};
          case 8:
            return {"garbage\r\n\r\n", ""};
          default:
            return good_answer(body, 3);
        }
      });
  BenchOptions o = small_options(server.url());
  o.concurrency = 1;
  o.warmup = 0;
  const auto load = run_load(o);
  ASSERT_TRUE(load) << load.error().to_string();
  const BenchSummary s = summarize(load->records);
  EXPECT_EQ(s.completed, 4U) << to_table(s);
  const std::map<std::string, std::uint32_t> expected = {{"http 503", 1},     {"stream error", 1},
                                                         {"truncated", 2},    {"protocol", 2},
                                                         {"wrong length", 1}, {"empty", 1}};
  EXPECT_EQ(s.failures, expected) << to_table(s);
  EXPECT_EQ(s.failure_examples.at("http 503"), "full!");
  EXPECT_EQ(s.failure_examples.at("stream error"), "cell lost");
}

TEST(BenchRunTest, AHangingServerIsATimeout) {
  ScriptedServer server([](const ScriptedServer::Request&, int) -> std::vector<std::string> {
    return {kStreamHead, event(R"({"choices":[{"text":"x"}]})")};  // and nothing more
  });
  BenchOptions o = small_options(server.url());
  o.num_prompts = 2;
  o.warmup = 0;
  o.timeout_s = 0.2;
  const auto load = run_load(o);
  ASSERT_TRUE(load) << load.error().to_string();
  EXPECT_EQ(summarize(load->records).failures.at("timeout"), 2U);
}

TEST(BenchRunTest, ExitCodesAndReport) {
  const std::string path = testing::TempDir() + "/bench_report.json";
  BenchOptions o;
  {
    ScriptedServer server(obedient);
    o = small_options(server.url());
    o.output_file = path;
    o.label = "unit";
    EXPECT_EQ(run_bench(o), 0);
    std::ifstream file(path);
    const json report = json::parse(file);
    EXPECT_EQ(report["completed"], 12);
    EXPECT_EQ(report["label"], "unit");
    EXPECT_EQ(report["concurrency"], 4);
    EXPECT_GT(report["output_throughput"].get<double>(), 0);
    o.output_file = "/nonexistent/report.json";
    EXPECT_EQ(run_bench(o), 2);
  }
  o.output_file.clear();
  EXPECT_EQ(run_bench(o), 2) << "the server is gone: nothing could start";
  o.model = "tiny";
  o.warmup = 0;
  EXPECT_EQ(run_bench(o), 1) << "every request fails to connect";
  o.allow_failures = true;
  EXPECT_EQ(run_bench(o), 1) << "failures are allowed, but not nothing else";

  ScriptedServer flaky([](const ScriptedServer::Request& request, int number) {
    return number == 0 ? std::vector<std::string>{""} : obedient(request, number);
  });
  o.url = flaky.url();
  EXPECT_EQ(run_bench(o), 0);
}

TEST(BenchCommandTest, ParsesItsOptions) {
  ScriptedServer server(obedient);
  CLI::App app;
  int code = -1;
  add_bench_command(app, [&](int c) { code = c; });
  const std::string url = server.url();
  const std::vector<std::string> words = {"bench",
                                          "--url",
                                          url,
                                          "--endpoint",
                                          "chat",
                                          "--num-prompts",
                                          "3",
                                          "--input-len",
                                          "30",
                                          "--output-len",
                                          "2",
                                          "--token-range",
                                          "5",
                                          "10",
                                          "--no-ignore-eos",
                                          "--warmup",
                                          "0"};
  std::vector<std::string> reversed(words.rbegin(), words.rend());  // CLI11 takes them last first
  app.parse(reversed);
  EXPECT_EQ(code, 0);
  ASSERT_EQ(server.bodies().size(), 3U);
  EXPECT_TRUE(server.bodies()[0].contains("messages"));
  EXPECT_FALSE(server.bodies()[0].contains("ignore_eos"));
}

// The least and the highest id of all prompts.
std::pair<int, int> ids_sent(const std::vector<json>& bodies) {
  std::pair<int, int> range{INT_MAX, INT_MIN};
  for (const json& body : bodies) {
    for (const json& id : body["prompt"]) {
      range.first = std::min(range.first, id.get<int>());
      range.second = std::max(range.second, id.get<int>());
    }
  }
  return range;
}

TEST(BenchRunTest, IdsAreOfTheVocabularyThatTheServerTells) {
  const std::vector<std::tuple<std::string, std::string, int, int>> cases = {
      {R"({"data":[{"id":"tiny"}]})", "", 1000, 30'000},
      {R"({"data":[{"id":"tiny","vocab_size":4096}]})", "", 1000, 4096},
      {R"({"data":[{"id":"tiny","vocab_size":65536}]})", "", 1000, 30'000},
      {R"({"data":[{"id":"tiny","meta":{"n_vocab":100}}]})", "", 25, 100},
      {R"({"data":[{"id":"a","vocab_size":100},{"id":"b","vocab_size":8}]})", "b", 2, 8},
      {R"({"data":[{"id":"tiny","vocab_size":"x","meta":[]}]})", "", 1000, 30'000},
      {"no json", "named", 1000, 30'000}};
  for (const auto& [models, name, first, end] : cases) {
    ScriptedServer server(obedient);
    server.models = models;
    BenchOptions options;
    options.url = server.url();
    options.model = name;
    options.num_prompts = 4;
    options.output_tokens = 4;
    options.input_tokens = 2000;
    ASSERT_TRUE(run_load(options)) << models;
    const auto [least, highest] = ids_sent(server.bodies());
    EXPECT_GE(least, first) << models;
    EXPECT_LT(highest, end) << models;
    EXPECT_GE(highest, first + (end - first) * 9 / 10) << models;  // all of it is used
  }
}

TEST(BenchOptionsTest, RefusesWhatMakesNoSense) {
  const auto field = [](const std::function<void(BenchOptions&)>& change) {
    BenchOptions o;
    change(o);
    const auto checked = check_options(o);
    return checked ? std::string("accepted") : checked.error().field;
  };
  EXPECT_EQ(field([](auto&) {}), "accepted");
  EXPECT_EQ(field([](auto& o) { o.num_prompts = 0; }), "--num-prompts");
  EXPECT_EQ(field([](auto& o) { o.concurrency = 0; }), "--concurrency");
  EXPECT_EQ(field([](auto& o) { o.request_rate = -1; }), "--request-rate");
  EXPECT_EQ(field([](auto& o) { o.prefix_tokens = 513; }), "--prefix-len");
  EXPECT_EQ(field([](auto& o) { o.first_token_id = o.last_token_id = 9; }), "--token-range");
  EXPECT_EQ(field([](auto& o) { o.first_token_id = 9; }), "--token-range");
  EXPECT_EQ(field([](auto& o) { o.last_token_id = 9; }), "accepted");
  EXPECT_EQ(field([](auto& o) { o.timeout_s = 0; }), "--timeout");
  EXPECT_EQ(field([](auto& o) { o.extra_body = "[1]"; }), "--extra-body");
  EXPECT_EQ(field([](auto& o) {
              o.endpoint = BenchEndpoint::kChat;
              o.prompt = BenchPrompt::kIds;
            }),
            "--prompt");
  EXPECT_EQ(run_bench([] {
              BenchOptions o;
              o.url = "https://x";
              return o;
            }()),
            2);
}

}  // namespace
}  // namespace millrace::cli
