// The end of a cell that loses nothing: when it may be sure that no gateway sends it more work.
#include <gtest/gtest.h>

#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>

#include "net/codec.h"
#include "tests/net/gateway_harness.h"

namespace millrace::net {
namespace {

using namespace test;
using tcp = asio::ip::tcp;

// A gateway that answers heartbeats when it is told to.
class SlowGateway {
 public:
  SlowGateway() : acceptor_(io_, {asio::ip::address_v4::loopback(), 0}), socket_(io_) {}
  std::uint16_t port() const { return acceptor_.local_endpoint().port(); }
  void welcome() {
    acceptor_.accept(socket_);
    EXPECT_EQ(receive().first, MessageKind::kHello);
    Bytes payload;
    encode(Welcome{60'000}, payload);
    send(MessageKind::kWelcome, payload);
  }
  // Reads heartbeats until one says that the cell drains; how many there were in all.
  int heartbeats_until_draining() {
    for (int n = 1;; ++n) {
      CellStatus status;
      auto frame = receive();
      while (frame.first != MessageKind::kHeartbeat) frame = receive();
      EXPECT_TRUE(decode(frame.second, status));
      if (status.draining) return n;
    }
  }
  void answer() { send(MessageKind::kHeartbeatAck, {}); }

 private:
  void send(MessageKind kind, const Bytes& payload) {
    Bytes out;
    append_frame(kind, 1, payload, true, out);
    asio::write(socket_, asio::buffer(out));
  }
  std::pair<MessageKind, Bytes> receive() {
    Bytes header(kFrameHeaderBytes);
    asio::read(socket_, asio::buffer(header));
    const auto parsed = parse_frame_header(header, 1U << 30);
    EXPECT_TRUE(parsed);
    Bytes payload(parsed->payload_bytes);
    asio::read(socket_, asio::buffer(payload));
    return {parsed->kind, payload};
  }
  asio::io_context io_;
  tcp::acceptor acceptor_;
  tcp::socket socket_;
};

TEST(CellDrain, IsSureWhenTheGatewayHasAnsweredTheHeartbeatThatSaidSo) {
  SlowGateway gateway;
  ScriptedCell cell(gateway.port(), cell_info(), false, [](auto& c) {
    c.silence_limit = 60s;
    c.heartbeat_interval = 50ms;
  });
  gateway.welcome();
  std::this_thread::sleep_for(200ms);  // some heartbeats are on their way
  EXPECT_FALSE(cell.endpoint->drain_confirmed());
  cell.set_status({.draining = true});
  cell.endpoint->announce_drain();
  const int said = gateway.heartbeats_until_draining();
  for (int n = 1; n < said; ++n) gateway.answer();
  std::this_thread::sleep_for(200ms);
  EXPECT_FALSE(cell.endpoint->drain_confirmed()) << "work may come with the answers before";
  gateway.answer();
  EXPECT_TRUE(eventually([&] { return cell.endpoint->drain_confirmed(); }));
}

TEST(CellDrain, EveryGatewayIsAskedAndALostOneIsNotDialledAgain) {
  auto first = std::make_unique<GatewayHarness>();
  const std::uint16_t port = first->port();
  GatewayHarness second;
  ScriptedCell cell(port, cell_info(), false, [&](auto& c) {
    c.gateways.push_back("127.0.0.1:" + std::to_string(second.port()));
  });
  ASSERT_TRUE(first->wait_ready());
  ASSERT_TRUE(second.wait_ready());
  auto stream = second.submit(GatewayHarness::request({1}, 2));
  ASSERT_TRUE(cell.wait_submitted(1));
  cell.set_status({.running = 1, .draining = true});
  cell.endpoint->announce_drain();
  EXPECT_TRUE(eventually([&] { return cell.endpoint->drain_confirmed(); }));
  EXPECT_TRUE(eventually(
      [&] { return !first->gateway->status().ready && !second.gateway->status().ready; }));
  EXPECT_FALSE(second.gateway->submit(GatewayHarness::request({2}, 2)));
  first.reset();
  GatewayConfig config;
  config.cells.port = port;
  first = std::make_unique<GatewayHarness>(config);
  std::this_thread::sleep_for(300ms);
  EXPECT_EQ(cell.endpoint->stats().connects, 2U);
  EXPECT_TRUE(cell.endpoint->drain_confirmed());
  // What it has goes to its end.
  const SequenceRequest r = cell.submitted()[0];
  cell.endpoint->publish({cell.event(r, 0), cell.event(r, 1, FinishReason::kLength)});
  EXPECT_EQ(second.read(*stream).choices[0].tokens, expected_tokens({1}, 2));
}

TEST(CellDrain, WithoutAnyGatewayThereIsNothingToWaitFor) {
  ScriptedCell cell(1, cell_info(), false);  // nothing listens on port 1
  cell.endpoint->announce_drain();
  EXPECT_TRUE(eventually([&] { return cell.endpoint->drain_confirmed(); }));
}

}  // namespace
}  // namespace millrace::net
