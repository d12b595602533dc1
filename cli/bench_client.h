// One client of a benchmark: an HTTP/1.1 connection over TCP that is kept open between requests.
//
// Threads: a client belongs to one coroutine; clients of one io_context run on its single thread.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/message.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <functional>
#include <string>

#include "cli/bench_stats.h"
#include "config/result.h"

namespace millrace::cli {

struct BenchTarget {
  std::string host;
  std::string port;
  std::string base_path;  // "" or "/prefix", without /v1
  std::string api_key;
  boost::asio::ip::tcp::resolver::results_type addresses;
};

// Splits http://host[:port][/path]; a trailing /v1 is dropped. Other schemes are refused.
Result<BenchTarget> parse_target(const std::string& url);

// Looks up `target.addresses`. Waits as long as the system's resolver does; kUnavailable, field
// "url".
Result<void> resolve(BenchTarget& target);

struct HttpAnswer {
  unsigned status = 0;
  std::string body;
};

class BenchClient {
 public:
  BenchClient(boost::asio::any_io_executor executor, const BenchTarget& target,
              std::chrono::milliseconds timeout);

  // GET when `body` is empty, else POST of JSON; reads the whole answer (at most 16 MiB). Fails
  // with kUnavailable (connection, field "connect" or "protocol") or kDeadlineExceeded (field
  // "timeout").
  boost::asio::awaitable<Result<HttpAnswer>> fetch(std::string path, std::string body);

  // Posts a streaming request and records it. The answer counts as a success when it is 200, ends
  // with a finish_reason or [DONE], and carried at least one token.
  boost::asio::awaitable<RequestRecord> stream(std::string path, std::string body);

 private:
  using Request = boost::beast::http::request<boost::beast::http::string_body>;

  Request make_request(std::string path, std::string body) const;
  // Sends on the open connection, or on a new one when there is none or the server has closed it.
  boost::asio::awaitable<Result<void>> send(const Request& request);
  boost::asio::awaitable<Result<void>> connect();
  void close();

  const BenchTarget& target_;
  std::chrono::milliseconds timeout_;
  boost::beast::tcp_stream stream_;
  boost::beast::flat_buffer buffer_;
  bool open_ = false;
};

}  // namespace millrace::cli
