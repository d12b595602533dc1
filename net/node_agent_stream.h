// The connection between a node agent and a leader's launch helper: TLS (net/psk_tls.h) with
// messages of one kind byte, a u32 little-endian length and so many bytes.
#pragma once

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/result.h"
#include "net/psk_tls.h"

namespace millrace::net {

// An operation that is given this returns its error instead of throwing it.
inline constexpr auto kAwaitTuple = boost::asio::as_tuple(boost::asio::use_awaitable);

inline constexpr std::uint32_t kMaxAgentMessageBytes = 64U << 10;

enum class AgentMessageKind : std::uint8_t {
  kCommand = 1,  // leader -> agent: the launcher's words, each ended by a zero byte
  kOutput,       // agent -> leader: what the daemon wrote
  kExit,         // agent -> leader: the daemon's exit status, in decimal
  kRefused,      // agent -> leader: a sentence; nothing was started
  kPing,         // both ways: still there
};

struct AgentMessage {
  AgentMessageKind kind = AgentMessageKind::kPing;
  std::string payload;
};

std::string encode_words(std::span<const std::string> words);
Result<std::vector<std::string>> decode_words(std::string_view payload);

// Runs on the executor of its socket, which must be single-threaded; at most one read and one write
// at a time. Whoever waits holds a shared_ptr.
class AgentStream : public std::enable_shared_from_this<AgentStream> {
 public:
  AgentStream(boost::asio::ip::tcp::socket socket, PskTls& tls);

  // From now on the connection lives `limit` longer, whatever it does; then it is closed.
  void expires_in(std::chrono::milliseconds limit);
  // Ends a pending read and write as well. Idempotent.
  void close();

  // Waits for the peer's first byte. False when it went without one, as a TCP probe does.
  boost::asio::awaitable<bool> speaks();
  boost::asio::awaitable<Result<void>> handshake(TlsRole role);
  boost::asio::awaitable<Result<AgentMessage>> read();
  boost::asio::awaitable<Result<void>> write(AgentMessageKind kind, std::string_view payload);

  const std::string& peer() const { return peer_; }
  boost::asio::any_io_executor executor() { return stream_.get_executor(); }

 private:
  Error failure(std::string_view what, const boost::system::error_code& error) const;

  boost::asio::ssl::stream<boost::asio::ip::tcp::socket> stream_;
  boost::asio::steady_timer deadline_;
  std::string peer_;
  bool expired_ = false;
};

}  // namespace millrace::net
