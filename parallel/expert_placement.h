// Which lane owns which expert, per MoE layer, and in which of the lane's weight slots.
//
// Every lane has the same number of slots per layer, so weights of an expert can be written into a
// slot while serving and only this table changes. Placement never changes results (contract C1):
// the expert outputs of a token are summed in ascending expert id wherever they were computed.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "config/result.h"

namespace millrace::parallel {

struct ExpertHome {
  std::int32_t lane = 0;
  std::int32_t slot = 0;  // in [0, slots_per_lane)

  bool operator==(const ExpertHome&) const = default;
};

class ExpertPlacement {
 public:
  static constexpr std::int32_t kEmptySlot = -1;

  // Experts in id order, cut into `lanes` runs whose lengths differ by at most one (longer ones
  // first); slots_per_lane = ceil(experts / lanes). A lane may own none. Arguments positive, else
  // CHECK: they come from a checked configuration.
  static ExpertPlacement contiguous(int layers, int experts, int lanes);

  // tables[layer][expert]. Errors name "placement[layer][expert]": ragged tables, a lane or slot
  // out of range, two experts in one slot.
  static Result<ExpertPlacement> from_tables(std::span<const std::vector<ExpertHome>> tables,
                                             int lanes, int slots_per_lane);
  std::vector<std::vector<ExpertHome>> to_tables() const;

  // Replaces one layer, under the same checks; on an error nothing changes.
  Result<void> set_layer(int layer, std::span<const ExpertHome> table);

  int layers() const { return layers_; }
  int experts() const { return experts_; }
  int lanes() const { return lanes_; }
  int slots_per_lane() const { return slots_per_lane_; }

  // [E] by expert id.
  std::span<const ExpertHome> layer(int layer) const;
  // [slots_per_lane] expert ids by slot; kEmptySlot where the slot holds none.
  std::span<const std::int32_t> local_experts(int layer, int lane) const;

 private:
  ExpertPlacement(int layers, int experts, int lanes, int slots_per_lane);
  Result<void> check_layer(int layer, std::span<const ExpertHome> table) const;
  void store_layer(int layer, std::span<const ExpertHome> table);

  int layers_, experts_, lanes_, slots_per_lane_;
  std::vector<ExpertHome> homes_;           // [layers, E]
  std::vector<std::int32_t> slot_experts_;  // [layers, lanes, slots_per_lane]
};

}  // namespace millrace::parallel
