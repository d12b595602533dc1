#include "worker/plan_transport.h"

#include <gtest/gtest.h>

#include <thread>

#include "parallel/thread_communicator.h"

namespace millrace {
namespace {

using namespace std::chrono_literals;

TEST(PlanTransport, ReportsPlansAndResultsArriveAsSent) {
  parallel::ThreadGroup group(3);
  StepPlan plan;
  plan.step = 7;
  plan.bucket = 4;
  plan.exchange = ExchangePath::kAllGather;
  plan.lanes.resize(2);
  plan.lanes[1].starts.push_back({3, {}, 2, {1, 2, 3}});
  plan.lanes[1].chunks.push_back(
      {.slot = 3, .tokens = {1, 2, 3}, .new_blocks = {9}, .sample = true});

  std::vector<std::thread> workers;
  for (int rank = 1; rank < 3; ++rank) {
    workers.emplace_back([&group, &plan, rank] {
      const auto world = group.take(rank);
      PlanReceiver link(*world);
      link.report({rank, StartReport::Kind::kLoading, 5, 10, ""});
      link.report({rank, StartReport::Kind::kFailed, 0, 0, "tensor x is missing"});
      EXPECT_EQ(link.next(), plan);
      StepResult result;
      result.step = 7;
      result.lane = static_cast<std::uint32_t>(rank - 1);
      result.sampled.push_back({3, {11, -0.5F}, {{11, -0.5F}, {4, -2.0F}}});
      link.answer(result);
      WorkerReport done;
      done.lane = static_cast<std::uint32_t>(rank - 1);
      done.steps = 4;
      done.moe_layers = 2;
      done.expert_rows = {5, 6, 7, 8};
      link.report(done);
      EXPECT_TRUE(link.next().shutdown);
      world->flush();
    });
  }
  const auto world = group.take(0);
  PlanSender link(*world);
  int failed = 0;
  for (int i = 0; i < 4; ++i) {
    const auto report = link.next_report(10s);
    ASSERT_TRUE(report.has_value());
    if (report->kind == StartReport::Kind::kFailed) {
      ++failed;
      EXPECT_EQ(report->detail, "tensor x is missing");
    } else {
      EXPECT_EQ(report->bytes_total, 10U);
    }
  }
  EXPECT_EQ(failed, 2);
  EXPECT_FALSE(link.next_report(1ms).has_value());
  link.send(plan);
  for (int i = 0; i < 2; ++i) {
    std::optional<StepResult> result;
    while (!result) result = link.receive(1000us);
    EXPECT_EQ(result->step, 7U);
    ASSERT_EQ(result->sampled.size(), 1U);
    EXPECT_EQ(result->sampled[0].chosen.token, 11);
  }
  for (int i = 0; i < 2; ++i) {
    std::optional<WorkerReport> report;
    while (!report) report = link.worker_report();
    EXPECT_EQ(report->steps, 4U);
    EXPECT_EQ(report->expert_rows, (std::vector<std::uint64_t>{5, 6, 7, 8}));
  }
  EXPECT_FALSE(link.worker_report().has_value());
  StepPlan last;
  last.shutdown = true;
  link.send(last);
  for (std::thread& t : workers) t.join();
}

}  // namespace
}  // namespace millrace
