#include "worker/cpu_binding.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <hwloc.h>
#include <sched.h>

#include <thread>

namespace millrace {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// Two sockets, each a NUMA node of four cores. hwloc numbers the cores of its synthetic machines in
// order, so node 1 has cores 4 to 7.
constexpr char kTwoNodes[] = "pack:2 [numa] core:4 pu:1";

CpuBinding plan(const char* machine, BindThreads choice, WorkerPlace place) {
  const Topology topology = synthetic_topology(machine);
  EXPECT_NE(topology, nullptr);
  return plan_cpu_binding(topology, choice, place);
}

TEST(CpuBinding, WorkersDivideTheCoresInOrder) {
  struct Case {
    int index;
    int workers;
    const char* cores;
    const char* nodes;
  };
  for (const Case& c : {Case{0, 2, "0-3", "0"},
                        {1, 2, "4-7", "1"},
                        {0, 4, "0-1", "0"},
                        {3, 4, "6-7", "1"},
                        {0, 1, "0-7", "0-1"},
                        {7, 8, "7", "1"}}) {
    const CpuBinding binding = plan(kTwoNodes, BindThreads::kCore, {c.index, c.workers, 1});
    EXPECT_EQ(binding.cores, c.cores) << c.index << " of " << c.workers;
    EXPECT_EQ(binding.nodes, c.nodes) << c.index << " of " << c.workers;
  }
}

TEST(CpuBinding, ThreadsOfAWorkerDivideItsCores) {
  EXPECT_THAT(plan(kTwoNodes, BindThreads::kCore, {1, 2, 4}).thread_cores,
              ElementsAre("4", "5", "6", "7"));
  EXPECT_THAT(plan(kTwoNodes, BindThreads::kCore, {1, 2, 2}).thread_cores,
              ElementsAre("4-5", "6-7"));
  // Hyper-threads: with half as many threads each has a core; with as many, a hyper-thread.
  EXPECT_THAT(plan("core:2 pu:2", BindThreads::kCore, {0, 1, 2}).thread_cores,
              ElementsAre("0-1", "2-3"));
  EXPECT_THAT(plan("core:2 pu:2", BindThreads::kCore, {0, 1, 4}).thread_cores,
              ElementsAre("0", "1", "2", "3"));
}

TEST(CpuBinding, ANodeIsSharedByTheWorkersOnIt) {
  for (const int index : {2, 3}) {
    const CpuBinding binding = plan(kTwoNodes, BindThreads::kNode, {index, 4, 2});
    EXPECT_EQ(binding.cores, "4-7");
    EXPECT_EQ(binding.nodes, "1");
    EXPECT_THAT(binding.thread_cores, IsEmpty());
  }
}

TEST(CpuBinding, AutoBindsOnlyWhereThereAreSeveralNodes) {
  EXPECT_EQ(plan("core:8 pu:1", BindThreads::kAuto, {0, 2, 4}).cores, "");
  EXPECT_EQ(plan(kTwoNodes, BindThreads::kAuto, {1, 2, 4}).cores, "4-7");
  EXPECT_EQ(plan(kTwoNodes, BindThreads::kNone, {1, 2, 4}).cores, "");
}

TEST(CpuBinding, MoreWorkersOrThreadsThanCoresShareThem) {
  EXPECT_EQ(plan("core:2 pu:1", BindThreads::kCore, {0, 4, 1}).cores, "0");
  EXPECT_EQ(plan("core:2 pu:1", BindThreads::kCore, {3, 4, 1}).cores, "1");
  EXPECT_THAT(plan("core:2 pu:1", BindThreads::kCore, {1, 2, 3}).thread_cores,
              ElementsAre("1", "1", "1"));
}

// Every core has a worker, whatever the number of workers.
TEST(CpuBinding, NoCoreIsLeftOver) {
  const Topology topology = synthetic_topology("pack:2 [numa] l3:3 core:4 pu:2");
  for (int workers = 1; workers <= 24; ++workers) {
    hwloc_bitmap_t all = hwloc_bitmap_alloc();
    for (int index = 0; index < workers; ++index) {
      const CpuBinding binding =
          plan_cpu_binding(topology, BindThreads::kCore, {index, workers, 2});
      hwloc_bitmap_t own = hwloc_bitmap_alloc();
      hwloc_bitmap_list_sscanf(own, binding.cores.c_str());
      EXPECT_FALSE(hwloc_bitmap_intersects(all, own)) << index << " of " << workers;
      hwloc_bitmap_or(all, all, own);
      hwloc_bitmap_free(own);
    }
    EXPECT_EQ(hwloc_bitmap_weight(all), 48) << workers;
    hwloc_bitmap_free(all);
  }
}

std::string affinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  EXPECT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
  std::string cores;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &set)) cores += std::to_string(i) + " ";
  }
  return cores;
}

TEST(CpuBinding, AThreadAndThoseItStartsStayOnItsCores) {
  const std::string before = affinity();
  std::thread([&] {
    const Topology topology = load_topology(TopologyScope::kAllowed);
    ASSERT_NE(topology, nullptr);
    CpuBinding one = plan_cpu_binding(topology, BindThreads::kCore, {0, 1, 1});
    const std::string first = before.substr(0, before.find(' '));  // of those that we may use
    one.cores = first;
    one.thread_cores = {first};
    const auto bound = bind_worker(topology, one);
    ASSERT_TRUE(bound.has_value()) << bound.error().to_string();
    EXPECT_EQ(affinity(), first + " ");
    std::thread([&] { EXPECT_EQ(affinity(), first + " "); }).join();
    EXPECT_TRUE(bind_thread(topology, one, 0).has_value());
  }).join();
  EXPECT_EQ(affinity(), before);
}

TEST(CpuBinding, ACoreThatIsNotThereIsAnError) {
  const Topology topology = load_topology(TopologyScope::kAllowed);
  ASSERT_NE(topology, nullptr);
  CpuBinding binding;
  binding.cores = "1000";
  binding.nodes = "0";
  const auto bound = bind_worker(topology, binding);
  ASSERT_FALSE(bound.has_value());
  EXPECT_EQ(bound.error().field, "grid.bind_threads");
}

TEST(SyntheticTopology, ATextThatIsNoneIsNull) {
  EXPECT_EQ(synthetic_topology("two sockets"), nullptr);
}

}  // namespace
}  // namespace millrace
