// The link between gateway and cell: admission of cells, epochs, health, loss and return.
#include <gtest/gtest.h>

#include <boost/asio/connect.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>

#include "net/codec.h"
#include "tests/net/gateway_harness.h"

namespace millrace::net {
namespace {

using namespace test;
using tcp = asio::ip::tcp;

// A peer that speaks bytes, to do what no CellEndpoint would.
class RawPeer {
 public:
  explicit RawPeer(std::uint16_t port) : socket_(io_) {
    socket_.connect({asio::ip::address_v4::loopback(), port});
  }
  void send(MessageKind kind, std::uint64_t epoch, const Bytes& payload) {
    Bytes out;
    append_frame(kind, epoch, payload, true, out);
    asio::write(socket_, asio::buffer(out));
  }
  void send_raw(const Bytes& bytes) { asio::write(socket_, asio::buffer(bytes)); }
  void hello(const CellInfo& info, const std::string& secret = "") {
    Bytes payload;
    encode(Hello{info, secret}, payload);
    send(MessageKind::kHello, info.epoch, payload);
  }
  void beat(const CellInfo& info, const CellStatus& status) {
    Bytes payload;
    encode(status, payload);
    send(MessageKind::kHeartbeat, info.epoch, payload);
  }
  void tokens(std::uint64_t epoch, const std::vector<TokenEvent>& events) {
    Bytes payload;
    encode(std::span<const TokenEvent>(events), payload);
    send(MessageKind::kTokens, epoch, payload);
  }
  // The next frame; nullopt when the gateway has closed.
  std::optional<std::pair<MessageKind, Bytes>> receive() {
    Bytes header(kFrameHeaderBytes);
    boost::system::error_code ec;
    asio::read(socket_, asio::buffer(header), ec);
    if (ec) return std::nullopt;
    const auto parsed = parse_frame_header(header, 1U << 30);
    EXPECT_TRUE(parsed);
    Bytes payload(parsed->payload_bytes);
    asio::read(socket_, asio::buffer(payload), ec);
    if (ec) return std::nullopt;
    return std::pair(parsed->kind, payload);
  }
  std::optional<Bytes> receive(MessageKind wanted) {
    while (auto frame = receive()) {
      if (frame->first == wanted) return frame->second;
    }
    return std::nullopt;
  }
  std::string refusal() {
    const auto frame = receive();
    if (!frame || frame->first != MessageKind::kRefused) return "not refused";
    Notice notice;
    EXPECT_TRUE(decode(frame->second, notice));
    return notice.reason;
  }
  bool closed() { return !receive(MessageKind::kGoodbye); }
  void close() { socket_.close(); }

