#include "cli/gateway_process.h"

#include <gtest/gtest.h>

#include "config/version.h"
#include "tests/net/gateway_harness.h"
#include "tests/net/http_test_client.h"
#include "tests/support/engine_harness.h"

namespace millrace {
namespace {

namespace asio = boost::asio;
using namespace std::chrono_literals;
using net::testing::Client;

class GatewayProcessTest : public ::testing::Test {
 protected:
  void start(const std::function<void(ClusterConfig&)>& adjust = {}) {
    ClusterConfig config = testing::test_config(testing::source_folder() + "/models/sample");
    config.model.served_name = "sample";
    config.gateway.port = config.gateway.cell_port = 0;
    if (adjust) adjust(config);
    auto started = GatewayProcess::start(io_, config, "", order_);
    ASSERT_TRUE(started) << started.error().to_string();
    gateway_ = std::move(*started);
    thread_ = std::thread([this] { io_.run(); });
  }
  ~GatewayProcessTest() override {
    if (!gateway_) return;
    asio::co_spawn(io_, gateway_->drain(0ms, 0ms), asio::use_future).get();
    work_.reset();
    thread_.join();
  }

  asio::io_context io_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_{io_.get_executor()};
  DrainOrder order_{io_};
  std::unique_ptr<GatewayProcess> gateway_;
  std::thread thread_;
};

TEST_F(GatewayProcessTest, BuildInfoTellsVersionAndBackend) {
  start([](ClusterConfig& config) { config.device.backend = DeviceChoice::kCuda; });
  const std::string metrics = Client(gateway_->port()).get("/metrics").body();
  const std::string expected =
      "millrace_build_info{backend=\"cuda\",version=\"" + std::string(kVersion) + "\"} 1\n";
  EXPECT_NE(metrics.find(expected), std::string::npos)
      << metrics.substr(metrics.find("millrace_build_info"), 200);
}

// Contract C2: what is cut gets its error event, while there is a connection to write it to.
TEST_F(GatewayProcessTest, AStreamThatDrainingCutsEndsInAnErrorEvent) {
  start();
  net::test::ScriptedCell cell(gateway_->cell_port(), net::test::cell_info(), false);
  ASSERT_TRUE(net::test::eventually([&] { return gateway_->gateway().status().ready; }));
  Client client(gateway_->port());
  client.send(Client::post_text("/v1/completions",
                                R"({"model":"sample","prompt":"a","stream":true,"max_tokens":9})"));
  ASSERT_TRUE(cell.wait_submitted(1));
  EXPECT_FALSE(asio::co_spawn(io_, gateway_->drain(50ms, 0ms), asio::use_future).get());
  const net::testing::Answer answer = client.read();
  EXPECT_EQ(answer.result_int(), 200U);
  EXPECT_NE(answer.body().find("\"error\""), std::string::npos) << answer.body();
  EXPECT_NE(answer.body().find("the server is stopping"), std::string::npos) << answer.body();
}

}  // namespace
}  // namespace millrace
