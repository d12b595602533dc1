// What is decided before anything is loaded: device or CPU, which device, how much memory.
#include "cli/device_setup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/worker/cuda/device_config.h"
#include "worker/cuda/cuda_backend.h"
#include "worker/cuda/decode_buckets.h"
#include "worker/cuda/device_binding.h"
#include "worker/cuda/device_probe.h"
#include "worker/cuda/device_transport.h"

namespace millrace {
namespace {

using testing::device_checkpoint;
using testing::device_config;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Devices that a test makes up, in front of the real kernels' demands and plans.
class MadeUpDevices final : public DeviceBackend {
 public:
  explicit MadeUpDevices(std::vector<DeviceFacts> devices) : devices_(std::move(devices)) {}
  std::string_view name() const override { return "cuda"; }
  Result<std::vector<DeviceFacts>> devices(bool) const override { return devices_; }
  Result<void> check(const ModelConfig& model, const ClusterConfig& config) const override {
    return real_->check(model, config);
  }
  Result<MemoryPlan> plan(const DevicePlanRequest& request) const override {
    return real_->plan(request);
  }
  std::string numeric_mode(const DeviceProfile& profile,
                           const ClusterConfig& config) const override {
    return real_->numeric_mode(profile, config);
  }
  Result<std::unique_ptr<StepExecutor>> make_worker(const DeviceWorkerRequest& r) const override {
    return real_->make_worker(r);
  }

