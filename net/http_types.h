// What an HTTP handler sees and gives back: plain values, no sockets, no parser types.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace millrace::net {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

// One request, whole: the server has read the body and checked every size before a handler runs.
struct HttpRequest {
  std::string method;  // "GET", "POST", ...; a HEAD request arrives as "GET" with `head` set
  bool head = false;
  std::string path;  // percent-decoded, without the query
  std::string tail;  // what the route's "*" matched, percent-decoded
  std::vector<std::pair<std::string, std::string>> query;  // decoded, in order, repeats kept
  HttpHeaders headers;                                     // as received
  std::string body;
  std::string request_id;  // the caller's x-request-id when it is sane, else a new one

  // The first header of that name, compared without case; empty when absent.
  std::string_view header(std::string_view name) const;
};

struct HttpResponse {
  unsigned status = 200;
  std::string content_type = "application/json";
  std::string body;
  HttpHeaders headers;  // beside those the server adds itself (x-request-id, CORS, Date, ...)
  bool close = false;   // end the connection after this answer
};

// A failure the HTTP layer itself found; a formatter turns it into the API's own error body.
struct HttpFailure {
  unsigned status = 400;
  std::string code;  // stable word: "malformed_request", "body_too_large", "route_not_found", ...
  std::string message;  // a sentence for people
};

// Answers one request: exactly one send(), or one begin_stream() followed by write()s; the stream
// ends when the handler returns. Used only from the handler's own coroutine and executor, except
// that several coroutines on that executor may call write().
class Responder {
 public:
  virtual ~Responder() = default;

  // Sends a whole answer. False when the client is gone or too slow.
  virtual boost::asio::awaitable<bool> send(HttpResponse response) = 0;

  // Starts an answer of unknown length (chunked; until close for HTTP/1.0). `head.body` must be
  // empty. While nothing is written for `idle_interval` the server sends `idle_fill` by itself.
  virtual boost::asio::awaitable<bool> begin_stream(HttpResponse head, std::string idle_fill,
                                                    std::chrono::milliseconds idle_interval) = 0;

  // Queues bytes of the stream; writes that come together leave together. Waits while more than the
  // configured number of bytes is unsent, so a slow client slows the handler, up to the write
  // deadline. False when the client is gone.
  virtual boost::asio::awaitable<bool> write(std::string bytes) = 0;

  // Whether the client has gone: it closed or reset the connection, or a write missed its deadline.
  // A client that closes only its sending side counts as gone.
  virtual bool gone() const = 0;

  // Calls `fn` once, on the connection's executor, as soon as the client has gone (at once if it
  // has). From this call on the connection is watched for that while the handler runs. `fn` is
  // dropped when the handler returns.
  virtual void on_gone(std::function<void()> fn) = 0;

  // Whether the answer has begun: from then on an error cannot have a status of its own.
  virtual bool started() const = 0;
};

using HttpHandler = std::function<boost::asio::awaitable<void>(HttpRequest&, Responder&)>;

}  // namespace millrace::net
