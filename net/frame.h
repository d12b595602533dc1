// Framed TCP between a gateway and a cell.
//
// A frame is a header of 24 bytes, little-endian, and a payload (net/codec.h):
//   0  u32 magic "MRF1"     4  u8 version    5  u8 flags (bit 0: checksum present)    6  u16 kind
//   8  u32 payload bytes   12  u32 CRC-32 of the payload, 0 without checksum
//  16  u64 epoch of the cell the frame belongs to
// The epoch stands in the header so that a frame of a dead epoch is dropped before it is decoded.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/result.h"

namespace millrace::net {

inline constexpr std::uint32_t kFrameMagic = 0x3146524D;  // "MRF1"
inline constexpr std::uint8_t kFrameVersion = 8;
inline constexpr std::size_t kFrameHeaderBytes = 24;

enum class MessageKind : std::uint16_t {
  kHello = 1,       // cell -> gateway: Hello
  kWelcome,         // gateway -> cell: Welcome
  kRefused,         // gateway -> cell: Notice
  kSubmit,          // gateway -> cell: SequenceRequest
  kCancel,          // gateway -> cell: Cancel
  kTokens,          // cell -> gateway: the TokenEvents of one step
  kPromptLogprobs,  // cell -> gateway: PromptLogprobsEvent
  kHeartbeat,       // cell -> gateway: CellStatus
  kHeartbeatAck,    // gateway -> cell: empty; shows the cell that its gateway lives
  kDrain,           // gateway -> cell: empty
  kGoodbye,         // either way: Notice
  kTelemetry,       // cell -> gateway, after a heartbeat: CellTelemetry
};
inline constexpr auto kLastMessageKind = static_cast<std::uint16_t>(MessageKind::kTelemetry);
std::string_view to_string(MessageKind kind);

struct FrameLimits {
  std::uint32_t max_payload_bytes = 32U << 20;  // 128k-token prompt: 0.5 MiB; prompt
                                                // log-probabilities with 20 alternatives: 22 MiB
  std::size_t max_outbound_bytes = std::size_t{64} << 20;  // written, not yet taken by the peer
  std::chrono::milliseconds write_deadline{5000};          // for the peer to take more of it
  bool checksum = true;  // on what we send; received ones always count
};

struct FrameHeader {
  MessageKind kind = MessageKind::kGoodbye;
  std::uint8_t flags = 0;
  std::uint32_t payload_bytes = 0;
  std::uint32_t checksum = 0;
  std::uint64_t epoch = 0;
};

struct Frame {
  MessageKind kind = MessageKind::kGoodbye;
  std::uint64_t epoch = 0;
  std::span<const std::uint8_t> payload;
};

// Appends header and payload to `out`. The payload must respect the limits of the receiver.
void append_frame(MessageKind kind, std::uint64_t epoch, std::span<const std::uint8_t> payload,
                  bool checksum, std::vector<std::uint8_t>& out);
// Checks magic, version, flags, kind and length. `bytes` holds kFrameHeaderBytes.
Result<FrameHeader> parse_frame_header(std::span<const std::uint8_t> bytes,
                                       std::uint32_t max_payload_bytes);
Result<void> verify_checksum(const FrameHeader& header, std::span<const std::uint8_t> payload);

// One connection. Everything runs on the executor of `socket`, which must be a strand or a
// single-threaded context; only read() may not be called twice at once. Whatever goes wrong closes
// the connection and leaves its reason in close_reason(): the first reason stays.
class FrameConnection : public std::enable_shared_from_this<FrameConnection> {
 public:
  static std::shared_ptr<FrameConnection> create(boost::asio::ip::tcp::socket socket,
                                                 FrameLimits limits);
  ~FrameConnection();

  // Starts the writer. Call once.
  void start();

  // The next frame; a complete one must have arrived within `limit`. The payload is valid until the
  // next read(). An error means that the connection is closed. The caller keeps a shared_ptr to the
  // connection while it waits.
  boost::asio::awaitable<Result<Frame>> read(std::chrono::milliseconds limit);

  // Queues a frame and returns at once; frames leave in order and many go in one write. False when
  // the connection is closed or the peer has fallen behind by more than max_outbound_bytes, which
  // closes it.
  bool send(MessageKind kind, std::uint64_t epoch, std::span<const std::uint8_t> payload);

  // Ends the connection after what is queued has been written, at the latest after write_deadline.
  void close_after_flush(std::string reason);
  void close(std::string reason);

  bool is_open() const { return open_; }
  const std::string& close_reason() const { return close_reason_; }
  std::string peer() const { return peer_; }
  void set_max_payload(std::uint32_t bytes) { limits_.max_payload_bytes = bytes; }

 private:
  FrameConnection(boost::asio::ip::tcp::socket socket, FrameLimits limits);
  boost::asio::awaitable<void> write_loop();
  Result<bool> next_buffered_frame(Frame& frame);
  std::span<std::uint8_t> read_space();
  void arm_read_timer(std::chrono::milliseconds limit);
  void arm_write_timer();

  boost::asio::ip::tcp::socket socket_;
  boost::asio::steady_timer read_timer_;
  boost::asio::steady_timer write_timer_;
  boost::asio::steady_timer wake_writer_;
  FrameLimits limits_;
  std::string peer_;
  std::string close_reason_;
  bool open_ = true;
  bool flushing_ = false;              // close once everything is written
  std::uint64_t read_generation_ = 0;  // tells a late timer that its read is over
  std::uint64_t write_generation_ = 0;
  std::vector<std::uint8_t> in_;  // bytes [in_begin_, in_end_) are received and unused
  std::size_t in_begin_ = 0;
  std::size_t in_end_ = 0;
  std::vector<std::uint8_t> pending_;  // queued
  std::vector<std::uint8_t> writing_;  // in the current write
};

}  // namespace millrace::net
