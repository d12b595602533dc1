#include "net/frame.h"

#include <gtest/gtest.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/use_future.hpp>
#include <boost/asio/write.hpp>
#include <random>
#include <thread>

namespace millrace::net {
namespace {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using namespace std::chrono_literals;

std::vector<std::uint8_t> bytes_of(std::string_view s) { return {s.begin(), s.end()}; }

// Header bytes written down by hand from the layout in frame.h. CRC-32 of "123456789" is the check
// value of the CRC catalogue, 0xCBF43926.
TEST(Frame, HeaderBytesAreThoseOfTheLayout) {
  std::vector<std::uint8_t> out;
  append_frame(MessageKind::kTokens, 0x0102030405060708, bytes_of("123456789"), true, out);
  const std::vector<std::uint8_t> expected = {
      'M', 'R', 'F', '1', 8, 1, 6, 0,   9,   0,   0,   0,   0x26, 0x39, 0xF4, 0xCB, 8,
      7,   6,   5,   4,   3, 2, 1, '1', '2', '3', '4', '5', '6',  '7',  '8',  '9'};
  EXPECT_EQ(out, expected);
  const auto header = parse_frame_header(std::span(out).first(kFrameHeaderBytes), 9);
  ASSERT_TRUE(header);
  EXPECT_EQ(header->kind, MessageKind::kTokens);
  EXPECT_EQ(header->epoch, 0x0102030405060708U);
  EXPECT_TRUE(verify_checksum(*header, std::span(out).subspan(kFrameHeaderBytes)));
}

TEST(Frame, EachBadHeaderFieldIsNamed) {
  std::vector<std::uint8_t> good;
  append_frame(MessageKind::kHello, 1, bytes_of("abc"), true, good);
  const auto field_after = [&](std::size_t at, std::uint8_t value, std::uint32_t limit = 100) {
    auto bad = good;
    bad[at] = value;
    const auto header = parse_frame_header(std::span(bad).first(kFrameHeaderBytes), limit);
    return header ? std::string("accepted") : header.error().field;
  };
  EXPECT_EQ(field_after(0, 'X'), "frame.magic");
  EXPECT_EQ(field_after(4, 1), "frame.version");
  EXPECT_EQ(field_after(5, 3), "frame.flags");
  EXPECT_EQ(field_after(6, 0), "frame.kind");
  EXPECT_EQ(field_after(7, 1), "frame.kind");
  EXPECT_EQ(field_after(11, 0x7F), "frame.length");
  EXPECT_EQ(field_after(8, 3, 2), "frame.length");
  EXPECT_EQ(field_after(8, 3), "accepted");
}

TEST(Frame, DamagedPayloadFailsTheChecksum) {
  std::vector<std::uint8_t> out;
  append_frame(MessageKind::kTokens, 1, bytes_of("some tokens"), true, out);
  const auto header = parse_frame_header(std::span(out).first(kFrameHeaderBytes), 100);
  for (std::size_t bit = kFrameHeaderBytes * 8; bit < out.size() * 8; ++bit) {
    auto bad = out;
    bad[bit / 8] ^= static_cast<std::uint8_t>(1U << (bit % 8));
    EXPECT_FALSE(verify_checksum(*header, std::span(bad).subspan(kFrameHeaderBytes)));
  }
}

// Two ends of one TCP connection over loopback on one thread.
struct Pair {
  asio::io_context io{1};
  tcp::socket raw{io};
  std::shared_ptr<FrameConnection> connection;

  explicit Pair(FrameLimits limits = {}) {
    tcp::acceptor acceptor(io, {asio::ip::address_v4::loopback(), 0});
    raw.connect(acceptor.local_endpoint());
    connection = FrameConnection::create(acceptor.accept(), limits);
    connection->start();
  }
  ~Pair() {
    connection->close("test over");
    io.restart();
    io.run_for(100ms);
  }

