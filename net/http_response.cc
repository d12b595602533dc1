// The writing half of HttpConnection: heads, whole answers, streams, and watching the peer.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/status.hpp>
#include <ctime>

#include "config/check.h"
#include "net/http_connection.h"

namespace millrace::net {
namespace asio = boost::asio;
using boost::system::error_code;

namespace {

// A client must take this much within one write deadline: with the default 30 s, 2 KiB/s at least.
constexpr std::size_t kPieceBytes = 64 * 1024;
constexpr std::size_t kReadBytes = 4096;

std::string http_date() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  std::array<char, 64> text{};
  const std::size_t n =
      std::strftime(text.data(), text.size(), "%a, %d %b %Y %H:%M:%S GMT", &parts);
  return {text.data(), n};
}

}  // namespace

asio::awaitable<void> Signal::wait() {
  error_code ignored;
  co_await timer_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
}

asio::awaitable<void> Signal::wait_for(std::chrono::milliseconds duration) {
  timer_.expires_after(duration);
  co_await wait();
}

void Deadline::arm(std::chrono::milliseconds duration, std::function<void()> expire) {
  state_->timer.expires_after(duration);
  state_->timer.async_wait([state = state_, generation = ++state_->generation,
                            expire = std::move(expire)](error_code ec) {
    if (!ec && state->generation == generation) expire();
  });
}

void Deadline::disarm() {
  ++state_->generation;
  state_->timer.cancel();
}

void HttpConnection::add_cors(std::string& head) const {
  const auto& allowed = state_->config.cors.allowed_origins;
  const std::string_view origin = request_.header("origin");
  if (allowed.empty() || origin.empty()) return;
  const bool any = std::find(allowed.begin(), allowed.end(), "*") != allowed.end();
  if (!any && std::find(allowed.begin(), allowed.end(), origin) == allowed.end()) return;
  fmt::format_to(std::back_inserter(head),
                 "Access-Control-Allow-Origin: {}\r\n"
                 "Access-Control-Expose-Headers: x-request-id, retry-after\r\n",
                 any ? std::string_view("*") : origin);
  if (!any) head += "Vary: Origin\r\n";
}

std::string HttpConnection::format_head(const HttpResponse& response, bool chunked,
                                        std::size_t length) {
  const auto status = static_cast<boost::beast::http::status>(response.status);
  const auto reason = boost::beast::http::obsolete_reason(status);
  std::string head = fmt::format("HTTP/1.1 {} {}\r\nDate: {}\r\nServer: {}\r\nx-request-id: {}\r\n",
                                 response.status, std::string_view(reason.data(), reason.size()),
                                 http_date(), state_->config.server_name, request_.request_id);
  if (!response.content_type.empty()) head += "Content-Type: " + response.content_type + "\r\n";
  for (const auto& [name, value] : response.headers) head += name + ": " + value + "\r\n";
  add_cors(head);
  if (chunked) {
    head += "Transfer-Encoding: chunked\r\n";
  } else if (length != std::string::npos && response.status != 204 && response.status != 304) {
    head += fmt::format("Content-Length: {}\r\n", length);
  }
  if (!keep_alive_) {
    head += "Connection: close\r\n";
  } else if (http10_) {
    head += "Connection: keep-alive\r\n";
  }
  head += "\r\n";
  return head;
}

void HttpConnection::set_gone() {
  gone_ = true;
  stream_wake_.notify();
  stream_space_.notify();
  if (auto fn = std::exchange(on_gone_, nullptr)) fn();
}

asio::awaitable<bool> HttpConnection::write_all(std::string_view bytes) {
  while (!bytes.empty() && !gone_) {
    const std::string_view piece = bytes.substr(0, kPieceBytes);
    write_deadline_.arm(state_->config.limits.write_timeout, [this] {
      error_code ignored;
      socket_.close(ignored);
    });
    error_code ec;
    co_await asio::async_write(socket_, asio::buffer(piece.data(), piece.size()),
                               asio::redirect_error(asio::use_awaitable, ec));
    write_deadline_.disarm();
    if (ec) set_gone();
    bytes.remove_prefix(piece.size());
  }
  co_return !gone_;
}

