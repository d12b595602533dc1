// Limits and behaviour of the HTTP server. Everything a client can make grow or wait is bounded
// here (contract C3).
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "net/http_types.h"

namespace millrace::net {

struct HttpLimits {
  std::uint32_t max_connections = 4096;              // over it: 503 and close
  std::size_t max_header_bytes = 32 * 1024;          // request line and headers; over it: 431
  std::size_t max_body_bytes = 32u << 20;            // over it: 413
  std::size_t max_buffered_body_bytes = 512u << 20;  // bodies of all connections together: 503
  std::size_t max_pipelined_bytes = 64 * 1024;       // read ahead while an answer is being made
  std::size_t max_unsent_bytes = 256 * 1024;         // of one stream, before write() waits
  std::chrono::milliseconds header_timeout{10'000};  // first byte to end of headers: 408
  std::chrono::milliseconds body_timeout{60'000};    // whole body: 408
  std::chrono::milliseconds idle_timeout{75'000};    // between requests: silent close
  std::chrono::milliseconds write_timeout{30'000};   // for each 64 KiB at most: close, cancel
};

struct CorsConfig {
  std::vector<std::string> allowed_origins;  // exact origins, or "*"; empty: CORS off
  std::chrono::seconds max_age{600};
};

struct HttpServerConfig {
  std::string address = "127.0.0.1";
  std::uint16_t port = 8080;  // 0: the system chooses, HttpServer::port() tells
  int backlog = 1024;
  std::string server_name = "millrace";
  HttpLimits limits;
  CorsConfig cors;

  // The body of an answer to a failure found here. Default: the text of the message.
  std::function<HttpResponse(const HttpFailure&)> format_failure;

  // Called with headers read and the body not yet: an answer refuses the request (authentication,
  // media type) without reading it. `request.body` is empty. Runs on any connection's executor.
  std::function<std::optional<HttpFailure>(const HttpRequest& request)> admit;

  // Told of every failure answered here. Runs on any connection's executor; must be thread-safe.
  std::function<void(const HttpFailure&)> on_failure;
};

}  // namespace millrace::net
