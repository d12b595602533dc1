#include "net/http_server.h"

#include <gtest/gtest.h>

#include <atomic>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/use_future.hpp>
#include <optional>

#include "http_test_client.h"

namespace millrace::net {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using std::chrono::milliseconds;
using testing::Client;
using testing::IoThread;
using testing::wait_until;

// Handlers that echo, stream for ever, throw, or wait, and count what happens to them.
class HttpServerTest : public ::testing::Test {
 protected:
  ~HttpServerTest() override {
    if (server_) {
      server_->stop();
      EXPECT_TRUE(drained(milliseconds(5000)));
    }
    io_.join();
  }

  void start(HttpServerConfig config = {}) {
    config.port = 0;
    HttpRouter router;
    router.add("POST", "/echo",
               [](HttpRequest& request, Responder& responder) { return echo(request, responder); });
    router.add("GET", "/hello",
               [](HttpRequest& request, Responder& responder) { return echo(request, responder); });
    router.add("GET", "/items/*",
               [](HttpRequest& request, Responder& responder) { return echo(request, responder); });
    router.add("GET", "/throw", [](HttpRequest&, Responder&) -> asio::awaitable<void> {
      throw std::runtime_error("boom");
      co_return;
    });
    router.add("GET", "/silent",
               [](HttpRequest&, Responder&) -> asio::awaitable<void> { co_return; });
    router.add("GET", "/endless", [this](HttpRequest& request, Responder& responder) {
      return endless(request, responder);
    });
    router.add("GET", "/three",
               [](HttpRequest&, Responder& responder) { return three(responder); });
    router.add("GET", "/quiet",
               [this](HttpRequest&, Responder& responder) { return wait(responder, true); });
    router.add("GET", "/wait",
               [this](HttpRequest&, Responder& responder) { return wait(responder, false); });
    server_.emplace(io_.io().get_executor(), std::move(config), std::move(router));
    auto port = server_->start();
    ASSERT_TRUE(port.has_value()) << port.error().to_string();
    ASSERT_NE(*port, 0);
    port_ = *port;
  }

  static asio::awaitable<void> echo(HttpRequest& request, Responder& responder) {
    HttpResponse response;
    response.content_type = "text/plain";
    response.body = request.method + " " + request.path + " " + request.tail + " " + request.body;
    for (const auto& [name, value] : request.query) response.body += " " + name + "=" + value;
    co_await responder.send(std::move(response));
  }

  // Writes 4 KiB pieces until the client has gone.
  asio::awaitable<void> endless(HttpRequest&, Responder& responder) {
    ++running_;
    responder.on_gone([this] { ++gone_; });
    HttpResponse head;
    head.content_type = "text/event-stream";
    co_await responder.begin_stream(std::move(head), ":\n\n", std::chrono::seconds(10));
    while (co_await responder.write(std::string(4096, 'x'))) ++pieces_;
    --running_;
  }

  static asio::awaitable<void> three(Responder& responder) {
    HttpResponse head;
    head.content_type = "text/plain";
    co_await responder.begin_stream(std::move(head), "", std::chrono::seconds(10));
    for (const char* word : {"one", "two", "three"}) co_await responder.write(word);
  }

  // Says nothing until release_ is set.
  asio::awaitable<void> wait(Responder& responder, bool stream) {
    ++running_;
    responder.on_gone([this] { ++gone_; });
    if (stream) {
      HttpResponse head;
      co_await responder.begin_stream(std::move(head), ": alive\n\n", milliseconds(20));
    }
    asio::steady_timer timer(co_await asio::this_coro::executor);
    while (!release_ && !responder.gone()) {
      timer.expires_after(milliseconds(2));
      co_await timer.async_wait(asio::use_awaitable);
    }
    if (!stream && !responder.gone()) {
      HttpResponse response;
      response.body = "done";
      co_await responder.send(std::move(response));
    }
    --running_;
  }

  bool drained(milliseconds limit) {
    return asio::co_spawn(io_.io(), server_->drained(limit), asio::use_future).get();
  }

