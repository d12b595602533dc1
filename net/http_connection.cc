#include "net/http_connection.h"

#include <spdlog/spdlog.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/http/read.hpp>

namespace millrace::net {
namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;

namespace {

constexpr std::size_t kReadBytes = 4096;

bool iequals(std::string_view a, std::string_view b) {
  return boost::beast::iequals({a.data(), a.size()}, {b.data(), b.size()});
}

// What a message repeats of the request, so that a long one does not come back whole.
std::string shown(std::string_view text) {
  constexpr std::size_t kShown = 128;
  return text.size() <= kShown ? std::string(text) : std::string(text.substr(0, kShown)) + "...";
}

std::string join(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : ", ") + word;
  return out;
}

HttpFailure failure_of(error_code ec) {
  if (ec == http::error::body_limit) {
    return {413, "body_too_large", "the request body is larger than this server accepts"};
  }
  if (ec == http::error::header_limit || ec == http::error::buffer_overflow) {
    return {431, "headers_too_large", "the request line and headers are too large"};
  }
  if (ec == http::error::bad_version) {
    return {505, "http_version", "only HTTP/1.0 and HTTP/1.1 are served here"};
  }
  return {400, "malformed_request", "malformed HTTP request: " + ec.message()};
}

// Beast knows "chunked" alone and passes over any other coding as if the header were not there.
// Where the body ends would then be a guess, and its bytes could pass for the next request (RFC
// 9112, 6.1).
std::optional<HttpFailure> check_framing(const http::fields& message, bool http10) {
  const std::size_t codings = message.count(http::field::transfer_encoding);
  if (codings == 0) return std::nullopt;
  if (http10) {
    return HttpFailure{400, "malformed_request", "HTTP/1.0 has no Transfer-Encoding"};
  }
  const auto value = message[http::field::transfer_encoding];
  if (codings == 1 && iequals({value.data(), value.size()}, "chunked")) return std::nullopt;
  return HttpFailure{501, "transfer_encoding", "the only Transfer-Encoding served is chunked"};
}

}  // namespace

HttpConnection::HttpConnection(asio::ip::tcp::socket socket, std::shared_ptr<HttpServerState> state)
    : socket_(std::move(socket)),
      state_(std::move(state)),
      buffer_(state_->config.limits.max_header_bytes + state_->config.limits.max_pipelined_bytes +
              2 * kReadBytes),
      read_deadline_(socket_.get_executor()),
      write_deadline_(socket_.get_executor()),
      watch_done_(socket_.get_executor()),
      stream_wake_(socket_.get_executor()),
      stream_space_(socket_.get_executor()) {}

HttpConnection::~HttpConnection() {
  state_->body_bytes -= reserved_body_;
  const std::lock_guard lock(state_->mutex);
  state_->connections.erase(this);
}

void HttpConnection::drain() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] {
    if (self->idle_) self->socket_.cancel();
  });
}

void HttpConnection::close() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] {
    self->set_gone();
    error_code ignored;
    self->socket_.close(ignored);
  });
}

asio::awaitable<void> HttpConnection::run() {
  error_code ignored;
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  while (co_await wait_for_request()) {
    const bool more = co_await serve_one();
    request_ = HttpRequest{};
    state_->body_bytes -= std::exchange(reserved_body_, 0);
    if (!more) break;
  }
  co_await close_gracefully();
}

asio::awaitable<void> HttpConnection::refuse() {
  request_.request_id = new_request_id();
  linger_ = true;
  HttpFailure failure{503, "too_many_connections", "the server has too many connections; retry"};
  HttpHeaders headers;
  headers.emplace_back("Retry-After", "1");
  co_await fail(std::move(failure), std::move(headers));
  co_await close_gracefully();
}

void HttpConnection::expire_reads(std::chrono::milliseconds duration) {
  timed_out_ = false;
  read_deadline_.arm(duration, [this] {
    timed_out_ = true;
    error_code ignored;
    socket_.cancel(ignored);
  });
}

// Waits for the first byte of a request.
asio::awaitable<bool> HttpConnection::wait_for_request() {
  if (gone_) co_return false;
  if (buffer_.size() > 0) co_return true;
  if (state_->draining) co_return false;
  idle_ = true;
  expire_reads(state_->config.limits.idle_timeout);
  error_code ec;
  const std::size_t n = co_await socket_.async_read_some(
      buffer_.prepare(kReadBytes), asio::redirect_error(asio::use_awaitable, ec));
  read_deadline_.disarm();
  idle_ = false;
  buffer_.commit(n);
  co_return !ec;
}

