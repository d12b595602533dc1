// Limits of control groups, in trees of files as Linux has them.
#include "cli/machine_limits.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <filesystem>

#include "tests/support/temp_dir.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kGiB = 1ULL << 30;

class MachineLimitsTest : public ::testing::Test {
 protected:
  MachineLimitsTest() {
    put("proc/meminfo", "MemTotal: 20971520 kB\nMemFree: 1 kB\nMemAvailable: 16777216 kB\n");
  }
  void put(const std::string& path, const std::string& text) {
    fs::create_directories(fs::path(folder_ / path).parent_path());
    folder_.write(path, text);
  }
  // The group's files of the unified hierarchy.
  void group(const std::string& path, const std::string& limit, std::uint64_t used,
             std::uint64_t cached = 0) {
    const std::string at = "sys/fs/cgroup/" + path;
    put(at + "memory.max", limit + "\n");
    put(at + "memory.current", std::to_string(used) + "\n");
    put(at + "memory.stat", "anon 5\nfile 7\ninactive_file " + std::to_string(cached) + "\n");
  }
  MachineLimits measured() const { return measure_machine(folder_.string()); }

  millrace::test::TempDir folder_;
};

TEST_F(MachineLimitsTest, WithoutGroupsTheMachineItself) {
  const MachineLimits m = measured();
  EXPECT_EQ(m.memory_bytes, 16 * kGiB);
  EXPECT_EQ(m.memory_source, "the machine");
  EXPECT_GE(m.cores, 1);
}

TEST_F(MachineLimitsTest, AContainersOwnLimitLessWhatItUses) {
  put("proc/self/cgroup", "0::/\n");  // a namespace of its own
  group("", std::to_string(4 * kGiB), 3 * kGiB, 2 * kGiB);
  EXPECT_EQ(measured().memory_bytes, 3 * kGiB) << "cached pages can be had";
  EXPECT_EQ(measured().memory_source, "cgroup memory.max");
  group("", std::to_string(4 * kGiB), 5 * kGiB);  // above its limit for a moment
  EXPECT_EQ(measured().memory_bytes, 0U);
  group("", "max", 3 * kGiB);
  EXPECT_EQ(measured().memory_bytes, 16 * kGiB);
  EXPECT_EQ(measured().memory_source, "the machine");
}

TEST_F(MachineLimitsTest, TheTightestGroupAboveCounts) {
  put("proc/self/cgroup", "0::/a/b\n");
  group("a/b/", "max", kGiB);
  group("a/", std::to_string(8 * kGiB), kGiB);
  put("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  put("sys/fs/cgroup/a/cpu.max", "100000 100000\n");
  EXPECT_EQ(measured().memory_bytes, 7 * kGiB);
  EXPECT_EQ(measured().cores, 1);
  group("a/b/", std::to_string(2 * kGiB), kGiB);
  EXPECT_EQ(measured().memory_bytes, kGiB);
}

TEST_F(MachineLimitsTest, ALimitAboveTheMachinesIsNone) {
  put("proc/self/cgroup", "0::/\n");
  group("", std::to_string(64 * kGiB), 0);
  put("sys/fs/cgroup/cpu.max", "409600000 100000\n");
  EXPECT_EQ(measured().memory_bytes, 16 * kGiB);
  EXPECT_NE(measured().cores_source, "cgroup cpu.max");
}

TEST_F(MachineLimitsTest, AQuotaBelowACoreIsOne) {
  put("proc/self/cgroup", "0::/\n");
  put("sys/fs/cgroup/cpu.max", "50000 100000\n");
  EXPECT_EQ(measured().cores, 1);
}

TEST_F(MachineLimitsTest, VersionOneInItsOwnPlaces) {
  // Without a namespace of its own a container sees the host's path, and only the mount is there.
  put("proc/self/cgroup", "12:cpu,cpuacct:/docker/1\n5:memory:/docker/1\n1:name=systemd:/x\n");
  const std::string memory = "sys/fs/cgroup/memory/";
  put(memory + "memory.limit_in_bytes", std::to_string(2 * kGiB) + "\n");
  put(memory + "memory.usage_in_bytes", std::to_string(kGiB) + "\n");
  put(memory + "memory.stat", "inactive_file 1\ntotal_inactive_file " + std::to_string(kGiB / 2));
  put("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "100000\n");
  put("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  MachineLimits m = measured();
  EXPECT_EQ(m.memory_bytes, 3 * kGiB / 2);
  EXPECT_EQ(m.memory_source, "cgroup memory.limit_in_bytes");
  EXPECT_EQ(m.cores, 1);
  put(memory + "memory.limit_in_bytes", "9223372036854771712\n");  // none
  put("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
  m = measured();
  EXPECT_EQ(m.memory_bytes, 16 * kGiB);
  EXPECT_NE(m.cores_source, "cgroup cpu.cfs_quota_us");
}

TEST_F(MachineLimitsTest, TheAffinityCounts) {
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  if (CPU_COUNT(&before) < 2) GTEST_SKIP() << "one core";
  int first = 0;
  while (!CPU_ISSET(first, &before)) ++first;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(first, &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  EXPECT_EQ(measured().cores, 1);
  ASSERT_EQ(sched_setaffinity(0, sizeof before, &before), 0);
  EXPECT_EQ(measured().cores, CPU_COUNT(&before));
}

TEST_F(MachineLimitsTest, NonsenseIsNoLimit) {
  put("proc/self/cgroup", "garbage\n0:\n:::\n0::/\n");
  put("sys/fs/cgroup/memory.max", "-5x\n");
  put("sys/fs/cgroup/cpu.max", "1000 0\n");
  EXPECT_EQ(measured().memory_bytes, 16 * kGiB);
  EXPECT_NE(measured().cores_source, "cgroup cpu.max");
}

}  // namespace
}  // namespace millrace