  IoThread io_;
  std::optional<HttpServer> server_;
  std::uint16_t port_ = 0;
  std::atomic<int> running_{0}, gone_{0};
  std::atomic<long> pieces_{0};
  std::atomic<bool> release_{false};
};

TEST_F(HttpServerTest, KeepAliveAndPipelining) {
  start();
  Client client(port_);
  EXPECT_EQ(client.get("/hello?a=1&b=x%20y+z&a=2").body(), "GET /hello   a=1 b=x y z a=2");
  EXPECT_EQ(client.post("/echo", "body").body(), "POST /echo  body");
  client.send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n" + Client::post_text("/echo", "2") +
              "GET /three HTTP/1.1\r\nHost: x\r\n\r\nGET /items/a%2Fb HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_EQ(client.read().body(), "GET /hello  ");
  EXPECT_EQ(client.read().body(), "POST /echo  2");
  EXPECT_EQ(client.read().body(), "onetwothree");
  EXPECT_EQ(client.read().body(), "GET /items/a/b a/b ");
  // One byte at a time is the same request.
  for (const char c : Client::post_text("/echo", "slow")) client.send(std::string(1, c));
  EXPECT_EQ(client.read().body(), "POST /echo  slow");
}

// Requests that arrive while a streamed handler runs are kept for later.
TEST_F(HttpServerTest, PipelinedWhileStreaming) {
  start();
  Client client(port_);
  client.send("GET /quiet HTTP/1.1\r\nHost: x\r\n\r\n");
  ASSERT_TRUE(wait_until([&] { return running_ == 1; }));
  for (int i = 0; i < 20; ++i) client.send(Client::post_text("/echo", std::to_string(i)));
  std::this_thread::sleep_for(milliseconds(50));
  EXPECT_EQ(gone_, 0);
  release_ = true;
  EXPECT_TRUE(client.read().body().starts_with(": alive\n\n: alive\n\n"));  // idle fill
  for (int i = 0; i < 20; ++i) EXPECT_EQ(client.read().body(), "POST /echo  " + std::to_string(i));
}

TEST_F(HttpServerTest, HeadOptionsAndMethods) {
  start();
  Client client(port_);
  client.send("HEAD /hello HTTP/1.1\r\nHost: x\r\n\r\n");
  const auto head = client.read(true);
  EXPECT_EQ(head.result_int(), 200U);
  EXPECT_EQ(head[http::field::content_length], "12");
  EXPECT_EQ(head.body(), "");

  client.send("OPTIONS /echo HTTP/1.1\r\nHost: x\r\n\r\n");
  auto options = client.read();
  EXPECT_EQ(options.result_int(), 204U);
  EXPECT_EQ(options[http::field::allow], "POST, OPTIONS");
  EXPECT_EQ(options["Access-Control-Allow-Methods"], "");  // CORS is off

  auto wrong = client.get("/echo");
  EXPECT_EQ(wrong.result_int(), 405U);
  EXPECT_EQ(wrong[http::field::allow], "POST, OPTIONS");
  EXPECT_EQ(client.get("/nothing").result_int(), 404U);
  EXPECT_EQ(client.get("/items/").result_int(), 404U);
  client.send("BREW /echo HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_EQ(client.read().result_int(), 405U);
  EXPECT_EQ(client.get("/hello").result_int(), 200U);  // the connection lives on
}

TEST_F(HttpServerTest, Cors) {
  HttpServerConfig config;
  config.cors.allowed_origins = {"https://a.example"};
  start(std::move(config));
  Client client(port_);
  auto answer = client.get("/hello", "Origin: https://a.example\r\n");
  EXPECT_EQ(answer["Access-Control-Allow-Origin"], "https://a.example");
  EXPECT_EQ(answer["Vary"], "Origin");
  EXPECT_EQ(client.get("/hello", "Origin: https://b.example\r\n")["Access-Control-Allow-Origin"],
            "");
  client.send(
      "OPTIONS /echo HTTP/1.1\r\nHost: x\r\nOrigin: https://a.example\r\n"
      "Access-Control-Request-Method: POST\r\n"
      "Access-Control-Request-Headers: authorization, x-stainless-lang\r\n\r\n");
  answer = client.read();
  EXPECT_EQ(answer.result_int(), 204U);
  EXPECT_EQ(answer["Access-Control-Allow-Headers"], "authorization, x-stainless-lang");
  EXPECT_EQ(answer["Access-Control-Allow-Methods"], "POST, OPTIONS");
}

TEST_F(HttpServerTest, RequestIds) {
  start();
  Client client(port_);
  EXPECT_EQ(client.get("/hello", "X-Request-ID: abc-1.2:3\r\n")["x-request-id"], "abc-1.2:3");
  const std::string generated(client.get("/hello")["x-request-id"]);
  EXPECT_EQ(generated.size(), 32U);
  EXPECT_NE(std::string(client.get("/hello")["x-request-id"]), generated);
  const std::string replaced(client.get("/none", "x-request-id: a b\r\n")["x-request-id"]);
  EXPECT_EQ(replaced.size(), 32U);
  EXPECT_NE(std::string(client.get(
                "/hello", "x-request-id: " + std::string(129, 'a') + "\r\n")["x-request-id"]),
            std::string(129, 'a'));
  Client broken(port_);
  broken.send("GARBAGE\r\n\r\n");
  EXPECT_EQ(broken.read()["x-request-id"].size(), 32U);
}

TEST_F(HttpServerTest, RefusesWhatIsMalformed) {
  HttpServerConfig config;
  config.limits.max_header_bytes = 2048;
  config.limits.max_body_bytes = 1000;
  start(std::move(config));
  const struct {
    const char* name;
    std::string bytes;
    unsigned status;
  } cases[] = {
      {"not http", "GARBAGE\r\n\r\n", 400},
      {"binary", std::string("\x16\x03\x01\x02\x00\x01\x00\x01", 8) + "\r\n\r\n", 400},
      {"bad header", "GET /hello HTTP/1.1\r\nHost x\r\n\r\n", 400},
      {"no host", "GET /hello HTTP/1.1\r\n\r\n", 400},
      {"two hosts", "GET /hello HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
      {"version 2", "GET /hello HTTP/2.0\r\nHost: x\r\n\r\n", 505},
      {"bad escape", "GET /hel%zzlo HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"nul escape", "GET /hello%00 HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"relative target", "GET hello HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"length and chunked",
       "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
       "0\r\n\r\n",
       400},
      {"a coding that is not known",
       "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\nGET /hello "
       "HTTP/1.1\r\n"
       "Host: x\r\n\r\n",
       501},
      {"chunked is not the last coding",
       "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
       501},
      {"a coding before chunked",
       "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
      {"a coding and a length",
       "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx",
       501},
      {"chunked in HTTP/1.0",
       "POST /echo HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: "
       "chunked\r\n\r\n0\r\n\r\n",
       400},
      {"two lengths",
       "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400},
      {"bad length", "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400},
      {"huge length",
       "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400},
      {"large length", "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n", 413},
      {"large chunk",
       "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" +
           std::string(2000, 'x') + "\r\n0\r\n\r\n",
       413},
      {"bad chunk",
       "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n", 400},
      {"large header",
       "GET /hello HTTP/1.1\r\nHost: x\r\nA: " + std::string(4000, 'x') + "\r\n\r\n", 431},
      {"endless header", "GET /" + std::string(9000, 'x'), 431},
      {"gzip",
       "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx",
       415},
      {"expect", "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: tea\r\nContent-Length: 1\r\n\r\nx",
       417},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    Client client(port_);
    client.send(c.bytes);
    const auto answer = client.read();
    EXPECT_EQ(answer.result_int(), c.status);
    EXPECT_EQ(answer["Connection"].empty() ? "close" : std::string(answer["Connection"]), "close");
    if (answer["Connection"] == "close") {
      EXPECT_TRUE(client.at_end());  // nothing of the rest is taken for a request
    }
    if (c.status == 501) {
      EXPECT_EQ(answer["Connection"], "close");
    }
  }
  Client client(port_);
  EXPECT_EQ(client.post("/echo", std::string(1000, 'y')).body().size(), 1012U);  // just fits
}

TEST_F(HttpServerTest, LargeBodyIsRefusedBeforeItIsSent) {
  HttpServerConfig config;
  config.limits.max_body_bytes = 1 << 20;
  start(std::move(config));
  Client client(port_);
  client.send(
      "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.read().result_int(), 413U);
  // A client that sends its body anyway still gets the answer.
  Client rude(port_);
  rude.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n\r\n" +
            std::string(900000, 'z'));
  EXPECT_EQ(rude.read().result_int(), 413U);
}

TEST_F(HttpServerTest, ExpectContinueAndChunkedBodies) {
  start();
  Client client(port_);
  client.send(
      "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.read_some(), "HTTP/1.1 100 Continue\r\n\r\n");
  client.send("abc");
  EXPECT_EQ(client.read().body(), "POST /echo  abc");
  client.send(
      "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: "
      "chunked\r\n\r\n2\r\nab\r\n1;x=y\r\nc\r\n"
      "0\r\nTrailer: t\r\n\r\n");
  EXPECT_EQ(client.read().body(), "POST /echo  abc");
}

TEST_F(HttpServerTest, BodiesTogetherAreBounded) {
  HttpServerConfig config;
  config.limits.max_buffered_body_bytes = 10000;
  start(std::move(config));
  Client first(port_);
  first.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 8000\r\n\r\npart");
  std::this_thread::sleep_for(milliseconds(50));
  Client second(port_);
  const auto refused = second.post("/echo", std::string(5000, 'x'));
  EXPECT_EQ(refused.result_int(), 503U);
  EXPECT_EQ(refused["Retry-After"], "1");
  first.send(std::string(7996, 'x'));
  EXPECT_EQ(first.read().result_int(), 200U);
  Client third(port_);
  EXPECT_EQ(third.post("/echo", std::string(5000, 'x')).result_int(), 200U);
}

TEST_F(HttpServerTest, Http10) {
  start();
  Client plain(port_);
  plain.send("GET /hello HTTP/1.0\r\n\r\n");
  EXPECT_EQ(plain.read().result_int(), 200U);
  EXPECT_TRUE(plain.at_end());
  Client keep(port_);
  keep.send("GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  EXPECT_EQ(keep.read()["Connection"], "keep-alive");
  keep.send("GET /three HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  const auto stream = keep.read();  // no chunks: the end of the connection is the end
  EXPECT_EQ(stream["Transfer-Encoding"], "");
  EXPECT_EQ(stream.body(), "onetwothree");
}

TEST_F(HttpServerTest, FailingHandlers) {
  start();
  Client client(port_);
  EXPECT_EQ(client.get("/throw").result_int(), 500U);
  EXPECT_EQ(client.get("/silent").result_int(), 500U);
  EXPECT_EQ(client.get("/hello").result_int(), 200U);
}

TEST_F(HttpServerTest, Timeouts) {
  HttpServerConfig config;
  config.limits.header_timeout = milliseconds(80);
  config.limits.body_timeout = milliseconds(80);
  config.limits.idle_timeout = milliseconds(300);
  start(std::move(config));
  Client slow_header(port_);
  slow_header.send("GET /hello HT");
  EXPECT_EQ(slow_header.read().result_int(), 408U);
  Client slow_body(port_);
  slow_body.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc");
  EXPECT_EQ(slow_body.read().result_int(), 408U);
  Client idle(port_);
  const auto begun = std::chrono::steady_clock::now();
  EXPECT_TRUE(idle.at_end());
  const auto waited = std::chrono::steady_clock::now() - begun;
  EXPECT_GE(waited, milliseconds(250));
  EXPECT_LT(waited, milliseconds(3000));
}

TEST_F(HttpServerTest, ConnectionLimit) {
  HttpServerConfig config;
  config.limits.max_connections = 2;
  start(std::move(config));
  Client a(port_);
  Client b(port_);
  a.get("/hello");
  b.get("/hello");
  {
    Client c(port_);
    const auto refused = c.get("/hello");
    EXPECT_EQ(refused.result_int(), 503U);
    EXPECT_EQ(refused["Retry-After"], "1");
  }
  a.close();
  EXPECT_TRUE(wait_until([&] { return server_->connections() == 1; }));
  Client d(port_);
  EXPECT_EQ(d.get("/hello").result_int(), 200U);
}

TEST_F(HttpServerTest, DisconnectIsSeenWhileNothingIsWritten) {
  start();
  for (const bool reset : {false, true}) {
    for (const char* path : {"/wait", "/quiet"}) {
      gone_ = 0;
      Client client(port_);
      client.send(std::string("GET ") + path + " HTTP/1.1\r\nHost: x\r\n\r\n");
      ASSERT_TRUE(wait_until([&] { return running_ == 1; }));
      const auto begun = std::chrono::steady_clock::now();
      reset ? client.reset() : client.close();
      ASSERT_TRUE(wait_until([&] { return gone_ == 1 && running_ == 0; }));
      EXPECT_LT(std::chrono::steady_clock::now() - begun, milliseconds(1000));
    }
  }
  EXPECT_TRUE(wait_until([&] { return server_->connections() == 0; }));
}

TEST_F(HttpServerTest, SlowReaderIsCutOff) {
  HttpServerConfig config;
  config.limits.write_timeout = milliseconds(200);
  start(std::move(config));
  Client client(port_, 4096);
  client.send("GET /endless HTTP/1.1\r\nHost: x\r\n\r\n");
  ASSERT_TRUE(wait_until([&] { return running_ == 1; }));
  ASSERT_TRUE(wait_until([&] { return running_ == 0; }));
  EXPECT_EQ(gone_, 1);
  // What piled up in memory is bounded by the socket's own buffers and max_unsent_bytes.
  EXPECT_LT(pieces_ * 4096, 16 << 20);
  EXPECT_TRUE(wait_until([&] { return server_->connections() == 0; }));
}

TEST_F(HttpServerTest, FastReaderGetsEverything) {
  start();
  Client client(port_);
  client.send("GET /endless HTTP/1.1\r\nHost: x\r\n\r\n");
  std::size_t bytes = 0;
  while (bytes < (32u << 20)) {
    const std::string some = client.read_some();
    ASSERT_FALSE(some.empty());
    bytes += some.size();
  }
  client.close();
  EXPECT_TRUE(wait_until([&] { return running_ == 0; }));
}

TEST_F(HttpServerTest, DrainFinishesWhatRuns) {
  start();
  Client idle(port_);
  idle.get("/hello");
  Client busy(port_);
  busy.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n");
  ASSERT_TRUE(wait_until([&] { return running_ == 1; }));
  server_->begin_drain();
  EXPECT_TRUE(idle.at_end());
  EXPECT_FALSE(drained(milliseconds(50)));
  EXPECT_THROW(Client{port_}, boost::system::system_error);  // nothing listens
  release_ = true;
  const auto answer = busy.read();
  EXPECT_EQ(answer.body(), "done");
  EXPECT_EQ(answer["Connection"], "close");
  EXPECT_TRUE(drained(milliseconds(3000)));
}

TEST_F(HttpServerTest, StopCutsWhatIsLeft) {
  start();
  Client busy(port_);
  busy.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n");
  ASSERT_TRUE(wait_until([&] { return running_ == 1; }));
  server_->begin_drain();
  EXPECT_FALSE(drained(milliseconds(20)));
  server_->stop();
  EXPECT_TRUE(drained(milliseconds(3000)));
  EXPECT_EQ(gone_, 1);
}

TEST_F(HttpServerTest, PortTaken) {
  start();
  HttpServerConfig config;
  config.port = port_;
  HttpServer second(io_.io().get_executor(), config, HttpRouter{});
  auto port = second.start();
  ASSERT_TRUE(port.has_error());
  EXPECT_EQ(port.error().field, "port");
  EXPECT_NE(port.error().message.find(std::to_string(port_)), std::string::npos);
  EXPECT_NE(port.error().message.find("another process"), std::string::npos);
  config.address = "localhost:1";
  HttpServer third(io_.io().get_executor(), config, HttpRouter{});
  EXPECT_EQ(third.start().error().field, "address");
}

TEST(HttpServerThreads, ManyConnectionsOnFourThreads) {
  IoThread io(4);
  HttpRouter router;
  router.add("POST", "/length",
             [](HttpRequest& request, Responder& responder) -> asio::awaitable<void> {
               HttpResponse response;
               response.body = std::to_string(request.body.size());
               co_await responder.send(std::move(response));
             });
  HttpServerConfig config;
  config.port = 0;
  HttpServer server(io.io().get_executor(), config, std::move(router));
  const std::uint16_t port = server.start().value();
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 10; ++t) {
    threads.emplace_back([&, t] {
      std::vector<std::unique_ptr<Client>> clients;
      for (int c = 0; c < 10; ++c) clients.push_back(std::make_unique<Client>(port));
      for (int round = 0; round < 5; ++round) {
        for (int c = 0; c < 10; ++c) {
          clients[c]->send(
              Client::post_text("/length", std::string(t * 1000 + c * 10 + round, 'q')));
        }
        for (int c = 0; c < 10; ++c) {
          if (clients[c]->read().body() == std::to_string(t * 1000 + c * 10 + round)) ++right;
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(right, 500);
  server.stop();
  EXPECT_TRUE(asio::co_spawn(io.io(), server.drained(milliseconds(5000)), asio::use_future).get());
}

}  // namespace
}  // namespace millrace::net
