// HTTP/1.1 over TCP: accepts connections and answers them from a route table. Each connection is a
// coroutine on a strand of its own, so the io_context may run in several threads.
//
// Life: start() binds and begins to accept; begin_drain() stops accepting, closes idle connections
// and lets running requests finish (their answers say "Connection: close"); drained() waits for
// that; stop() closes what is left. The io_context must have run every connection's end before what
// the handlers refer to goes away: await drained() and, when it says false, stop() and drained().
//
// Refused with an answer: malformed 400, no route 404, method 405 (with Allow), slow request 408,
// large body 413, encoded body 415, failed Expect 417, large headers 431, full 503, version 505.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <chrono>
#include <cstdint>
#include <memory>

#include "config/result.h"
#include "net/http_config.h"
#include "net/http_router.h"

namespace millrace::net {

struct HttpServerState;

class HttpServer {
 public:
  HttpServer(boost::asio::any_io_executor executor, HttpServerConfig config, HttpRouter router);
  ~HttpServer();  // stop()
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  // Binds, listens and begins to accept. The error names the address and says what to change.
  Result<std::uint16_t> start();
  std::uint16_t port() const;

  // The four below may be called from any thread.
  void begin_drain();
  void stop();
  std::uint32_t connections() const;

  // Waits until no connection is left; false when `deadline` passed first.
  boost::asio::awaitable<bool> drained(std::chrono::milliseconds deadline);

 private:
  std::shared_ptr<HttpServerState> state_;
};

}  // namespace millrace::net
