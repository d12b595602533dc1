// The OpenAI-compatible HTTP API of one model: routes, authentication, health, drain. Tokens come
// from an Engine, so nothing here knows of cells.
//
// Routes: POST /v1/completions /v1/chat/completions /tokenize /detokenize;
// GET /v1/models /v1/models/{id} /health /health/live /health/ready /version /metrics;
// GET / /status /status/{file} (the status page, net/status_page) and /status.json, its data.
// API keys guard all but /health, the status page's files, which hold nothing of the service, and
// /metrics unless told otherwise.
//
// Threading: handlers run on connection strands of `executor`. With one io thread the Engine and
// the observer are only used from it; with several both must be thread-safe.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "config/result.h"
#include "net/api_config.h"
#include "net/api_observer.h"
#include "net/engine.h"
#include "net/text/chat_template.h"
#include "net/text/tokenizer.h"

namespace millrace::net {

struct ApiContext;
class HttpServer;

class ApiServer {
 public:
  // The whole exposition text of /metrics; name[] filters are applied to it here.
  using MetricsText = std::function<std::string()>;
  // The JSON of /status.json, never null.
  using StatusText = std::function<std::shared_ptr<const std::string>()>;

  // The references outlive the server; `chat_template` (null: the model has none), `observer`,
  // `metrics` and `status` (null: no such routes) likewise. CHECKs that there is a model name.
  ApiServer(boost::asio::any_io_executor executor, ApiConfig config,
            const text::Tokenizer& tokenizer, const text::ChatTemplate* chat_template,
            Engine& engine, ApiObserver* observer = nullptr, MetricsText metrics = nullptr,
            StatusText status = nullptr);
  ~ApiServer();
  ApiServer(const ApiServer&) = delete;
  ApiServer& operator=(const ApiServer&) = delete;

  // Listens; gives the port (chosen by the system for port 0).
  Result<std::uint16_t> start();
  std::uint16_t port() const;

  // The way down, each step from any thread: not ready (readiness says 503, requests still
  // served, while load balancers take notice); then no new connections and no new generations,
  // running ones finish; then whatever is left is cut.
  void announce_drain();
  void begin_drain();
  boost::asio::awaitable<bool> drained(std::chrono::milliseconds deadline);
  void stop();

 private:
  std::unique_ptr<ApiContext> context_;
  std::unique_ptr<HttpServer> http_;
};

}  // namespace millrace::net
