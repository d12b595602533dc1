// What the handlers of one ApiServer share. Internal to net/api_*.
#pragma once

#include <atomic>
#include <boost/asio/thread_pool.hpp>
#include <ctime>
#include <string>

#include "net/api_auth.h"
#include "net/api_config.h"
#include "net/api_observer.h"
#include "net/api_server.h"
#include "net/http_router.h"
#include "net/openai_parse.h"
#include "net/openai_prepare.h"

namespace millrace::net {

struct ApiContext {
  ApiConfig config;
  Engine& engine;
  ApiObserver* observer;  // never null
  ApiServer::MetricsText metrics;
  ApiServer::StatusText status;
  TextContext text;
  ParseContext parse;
  ApiKeys keys;
  std::time_t created = std::time(nullptr);
  std::atomic<bool> not_ready{false};  // drain announced
  std::atomic<bool> draining{false};   // no new generations
  boost::asio::thread_pool prepare_pool;

  bool knows_model(const std::string& name) const;
  std::uint32_t max_context() const;  // the smaller of limit and engine; 0: unknown
  HttpResponse reject(std::string_view route, const ApiError& error) const;  // tells the observer
};

// Runs `work` on the prepare pool and comes back to the caller's executor; what it throws is
// thrown.
boost::asio::awaitable<void> offload(ApiContext& context, std::function<void()> work);

ApiError model_not_found(const std::string& name);

// api_generate.cc: POST /v1/completions and /v1/chat/completions.
boost::asio::awaitable<void> handle_generate(ApiContext& context, bool chat, HttpRequest& request,
                                             Responder& responder);

// api_routes.cc: everything else, added to the router.
void add_other_routes(ApiContext& context, HttpRouter& router);

// api_status.cc: the status page and its data.
void add_status_routes(ApiContext& context, HttpRouter& router);

}  // namespace millrace::net