asio::awaitable<bool> HttpConnection::fail(HttpFailure failure, HttpHeaders headers) {
  if (state_->config.on_failure) state_->config.on_failure(failure);
  HttpResponse response;
  if (state_->config.format_failure) {
    response = state_->config.format_failure(failure);
  } else {
    response.content_type = "text/plain; charset=utf-8";
    response.body = failure.message + "\n";
  }
  response.status = failure.status;
  response.headers.insert(response.headers.end(), headers.begin(), headers.end());
  const bool sent = co_await send(std::move(response));
  co_return sent&& keep_alive_;
}

asio::awaitable<bool> HttpConnection::fail_parse(error_code ec) {
  if (ec == asio::error::operation_aborted && timed_out_) {
    HttpFailure failure{408, "request_timeout", "the request took too long to arrive"};
    co_return co_await fail(std::move(failure));
  }
  // Anything that is not Beast's judgement of the bytes is the connection's own end.
  if (ec.category() != http::make_error_code(http::error::bad_method).category() ||
      ec == http::error::end_of_stream || ec == http::error::partial_message) {
    co_return false;
  }
  linger_ = true;
  co_return co_await fail(failure_of(ec));
}

asio::awaitable<bool> HttpConnection::read_header(Parser& parser) {
  const HttpLimits& limits = state_->config.limits;
  parser.header_limit(static_cast<std::uint32_t>(limits.max_header_bytes));
  parser.body_limit(limits.max_body_bytes);
  expire_reads(limits.header_timeout);
  error_code ec;
  co_await http::async_read_header(socket_, buffer_, parser,
                                   asio::redirect_error(asio::use_awaitable, ec));
  read_deadline_.disarm();
  // A too long Content-Length is found with the headers already parsed: use their request id.
  for (const auto& field : parser.get()) {
    request_.headers.emplace_back(std::string(field.name_string()), std::string(field.value()));
  }
  const std::string_view id = request_.header("x-request-id");
  if (sane_request_id(id)) request_.request_id = id;
  if (ec) {
    co_await fail_parse(ec);
    co_return false;
  }
  http10_ = parser.get().version() == 10;
  keep_alive_ = parser.get().keep_alive();
  co_return true;
}

// Everything that can be refused before the body is read. Fills request_ and `match`.
std::optional<HttpFailure> HttpConnection::check_header(const Parser& parser,
                                                        HttpRouter::Match& match) {
  const auto& message = parser.get();
  request_.method = std::string(message.method_string());
  if (request_.method == "HEAD") {
    request_.head = true;
    request_.method = "GET";
  }
  if (!parse_target({message.target().data(), message.target().size()}, request_)) {
    return HttpFailure{400, "malformed_request", "the request target is not a valid path"};
  }
  if (!http10_ && message.count(http::field::host) != 1) {
    return HttpFailure{400, "malformed_request", "HTTP/1.1 needs exactly one Host header"};
  }
  match = state_->router.find(request_.method, request_.path);
  request_.tail = match.tail;
  if (request_.method == "OPTIONS" && (request_.path == "*" || !match.allowed.empty())) {
    return std::nullopt;
  }
  if (match.allowed.empty()) {
    return HttpFailure{404, "route_not_found",
                       "no such route: " + shown(request_.method) + " " + shown(request_.path)};
  }
  if (match.handler == nullptr) {
    return HttpFailure{405, "method_not_allowed",
                       shown(request_.path) + " answers " + join(match.allowed) + " only"};
  }
  if (state_->config.admit) {
    if (auto refused = state_->config.admit(request_)) return refused;
  }
  const std::string_view encoding = request_.header("content-encoding");
  if (!encoding.empty() && !iequals(encoding, "identity")) {
    return HttpFailure{415, "content_encoding", "request bodies must not be compressed"};
  }
  const std::string_view expect = request_.header("expect");
  if (!expect.empty() && !iequals(expect, "100-continue")) {
    return HttpFailure{417, "expectation_failed", "only Expect: 100-continue is understood"};
  }
  return std::nullopt;
}

bool HttpConnection::reserve_body(std::size_t bytes) {
  reserved_body_ += bytes;
  const std::size_t before = state_->body_bytes.fetch_add(bytes);
  return before + bytes <= state_->config.limits.max_buffered_body_bytes;
}

