#include "net/frame.h"

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/crc.hpp>
#include <cstring>

#include "config/check.h"

namespace millrace::net {
namespace {

namespace asio = boost::asio;

constexpr std::uint8_t kChecksumFlag = 1;
constexpr std::size_t kReadStepBytes = std::size_t{64} << 10;

std::uint32_t crc32(std::span<const std::uint8_t> bytes) {
  boost::crc_32_type crc;
  crc.process_bytes(bytes.data(), bytes.size());
  return crc.checksum();
}

template <class T>
void put(std::uint8_t* at, T v) {
  std::memcpy(at, &v, sizeof v);
}

template <class T>
T get(const std::uint8_t* at) {
  T v;
  std::memcpy(&v, at, sizeof v);
  return v;
}

}  // namespace

std::string_view to_string(MessageKind kind) {
  switch (kind) {
    case MessageKind::kHello:
      return "Hello";
    case MessageKind::kWelcome:
      return "Welcome";
    case MessageKind::kRefused:
      return "Refused";
    case MessageKind::kSubmit:
      return "Submit";
    case MessageKind::kCancel:
      return "Cancel";
    case MessageKind::kTokens:
      return "Tokens";
    case MessageKind::kPromptLogprobs:
      return "PromptLogprobs";
    case MessageKind::kHeartbeat:
      return "Heartbeat";
    case MessageKind::kHeartbeatAck:
      return "HeartbeatAck";
    case MessageKind::kDrain:
      return "Drain";
    case MessageKind::kGoodbye:
      return "Goodbye";
    case MessageKind::kTelemetry:
      return "Telemetry";
  }
  return "unknown";
}

void append_frame(MessageKind kind, std::uint64_t epoch, std::span<const std::uint8_t> payload,
                  bool checksum, std::vector<std::uint8_t>& out) {
  CHECK(payload.size() <= UINT32_MAX, "bytes={}", payload.size());
  std::uint8_t header[kFrameHeaderBytes];
  put(header, kFrameMagic);
  header[4] = kFrameVersion;
  header[5] = checksum ? kChecksumFlag : 0;
  put(header + 6, static_cast<std::uint16_t>(kind));
  put(header + 8, static_cast<std::uint32_t>(payload.size()));
  put(header + 12, checksum ? crc32(payload) : 0U);
  put(header + 16, epoch);
  out.insert(out.end(), header, header + kFrameHeaderBytes);
  out.insert(out.end(), payload.begin(), payload.end());
}

Result<FrameHeader> parse_frame_header(std::span<const std::uint8_t> bytes,
                                       std::uint32_t max_payload_bytes) {
  CHECK(bytes.size() >= kFrameHeaderBytes, "bytes={}", bytes.size());
  const std::uint8_t* p = bytes.data();
  if (get<std::uint32_t>(p) != kFrameMagic) {
    return invalid("frame.magic", "the peer does not speak this protocol; check the address");
  }
  if (p[4] != kFrameVersion) {
    return invalid("frame.version",
                   fmt::format("the peer speaks version {}, this build {}; run the "
                               "same build on both sides",
                               p[4], kFrameVersion));
  }
  FrameHeader h;
  h.flags = p[5];
  if ((h.flags & ~kChecksumFlag) != 0) {
    return invalid("frame.flags", fmt::format("{:#x} has bits this build does not know", h.flags));
  }
  const auto kind = get<std::uint16_t>(p + 6);
  if (kind == 0 || kind > kLastMessageKind) {
    return invalid("frame.kind", fmt::format("{} is no message this build knows", kind));
  }
  h.kind = static_cast<MessageKind>(kind);
  h.payload_bytes = get<std::uint32_t>(p + 8);
  if (h.payload_bytes > max_payload_bytes) {
    return invalid("frame.length", fmt::format("{} bytes exceed the limit of {}", h.payload_bytes,
                                               max_payload_bytes));
  }
  h.checksum = get<std::uint32_t>(p + 12);
  h.epoch = get<std::uint64_t>(p + 16);
  return h;
}

Result<void> verify_checksum(const FrameHeader& header, std::span<const std::uint8_t> payload) {
  const std::uint32_t expected = (header.flags & kChecksumFlag) != 0 ? crc32(payload) : 0U;
  if (expected == header.checksum) return {};
  return invalid("frame.checksum", "does not match the payload: the bytes were damaged on the way");
}

std::shared_ptr<FrameConnection> FrameConnection::create(asio::ip::tcp::socket socket,
                                                         FrameLimits limits) {
  return std::shared_ptr<FrameConnection>(new FrameConnection(std::move(socket), limits));
}

FrameConnection::FrameConnection(asio::ip::tcp::socket socket, FrameLimits limits)
    : socket_(std::move(socket)),
      read_timer_(socket_.get_executor()),
      write_timer_(socket_.get_executor()),
      wake_writer_(socket_.get_executor()),
      limits_(limits) {
  boost::system::error_code ec;
  const auto endpoint = socket_.remote_endpoint(ec);
  peer_ = ec ? "a peer already gone"
             : fmt::format("{}:{}", endpoint.address().to_string(), endpoint.port());
  socket_.set_option(asio::ip::tcp::no_delay(true), ec);
  wake_writer_.expires_at(asio::steady_timer::time_point::max());
}

FrameConnection::~FrameConnection() = default;

void FrameConnection::start() {
  asio::co_spawn(
      socket_.get_executor(),
      [self = shared_from_this()]() -> asio::awaitable<void> { co_await self->write_loop(); },
      asio::detached);
}

// When the limit passes with bytes at hand, it is we who were slow (a busy thread), not the peer:
// the read that takes them is under way.
void FrameConnection::arm_read_timer(std::chrono::milliseconds limit) {
  read_timer_.expires_after(limit);
  read_timer_.async_wait([weak = weak_from_this(), generation = read_generation_,
                          limit](boost::system::error_code ec) {
    const auto self = weak.lock();
    if (ec || !self || self->read_generation_ != generation) return;
    if (self->socket_.available(ec) > 0 && !ec) return self->arm_read_timer(limit);
    self->close(fmt::format("nothing complete was received for {} ms", limit.count()));
  });
}

void FrameConnection::arm_write_timer() {
  write_timer_.expires_after(limits_.write_deadline);
  write_timer_.async_wait(
      [weak = weak_from_this(), generation = write_generation_](boost::system::error_code ec) {
        const auto self = weak.lock();
        if (ec || !self || self->write_generation_ != generation) return;
        self->close(
            fmt::format("the peer took nothing for {} ms", self->limits_.write_deadline.count()));
      });
}

// Room for the next received bytes. The buffer grows with what has arrived, not with what a header
// announces, so a peer must send what it makes us hold.
std::span<std::uint8_t> FrameConnection::read_space() {
  if (in_begin_ == in_end_) in_begin_ = in_end_ = 0;
  if (in_.size() - in_end_ < kReadStepBytes / 2) {
    if (in_begin_ > 0) {
      std::memmove(in_.data(), in_.data() + in_begin_, in_end_ - in_begin_);
      in_end_ -= in_begin_;
      in_begin_ = 0;
    }
    if (in_.size() - in_end_ < kReadStepBytes / 2) {
      in_.resize(std::max(in_.size() * 2, kReadStepBytes));
    }
  }
  return std::span(in_).subspan(in_end_);
}

Result<bool> FrameConnection::next_buffered_frame(Frame& frame) {
  const auto have = std::span<const std::uint8_t>(in_).subspan(in_begin_, in_end_ - in_begin_);
  if (have.size() < kFrameHeaderBytes) return false;
  const auto header = parse_frame_header(have.first(kFrameHeaderBytes), limits_.max_payload_bytes);
  if (!header) return header.error();
  if (have.size() - kFrameHeaderBytes < header->payload_bytes) return false;
  frame = {header->kind, header->epoch, have.subspan(kFrameHeaderBytes, header->payload_bytes)};
  if (auto ok = verify_checksum(*header, frame.payload); !ok) return ok.error();
  in_begin_ += kFrameHeaderBytes + header->payload_bytes;
  return true;
}

asio::awaitable<Result<Frame>> FrameConnection::read(std::chrono::milliseconds limit) {
  Frame frame;
  bool armed = false;
  while (open_) {
    const Result<bool> complete = next_buffered_frame(frame);
    if (!complete) {
      close(complete.error().to_string());
      co_return complete.error();
    }
    if (*complete) {
      ++read_generation_;
      if (armed) read_timer_.cancel();
      co_return frame;
    }
    if (!armed) arm_read_timer(limit);
    armed = true;
    const auto space = read_space();
    boost::system::error_code ec;
    const std::size_t n = co_await socket_.async_read_some(
        asio::buffer(space.data(), space.size()), asio::redirect_error(asio::use_awaitable, ec));
    if (ec) {
      close(ec == asio::error::eof ? "the peer closed the connection"
                                   : "receiving failed: " + ec.message());
      break;
    }
    in_end_ += n;
  }
  co_return Error{ErrorCode::kUnavailable, "", close_reason_};
}

bool FrameConnection::send(MessageKind kind, std::uint64_t epoch,
                           std::span<const std::uint8_t> payload) {
  if (!open_ || flushing_) return false;
  if (pending_.size() + writing_.size() + payload.size() > limits_.max_outbound_bytes) {
    close(fmt::format("the peer fell behind by more than {} bytes", limits_.max_outbound_bytes));
    return false;
  }
  if (pending_.empty()) wake_writer_.cancel_one();
  append_frame(kind, epoch, payload, limits_.checksum, pending_);
  return true;
}

asio::awaitable<void> FrameConnection::write_loop() {
  boost::system::error_code ec;
  while (open_) {
    if (pending_.empty()) {
      if (flushing_) {
        close("flushed");
        co_return;
      }
      // Cancelled by send(): being woken is the normal case.
      co_await wake_writer_.async_wait(asio::redirect_error(asio::use_awaitable, ec));
      continue;
    }
    writing_.swap(pending_);
    // The deadline is on progress: a peer that takes some of a long queue now and then is alive,
    // and max_outbound_bytes bounds how far it may fall behind.
    for (std::size_t sent = 0; sent < writing_.size();) {
      ++write_generation_;
      arm_write_timer();
      sent += co_await socket_.async_write_some(asio::buffer(writing_) + sent,
                                                asio::redirect_error(asio::use_awaitable, ec));
      ++write_generation_;
      if (ec) {
        close("sending failed: " + ec.message());
        co_return;
      }
    }
    write_timer_.cancel();
    writing_.clear();
  }
}

void FrameConnection::close_after_flush(std::string reason) {
  if (!open_ || flushing_) return;
  if (close_reason_.empty()) close_reason_ = std::move(reason);
  flushing_ = true;
  // Wakes the writer, which from now on never sleeps; the timer serves as the flush's deadline.
  wake_writer_.expires_after(limits_.write_deadline);
  wake_writer_.async_wait([weak = weak_from_this()](boost::system::error_code ec) {
    const auto self = weak.lock();
    if (!ec && self) self->close("not flushed in time");
  });
}

void FrameConnection::close(std::string reason) {
  if (!open_) return;
  open_ = false;
  if (close_reason_.empty()) close_reason_ = std::move(reason);
  boost::system::error_code ec;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_both, ec);
  socket_.close(ec);
  read_timer_.cancel();
  write_timer_.cancel();
  wake_writer_.cancel();
}

}  // namespace millrace::net