asio::awaitable<bool> HttpConnection::send(HttpResponse response) {
  CHECK(!started_, "{} {} answered twice", request_.method, request_.path);
  started_ = true;
  if (response.close || state_->draining) keep_alive_ = false;
  std::string bytes = format_head(response, false, response.body.size());
  if (!request_.head) bytes += response.body;
  co_return co_await write_all(bytes);
}

asio::awaitable<bool> HttpConnection::begin_stream(HttpResponse head, std::string idle_fill,
                                                   std::chrono::milliseconds idle_interval) {
  CHECK(!started_ && head.body.empty(), "{} {} answered twice", request_.method, request_.path);
  started_ = true;
  if (head.close || state_->draining || http10_) keep_alive_ = false;
  const std::string bytes = format_head(head, !http10_, std::string::npos);
  if (!co_await write_all(bytes)) co_return false;
  idle_fill_ = std::move(idle_fill);
  idle_interval_ = idle_interval;
  stream_closed_ = stream_complete_ = false;
  unsent_.clear();
  streaming_ = true;
  asio::co_spawn(
      socket_.get_executor(),
      [self = shared_from_this()]() -> asio::awaitable<void> { co_await self->run_stream(); },
      asio::detached);
  co_return !gone_;
}

asio::awaitable<bool> HttpConnection::write(std::string bytes) {
  CHECK(streaming_ || gone_, "write() outside a stream");
  if (request_.head) co_return !gone_;
  unsent_ += bytes;
  stream_wake_.notify();
  while (!gone_ && unsent_.size() > state_->config.limits.max_unsent_bytes) {
    co_await stream_space_.wait();
  }
  co_return !gone_;
}

// Sends what write() gathers, all that is there in one chunk.
asio::awaitable<void> HttpConnection::run_stream() {
  std::string chunk;
  while (!gone_) {
    if (unsent_.empty()) {
      if (stream_closed_) break;
      const auto due = std::chrono::steady_clock::now() + idle_interval_;
      co_await stream_wake_.wait_for(idle_interval_);
      if (!unsent_.empty() || stream_closed_ || std::chrono::steady_clock::now() < due) continue;
      unsent_ = idle_fill_;
    }
    chunk.clear();
    if (!http10_) fmt::format_to(std::back_inserter(chunk), "{:x}\r\n", unsent_.size());
    chunk += unsent_;
    if (!http10_) chunk += "\r\n";
    unsent_.clear();
    stream_space_.notify();
    co_await write_all(chunk);
  }
  if (!gone_ && stream_complete_ && !http10_ && !request_.head) co_await write_all("0\r\n\r\n");
  streaming_ = false;
  stream_space_.notify();
}

// An incomplete stream ends without its last chunk, so that the client can tell.
asio::awaitable<void> HttpConnection::end_stream(bool complete) {
  if (!complete && started_) keep_alive_ = false;
  stream_complete_ = complete;
  stream_closed_ = true;
  stream_wake_.notify();
  while (streaming_) co_await stream_space_.wait();
}

void HttpConnection::on_gone(std::function<void()> fn) {
  if (gone_) {
    fn();
    return;
  }
  on_gone_ = std::move(fn);
  if (watching_) return;
  watching_ = true;
  stop_watch_ = false;
  asio::co_spawn(
      socket_.get_executor(),
      [self = shared_from_this()]() -> asio::awaitable<void> { co_await self->watch_peer(); },
      asio::detached);
}

// Reads while a handler runs: pipelined requests are kept, the end of the connection is told. Past
// the pipelining limit only a failing write can tell it.
asio::awaitable<void> HttpConnection::watch_peer() {
  while (!stop_watch_ && !gone_ && buffer_.size() < state_->config.limits.max_pipelined_bytes) {
    error_code ec;
    const std::size_t n = co_await socket_.async_read_some(
        buffer_.prepare(kReadBytes), asio::redirect_error(asio::use_awaitable, ec));
    buffer_.commit(n);
    if (ec && !stop_watch_) set_gone();
  }
  watching_ = false;
  watch_done_.notify();
}

asio::awaitable<void> HttpConnection::stop_watching() {
  stop_watch_ = true;
  while (watching_) {
    error_code ignored;
    socket_.cancel(ignored);
    co_await watch_done_.wait();
  }
}

}  // namespace millrace::net