 private:
  std::vector<DeviceFacts> devices_;
  std::unique_ptr<DeviceBackend> real_ = make_cuda_backend("");
};

DeviceFacts h200(int index, std::uint64_t free_gib = 138) {
  return {index, 90, 132, 141ULL << 30, free_gib << 30, "NVIDIA H200"};
}

ModelConfig model() { return load_model_config(device_checkpoint("moe")).value(); }

ClusterConfig settled(ClusterConfig config, const std::vector<DeviceFacts>& devices) {
  const MadeUpDevices backend(devices);
  const Result<void> ok = settle_device(config, model(), &backend);
  EXPECT_TRUE(ok.has_value()) << ok.error().to_string();
  return config;
}

Error refused(ClusterConfig config, const std::vector<DeviceFacts>& devices) {
  const MadeUpDevices backend(devices);
  const Result<void> ok = settle_device(config, model(), &backend);
  if (ok) ADD_FAILURE() << "accepted";
  return ok ? Error{} : ok.error();
}

ClusterConfig automatic() {
  ClusterConfig config;
  config.model.path = "x";
  return config;
}

ClusterConfig on_cuda() {
  ClusterConfig config = automatic();
  config.device.backend = DeviceChoice::kCuda;
  return config;
}

TEST(DeviceSetup, AutomaticTakesDevicesWhereThereAreAny) {
  EXPECT_EQ(settled(automatic(), {}).device.backend, DeviceChoice::kCpu);
  const ClusterConfig config = settled(automatic(), {h200(0)});
  EXPECT_EQ(config.device.backend, DeviceChoice::kCuda);
  EXPECT_EQ(config.device.profile, "9.0:132:148176371712");
}

TEST(DeviceSetup, ABuildWithoutCudaRefusesItAndTakesTheCpuByItself) {
  ClusterConfig config = automatic();
  ASSERT_TRUE(settle_device(config, model(), nullptr).has_value());
  EXPECT_EQ(config.device.backend, DeviceChoice::kCpu);
  config = on_cuda();
  const Result<void> ok = settle_device(config, model(), nullptr);
  ASSERT_FALSE(ok.has_value());
  EXPECT_EQ(ok.error().field, "device.backend");
  EXPECT_THAT(ok.error().message, HasSubstr("this build has no CUDA"));
}

TEST(DeviceSetup, AutomaticStaysOnTheCpuWhereTheKernelsCannotRun) {
  ClusterConfig config = automatic();
  config.cache.kv_dtype = KvDtype::kF32;
  EXPECT_EQ(settled(config, {h200(0)}).device.backend, DeviceChoice::kCpu);
  config.device.backend = DeviceChoice::kCuda;
  EXPECT_EQ(refused(config, {h200(0)}).field, "cache.kv_dtype");
  config = automatic();
  config.cache.kv_dtype = KvDtype::kFp8;
  EXPECT_EQ(refused(config, {}).field, "cache.kv_dtype") << "no device, and the CPU has no fp8";
}

TEST(DeviceSetup, EveryWorkerNeedsADevice) {
  ClusterConfig config = on_cuda();
  config.grid.lanes = 3;
  EXPECT_EQ(refused(config, {h200(0), h200(1)}).field, "device.indices");
  config.device.ranks_per_device = 2;
  EXPECT_EQ(settled(config, {h200(0), h200(1)}).device.profile, "9.0:132:148176371712");
  EXPECT_EQ(refused(on_cuda(), {}).code, ErrorCode::kNotFound);
}

TEST(DeviceSetup, ThePlanIsForTheLeastOfTheDevices) {
  ClusterConfig config = on_cuda();
  config.grid.lanes = 2;
  EXPECT_EQ(settled(config, {h200(0), h200(1, 100)}).device.profile, "9.0:132:107374182400");
  config.device.indices = {"0", "2"};
  EXPECT_EQ(settled(config, {h200(0), h200(1, 1), h200(2, 90)}).device.profile,
            "9.0:132:96636764160");
  config.device.indices = {"0", "3"};
  EXPECT_EQ(refused(config, {h200(0), h200(1)}).field, "device.indices");
}

TEST(DeviceSetup, DevicesOfOneCellAreAlike) {
  ClusterConfig config = on_cuda();
  config.grid.lanes = 2;
  DeviceFacts old = h200(1);
  old.compute_capability = 80;
  EXPECT_THAT(refused(config, {h200(0), old}).message, HasSubstr("compute capability"));
}

TEST(DeviceSetup, CellsTakeDifferentDevices) {
  ClusterConfig config = on_cuda();
  config.grid.cells = 2;
  config.grid.stages = 2;
  config = settled(config, {h200(0), h200(1), h200(2), h200(3)});
  EXPECT_THAT(device_section_of_cell(config, 0).indices, ElementsAre("0", "1"));
  EXPECT_THAT(device_section_of_cell(config, 1).indices, ElementsAre("2", "3"));
  config = on_cuda();
  config.grid.cells = 2;
  EXPECT_EQ(refused(config, {h200(0)}).field, "device.indices");
  config.grid.embedded = true;
  EXPECT_EQ(refused(config, {h200(0), h200(1)}).field, "grid.cells");
}

TEST(DeviceSetup, AProfileStandsForDevicesThatAreNotHere) {
  ClusterConfig config = on_cuda();
  config.device.profile = "8.0:108:79GiB";
  EXPECT_EQ(settled(config, {}).device.profile, "8.0:108:79GiB");
  config.device.profile = "8.0:108";
  EXPECT_EQ(refused(config, {}).field, "device.profile");
}

TEST(DeviceSetup, NcclTakesSeveralWorkersOnADeviceOnlyAsProcesses) {
  ClusterConfig config = on_cuda();
  config.grid.lanes = 2;
  config.device.ranks_per_device = 2;
  config.device.transport = DeviceTransport::kNccl;
  settled(config, {h200(0)});
  config.grid.embedded = true;
  EXPECT_EQ(refused(config, {h200(0)}).field, "device.transport");
  config.device.ranks_per_device = 1;
  settled(config, {h200(0), h200(1)});
}

TEST(NcclHostId, IsTheRanksOwnUnlessItIsSet) {
  unsetenv("NCCL_HOSTID");
  take_nccl_host_id(3);
  EXPECT_STREQ(getenv("NCCL_HOSTID"), "millrace-3");
  take_nccl_host_id(4);
  EXPECT_STREQ(getenv("NCCL_HOSTID"), "millrace-3");
  unsetenv("NCCL_HOSTID");
}

TEST(DeviceProfileText, ReadsWhatItWrites) {
  const DeviceProfile profile{103, 148, 123456789};
  const Result<DeviceProfile> again = parse_device_profile(format_device_profile(profile));
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(again->compute_capability, 103);
  EXPECT_EQ(again->sm_count, 148);
  EXPECT_EQ(again->free_bytes, 123456789U);
  for (const char* bad :
       {"", "9", "9.0", "9.0:132", "9.0:132:", "9.0:132:1GB", "9.0:0:1", "x.0:1:1",
        "9.0:132:139GiBx", "9.0:-1:5", "9.0:132:99999999999999999999"}) {
    EXPECT_FALSE(parse_device_profile(bad).has_value()) << bad;
  }
}

TEST(DeviceProbe, ReadsWhatItWrites) {
  const std::vector<DeviceFacts> devices = {h200(0), h200(1, 5)};
  const auto again = parse_devices(format_devices(devices));
  ASSERT_TRUE(again.has_value()) << again.error().to_string();
  ASSERT_EQ(again->size(), 2U);
  EXPECT_EQ((*again)[1].free_bytes, 5ULL << 30);
  EXPECT_EQ((*again)[1].name, "NVIDIA H200");
  EXPECT_EQ((*again)[1].compute_capability, 90);
  EXPECT_TRUE(parse_devices("")->empty());
  for (const char* bad : {"hello", "0 9.0 132 5\n", "1 9.0 132 5 5 name\n", "0 9,0 132 5 5 n\n"}) {
    EXPECT_FALSE(parse_devices(bad).has_value()) << bad;
  }
}

TEST(DeviceProbe, AProgramThatFailsIsAnError) {
  const auto devices = ask_program("/bin/false");
  ASSERT_FALSE(devices.has_value());
  EXPECT_EQ(devices.error().field, "device.backend");
}

TEST(ChooseDevice, WorkersOfAMachineTakeDevicesInOrder) {
  DeviceSection section;
  EXPECT_EQ(choose_device(section, 0, 2).value(), 0);
  EXPECT_EQ(choose_device(section, 1, 2).value(), 1);
  EXPECT_EQ(choose_device(section, 2, 2).error().field, "device.ranks_per_device");
  section.ranks_per_device = 2;
  EXPECT_EQ(choose_device(section, 3, 2).value(), 1);
  section.indices = {"7", "3"};
  EXPECT_EQ(choose_device(section, 2, 8).value(), 3);
  EXPECT_EQ(choose_device(section, 0, 4).error().field, "device.indices");
}

TEST(BindNear, AnUnknownPlaceChangesNothing) { EXPECT_FALSE(bind_near("ffff:ff:1f.7")); }

TEST(Buckets, PadLittleAndReachTheMost) {
  for (const std::int32_t most : {1, 2, 3, 5, 8, 9, 33, 100, 512, 1000, 1024}) {
    const DecodeBuckets buckets(most);
    EXPECT_GE(buckets.largest(), most);
    EXPECT_TRUE(std::is_sorted(buckets.sizes().begin(), buckets.sizes().end()));
    for (std::int32_t rows = 1; rows <= most; ++rows) {
      const int index = buckets.index_of(rows);
      ASSERT_GE(index, 0);
      const std::int32_t size = buckets.sizes()[static_cast<std::size_t>(index)];
      EXPECT_GE(size, rows);
      if (rows > 64) {
        EXPECT_LT(8 * (size - rows), rows) << rows;
      }
      if (index > 0) {
        EXPECT_LT(buckets.sizes()[static_cast<std::size_t>(index) - 1], rows);
      }
    }
  }
  EXPECT_EQ(DecodeBuckets(1024).sizes().size(), 43U) << "as its header says";
  EXPECT_EQ(DecodeBuckets(4096).largest(), 1024);
  EXPECT_EQ(DecodeBuckets(4096).index_of(1025), -1);
}

Result<CellSetup> plan(const std::function<void(ClusterConfig&)>& change) {
  ClusterConfig config = device_config(device_checkpoint("moe"));
  config.device.ranks_per_device = 1;
  config.cache.kv_tokens = 0;
  config.cache.max_context_tokens = 4096;
  config.cache.max_sequences = 512;
  config.scheduler.max_step_tokens = 512;
  config.device.profile = "9.0:132:2GiB";
  change(config);
  return make_cell_setup(config);
}

TEST(DeviceMemoryPlan, TheCacheGetsWhatIsLeft) {
  const auto whole = plan([](ClusterConfig&) {});
  ASSERT_TRUE(whole.has_value()) << whole.error().to_string();
  const RankMemory& rank = whole->memory.ranks.at(0);
  const auto budget = static_cast<std::uint64_t>(0.9 * (2ULL << 30));
  EXPECT_LE(rank.total_bytes(), budget);
  EXPECT_GT(rank.total_bytes() + rank.kv_bytes_per_block, budget) << "to the last block";
  EXPECT_EQ(rank.kv_bytes_per_block, 2U * 2 * 32 * 2 * 64 * 2) << "K and V, 2 layers, bf16";
  EXPECT_THAT(describe(*whole), HasSubstr("cuda sm_90 bf16"));
  EXPECT_THAT(describe(*whole),
              HasSubstr("\ndevice   cuda, compute capability 9.0, 132 multiprocessors, 90 % of 2.0 "
                        "free GiB, one for each worker\n"));

  const auto fp8 = plan([](ClusterConfig& c) { c.cache.kv_dtype = KvDtype::kFp8; });
  ASSERT_TRUE(fp8.has_value());
  EXPECT_EQ(fp8->memory.ranks.at(0).kv_bytes_per_block, rank.kv_bytes_per_block / 2);
  EXPECT_NE(fp8->fingerprint, whole->fingerprint) << "other numbers";

  const auto shared = plan([](ClusterConfig& c) { c.device.ranks_per_device = 2; });
  ASSERT_TRUE(shared.has_value());
  EXPECT_THAT(describe(*shared), HasSubstr("free GiB, one for 2 workers\n"));
  EXPECT_LE(2 * shared->memory.ranks.at(0).total_bytes(), budget);
}

TEST(DeviceSetup, DevicesOfOneStageGetAStepAhead) {
  const auto async = [](const std::function<void(ClusterConfig&)>& change) {
    const auto setup = plan(change);
    EXPECT_TRUE(setup.has_value());
    return setup->scheduler_limits().async;
  };
  EXPECT_TRUE(async([](ClusterConfig&) {}));
  EXPECT_TRUE(async([](ClusterConfig& c) { c.grid.lanes = 2; }));
  EXPECT_FALSE(async([](ClusterConfig& c) { c.grid.stages = 2; }));
  EXPECT_FALSE(async([](ClusterConfig& c) { c.scheduler.async = AsyncSteps::kNever; }));
  const auto on_cpu = [](AsyncSteps steps) {
    return [steps](ClusterConfig& c) {
      c.device.backend = DeviceChoice::kCpu;
      c.scheduler.async = steps;
    };
  };
  EXPECT_FALSE(async(on_cpu(AsyncSteps::kAuto)));
  EXPECT_TRUE(async(on_cpu(AsyncSteps::kAlways)));
}

TEST(DeviceMemoryPlan, Fp8HalvesTheMatrices) {
  const auto bf16 = plan([](ClusterConfig&) {});
  const auto fp8 = plan([](ClusterConfig& c) { c.device.weights = DeviceWeightFormat::kFp8; });
  ASSERT_TRUE(bf16.has_value() && fp8.has_value());
  EXPECT_LT(fp8->memory.ranks[0].weight_bytes, bf16->memory.ranks[0].weight_bytes * 65 / 100)
      << "embedding and head stay bf16, half of this small model";
  EXPECT_NE(fp8->fingerprint, bf16->fingerprint);
}

TEST(DeviceMemoryPlan, WhatDoesNotFitNamesTheField) {
  const auto small = plan([](ClusterConfig& c) { c.device.profile = "9.0:132:300000000"; });
  ASSERT_FALSE(small.has_value());
  EXPECT_EQ(small.error().field, "device.memory_fraction");
  const auto tokens = plan([](ClusterConfig& c) {
    c.cache.kv_tokens = 64;
    c.cache.max_context_tokens = 64;
  });
  ASSERT_FALSE(tokens.has_value());
  EXPECT_EQ(tokens.error().field, "cache.kv_tokens");
}

TEST(DeviceMemoryPlan, DevicesOfAnotherGenerationAreAnotherNumericMode) {
  const auto hopper = plan([](ClusterConfig&) {});
  const auto ampere = plan([](ClusterConfig& c) { c.device.profile = "8.0:108:2GiB"; });
  ASSERT_TRUE(hopper.has_value() && ampere.has_value());
  EXPECT_NE(hopper->fingerprint, ampere->fingerprint);
}

}  // namespace
}  // namespace millrace