 private:
  asio::io_context io_;
  tcp::socket socket_;
};

std::optional<CellView> view_of(GatewayHarness& h, const std::string& id) {
  for (const CellView& v : h.get(h.gateway->cells())) {
    if (v.info.cell_id == id) return v;
  }
  return std::nullopt;
}

bool reaches(GatewayHarness& h, const std::string& id, CellState state) {
  return eventually([&] {
    const auto v = view_of(h, id);
    return v && v->state == state;
  });
}

TEST(CellLink, RefusalsSayWhy) {
  GatewayConfig config;
  config.cells.secret = "open sesame";
  config.cells.max_cells = 1;
  GatewayHarness h(config);
  const auto refusal = [&](CellInfo info, const std::string& secret) {
    RawPeer peer(h.port());
    peer.hello(info, secret);
    return peer.refusal();
  };
  const std::string secret = "open sesame";
  EXPECT_TRUE(refusal(cell_info(), "").starts_with("secret:"));
  EXPECT_TRUE(refusal(cell_info(), "open sesamf").starts_with("secret:"));
  auto other_model = cell_info();
  other_model.model_fingerprint = "model-2";
  EXPECT_TRUE(refusal(other_model, secret).starts_with("model_fingerprint: \"model-2\""));
  EXPECT_TRUE(refusal(cell_info(""), secret).starts_with("cell_id:"));
  EXPECT_TRUE(refusal(cell_info("a", 0), secret).starts_with("epoch:"));
  EXPECT_TRUE(refusal(cell_info("a", 1, 0), secret).starts_with("max_sequences:"));
  ScriptedCell cell(h.port(), cell_info(), true, [&](auto& c) { c.secret = secret; });
  ASSERT_TRUE(h.wait_ready());
  EXPECT_TRUE(refusal(cell_info("b"), secret).starts_with("max_cells:"));
  EXPECT_EQ(h.stats().links.refused, 7U);
}

TEST(CellLink, MalformedPeersAreClosedAndHarmNobody) {
  GatewayConfig config;
  config.cells.hello_deadline = 100ms;
  GatewayHarness h(config);
  ScriptedCell good(h.port(), cell_info());
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({1}, 300));
  {
    RawPeer http(h.port());
    http.send_raw({'G', 'E',  'T',  ' ',  '/',  ' ', 'H', 'T', 'T', 'P', '/', '1', '.',
                   '1', '\r', '\n', '\r', '\n', '.', '.', '.', '.', '.', '.', '.', '.'});
    EXPECT_TRUE(http.closed());
    RawPeer silent(h.port());
    EXPECT_TRUE(silent.closed());  // at the Hello deadline
    RawPeer early(h.port());
    early.tokens(1, {});
    EXPECT_EQ(early.refusal().substr(0, 6), "Hello:");
    RawPeer huge(h.port());
    Bytes header;
    append_frame(MessageKind::kHello, 1, {}, false, header);
    header[10] = 0x10;  // announces a mebibyte before it is known
    huge.send_raw(header);
    EXPECT_TRUE(huge.closed());
    RawPeer liar(h.port());
    liar.hello(cell_info("liar"));
    ASSERT_TRUE(liar.receive(MessageKind::kWelcome));
    liar.send(MessageKind::kTokens, 1, {0xFF, 0xFF, 0xFF, 0xFF});
    EXPECT_TRUE(liar.closed());
    RawPeer confused(h.port());
    confused.hello(cell_info("confused"));
    ASSERT_TRUE(confused.receive(MessageKind::kWelcome));
    confused.send(MessageKind::kSubmit, 1, {});
    EXPECT_TRUE(confused.closed());
  }
  EXPECT_EQ(h.read(*stream).choices[0].tokens, expected_tokens({1}, 300));
  EXPECT_GE(h.stats().links.bad_frames, 5U);
}

TEST(CellLink, ACellMayNotTouchAnotherCellsSequences) {
  GatewayHarness h;
  ScriptedCell good(h.port(), cell_info(), false);
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({1}, 2));
  ASSERT_TRUE(good.wait_submitted(1));
  RawPeer other(h.port());
  other.hello(cell_info("other"));
  ASSERT_TRUE(other.receive(MessageKind::kWelcome));
  for (RequestId id = 0; id < 5; ++id) other.tokens(1, {{.id = id, .token = {666, 0}}});
  ASSERT_TRUE(eventually([&] { return h.stats().journal.stale == 1; }));
  const SequenceRequest r = good.submitted()[0];
  good.endpoint->publish({good.event(r, 0), good.event(r, 1, FinishReason::kLength)});
  EXPECT_EQ(h.read(*stream).choices[0].tokens, expected_tokens({1}, 2));
}

TEST(CellLink, FramesOfAnotherEpochAreDroppedAndCounted) {
  GatewayHarness h;
  RawPeer peer(h.port());
  const CellInfo info = cell_info("raw", 5);
  peer.hello(info);
  peer.beat(info, {});
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({1}, 3));
  const auto payload = peer.receive(MessageKind::kSubmit);
  ASSERT_TRUE(payload);
  SequenceRequest r;
  ASSERT_TRUE(decode(*payload, r));
  peer.tokens(4, {{.id = r.id, .index = 0, .token = {666, 0}}});
  peer.tokens(6, {{.id = r.id, .index = 0, .token = {666, 0}}});
  peer.tokens(5, {{.id = r.id, .index = 0, .token = {42, 0}, .finish = FinishReason::kStop}});
  EXPECT_EQ(h.read(*stream).choices[0].tokens, std::vector<std::int32_t>{42});
  EXPECT_EQ(h.stats().links.stale_frames, 2U);
}

