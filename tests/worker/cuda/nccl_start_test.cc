// How the ranks of a cell come to talk over NCCL, or agree not to: the choice of the transport, the
// unique id over the control plane, and what goes wrong on the way. The library is a fake.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "kernels/cuda/runtime.h"
#include "parallel/nccl_communicator.h"
#include "tests/support/comm_cluster.h"
#include "tests/worker/cuda/device_config.h"
#include "tests/worker/cuda/fake_nccl.h"
#include "tests/worker/cuda/ranks.h"
#include "worker/cuda/device_memory_plan.h"
#include "worker/cuda/device_transport.h"

#if defined(MILLRACE_CUDA_EMULATED)
#include "tests/cuda_emulator/control.h"
#endif

namespace millrace {
namespace {

using parallel::CommError;
using parallel::Communicator;
using parallel::NcclApi;
using parallel::NcclCommunicator;
using std::chrono::milliseconds;
using testing::fake_nccl;
using testing::fake_nccl_api;
using ::testing::HasSubstr;

class NcclStart : public ::testing::Test {
 protected:
  void SetUp() override { testing::reset_fake_nccl(); }

  // What each of `ranks` ranks says when it makes a communicator: "", or the error.
  static std::map<int, std::string> start(int ranks, milliseconds deadline = milliseconds(2'000)) {
    std::mutex mutex;
    std::map<int, std::string> said;
    test::run_ranks(
        ranks,
        [&](Communicator& host) {
          std::string error;
          try {
            NcclCommunicator comm(fake_nccl_api(), host);
            EXPECT_EQ(comm.rank(), host.rank());
            EXPECT_EQ(comm.size(), ranks);
          } catch (const CommError& e) {
            error = fmt::format("{}: {}", e.operation(), e.detail());
          }
          const std::lock_guard lock(mutex);
          said[host.rank()] = error;
        },
        deadline);
    return said;
  }
};

TEST_F(NcclStart, EveryRankGetsTheFirstRanksId) {
  fake_nccl().id = "an id of the first rank";
  for (const auto& [rank, error] : start(4)) EXPECT_EQ(error, "") << "rank " << rank;
  EXPECT_EQ(fake_nccl().ids, 1) << "only one rank makes an id";
  std::map<int, testing::FakeNccl::Init> inits;
  for (const auto& init : fake_nccl().inits) inits[init.rank] = init;
  ASSERT_EQ(inits.size(), 4U);
  for (const auto& [rank, init] : inits) {
    EXPECT_EQ(init.ranks, 4);
    EXPECT_EQ(init.id, "an id of the first rank");
  }
  EXPECT_EQ(fake_nccl().destroys, 4);
}

TEST_F(NcclStart, AnIdThatCannotBeMadeIsHeardByAll) {
  fake_nccl().id_code = parallel::kNcclSystemError;
  for (const auto& [rank, error] : start(3)) {
    EXPECT_THAT(error, HasSubstr("nccl init: some error")) << "rank " << rank;
  }
  EXPECT_TRUE(fake_nccl().inits.empty()) << "nobody waits for ranks that cannot come";
}

TEST_F(NcclStart, ARankThatDoesNotComeIsAnErrorAtTheDeadline) {
  std::string error;
  test::run_ranks(
      2,
      [&](Communicator& host) {
        if (host.rank() == 0) return;  // the one that has the id
        try {
          NcclCommunicator comm(fake_nccl_api(), host);
        } catch (const CommError& e) {
          error = e.detail();
        }
      },
      milliseconds(100));
  EXPECT_THAT(error, HasSubstr("in time"));
  EXPECT_TRUE(fake_nccl().inits.empty());
}

TEST_F(NcclStart, RanksThatHangInsideNcclEndAtTheDeadline) {
  fake_nccl().init_hangs = true;
  for (const auto& [rank, error] : start(2, milliseconds(100))) {
    EXPECT_THAT(error, HasSubstr("not all ranks came in time")) << "rank " << rank;
  }
  fake_nccl().release = true;  // the helper threads go
  std::this_thread::sleep_for(milliseconds(20));
  EXPECT_EQ(fake_nccl().destroys, 0) << "there is no communicator to destroy";
}

#if defined(MILLRACE_CUDA_EMULATED)
// NCCL binds a communicator to the device of the thread that makes it.
TEST_F(NcclStart, TheDeviceIsTheCallers) {
  cuda_emulator::set_device_count(4);
  test::run_ranks(3, [&](Communicator& host) {
    kernels::cuda::set_device(3 - host.rank());
    const NcclCommunicator comm(fake_nccl_api(), host);
  });
  ASSERT_EQ(fake_nccl().inits.size(), 3U);
  for (const auto& init : fake_nccl().inits) EXPECT_EQ(init.device, 3 - init.rank);
  cuda_emulator::reset();
}
#endif

// What the workers of a cell of two lanes choose. `has`: whether NCCL is on the machine of a rank.
struct Choice {
  std::map<int, std::string> names;   // of the transport
  std::map<int, std::string> errors;  // field and message
  int loads = 0;
};

Choice choose(const std::function<void(ClusterConfig&)>& change,
              const std::function<bool(int)>& has) {
  ClusterConfig config = testing::device_config(testing::device_checkpoint("moe"));
  config.grid.lanes = 2;
  config.device.transport = DeviceTransport::kAuto;
  config.device.ranks_per_device = 1;
  config.device.profile = "9.0:132:2GiB";
  change(config);
  const CellSetup setup = testing::setup_of(config);
  const auto grid = parallel::ProcessGrid::make(1, 2, 3);
  Choice out;
  std::mutex mutex;
  test::run_ranks(3, [&](Communicator& world) {
    parallel::CellComms cell = parallel::make_cell_comms(world, *grid);
    if (!cell.position) return;
    const DeviceShape shape =
        make_device_shape(setup.config, setup.model, kernels::DType::kBF16,
                          setup.shard(*cell.position), setup.worker_options().limits, 132);
    const auto load = [&]() -> Result<const NcclApi*> {
      const std::lock_guard lock(mutex);
      ++out.loads;
      if (has(world.rank())) return &fake_nccl_api();
      return Error{ErrorCode::kUnsupported, "device.transport", "NCCL is not here"};
    };
    const auto comms = make_device_comms(setup.config, shape, cell, load);
    const std::lock_guard lock(mutex);
    if (comms) {
      EXPECT_EQ(comms->column, nullptr) << "one stage";
      out.names[world.rank()] = comms->stage->name();
    } else {
      out.errors[world.rank()] = comms.error().to_string();
    }
  });
  return out;
}

constexpr auto kEverywhere = [](int) { return true; };
constexpr auto kFirstOnly = [](int rank) { return rank == 1; };
using Names = std::map<int, std::string>;

TEST_F(NcclStart, AutomaticTakesNcclWhereEveryRankHasIt) {
  EXPECT_EQ(choose([](ClusterConfig&) {}, kEverywhere).names,
            (Names{{1, "nccl 2.28.9"}, {2, "nccl 2.28.9"}}));
  EXPECT_EQ(choose([](ClusterConfig&) {}, kFirstOnly).names, (Names{{1, "staged"}, {2, "staged"}}))
      << "a rank that has it must not wait in NCCL for one that has not";
}

TEST_F(NcclStart, AutomaticDoesNotTryRanksThatShareADevice) {
  const auto share = [](ClusterConfig& c) { c.device.ranks_per_device = 2; };
  const Choice choice = choose(share, kEverywhere);
  EXPECT_EQ(choice.names, (Names{{1, "staged"}, {2, "staged"}}));
  EXPECT_EQ(choice.loads, 0);
}

TEST_F(NcclStart, NcclByNameFailsOnAllRanksWhenOneHasNone) {
  const auto by_name = [](ClusterConfig& c) { c.device.transport = DeviceTransport::kNccl; };
  EXPECT_EQ(choose(by_name, kEverywhere).names.size(), 2U);
  const Choice choice = choose(by_name, kFirstOnly);
  EXPECT_TRUE(choice.names.empty());
  EXPECT_THAT(choice.errors.at(1), HasSubstr("another rank of the cell has no NCCL"));
  EXPECT_THAT(choice.errors.at(2), HasSubstr("NCCL is not here"));
  EXPECT_TRUE(fake_nccl().inits.size() == 2U) << "of the first try alone";
}

TEST_F(NcclStart, StagedByNameDoesNotLookForNccl) {
  const auto by_name = [](ClusterConfig& c) { c.device.transport = DeviceTransport::kStaged; };
  const Choice choice = choose(by_name, kEverywhere);
  EXPECT_EQ(choice.names, (Names{{1, "staged"}, {2, "staged"}}));
  EXPECT_EQ(choice.loads, 0);
}

TEST(NcclLibrary, IsHereOrSaysWhatToDo) {
  const auto api = parallel::load_nccl();
  if (api) {
    EXPECT_GE((*api)->version, 21800);
    EXPECT_EQ((*api)->all_to_all != nullptr, (*api)->version >= 22800);
  } else {
    EXPECT_EQ(api.error().field, "device.transport");
    EXPECT_THAT(api.error().message, HasSubstr("staged"));
  }
}

}  // namespace
}  // namespace millrace
