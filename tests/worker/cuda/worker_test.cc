// The worker on a device, step by step: graphs, memory, failures.
#include "worker/cuda/cuda_worker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/cuda/runtime.h"
#include "tests/worker/cuda/device_config.h"
#include "tests/worker/cuda/ranks.h"
#include "worker/cuda/device_memory_plan.h"

#if defined(MILLRACE_CUDA_EMULATED)
#include "tests/cuda_emulator/control.h"
#endif

namespace millrace {
namespace {

using kernels::cuda::CudaError;
using testing::device_checkpoint;
using testing::device_config;
using ::testing::HasSubstr;
using testing::PlanMaker;
using testing::with_cuda_worker;

ClusterConfig config_of(const char* model) { return device_config(device_checkpoint(model)); }

TEST(CudaWorker, AGraphHasTheBitsOfItsLaunches) {
  std::vector<StepResult> with, without;
  for (const bool graphs : {true, false}) {
    ClusterConfig config = config_of("moe");
    config.device.graphs = graphs;
    with_cuda_worker(config, [&](CudaWorker& worker) {
      PlanMaker plans(32);
      std::vector<StepResult>& results = graphs ? with : without;
      results.push_back(worker.execute(plans.start({0, 1, 2}, 5)));
      for (int i = 0; i < 4; ++i) results.push_back(worker.execute(plans.decode({0, 1, 2})));
      for (int i = 0; i < 3; ++i) results.push_back(worker.execute(plans.decode({2})));
      results.push_back(worker.execute(plans.decode({1, 0, 2})));
      // Buckets of 4 and of 1 rows, each with a first step launch by launch.
      EXPECT_EQ(worker.graphs_recorded(), graphs ? 2U : 0U);
      EXPECT_EQ(worker.graph_launches(), graphs ? 6U : 0U);
    });
  }
  ASSERT_EQ(with.size(), without.size());
  for (std::size_t i = 0; i < with.size(); ++i) EXPECT_EQ(with[i], without[i]) << "step " << i;
}

TEST(CudaWorker, ABucketHasTheBitsOfAnother) {
  with_cuda_worker(config_of("moe"), [&](CudaWorker& worker) {
    PlanMaker plans(32);
    worker.execute(plans.start({0, 1, 2, 3, 4}, 4));
    PlanMaker alone = plans;
    // One row in a bucket of one, then the same token of another sequence's twin in a bucket of
    // eight.
    const StepResult five = worker.execute(plans.decode({0, 1, 2, 3, 4}));
    const std::vector<float> logits = worker.read_logits(5);
    ASSERT_EQ(five.sampled.size(), 5U);
    // The sequences begin again and go the same way, one by one.
    PlanMaker again(32);
    worker.execute(again.start({0, 1, 2, 3, 4}, 4));
    for (SlotId slot = 0; slot < 5; ++slot) {
      const StepResult one = worker.execute(again.decode({slot}));
      const std::vector<float> row = worker.read_logits(1);
      EXPECT_EQ(one.sampled.at(0), five.sampled[slot]);
      EXPECT_TRUE(std::equal(row.begin(), row.end(),
                             logits.begin() + static_cast<std::ptrdiff_t>(slot) * 320))
          << "slot " << slot;
    }
  });
}

// What the coordinator need not wait for.
TEST(CudaWorker, TheTokenOfASlotIsTheOneThatItDrew) {
  for (const bool graphs : {true, false}) {
    ClusterConfig config = config_of("moe");
    config.device.graphs = graphs;
    with_cuda_worker(config, [&](CudaWorker& worker) {
      PlanMaker plans(32);
      std::vector<StepResult> told = {worker.execute(plans.start({0, 1, 2}, 6))};
      for (int i = 0; i < 4; ++i) {
        std::vector<std::int32_t> tokens;
        for (const SampledToken& s : told.back().sampled) tokens.push_back(s.chosen.token);
        told.push_back(worker.execute(plans.decode({0, 1, 2}, tokens)));
      }
      PlanMaker again(32);
      std::vector<StepResult> known = {worker.execute(again.start({0, 1, 2}, 6))};
      for (int i = 0; i < 4; ++i) {
        known.push_back(
            worker.execute(again.decode({0, 1, 2}, {kTokenOfSlot, kTokenOfSlot, kTokenOfSlot})));
      }
      EXPECT_EQ(known, told);
    });
  }
}

// Sequences that begin, go on with what they drew, end, and leave their slots to others.
std::vector<StepPlan> plans_ahead() {
  constexpr std::int32_t k = kTokenOfSlot;
  PlanMaker plans(32);
  std::vector<StepPlan> out = {plans.start({0, 1, 2}, 6)};
  for (int i = 0; i < 3; ++i) out.push_back(plans.decode({0, 1, 2}, {k, k, k}));
  out.push_back(plans.start({1, 3}, 9));
  out.push_back(plans.decode({0, 1, 3}, {k, k, k}));
  StepPlan mixed = plans.start({2}, 5);
  const StepPlan others = plans.decode({0, 1, 3}, {k, 77, k});
  mixed.step = others.step;
  for (const Chunk& chunk : others.lanes[0].chunks) mixed.lanes[0].chunks.push_back(chunk);
  mixed.bucket = 16;
  out.push_back(mixed);
  for (int i = 0; i < 3; ++i) out.push_back(plans.decode({2, 0}, {k, k}));
  out.push_back(plans.empty());
  out.push_back(plans.decode({2, 0, 1, 3}, {k, k, k, k}));
  for (std::size_t i = 0; i < out.size(); ++i) out[i].step = i + 1;
  return out;
}

TEST(CudaWorker, AStepAheadHasTheBitsOfOneAtATime) {
  const std::vector<StepPlan> plans = plans_ahead();
  for (const char* model : {"moe", "dense"}) {
    std::vector<StepResult> alone;
    with_cuda_worker(config_of(model), [&](CudaWorker& worker) {
      for (const StepPlan& plan : plans) alone.push_back(worker.execute(plan));
    });
    EXPECT_EQ(testing::run_ahead(config_of(model), plans), alone);
#if defined(MILLRACE_CUDA_EMULATED)
    // Nothing of a step is done before the next one has been prepared.
    cuda_emulator::set_lazy(true);
    EXPECT_EQ(testing::run_ahead(config_of(model), plans), alone) << "late";
    ClusterConfig launches = config_of(model);
    launches.device.graphs = false;
    EXPECT_EQ(testing::run_ahead(launches, plans), alone) << "late, without graphs";
    cuda_emulator::reset();
#endif
  }
}

TEST(CudaWorker, CountsWhatItsExpertsRan) {
  with_cuda_worker(config_of("moe"), [&](CudaWorker& worker) {
    PlanMaker plans(32);
    worker.execute(plans.start({0, 1}, 6));
    worker.execute(plans.decode({0, 1}));
    worker.execute(plans.empty());  // asks only whether the worker lives
    const WorkerReport& report = worker.report();
    EXPECT_EQ(report.steps, 2U);
    EXPECT_EQ(report.first_moe_layer, 2U);
    ASSERT_EQ(report.expert_rows.size(), report.moe_layers * 8U);
    for (std::uint32_t layer = 0; layer < report.moe_layers; ++layer) {
      std::uint64_t rows = 0;
      for (int e = 0; e < 8; ++e) rows += report.expert_rows[layer * 8U + e];
      EXPECT_EQ(rows, 14U * 4U) << "14 tokens with four experts each, and no padding";
    }
  });
}

TEST(CudaWorker, RefusesPlansThatNoCoordinatorOfOursSends) {
  with_cuda_worker(config_of("dense"), [&](CudaWorker& worker) {
    const auto refused = [&](const StepPlan& plan, const char* why) {
      try {
        worker.execute(plan);
        ADD_FAILURE() << "accepted: " << why;
      } catch (const std::runtime_error& error) {
        EXPECT_THAT(error.what(), HasSubstr(why));
      }
    };
    PlanMaker plans(32);
    StepPlan plan = plans.empty();
    plan.lanes.clear();
    refused(plan, "wrong number of lanes");
    plan = plans.start({0}, 3);
    plan.lanes[0].starts[0].sampling.logprobs = 21;
    refused(plan, "at most 20");
    plan = plans.start({0}, 3);
    plan.lanes[0].starts[0].sampling.top_p = 0;
    refused(plan, "sampling.top_p");
    plan = plans.start({0}, 1);
    plan.lanes[0].chunks[0].tokens = {kTokenOfSlot};
    refused(plan, "slot 0 has drawn no token");
    plan = plans.start({99}, 3);
    refused(plan, "slot 99 of 8");
  });
}

#if defined(MILLRACE_CUDA_EMULATED)

class CudaWorkerFault : public ::testing::Test {
 protected:
  void TearDown() override { cuda_emulator::reset(); }
};

TEST_F(CudaWorkerFault, AllocatesNothingAfterTheStart) {
  with_cuda_worker(config_of("moe"), [&](CudaWorker& worker) {
    const auto allocations = [] {
      return cuda_emulator::calls("cudaMalloc") + cuda_emulator::calls("cudaHostAlloc");
    };
    const auto before = allocations();
    PlanMaker plans(32);
    worker.execute(plans.start({0, 1, 2}, 9));
    for (int i = 0; i < 4; ++i) worker.execute(plans.decode({0, 1, 2}));
    EXPECT_EQ(allocations(), before);
  });
}

TEST_F(CudaWorkerFault, TheDeviceHoldsWhatThePlanSays) {
  for (const char* model : {"moe", "dense", "f32"}) {
    ClusterConfig config = config_of(model);
    if (model == std::string("dense")) config.device.weights = DeviceWeightFormat::kFp8;
    const std::size_t before = cuda_emulator::allocated_bytes();
    testing::with_worker(config, [&](const CellSetup& setup, auto worker) {
      ASSERT_TRUE(worker.has_value());
      const RankMemory& planned = setup.memory.ranks.at(0);
      // The plan knows the limits before the context is cut to what the KV cache holds, and keeps a
      // reserve for what the driver takes.
      EXPECT_EQ(cuda_emulator::allocated_bytes() - before,
                planned.total_bytes() - kDeviceReservedBytes);
    });
    EXPECT_EQ(cuda_emulator::allocated_bytes(), before) << "and gives all of it back";
  }
}

TEST_F(CudaWorkerFault, TooLittleMemoryIsAnErrorThatNamesTheField) {
  for (const auto& [operation, field] :
       {std::pair("cudaMalloc", "device.memory_fraction"), std::pair("cudaHostAlloc", "")}) {
    const std::uint64_t before = cuda_emulator::calls(operation);
    with_cuda_worker(config_of("moe"), [](CudaWorker&) {});
    const auto allocations = static_cast<int>(cuda_emulator::calls(operation) - before);
    EXPECT_GT(allocations, 5);
    for (int nth = 1; nth <= allocations; ++nth) {
      const std::size_t held = cuda_emulator::allocated_bytes();
      cuda_emulator::fail_nth(operation, nth, kernels::cuda::kErrorMemoryAllocation);
      testing::with_worker(config_of("moe"), [&](const CellSetup&, auto worker) {
        ASSERT_FALSE(worker.has_value()) << operation << " " << nth;
        EXPECT_EQ(worker.error().field, field);
        EXPECT_EQ(worker.error().code, ErrorCode::kResourceExhausted);
      });
      cuda_emulator::reset();
      EXPECT_EQ(cuda_emulator::allocated_bytes(), held) << "what was there before stays behind";
    }
  }
}

TEST_F(CudaWorkerFault, AFailedLaunchIsATypedException) {
  with_cuda_worker(config_of("moe"), [&](CudaWorker& worker) {
    PlanMaker plans(32);
    worker.execute(plans.start({0}, 4));
    cuda_emulator::fail_nth("launch", 7, kernels::cuda::kErrorIllegalAddress, /*sticky=*/true);
    try {
      worker.execute(plans.decode({0}));
      ADD_FAILURE() << "the step ended well";
    } catch (const CudaError& error) {
      EXPECT_EQ(error.code(), kernels::cuda::kErrorIllegalAddress);
      EXPECT_THAT(error.operation(), HasSubstr("launch"));
    }
    EXPECT_THROW(worker.execute(plans.decode({0})), CudaError) << "the device stays lost";
  });
}

TEST_F(CudaWorkerFault, AFailureWhileAGraphIsRecordedIsATypedException) {
  with_cuda_worker(config_of("moe"), [&](CudaWorker& worker) {
    PlanMaker plans(32);
    worker.execute(plans.start({0}, 4));
    worker.execute(plans.decode({0}));
    cuda_emulator::fail_nth("cudaGraphInstantiate", 1, kernels::cuda::kErrorMemoryAllocation);
    EXPECT_THROW(worker.execute(plans.decode({0})), CudaError);
  });
}

TEST_F(CudaWorkerFault, AHungDeviceIsAnErrorAtTheDeadline) {
  ClusterConfig config = config_of("moe");
  config.deadlines.step_ms = 100;
  config.deadlines.collective_ms = 100;
  with_cuda_worker(config, [&](CudaWorker& worker) {
    PlanMaker plans(32);
    worker.execute(plans.start({0}, 4));
    cuda_emulator::set_stalled(true);
    EXPECT_THROW(worker.execute(plans.decode({0})), parallel::CommError);
    cuda_emulator::reset();
  });
}

// The whole cell: the failure reaches whoever waits for tokens, and everything ends. The memory of
// the lost device is not touched again: freeing it could hang.
TEST_F(CudaWorkerFault, ACellEndsWithTheReason) {
  const std::size_t before = cuda_emulator::allocated_bytes();
  {
    testing::EngineHarness engine(config_of("moe"));
    cuda_emulator::fail_nth("launch", 40, kernels::cuda::kErrorLaunchFailure, /*sticky=*/true);
    std::vector<SequenceRequest> requests = testing::device_requests(320, 1);
    EXPECT_TRUE(engine.cell().submit(requests[0]));
    EXPECT_THAT(engine.wait_failure(), HasSubstr("launch"));
  }
  EXPECT_GT(cuda_emulator::allocated_bytes(), before);
}

TEST_F(CudaWorkerFault, ACellThatIsStoppedGivesItsMemoryBack) {
  const std::size_t before = cuda_emulator::allocated_bytes();
  { testing::EngineHarness engine(config_of("moe")); }
  EXPECT_EQ(cuda_emulator::allocated_bytes(), before);
}

#endif

}  // namespace
}  // namespace millrace
