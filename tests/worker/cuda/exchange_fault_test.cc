// What becomes of exchanges, pipelines and steps when a peer, the transport or the device fails: a
// typed exception within the deadline, nothing freed twice, nothing left behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "parallel/device_expert_exchange.h"
#include "parallel/device_pipeline.h"
#include "parallel/nccl_communicator.h"
#include "parallel/staged_communicator.h"
#include "tests/support/comm_cluster.h"
#include "tests/worker/cuda/device_config.h"
#include "tests/worker/cuda/fake_nccl.h"
#include "tests/worker/cuda/ranks.h"
#include "worker/cuda/device_memory_plan.h"

#if defined(MILLRACE_CUDA_EMULATED)
#include "tests/cuda_emulator/control.h"
#endif

namespace millrace::parallel {
namespace {

namespace cuda = kernels::cuda;
using cuda::BFloat16;
using std::chrono::milliseconds;
using ::testing::HasSubstr;

constexpr milliseconds kDeadline{300};

// Passes calls on, but for the one that fails.
class FaultyCommunicator final : public DeviceCommunicator {
 public:
  // `failing`: the first call is 0; -1: none fails.
  FaultyCommunicator(DeviceCommunicator& inner, int failing)
      : DeviceCommunicator(inner.rank(), inner.size(), inner.options()),
        inner_(inner),
        failing_(failing) {}

  int calls() const { return calls_; }
  bool capturable() const override { return inner_.capturable(); }
  std::string_view name() const override { return "faulty"; }
  void all_to_all(const void* send, void* recv, std::size_t bytes, StreamRef stream) override {
    enter("all_to_all");
    inner_.all_to_all(send, recv, bytes, stream);
  }
  void all_to_all_v(const void* send, std::span<const ByteRange> send_ranges, void* recv,
                    std::span<const ByteRange> recv_ranges, StreamRef stream) override {
    enter("all_to_all_v");
    inner_.all_to_all_v(send, send_ranges, recv, recv_ranges, stream);
  }
  void all_gather(const void* mine, void* all, std::size_t bytes, StreamRef stream) override {
    enter("all_gather");
    inner_.all_gather(mine, all, bytes, stream);
  }
  void reduce_scatter_bf16(const void* in, void* out, std::size_t bytes,
                           StreamRef stream) override {
    enter("reduce_scatter");
    inner_.reduce_scatter_bf16(in, out, bytes, stream);
  }
  void send(int peer, const void* data, std::size_t bytes, StreamRef stream) override {
    enter("send");
    inner_.send(peer, data, bytes, stream);
  }
  void recv(int peer, void* data, std::size_t bytes, StreamRef stream) override {
    enter("recv");
    inner_.recv(peer, data, bytes, stream);
  }
  void check() override { inner_.check(); }
  void abort(std::string_view reason) noexcept override { inner_.abort(reason); }

 private:
  void enter(const char* operation) {
    if (calls_++ != failing_) return;
    throw CommError(operation, kNoPeer, options().deadline, "injected");
  }

  DeviceCommunicator& inner_;
  int failing_;
  int calls_ = 0;
};

// One lane's exchange of a few tokens, through dispatch and combine. Its experts do nothing.
class OneExchange {
 public:
  static constexpr std::int64_t kTokens = 3, kHidden = 16, kTopK = 2, kExperts = 4;

