// Gateways behind a name: real lookups of names in an /etc/hosts of the test's own.
#include "net/gateway_names.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/net/gateway_harness.h"
#include "tests/support/private_hosts.h"

namespace millrace::net {
namespace {

using namespace test;
using millrace::test::PrivateHosts;
using ::testing::ElementsAre;

// What the names give, once there is something.
std::vector<std::string> first_answer(GatewayNamesConfig config) {
  asio::io_context io;
  std::vector<std::string> labels;
  std::shared_ptr<GatewayNames> names;
  auto made = GatewayNames::create(io, std::move(config), [&](const GatewayNames::Gateways& all) {
    for (const auto& [address, label] : all) labels.push_back(label);
    names->stop();
  });
  EXPECT_TRUE(made) << made.error().to_string();
  names = *made;
  names->start();
  io.run_for(10s);
  return labels;
}

TEST(GatewayNames, AddressesNeedNoLookup) {
  EXPECT_THAT(first_answer({.names = {"127.0.0.1:8001", "[::1]:8001", "127.0.0.1:8001"}}),
              ElementsAre("127.0.0.1:8001", "[::1]:8001"));
}

TEST(GatewayNames, OfTwoFamiliesOneCountsAndAnAddressCountsOnce) {
  PrivateHosts::run([](PrivateHosts& hosts) {
    hosts.write("::1 both.test\n127.0.0.1 both.test\n127.0.0.2 both.test\n127.0.0.2 other.test\n");
    EXPECT_THAT(first_answer({.names = {"both.test:80"}}),
                ElementsAre("both.test:80 (127.0.0.1)", "both.test:80 (127.0.0.2)"));
    const auto two = first_answer({.names = {"127.0.0.2:80", "other.test:80"}});
    EXPECT_THAT(two, ElementsAre("127.0.0.2:80"));
  });
}

TEST(GatewayNames, ThereIsAMostAndItIsTheSameOnes) {
  PrivateHosts::run([](PrivateHosts& hosts) {
    hosts.write("127.0.0.3 many.test\n127.0.0.1 many.test\n127.0.0.2 many.test\n");
    EXPECT_THAT(first_answer({.names = {"many.test:80"}, .max_gateways = 2}),
                ElementsAre("many.test:80 (127.0.0.1)", "many.test:80 (127.0.0.2)"));
  });
}

GatewayConfig at(const std::string& address, std::uint16_t port = 0) {
  GatewayConfig config;
  config.cells.listen_address = address;
  config.cells.port = port;
  return config;
}

bool answers(GatewayHarness& gateway, std::int32_t token) {
  auto stream = gateway.submit(GatewayHarness::request({token}, 3));
  return stream && gateway.read(*stream).choices[0].tokens == expected_tokens({token}, 3);
}

TEST(CellEndpoint, DialsEveryAddressBehindAName) {
  PrivateHosts::run([](PrivateHosts& hosts) {
    GatewayHarness first(at("127.0.0.1"));
    const std::uint16_t port = first.port();
    GatewayHarness second(at("127.0.0.2", port));
    ScriptedCell cell(port, cell_info(), true, [port](auto& c) {
      c.gateways = {"gateways.test:" + std::to_string(port)};
      c.lookup_interval = 50ms;
    });
    // The name comes later than the cell, and then a third gateway.
    std::this_thread::sleep_for(200ms);
    EXPECT_EQ(cell.endpoint->stats().connected, 0U);
    hosts.write("127.0.0.1 gateways.test\n127.0.0.2 gateways.test\n");
    EXPECT_TRUE(first.wait_ready());
    EXPECT_TRUE(second.wait_ready());
    GatewayHarness third(at("127.0.0.3", port));
    hosts.write("127.0.0.1 gateways.test\n127.0.0.2 gateways.test\n127.0.0.3 gateways.test\n");
    EXPECT_TRUE(third.wait_ready());
    EXPECT_TRUE(answers(first, 1) && answers(second, 2) && answers(third, 3));
    EXPECT_EQ(cell.endpoint->stats().connected, 3U);
    EXPECT_EQ(cell.endpoint->stats().connects, 3U);
  });
}

TEST(CellEndpoint, LetsGoOfAGatewayThatLeftItsNameOnlyWhenItsLinkIsGone) {
  PrivateHosts::run([](PrivateHosts& hosts) {
    hosts.write("127.0.0.1 gateways.test\n127.0.0.2 gateways.test\n");
    auto leaving = std::make_unique<GatewayHarness>(at("127.0.0.1"));
    const std::uint16_t port = leaving->port();
    GatewayHarness staying(at("127.0.0.2", port));
    ScriptedCell cell(port, cell_info(), true, [port](auto& c) {
      c.gateways = {"gateways.test:" + std::to_string(port)};
      c.lookup_interval = 20ms;
    });
    ASSERT_TRUE(leaving->wait_ready() && staying.wait_ready());
    hosts.write("127.0.0.2 gateways.test\n");
    std::this_thread::sleep_for(300ms);
    EXPECT_TRUE(answers(*leaving, 1));  // as a gateway that drains
    leaving.reset();
    EXPECT_TRUE(eventually([&] { return cell.endpoint->stats().connected == 1; }));
    // Whoever takes that address now is none of the cell's business...
    GatewayHarness stranger(at("127.0.0.1", port));
    std::this_thread::sleep_for(300ms);
    EXPECT_FALSE(stranger.gateway->status().ready);
    EXPECT_TRUE(answers(staying, 2));
    // ... unless the name says so; and a name that nobody knows for a while costs nothing.
    hosts.write("");
    std::this_thread::sleep_for(100ms);
    EXPECT_TRUE(answers(staying, 3));
    hosts.write("127.0.0.1 gateways.test\n127.0.0.2 gateways.test\n");
    EXPECT_TRUE(stranger.wait_ready());
    EXPECT_EQ(cell.endpoint->stats().connects, 3U);
  });
}

}  // namespace
}  // namespace millrace::net