TEST(CellLink, AHigherEpochReplacesALowerOneIsRefused) {
  GatewayHarness h;
  RawPeer old(h.port());
  const CellInfo first = cell_info("a", 5);
  old.hello(first);
  old.beat(first, {});
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({1}));
  ASSERT_TRUE(old.receive(MessageKind::kSubmit));
  for (const std::uint64_t epoch : {4U, 5U}) {
    RawPeer late(h.port());
    late.hello(cell_info("a", epoch));
    EXPECT_TRUE(late.refusal().starts_with("epoch:")) << epoch;
  }
  ScriptedCell next(h.port(), cell_info("a", 6));
  EXPECT_EQ(h.read(*stream).choices[0].tokens, expected_tokens({1}, 16));  // what ran at epoch 5
  EXPECT_TRUE(old.closed());
  ASSERT_TRUE(h.wait_ready());
  auto again = h.submit(GatewayHarness::request({2}, 5));
  EXPECT_EQ(h.read(*again).choices[0].tokens, expected_tokens({2}, 5));
  const auto stats = h.stats();
  EXPECT_EQ(stats.links.replaced, 1U);
  EXPECT_EQ(stats.links.refused, 2U);
  EXPECT_EQ(h.exporter.counter<Metric::kCellRestarts>("a").value(), 1);
  EXPECT_EQ(h.exporter.gauge<Metric::kCellEpoch>("a").value(), 6);
}

TEST(CellLink, SilenceMakesACellSuspectThenGone) {
  GatewayConfig config;
  config.max_replays = 0;
  config.cells.heartbeat_limit = 2000ms;
  GatewayHarness h(config);
  RawPeer peer(h.port());
  const CellInfo info = cell_info("quiet");
  peer.hello(info);
  peer.beat(info, {});
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({1}));
  ASSERT_TRUE(peer.receive(MessageKind::kSubmit));
  EXPECT_TRUE(reaches(h, "quiet", CellState::kSuspect));
  EXPECT_FALSE(h.gateway->status().ready);
  EXPECT_NE(h.gateway->status().reason.find("silent"), std::string::npos);
  const auto end = h.read_one(*stream);
  ASSERT_TRUE(end);
  EXPECT_EQ(end->finish, FinishReason::kError);
  EXPECT_NE(end->error.find("2000 ms"), std::string::npos);
  EXPECT_FALSE(view_of(h, "quiet"));
  EXPECT_EQ(h.stats().links.lost, 1U);
  EXPECT_EQ(h.exporter.counter<Metric::kCellLosses>("quiet").value(), 1);
  const Gauge age = h.exporter.gauge<Metric::kCellHeartbeatAge>("quiet");
  EXPECT_TRUE(eventually([&] { return age.value() > 2.5; }));  // it should be there
  EXPECT_EQ(h.exporter.gauge<Metric::kCellSlots>("quiet").value(), 0);
}

// What a gateway that runs too rarely thinks of its cells.
class States final : public CellObserver {
 public:
  void on_cell_joined(const CellInfo&) override {}
  void on_tokens(const Assignment&, std::span<TokenEvent>) override {}
  void on_prompt_logprobs(const Assignment&, PromptLogprobsEvent) override {}
  void on_telemetry(const Assignment&, const CellTelemetry&) override {}
  void on_cell_changed(const CellView& cell) override { last = cell.state; }
  void on_cell_gone(const Assignment&, const std::string&, bool) override {
    last = CellState::kGone;
  }
  CellState last = CellState::kJoining;
};

TEST(CellLink, TimeInWhichTheGatewayDidNotRunIsNoSilence) {
  asio::io_context io(1);
  CellLinkConfig config;
  config.heartbeat_limit = 2000ms;
  States states;
  CellLinks links(asio::make_strand(asio::any_io_executor(io.get_executor())), config, states);
  ASSERT_TRUE(links.listen());
  RawPeer peer(links.port());
  const CellInfo info = cell_info("steady");
  peer.hello(info);
  peer.beat(info, {});
  while (states.last != CellState::kHealthy) io.run_one_for(1s);
  std::this_thread::sleep_for(1500ms);  // nothing of the gateway runs
  io.poll();                            // the tick that was due meanwhile among it
  EXPECT_EQ(states.last, CellState::kHealthy);
  while (states.last == CellState::kHealthy) io.run_one_for(1s);  // from here on it is silence
  EXPECT_EQ(states.last, CellState::kSuspect);
  links.close("the test ends");
  io.poll();
}