  Result<Frame> read(std::chrono::milliseconds limit = 2000ms) {
    auto future = asio::co_spawn(io, connection->read(limit), asio::use_future);
    io.restart();
    while (future.wait_for(0s) != std::future_status::ready && io.run_one_for(5s) != 0) {
    }
    return future.get();
  }
  void write_raw(std::span<const std::uint8_t> bytes) {
    asio::write(raw, asio::buffer(bytes.data(), bytes.size()));
  }
};

TEST(FrameConnection, FramesArriveWholeHoweverTheyAreCut) {
  Pair pair;
  std::vector<std::uint8_t> stream;
  std::vector<std::vector<std::uint8_t>> payloads;
  std::mt19937 random(1);
  for (std::size_t size : {0U, 1U, 23U, 24U, 25U, 100U, 40000U, 70000U, 200000U}) {
    std::vector<std::uint8_t> p(size);
    for (auto& b : p) b = static_cast<std::uint8_t>(random());
    append_frame(MessageKind::kTokens, size + 1, p, size % 2 == 0, stream);
    payloads.push_back(std::move(p));
  }
  std::thread writer([&] {
    std::mt19937 cuts(2);
    std::span<const std::uint8_t> rest(stream);
    while (!rest.empty()) {
      const auto n = std::min<std::size_t>(rest.size(), 1 + cuts() % 5000);
      pair.write_raw(rest.first(n));
      rest = rest.subspan(n);
    }
  });
  for (const auto& expected : payloads) {
    const auto frame = pair.read();
    ASSERT_TRUE(frame) << frame.error().to_string();
    EXPECT_EQ(frame->epoch, expected.size() + 1);
    EXPECT_TRUE(std::ranges::equal(frame->payload, expected));
  }
  writer.join();
}

TEST(FrameConnection, MalformedBytesCloseWithAReason) {
  Pair pair;
  pair.write_raw(bytes_of("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"));
  const auto frame = pair.read();
  ASSERT_FALSE(frame);
  EXPECT_EQ(frame.error().field, "frame.magic");
  EXPECT_FALSE(pair.connection->is_open());
  EXPECT_NE(pair.connection->close_reason().find("frame.magic"), std::string::npos);
}

TEST(FrameConnection, AnnouncedLengthOverTheLimitIsRefusedBeforeItIsRead) {
  Pair pair({.max_payload_bytes = 10});
  std::vector<std::uint8_t> out;
  append_frame(MessageKind::kTokens, 1, bytes_of("eleven byte"), true, out);
  pair.write_raw(std::span(out).first(kFrameHeaderBytes));
  const auto frame = pair.read();
  ASSERT_FALSE(frame);
  EXPECT_EQ(frame.error().field, "frame.length");
}

TEST(FrameConnection, AFrameThatDoesNotCompleteMeetsItsDeadline) {
  Pair pair;
  std::vector<std::uint8_t> out;
  append_frame(MessageKind::kTokens, 1, bytes_of("abc"), true, out);
  pair.write_raw(std::span(out).first(out.size() - 1));
  const auto start = std::chrono::steady_clock::now();
  const auto frame = pair.read(50ms);
  EXPECT_FALSE(frame);
  EXPECT_GE(std::chrono::steady_clock::now() - start, 50ms);
  EXPECT_NE(pair.connection->close_reason().find("50 ms"), std::string::npos);
}

TEST(FrameConnection, PeerClosingIsReported) {
  Pair pair;
  pair.raw.close();
  EXPECT_FALSE(pair.read());
  EXPECT_EQ(pair.connection->close_reason(), "the peer closed the connection");
}

TEST(FrameConnection, QueuedFramesLeaveInOrderAndFlushBeforeClosing) {
  Pair pair;
  std::vector<std::uint8_t> expected;
  for (std::uint8_t i = 0; i < 100; ++i) {
    const std::vector<std::uint8_t> payload(i, i);
    ASSERT_TRUE(pair.connection->send(MessageKind::kTokens, 5, payload));
    append_frame(MessageKind::kTokens, 5, payload, true, expected);
  }
  pair.connection->close_after_flush("done");
  EXPECT_FALSE(pair.connection->send(MessageKind::kTokens, 5, {}));
  pair.io.restart();
  pair.io.run_for(1s);
  std::vector<std::uint8_t> got(expected.size() + 1);
  boost::system::error_code ec;
  const std::size_t n = asio::read(pair.raw, asio::buffer(got), ec);
  EXPECT_EQ(ec, asio::error::eof);
  got.resize(n);
  EXPECT_EQ(got, expected);
  EXPECT_EQ(pair.connection->close_reason(), "done");
}

TEST(FrameConnection, APeerThatDoesNotReadIsBoundedInBytes) {
  Pair pair({.max_outbound_bytes = 1 << 20});
  const std::vector<std::uint8_t> payload(100 << 10);
  int accepted = 0;
  while (accepted < 1000 && pair.connection->send(MessageKind::kTokens, 1, payload)) ++accepted;
  EXPECT_EQ(accepted, 10);
  EXPECT_FALSE(pair.connection->is_open());
  EXPECT_NE(pair.connection->close_reason().find("fell behind"), std::string::npos);
}

TEST(FrameConnection, FlushingHasADeadlineEvenWhenThePeerTakesALittle) {
  Pair pair({.write_deadline = 200ms});
  const std::vector<std::uint8_t> payload(32 << 20);
  ASSERT_TRUE(pair.connection->send(MessageKind::kTokens, 1, payload));
  const auto start = std::chrono::steady_clock::now();
  pair.connection->close_after_flush("leaving");
  std::thread sipper([&] {
    std::vector<std::uint8_t> sip(64 << 10);
    boost::system::error_code ec;
    while (!ec) {
      asio::read(pair.raw, asio::buffer(sip), ec);
      std::this_thread::sleep_for(20ms);
    }
  });
  pair.io.restart();
  while (pair.connection->is_open()) pair.io.run_one_for(1s);
  EXPECT_GE(std::chrono::steady_clock::now() - start, 200ms);
  EXPECT_EQ(pair.connection->close_reason(), "leaving");
  boost::system::error_code ec;
  pair.raw.shutdown(tcp::socket::shutdown_both, ec);
  sipper.join();
}

TEST(FrameConnection, APeerThatDoesNotReadIsBoundedInTime) {
  Pair pair({.write_deadline = 50ms});
  const std::vector<std::uint8_t> payload(16 << 20);
  ASSERT_TRUE(pair.connection->send(MessageKind::kTokens, 1, payload));
  pair.io.restart();
  pair.io.run_for(2s);
  EXPECT_FALSE(pair.connection->is_open());
  EXPECT_NE(pair.connection->close_reason().find("took nothing"), std::string::npos);
}

}  // namespace
}  // namespace millrace::net
