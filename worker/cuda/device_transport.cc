#include "worker/cuda/device_transport.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "parallel/device_expert_exchange.h"
#include "parallel/nccl_communicator.h"

namespace millrace {

namespace {

using parallel::Communicator;
using parallel::DeviceCommunicator;
using parallel::NcclApi;

// Whether all ranks of `comm` say yes. Collective.
bool all_agree(Communicator& comm, bool mine) {
  const std::byte vote{mine};
  std::vector<std::byte> votes(static_cast<std::size_t>(comm.size()));
  comm.all_gather({&vote, 1}, votes);
  return std::ranges::all_of(votes, [](std::byte v) { return v == std::byte{1}; });
}

// NCCL where all workers of the cell want it and can; null for staged.
Result<const NcclApi*> choose(const ClusterConfig& config, parallel::CellComms& cell,
                              const NcclLoader& load_nccl) {
  const DeviceTransport wanted = config.device.transport;
  // With several ranks on a device only when asked for by name.
  const bool tried = wanted == DeviceTransport::kNccl ||
                     (wanted == DeviceTransport::kAuto && config.device.ranks_per_device == 1);
  Result<const NcclApi*> api = static_cast<const NcclApi*>(nullptr);
  if (tried && config.device.ranks_per_device > 1) take_nccl_host_id(cell.world->rank());
  if (tried) api = load_nccl();
  const bool mine = tried && api.has_value();
  // First the lanes of each stage, then the stages of each lane: then all of the cell.
  const bool all = all_agree(*cell.column, all_agree(*cell.stage, mine));
  if (all) return api;
  if (wanted == DeviceTransport::kNccl) {
    if (!api) return api.error();
    return Error{ErrorCode::kUnsupported, "device.transport",
                 "another rank of the cell has no NCCL; install it there or use staged"};
  }
  return static_cast<const NcclApi*>(nullptr);
}

std::unique_ptr<DeviceCommunicator> make(const NcclApi* api, Communicator& host,
                                         const parallel::StagedCommunicator::Capacity& capacity) {
  if (host.size() == 1) return nullptr;
  if (api != nullptr) return std::make_unique<parallel::NcclCommunicator>(*api, host);
  return std::make_unique<parallel::StagedCommunicator>(host, capacity);
}

}  // namespace

void take_nccl_host_id(int rank) {
  setenv("NCCL_HOSTID", fmt::format("millrace-{}", rank).c_str(), /*overwrite=*/0);
}

Result<DeviceComms> make_device_comms(const ClusterConfig& config, const DeviceShape& shape,
                                      parallel::CellComms& cell, const NcclLoader& load_nccl) {
  if (shape.lanes == 1 && shape.stages == 1) return DeviceComms{};
  const Result<const NcclApi*> api = choose(config, cell, load_nccl);
  if (!api) return api.error();
  parallel::StagedCommunicator::Capacity lanes;
  if (shape.lanes > 1) {
    lanes.collective_bytes =
        parallel::DeviceExpertExchange::planned_bytes(shape.exchange(), 0).collective;
  }
  parallel::StagedCommunicator::Capacity stages;
  stages.message_bytes = static_cast<std::size_t>(shape.max_rows()) *
                         static_cast<std::size_t>(shape.model->hidden_size) * sizeof(float);
  stages.sends = shape.stages + 1;
  DeviceComms comms{make(*api, *cell.stage, lanes), make(*api, *cell.column, stages)};
  const DeviceCommunicator* any = comms.stage ? comms.stage.get() : comms.column.get();
  spdlog::info("exchange of device memory: {}", any->name());
  return comms;
}

}  // namespace millrace
