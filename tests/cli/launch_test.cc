#include "cli/launch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace millrace {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

ClusterConfig over(std::vector<std::string> hosts, int stages = 2, int lanes = 2) {
  ClusterConfig config;
  config.grid.embedded = false;
  config.grid.stages = stages;
  config.grid.lanes = lanes;
  config.cell.hosts = std::move(hosts);
  return config;
}

std::string placed(const ClusterConfig& config) {
  std::string text;
  for (const HostWorkers& host : place_on_hosts(config)) {
    text += host.host + "=" + std::to_string(host.workers) + " ";
  }
  return text;
}

// The word after `name`, the first time it stands there.
std::string after(const std::vector<std::string>& words, const std::string& name) {
  const auto at = std::find(words.begin(), words.end(), name);
  return at == words.end() || at + 1 == words.end() ? "" : *(at + 1);
}

TEST(Launch, WorkersArePlacedOnHosts) {
  EXPECT_EQ(placed(over({})), "");
  EXPECT_EQ(placed(over({"a", "b"})), "a=2 b=2 ");
  EXPECT_EQ(placed(over({"a", "b", "c"})), "a=2 b=1 c=1 ");
  EXPECT_EQ(placed(over({"a:1", "b:3"})), "a=1 b=3 ");
  EXPECT_EQ(placed(over({"a:3", "b:8"})), "a=3 b=1 ");
  EXPECT_EQ(placed(over({"a", "b:3"})), "a=1 b=3 ");
  EXPECT_EQ(placed(over({"a:4", "b"})), "a=4 b=0 ");
}

TEST(Launch, AgentsTakeThePlaceOfSsh) {
  ClusterConfig config = over({"a:1", "b:3", "c"});
  config.cell.network = "10.0.0.0/24";
  config.node_agent.secret_file = "/secret";
  const auto words = mpirun_command(config, "/tmp/c", 7, "/dev/shm/s");
  EXPECT_EQ(after(words, "--host"), "a:2,b:3") << "rank 0 and a's worker; none is left for c";
  EXPECT_EQ(after(words, "plm"), "rsh");
  EXPECT_EQ(after(words, "plm_rsh_agent"), self_path() + " agent-exec --config /tmp/c");
  EXPECT_EQ(after(words, "plm_rsh_no_tree_spawn"), "1");
  EXPECT_EQ(after(words, "oob_tcp_if_include"), "10.0.0.0/24");
  EXPECT_EQ(after(words, "btl_tcp_if_include"), "10.0.0.0/24");
  EXPECT_EQ(after(words, "-n"), "5");
  EXPECT_THAT(words, Contains("--noprefix"));
}

TEST(Launch, WithoutASecretSshIsLeftToMpirun) {
  EXPECT_THAT(mpirun_command(over({"a", "b"}), "/tmp/c", 7, "/s"), Not(Contains("plm_rsh_agent")));
}

TEST(Launch, OneMachineStaysOnLoopback) {
  const auto words = mpirun_command(over({}), "/tmp/c", 7, "/s");
  EXPECT_EQ(after(words, "plm"), "isolated");
  EXPECT_EQ(after(words, "btl_tcp_if_include"), "lo");
  EXPECT_THAT(words, Not(Contains("--host")));
}

TEST(Launch, HostsMustHoldTheGrid) {
  const auto refusal = [](const ClusterConfig& config) {
    const auto checked = check_cluster_config(config);
    return checked ? "" : checked.error().to_string();
  };
  EXPECT_EQ(refusal(over({"a:2", "b:2"})), "");
  EXPECT_EQ(refusal(over({"a:1", "b"})), "");
  EXPECT_THAT(refusal(over({"a:2", "b:1"})), HasSubstr("cell.hosts: have room for 3 workers"));
  for (const char* host : {"a b", "a;id", "-x", "a,b", "$(id)", ""}) {
    EXPECT_THAT(refusal(over({host, "b"})), HasSubstr("cell.hosts")) << host;
  }
  ClusterConfig config = over({"a", "b"});
  config.cell.network = "10.0.0.0/24 --mca x y";
  EXPECT_THAT(refusal(config), HasSubstr("cell.network"));
}

}  // namespace
}  // namespace millrace
