#include "net/http_server.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "net/http_connection.h"
#include "net/http_state.h"

namespace millrace::net {
namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

namespace {

constexpr std::uint32_t kMaxRefusing = 64;

void begin_connection(const std::shared_ptr<HttpServerState>& state, tcp::socket socket) {
  auto executor = socket.get_executor();
  auto connection = std::make_shared<HttpConnection>(std::move(socket), state);
  bool full = false;
  {
    const std::lock_guard lock(state->mutex);
    full = state->connections.size() >= state->config.limits.max_connections;
    if (!full) state->connections.emplace(connection.get(), connection);
  }
  if (!full) {
    asio::co_spawn(
        executor, [connection]() -> asio::awaitable<void> { co_await connection->run(); },
        asio::detached);
    return;
  }
  // Saying why costs a coroutine, so only so many are told at once.
  if (++state->refusing > kMaxRefusing) {
    --state->refusing;
    return;
  }
  asio::co_spawn(
      executor,
      [connection, state]() -> asio::awaitable<void> {
        co_await connection->refuse();
        --state->refusing;
      },
      asio::detached);
}

asio::awaitable<void> accept_loop(std::shared_ptr<HttpServerState> state) {
  asio::steady_timer pause(state->accept_strand);
  while (state->acceptor.is_open()) {
    error_code ec;
    tcp::socket socket = co_await state->acceptor.async_accept(
        asio::make_strand(state->executor), asio::redirect_error(asio::use_awaitable, ec));
    if (!ec) {
      begin_connection(state, std::move(socket));
      continue;
    }
    if (ec == asio::error::operation_aborted || !state->acceptor.is_open()) break;
    // Out of descriptors, or the peer left before it was accepted: neither ends the server.
    spdlog::warn("accepting a connection failed: {}", ec.message());
    pause.expires_after(std::chrono::milliseconds(50));
    co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, ec));
  }
}

Error bind_error(const HttpServerConfig& config, const char* what, error_code ec) {
  std::string fix;
  if (ec == asio::error::address_in_use) {
    fix = "; another process listens there, choose another port";
  } else if (ec == asio::error::access_denied) {
    fix = "; ports below 1024 need privileges, choose a higher one";
  } else if (ec == boost::system::errc::address_not_available) {
    fix = "; this machine has no such address";
  }
  return {
      ErrorCode::kUnavailable, "port",
      fmt::format("cannot {} {}:{}: {}{}", what, config.address, config.port, ec.message(), fix)};
}

std::vector<std::shared_ptr<HttpConnection>> snapshot(HttpServerState& state) {
  std::vector<std::shared_ptr<HttpConnection>> all;
  const std::lock_guard lock(state.mutex);
  for (const auto& [pointer, weak] : state.connections) {
    if (auto connection = weak.lock()) all.push_back(std::move(connection));
  }
  return all;
}

void close_acceptor(const std::shared_ptr<HttpServerState>& state) {
  asio::dispatch(state->accept_strand, [state] {
    error_code ignored;
    state->acceptor.close(ignored);
  });
}

}  // namespace

HttpServer::HttpServer(asio::any_io_executor executor, HttpServerConfig config, HttpRouter router)
    : state_(std::make_shared<HttpServerState>(executor, std::move(config), std::move(router))) {}

HttpServer::~HttpServer() { stop(); }

Result<std::uint16_t> HttpServer::start() {
  const HttpServerConfig& config = state_->config;
  error_code ec;
  const auto address = asio::ip::make_address(config.address, ec);
  if (ec) {
    return invalid("address", fmt::format("\"{}\" is not an IP address; use for instance 0.0.0.0, "
                                          "127.0.0.1 or ::",
                                          config.address));
  }
  const tcp::endpoint endpoint(address, config.port);
  tcp::acceptor& acceptor = state_->acceptor;
  acceptor.open(endpoint.protocol(), ec);
  if (ec) return bind_error(config, "open a socket for", ec);
  acceptor.set_option(tcp::acceptor::reuse_address(true), ec);
  acceptor.bind(endpoint, ec);
  if (!ec) acceptor.listen(config.backlog, ec);
  if (ec) {
    const Error error = bind_error(config, "listen on", ec);
    acceptor.close(ec);
    return error;
  }
  state_->port = acceptor.local_endpoint().port();
  asio::co_spawn(state_->accept_strand, accept_loop(state_), asio::detached);
  return state_->port;
}

std::uint16_t HttpServer::port() const { return state_->port; }

std::uint32_t HttpServer::connections() const {
  const std::lock_guard lock(state_->mutex);
  return static_cast<std::uint32_t>(state_->connections.size());
}

void HttpServer::begin_drain() {
  state_->draining = true;
  close_acceptor(state_);
  for (const auto& connection : snapshot(*state_)) connection->drain();
}

void HttpServer::stop() {
  state_->draining = state_->stopped = true;
  close_acceptor(state_);
  for (const auto& connection : snapshot(*state_)) connection->close();
}

asio::awaitable<bool> HttpServer::drained(std::chrono::milliseconds deadline) {
  const auto due = std::chrono::steady_clock::now() + deadline;
  asio::steady_timer timer(co_await asio::this_coro::executor);
  while (connections() > 0) {
    if (std::chrono::steady_clock::now() >= due) co_return false;
    timer.expires_after(std::chrono::milliseconds(20));
    co_await timer.async_wait(asio::use_awaitable);
  }
  co_return true;
}

}  // namespace millrace::net