// C4: a cell that beats but does not step is alive and not well.
TEST(CellLink, WorkWithoutProgressIsNotHealth) {
  GatewayConfig config;
  config.max_replays = 0;
  config.cells.progress_limit = 100ms;
  config.cells.stall_limit = 1500ms;
  GatewayHarness h(config);
  ScriptedCell cell(h.port(), cell_info(), false);
  ASSERT_TRUE(h.wait_ready());
  cell.set_status({.steps = 7, .running = 0});  // idle without steps is fine
  std::this_thread::sleep_for(300ms);
  EXPECT_TRUE(h.gateway->status().ready);
  auto stream = h.submit(GatewayHarness::request({1}));
  cell.set_status({.steps = 7, .running = 1});
  ASSERT_TRUE(reaches(h, "a", CellState::kSuspect));
  EXPECT_NE(h.gateway->status().reason.find("no step for"), std::string::npos);
  EXPECT_FALSE(h.gateway->submit(GatewayHarness::request({2})));
  cell.set_status({.steps = 8, .running = 1});  // it goes on
  ASSERT_TRUE(reaches(h, "a", CellState::kHealthy));
  ASSERT_TRUE(reaches(h, "a", CellState::kSuspect));
  const auto end = h.read_one(*stream);  // and stalls for good
  ASSERT_TRUE(end);
  EXPECT_EQ(end->finish, FinishReason::kError);
  EXPECT_NE(end->error.find("finished no step"), std::string::npos);
}

TEST(CellLink, ADrainingCellGetsNoNewWorkAndFinishesItsOld) {
  GatewayHarness h;
  ScriptedCell cell(h.port(), cell_info(), false);
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({1}, 2));
  ASSERT_TRUE(cell.wait_submitted(1));
  cell.set_status({.running = 1, .draining = true});
  ASSERT_TRUE(reaches(h, "a", CellState::kDraining));
  EXPECT_TRUE(eventually([&] { return !h.gateway->status().ready; }));
  const SequenceRequest r = cell.submitted()[0];
  cell.endpoint->publish({cell.event(r, 0), cell.event(r, 1, FinishReason::kLength)});
  EXPECT_EQ(h.read(*stream).choices[0].tokens.size(), 2U);
}

TEST(CellEndpoint, ReturnsAfterItsGatewayRestarts) {
  GatewayConfig config;
  auto h = std::make_unique<GatewayHarness>(config);
  const std::uint16_t port = h->port();
  ScriptedCell cell(port, cell_info("a", 3), false);
  ASSERT_TRUE(h->wait_ready());
  auto stream = h->submit(GatewayHarness::request({1}));
  ASSERT_TRUE(cell.wait_submitted(1));
  EXPECT_EQ(cell.live(), 1U);
  stream.reset();
  h.reset();
  EXPECT_TRUE(eventually([&] { return cell.live() == 0; }));  // nobody waits for it any more
  config.cells.port = port;
  h = std::make_unique<GatewayHarness>(config);
  ASSERT_TRUE(h->wait_ready());
  auto again = h->submit(GatewayHarness::request({2}, 1));  // the same id as in the first gateway
  ASSERT_TRUE(cell.wait_submitted(2));
  const auto requests = cell.submitted();
  EXPECT_NE(requests[0].id, requests[1].id);
  cell.endpoint->publish(
      {cell.event(requests[0], 0), cell.event(requests[1], 0, FinishReason::kLength)});
  EXPECT_EQ(h->read(*again).choices[0].tokens, expected_tokens({2}, 1));
  EXPECT_EQ(cell.endpoint->stats().connects, 2U);
  EXPECT_EQ(cell.endpoint->stats().events_dropped, 1U);
}

