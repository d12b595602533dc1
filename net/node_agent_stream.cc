#include "net/node_agent_stream.h"

#include <fmt/format.h>

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <cstring>

#include "config/check.h"

namespace millrace::net {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;

constexpr std::size_t kHeaderBytes = 5;

std::string name_of(const asio::ip::tcp::socket& socket) {
  error_code error;
  const auto endpoint = socket.remote_endpoint(error);
  return error ? "unknown" : fmt::format("{}:{}", endpoint.address().to_string(), endpoint.port());
}

}  // namespace

std::string encode_words(std::span<const std::string> words) {
  std::string payload;
  for (const std::string& word : words) {
    payload += word;
    payload += '\0';
  }
  return payload;
}

Result<std::vector<std::string>> decode_words(std::string_view payload) {
  std::vector<std::string> words;
  if (!payload.empty() && payload.back() != '\0') {
    return invalid("", "the last word of the command does not end");
  }
  while (!payload.empty()) {
    const std::size_t end = payload.find('\0');
    words.emplace_back(payload.substr(0, end));
    payload.remove_prefix(end + 1);
  }
  return words;
}

AgentStream::AgentStream(asio::ip::tcp::socket socket, PskTls& tls)
    : stream_(std::move(socket), tls.context()),
      deadline_(stream_.get_executor()),
      peer_(name_of(stream_.next_layer())) {
  error_code ignored;
  stream_.next_layer().set_option(asio::ip::tcp::no_delay(true), ignored);
}

void AgentStream::expires_in(std::chrono::milliseconds limit) {
  deadline_.expires_after(limit);
  deadline_.async_wait([weak = weak_from_this()](const error_code& error) {
    const auto self = weak.lock();
    // A wait that had ended already when the deadline moved arrives here without an error.
    if (error || !self || self->deadline_.expiry() > std::chrono::steady_clock::now()) return;
    self->expired_ = true;
    self->close();
  });
}

void AgentStream::close() {
  error_code ignored;
  deadline_.cancel();
  stream_.next_layer().shutdown(asio::ip::tcp::socket::shutdown_both, ignored);
  stream_.next_layer().close(ignored);
}

Error AgentStream::failure(std::string_view what, const error_code& error) const {
  if (expired_) {
    return {ErrorCode::kDeadlineExceeded, "", fmt::format("{}: {} took too long", peer_, what)};
  }
  return {ErrorCode::kUnavailable, "", fmt::format("{}: {}: {}", peer_, what, error.message())};
}

asio::awaitable<bool> AgentStream::speaks() {
  asio::ip::tcp::socket& socket = stream_.next_layer();
  const auto [error] = co_await socket.async_wait(asio::ip::tcp::socket::wait_read, kAwaitTuple);
  if (error) co_return expired_;  // one that is silent fails its handshake
  char byte = 0;
  error_code gone;
  socket.receive(asio::buffer(&byte, 1), asio::ip::tcp::socket::message_peek, gone);
  co_return !gone;
}

asio::awaitable<Result<void>> AgentStream::handshake(TlsRole role) {
  const auto side =
      role == TlsRole::kServer ? asio::ssl::stream_base::server : asio::ssl::stream_base::client;
  const auto [error] = co_await stream_.async_handshake(side, kAwaitTuple);
  if (error) co_return failure("handshake (is node_agent.secret_file the same on both?)", error);
  if (!PskTls::proven(stream_.native_handle())) {
    close();
    co_return Error{ErrorCode::kUnavailable, "",
                    peer_ + ": handshake without proof of the shared secret"};
  }
  co_return Result<void>{};
}

asio::awaitable<Result<AgentMessage>> AgentStream::read() {
  std::array<std::uint8_t, kHeaderBytes> header{};
  const auto [error, n] = co_await asio::async_read(stream_, asio::buffer(header), kAwaitTuple);
  if (error) co_return failure("connection", error);
  std::uint32_t size = 0;
  std::memcpy(&size, header.data() + 1, sizeof size);
  if (header[0] < 1 || header[0] > static_cast<std::uint8_t>(AgentMessageKind::kPing) ||
      size > kMaxAgentMessageBytes) {
    close();
    co_return Error{ErrorCode::kInvalidArgument, "",
                    fmt::format("{}: message of kind {} and {} bytes", peer_, header[0], size)};
  }
  AgentMessage message;
  message.kind = static_cast<AgentMessageKind>(header[0]);
  message.payload.resize(size);
  if (size > 0) {
    const auto [body_error, m] =
        co_await asio::async_read(stream_, asio::buffer(message.payload), kAwaitTuple);
    if (body_error) co_return failure("connection", body_error);
  }
  co_return message;
}

asio::awaitable<Result<void>> AgentStream::write(AgentMessageKind kind, std::string_view payload) {
  CHECK(payload.size() <= kMaxAgentMessageBytes, "bytes={}", payload.size());
  const auto size = static_cast<std::uint32_t>(payload.size());
  std::string bytes(kHeaderBytes, static_cast<char>(kind));
  std::memcpy(bytes.data() + 1, &size, sizeof size);
  bytes += payload;
  const auto [error, n] = co_await asio::async_write(stream_, asio::buffer(bytes), kAwaitTuple);
  if (error) co_return failure("connection", error);
  co_return Result<void>{};
}

}  // namespace millrace::net