asio::awaitable<bool> HttpConnection::read_body(Parser& parser) {
  const std::size_t length = parser.content_length().value_or(0);
  bool room = reserve_body(length);
  if (room && !request_.header("expect").empty() && !parser.is_done() && !http10_) {
    if (!co_await write_all("HTTP/1.1 100 Continue\r\n\r\n")) co_return false;
  }
  expire_reads(state_->config.limits.body_timeout);
  error_code ec;
  while (room && !parser.is_done() && !ec) {
    co_await http::async_read_some(socket_, buffer_, parser,
                                   asio::redirect_error(asio::use_awaitable, ec));
    const std::size_t size = parser.get().body().size();
    if (size > reserved_body_) room = reserve_body(size - reserved_body_);
  }
  read_deadline_.disarm();
  if (!room) {
    keep_alive_ = false;
    linger_ = true;
    HttpFailure failure{503, "body_memory", "request bodies fill the server's memory; retry"};
    HttpHeaders headers;
    headers.emplace_back("Retry-After", "1");
    co_return co_await fail(std::move(failure), std::move(headers));
  }
  if (ec) {
    keep_alive_ = false;
    co_return co_await fail_parse(ec);
  }
  request_.body = std::move(parser.get().body());
  co_return true;
}

asio::awaitable<bool> HttpConnection::answer_options(const HttpRouter::Match& match) {
  HttpResponse response;
  response.status = 204;
  response.content_type.clear();
  std::string methods = join(match.allowed);
  if (!methods.empty()) methods += ", ";
  methods += "OPTIONS";
  const bool preflight = !request_.header("access-control-request-method").empty();
  if (preflight && !state_->config.cors.allowed_origins.empty()) {
    response.headers.emplace_back("Access-Control-Allow-Methods", methods);
    const std::string_view wanted = request_.header("access-control-request-headers");
    response.headers.emplace_back("Access-Control-Allow-Headers",
                                  wanted.empty() ? "authorization, content-type" : wanted);
    response.headers.emplace_back("Access-Control-Max-Age",
                                  std::to_string(state_->config.cors.max_age.count()));
  }
  response.headers.emplace_back("Allow", std::move(methods));
  const bool sent = co_await send(std::move(response));
  co_return sent&& keep_alive_;
}

asio::awaitable<void> HttpConnection::run_handler(const HttpHandler& handler) {
  bool complete = true;
  try {
    co_await handler(request_, *this);
  } catch (const std::exception& e) {
    spdlog::error("request {}: {} {} failed: {}", request_.request_id, request_.method,
                  request_.path, e.what());
    complete = false;
  }
  on_gone_ = nullptr;
  co_await end_stream(complete);
  co_await stop_watching();
  if (!started_ && !gone_) {
    HttpFailure failure{500, "internal_error", "the server failed to answer this request"};
    co_await fail(std::move(failure));
  }
}

asio::awaitable<bool> HttpConnection::serve_one() {
  request_.request_id = new_request_id();
  started_ = keep_alive_ = http10_ = false;

  Parser parser;
  if (!co_await read_header(parser)) co_return false;
  HttpRouter::Match match;
  auto failure = check_framing(parser.get(), http10_);
  const bool framed = !failure;
  if (framed) failure = check_header(parser, match);
  if (failure) {
    if (!framed || !parser.is_done()) {
      keep_alive_ = false;
      linger_ = true;
    }
    HttpHeaders headers;
    if (failure->status == 405) headers.emplace_back("Allow", join(match.allowed) + ", OPTIONS");
    if (failure->status == 401) headers.emplace_back("WWW-Authenticate", "Bearer");
    co_return co_await fail(std::move(*failure), std::move(headers));
  }
  if (!co_await read_body(parser) || started_) co_return false;
  if (match.handler == nullptr) co_return co_await answer_options(match);
  co_await run_handler(*match.handler);
  co_return keep_alive_ && !gone_;
}

// Closing with unread bytes in the socket would reset the connection and could take the answer with
// it, so some of a refused body is read and thrown away first.
asio::awaitable<void> HttpConnection::close_gracefully() {
  error_code ec;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ec);
  if (linger_ && !ec && !gone_) {
    expire_reads(std::chrono::seconds(5));
    std::size_t budget = state_->config.limits.max_body_bytes;
    std::string scrap(65536, '\0');
    while (!ec) {
      const std::size_t n = co_await socket_.async_read_some(
          asio::buffer(scrap), asio::redirect_error(asio::use_awaitable, ec));
      if (n >= budget) break;
      budget -= n;
    }
    read_deadline_.disarm();
  }
  socket_.close(ec);
}

}  // namespace millrace::net