  OneExchange(DeviceCommunicator* comm, int lanes, DispatchPath path) : path_(path) {
    shape_.max_tokens = shape_.fixed_bucket = kTokens;
    shape_.hidden = kHidden;
    shape_.top_k = kTopK;
    shape_.experts = kExperts;
    shape_.slots = kExperts / lanes;
    shape_.lanes = lanes;
    std::vector<ExpertHome> homes;
    for (std::int32_t e = 0; e < kExperts; ++e) homes.push_back({e % lanes, e / lanes});
    const std::vector<std::span<const ExpertHome>> tables = {homes};
    exchange_.emplace(comm, shape_, tables);
    ids_ = cuda::DeviceBuffer(kTokens * kTopK * 4);
    weights_ = cuda::DeviceBuffer(kTokens * kTopK * 4);
    x_ = cuda::DeviceBuffer(kTokens * kHidden * 2);
    hidden_ = cuda::DeviceBuffer(kTokens * kHidden * 4);
    offsets_ = cuda::DeviceBuffer((static_cast<std::size_t>(shape_.slots) + 1) * 4);
    y_ = cuda::DeviceBuffer(
        static_cast<std::size_t>(DeviceExpertExchange::max_rows(shape_, kTokens) * kHidden * 2));
    const std::vector<std::int32_t> ids = {0, 1, 1, 2, 0, 3};
    cuda::copy_to_device(stream_, ids_.data(), ids.data(), ids.size() * 4);
    for (const auto* memory : {&weights_, &x_, &hidden_, &y_}) {
      cuda::fill(stream_, memory->data(), 0, memory->bytes());
    }
    cuda::synchronize(stream_, milliseconds(10'000));
  }

  static std::size_t collective_bytes(int lanes) {
    DeviceExchangeShape shape;
    shape.max_tokens = shape.fixed_bucket = kTokens;
    shape.hidden = kHidden;
    shape.top_k = kTopK;
    shape.experts = kExperts;
    shape.slots = kExperts / lanes;
    shape.lanes = lanes;
    return DeviceExpertExchange::planned_bytes(shape, 1).collective;
  }

  // Dispatch, combine, and the values that come out.
  std::vector<float> run() {
    DeviceExpertExchange::Tokens tokens;
    tokens.path = path_;
    tokens.bucket = kTokens;
    tokens.x = kernels::matrix<const BFloat16>(x_.as<BFloat16>(), kTokens, kHidden);
    tokens.ids = kernels::matrix<const std::int32_t>(ids_.as<std::int32_t>(), kTokens, kTopK);
    tokens.offsets = offsets_.as<std::int32_t>();
    const auto received = exchange_->dispatch(stream_, tokens);
    exchange_->combine(
        stream_, kernels::matrix<const BFloat16>(y_.as<BFloat16>(), received.max_rows, kHidden),
        kernels::matrix<const float>(weights_.as<float>(), kTokens, kTopK),
        kernels::matrix(hidden_.as<float>(), kTokens, kHidden));
    std::vector<float> out(kTokens * kHidden);
    cuda::copy_to_host(stream_, out.data(), hidden_.data(), hidden_.bytes());
    cuda::synchronize(stream_, milliseconds(10'000));
    return out;
  }

 private:
  DispatchPath path_;
  DeviceExchangeShape shape_;
  cuda::Stream stream_;
  std::optional<DeviceExpertExchange> exchange_;
  cuda::DeviceBuffer ids_, weights_, x_, hidden_, offsets_, y_;
};

class ExchangeFault : public ::testing::TestWithParam<DispatchPath> {};
INSTANTIATE_TEST_SUITE_P(Paths, ExchangeFault,
                         ::testing::Values(DispatchPath::kAllToAllFixed,
                                           DispatchPath::kAllToAllExact, DispatchPath::kAllGather));

// Each call of the communicator fails in turn, on one lane.
TEST_P(ExchangeFault, AFailedCallEndsBothLanesWithACommError) {
  const auto run = [&](int failing, int& calls) {
    std::array<std::string, 2> errors;
    test::run_ranks(
        2,
        [&](Communicator& host) {
          StagedCommunicator staged(host, {.collective_bytes = OneExchange::collective_bytes(2)});
          FaultyCommunicator comm(staged, host.rank() == 0 ? failing : -1);
          OneExchange exchange(&comm, 2, GetParam());
          try {
            EXPECT_THAT(exchange.run(), ::testing::Each(0.0F));
          } catch (const CommError& error) {
            errors[static_cast<std::size_t>(host.rank())] = error.what();
          }
          if (host.rank() == 0) calls = comm.calls();
        },
        kDeadline);
    return errors;
  };
  int calls = 0;
  EXPECT_THAT(run(-1, calls), ::testing::Each(""));
  EXPECT_GE(calls, 2) << "one out, one in";
  for (int failing = 0; failing < calls; ++failing) {
    int made = 0;
    const auto errors = run(failing, made);
    EXPECT_EQ(made, failing + 1) << "nothing is called after a failure";
    EXPECT_THAT(errors[0], HasSubstr("injected"));
    EXPECT_THAT(errors[1], HasSubstr("in time")) << "its peer notices by its deadline";
  }
}

#if defined(MILLRACE_CUDA_EMULATED)
class DeviceFault : public ::testing::Test {
 protected:
  void TearDown() override { cuda_emulator::reset(); }
};

// Every launch, copy and fill of an exchange fails in turn; afterwards the same exchange works.
TEST_F(DeviceFault, EveryCallOfAnExchangeThatFailsIsACudaError) {
  const std::size_t before = cuda_emulator::allocated_bytes();
  {
    OneExchange exchange(nullptr, 1, DispatchPath::kLocal);
    const std::vector<float> expected = exchange.run();
    for (const char* operation : {"launch", "cudaMemcpyAsync"}) {
      const std::uint64_t first = cuda_emulator::calls(operation);
      EXPECT_EQ(exchange.run(), expected);
      const auto calls = static_cast<int>(cuda_emulator::calls(operation) - first);
      EXPECT_GE(calls, 1) << operation;
      for (int nth = 1; nth <= calls; ++nth) {
        cuda_emulator::fail_nth(operation, nth, cuda::kErrorLaunchFailure);
        EXPECT_THROW(exchange.run(), cuda::CudaError) << operation << " " << nth;
        cuda_emulator::reset();
        EXPECT_EQ(exchange.run(), expected);
      }
    }
  }
  EXPECT_EQ(cuda_emulator::allocated_bytes(), before);
}

TEST_F(DeviceFault, AnExchangeThatGetsNoMemoryLeavesNone) {
  const std::size_t before = cuda_emulator::allocated_bytes();
  cuda_emulator::fail_nth("cudaMalloc", 1, cuda::kErrorMemoryAllocation);
  EXPECT_THROW(OneExchange(nullptr, 1, DispatchPath::kLocal), cuda::CudaError);
  EXPECT_EQ(cuda_emulator::allocated_bytes(), before);
}

TEST_F(DeviceFault, ACopyOfAStagedCollectiveThatFailsIsACudaError) {
  test::run_ranks(1, [](Communicator& host) {
    StagedCommunicator comm(host, {.collective_bytes = 64});
    const cuda::Stream stream;
    const cuda::DeviceBuffer memory(64);
    for (int nth = 1; nth <= 2; ++nth) {  // from the device, and to it
      cuda_emulator::fail_nth("cudaMemcpyAsync", nth, cuda::kErrorIllegalAddress);
      EXPECT_THROW(comm.all_gather(memory.data(), memory.data(), 16, stream), cuda::CudaError);
    }
  });
}

// Work that is done late: a slot of the ring must not be used again before it is drained.
TEST_F(DeviceFault, APipelineOfLateWorkMixesNoSteps) {
  cuda_emulator::set_lazy(true);
  test::run_ranks(2, [](Communicator& host) {
    constexpr int kSteps = 8;
    StagedCommunicator comm(host, {.message_bytes = 64, .sends = 2});
    DevicePipeline pipeline(comm, 4, 4);
    const cuda::Stream stream;
    const cuda::DeviceBuffer x(64), all(64 * kSteps);
    const cuda::PinnedBuffer values(64 * kSteps);
    for (int step = 0; step < kSteps; ++step) {
      auto* mine = values.as<float>() + 16 * step;
      if (pipeline.has_next()) {
        std::fill_n(mine, 16, static_cast<float>(step));
        cuda::copy_to_device(stream, x.data(), mine, 64);
        pipeline.send(stream, x.as<float>(), 4);
      } else {
        pipeline.recv(stream, x.as<float>(), 4);
        cuda::copy_on_device(stream, all.data() + 64 * step, x.data(), 64);
      }
    }
    if (pipeline.has_next()) return;
    cuda::copy_to_host(stream, values.data(), all.data(), all.bytes());
    comm.wait(stream);
    for (int step = 0; step < kSteps; ++step) {
      for (int i = 0; i < 16; ++i) EXPECT_EQ(values.as<float>()[16 * step + i], step);
    }
  });
}
#endif

TEST(PipelineFault, ASilentStageIsAnErrorAtTheDeadline) {
  test::run_ranks(
      2,
      [](Communicator& host) {
        if (host.rank() == 0) return;
        StagedCommunicator comm(host, {.message_bytes = 64});
        DevicePipeline pipeline(comm, 4, 4);
        const cuda::Stream stream;
        const cuda::DeviceBuffer x(64);
        try {
          pipeline.recv(stream, x.as<float>(), 4);
          ADD_FAILURE() << "received from nobody";
        } catch (const CommError& error) {
          EXPECT_EQ(error.peer(), 0);
          EXPECT_THAT(error.detail(), HasSubstr("in time"));
        }
      },
      kDeadline);
}

TEST(PipelineFault, AFailedSendOrReceiveIsACommErrorOnBothSides) {
  for (const int faulty : {0, 1}) {
    test::run_ranks(
        2,
        [&](Communicator& host) {
          StagedCommunicator staged(host, {.message_bytes = 64});
          FaultyCommunicator comm(staged, host.rank() == faulty ? 1 : -1);
          DevicePipeline pipeline(comm, 4, 4);
          const cuda::Stream stream;
          const cuda::DeviceBuffer x(64);
          cuda::fill(stream, x.data(), 0, 64);
          int good = 0;
          const auto step = [&] {
            pipeline.has_next() ? pipeline.send(stream, x.as<float>(), 4)
                                : pipeline.recv(stream, x.as<float>(), 4);
          };
          try {
            for (; good < 10; ++good) step();
            ADD_FAILURE() << "rank " << host.rank() << " noticed nothing";
          } catch (const CommError&) {
            // The other one goes on until its buffers are full or nothing comes.
            EXPECT_TRUE(host.rank() == faulty ? good == 1 : good >= 1 && good <= 4) << good;
          }
        },
        kDeadline);
  }
}

TEST(PipelineFault, AMessageOfAnotherLengthIsACommError) {
  test::run_ranks(2, [](Communicator& host) {
    StagedCommunicator comm(host, {.message_bytes = 64});
    const cuda::Stream stream;
    const cuda::DeviceBuffer x(64);
    cuda::fill(stream, x.data(), 0, 64);
    if (host.rank() == 0) return comm.send(1, x.data(), 16, stream);
    try {
      comm.recv(0, x.data(), 32, stream);
      ADD_FAILURE() << "accepted";
    } catch (const CommError& error) {
      EXPECT_THAT(error.detail(), HasSubstr("message of 16 bytes, expected 32"));
    }
  });
}

// --- steps in flight, with NCCL's communicator between the lanes ---

#if defined(MILLRACE_CUDA_EMULATED)
class StepFault : public DeviceFault {
 protected:
  void SetUp() override { testing::reset_fake_nccl(); }

  // `body` with a worker whose stage has a communicator of the fake library.
  static void with_nccl(const std::function<void(CudaWorker&)>& body) {
    ClusterConfig config = testing::device_config(testing::device_checkpoint("dense"));
    config.deadlines.step_ms = 150;
    const CellSetup setup = testing::setup_of(config);
    const auto grid = ProcessGrid::make(1, 1, 2);
    test::run_ranks(2, [&](Communicator& world) {
      CellComms cell = make_cell_comms(world, *grid);
      if (!cell.position) return;
      const RankShard shard = setup.shard(*cell.position);
      const auto weights = load_weights(setup.source, setup.model, shard);
      ASSERT_TRUE(weights.has_value());
      const DeviceShape shape =
          make_device_shape(setup.config, setup.model, router_dtype(setup.source, setup.model),
                            shard, setup.worker_options().limits, 132);
      DeviceLoadOptions load;
      load.format = shape.weights;
      auto device_weights = DeviceWeights::load(setup.model, shard, *weights, load);
      ASSERT_TRUE(device_weights.has_value());
      DeviceComms comms;
      comms.stage = std::make_unique<NcclCommunicator>(testing::fake_nccl_api(), *cell.stage);
      CudaWorkerOptions options;
      options.step_deadline = milliseconds(config.deadlines.step_ms);
      CudaWorker worker(options, shape, std::move(*device_weights), setup.placement, cell,
                        std::move(comms));
      body(worker);
    });
  }
  static std::string failure(CudaWorker& worker, const StepPlan& plan) {
    try {
      worker.execute(plan);
    } catch (const CommError& error) {
      return error.what();
    }
    return "the step ended well";
  }
};

TEST_F(StepFault, APeerThatFailsEndsTheStepInFlightBeforeItsDeadline) {
  with_nccl([](CudaWorker& worker) {
    testing::PlanMaker plans(32);
    worker.execute(plans.start({0}, 4));
    cuda_emulator::set_stalled(true);  // kernels wait for the peer
    testing::fake_nccl().async_error = kNcclRemoteError;
    EXPECT_THAT(failure(worker, plans.decode({0})), HasSubstr("remote error"));
    EXPECT_EQ(testing::fake_nccl().aborts, 1) << "so that its kernels end";
    cuda_emulator::reset();
  });
  EXPECT_EQ(testing::fake_nccl().destroys, 0) << "an aborted communicator must not be destroyed";
}

TEST_F(StepFault, AStepThatHangsAbortsTheCommunicatorAtItsDeadline) {
  with_nccl([](CudaWorker& worker) {
    testing::PlanMaker plans(32);
    worker.execute(plans.start({0}, 4));
    cuda_emulator::set_stalled(true);
    EXPECT_THAT(failure(worker, plans.decode({0})), HasSubstr("did not finish the step in time"));
    EXPECT_EQ(testing::fake_nccl().aborts, 1);
    cuda_emulator::reset();
  });
}

TEST_F(StepFault, AStepThatEndsWellAbortsNothing) {
  with_nccl([](CudaWorker& worker) {
    testing::PlanMaker plans(32);
    worker.execute(plans.start({0}, 4));
    EXPECT_EQ(worker.execute(plans.decode({0})).sampled.size(), 1U);
  });
  EXPECT_EQ(testing::fake_nccl().aborts, 0);
  EXPECT_EQ(testing::fake_nccl().destroys, 1);
}
#endif

}  // namespace
}  // namespace millrace::parallel