TEST(CellEndpoint, ReturnsAtTheSameEpochAfterALostLink) {
  GatewayHarness h;
  ScriptedCell cell(h.port(), cell_info("a", 3), false, [](auto& c) { c.max_queued_events = 100; });
  ASSERT_TRUE(h.wait_ready());
  auto stream = h.submit(GatewayHarness::request({1}, 2));
  ASSERT_TRUE(cell.wait_submitted(1));
  cell.endpoint->publish({cell.event(cell.submitted()[0], 0)});
  ASSERT_TRUE(h.read_one(*stream));
  // More than its queue holds in one go: the links are cut rather than tokens lost in silence.
  EXPECT_FALSE(cell.endpoint->publish(std::vector<TokenEvent>(101)));
  ASSERT_TRUE(cell.wait_submitted(2));  // what it was asked for before comes again
  EXPECT_EQ(cell.cancels(), 1U);
  EXPECT_EQ(cell.live(), 1U);
  EXPECT_EQ(cell.endpoint->stats().overflows, 1U);
  EXPECT_EQ(cell.endpoint->stats().connects, 2U);
  cell.endpoint->publish({cell.event(cell.submitted()[0], 1),  // of the link that was lost
                          cell.event(cell.submitted()[1], 1, FinishReason::kLength)});
  const auto last = h.read_one(*stream);
  ASSERT_TRUE(last);
  EXPECT_EQ(last->token.token, expected_tokens({1}, 2)[1]);
  EXPECT_EQ(last->finish, FinishReason::kLength);
}

TEST(CellEndpoint, ServesTwoGatewaysWithEqualIds) {
  GatewayHarness first;
  GatewayHarness second;
  ScriptedCell cell(first.port(), cell_info(), true, [&](auto& c) {
    c.gateways.push_back("localhost:" + std::to_string(second.port()));
  });
  ASSERT_TRUE(first.wait_ready());
  ASSERT_TRUE(second.wait_ready());
  auto a = first.submit(GatewayHarness::request({1}, 50));
  auto b = second.submit(GatewayHarness::request({2}, 50));
  EXPECT_EQ(first.read(*a).choices[0].tokens, expected_tokens({1}, 50));
  EXPECT_EQ(second.read(*b).choices[0].tokens, expected_tokens({2}, 50));
  // One gateway's end costs the other nothing.
  auto c = second.submit(GatewayHarness::request({3}, 200));
  first.shut_down();
  EXPECT_EQ(second.read(*c).choices[0].tokens, expected_tokens({3}, 200));
}

TEST(CellEndpoint, BadAddressesAreRefusedByName) {
  const auto make = [](std::vector<std::string> gateways) {
    CellEndpointConfig config;
    config.gateways = std::move(gateways);
    auto made = CellEndpoint::create(cell_info(), config,
                                     {.submit = [](SequenceRequest) { return Result<void>{}; },
                                      .cancel = [](RequestId) {},
                                      .drain = [] {},
                                      .status = [] { return CellStatus{}; }});
    return made ? std::string("made") : made.error().field;
  };
  EXPECT_EQ(make({}), "cell.gateways");
  EXPECT_EQ(make({"host"}), "cell.gateways");
  EXPECT_EQ(make({":80"}), "cell.gateways");
  EXPECT_EQ(make({"host:"}), "cell.gateways");
  EXPECT_EQ(make({"host:0"}), "cell.gateways");
  EXPECT_EQ(make({"host:65536"}), "cell.gateways");
  EXPECT_EQ(make({"host:8x"}), "cell.gateways");
  EXPECT_EQ(make({"host:80", "[::1]:8001"}), "made");
}

TEST(CellEndpoint, StopsPromptlyWhileDialling) {
  ScriptedCell cell(1, cell_info(), false);  // nothing listens on port 1
  std::this_thread::sleep_for(50ms);
  const auto start = std::chrono::steady_clock::now();
  cell.stop();
  EXPECT_LT(std::chrono::steady_clock::now() - start, 1s);
}

TEST(GatewayStart, ATakenPortIsNamed) {
  GatewayHarness h;
  GatewayConfig config;
  config.cells.port = h.port();
  const auto second = Gateway::start(h.io.get_executor(), config, nullptr);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().field, "gateway.cell_port");
}

}  // namespace
}  // namespace millrace::net
