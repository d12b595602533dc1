#include "parallel/expert_placement.h"

#include <fmt/format.h>

#include <algorithm>

#include "config/check.h"

namespace millrace::parallel {

ExpertPlacement::ExpertPlacement(int layers, int experts, int lanes, int slots_per_lane)
    : layers_(layers),
      experts_(experts),
      lanes_(lanes),
      slots_per_lane_(slots_per_lane),
      homes_(static_cast<std::size_t>(layers) * experts),
      slot_experts_(static_cast<std::size_t>(layers) * lanes * slots_per_lane, kEmptySlot) {}

ExpertPlacement ExpertPlacement::contiguous(int layers, int experts, int lanes) {
  CHECK(layers >= 0 && experts > 0 && lanes > 0, "layers={} experts={} lanes={}", layers, experts,
        lanes);
  ExpertPlacement placement(layers, experts, lanes, (experts + lanes - 1) / lanes);
  const int base = experts / lanes, longer = experts % lanes;
  std::vector<ExpertHome> table;
  for (int lane = 0; lane < lanes; ++lane) {
    const int owned = base + (lane < longer ? 1 : 0);
    for (int slot = 0; slot < owned; ++slot) table.push_back({lane, slot});
  }
  for (int layer = 0; layer < layers; ++layer) placement.store_layer(layer, table);
  return placement;
}

Result<ExpertPlacement> ExpertPlacement::from_tables(
    std::span<const std::vector<ExpertHome>> tables, int lanes, int slots_per_lane) {
  if (lanes < 1) return invalid("placement.lanes", fmt::format("is {}; use 1 or more", lanes));
  if (slots_per_lane < 1) {
    return invalid("placement.slots_per_lane", fmt::format("is {}; use 1 or more", slots_per_lane));
  }
  const std::size_t experts = tables.empty() ? 0 : tables.front().size();
  ExpertPlacement placement(static_cast<int>(tables.size()), static_cast<int>(experts), lanes,
                            slots_per_lane);
  for (int layer = 0; layer < placement.layers(); ++layer) {
    if (auto checked = placement.check_layer(layer, tables[layer]); !checked)
      return checked.error();
    placement.store_layer(layer, tables[layer]);
  }
  return placement;
}

std::vector<std::vector<ExpertHome>> ExpertPlacement::to_tables() const {
  std::vector<std::vector<ExpertHome>> tables;
  for (int i = 0; i < layers_; ++i) tables.emplace_back(layer(i).begin(), layer(i).end());
  return tables;
}

Result<void> ExpertPlacement::set_layer(int layer, std::span<const ExpertHome> table) {
  if (layer < 0 || layer >= layers_) {
    return invalid(fmt::format("placement[{}]", layer),
                   fmt::format("there are {} layers", layers_));
  }
  if (auto checked = check_layer(layer, table); !checked) return checked;
  store_layer(layer, table);
  return {};
}

Result<void> ExpertPlacement::check_layer(int layer, std::span<const ExpertHome> table) const {
  if (static_cast<int>(table.size()) != experts_) {
    return invalid(fmt::format("placement[{}]", layer),
                   fmt::format("names {} experts; every layer has {}", table.size(), experts_));
  }
  std::vector<std::int32_t> owner(static_cast<std::size_t>(lanes_) * slots_per_lane_, kEmptySlot);
  for (int expert = 0; expert < experts_; ++expert) {
    const ExpertHome home = table[expert];
    const auto field = fmt::format("placement[{}][{}]", layer, expert);
    if (home.lane < 0 || home.lane >= lanes_) {
      return invalid(field, fmt::format("lane {} is not in [0, {})", home.lane, lanes_));
    }
    if (home.slot < 0 || home.slot >= slots_per_lane_) {
      return invalid(field, fmt::format("slot {} is not in [0, {})", home.slot, slots_per_lane_));
    }
    std::int32_t& taken = owner[home.lane * slots_per_lane_ + home.slot];
    if (taken != kEmptySlot) {
      return invalid(field, fmt::format("slot {} of lane {} already holds expert {}", home.slot,
                                        home.lane, taken));
    }
    taken = expert;
  }
  return {};
}

void ExpertPlacement::store_layer(int layer, std::span<const ExpertHome> table) {
  std::copy(table.begin(), table.end(),
            homes_.begin() + static_cast<std::ptrdiff_t>(layer) * experts_);
  const auto begin =
      slot_experts_.begin() + static_cast<std::ptrdiff_t>(layer) * lanes_ * slots_per_lane_;
  std::fill(begin, begin + static_cast<std::ptrdiff_t>(lanes_) * slots_per_lane_, kEmptySlot);
  for (int expert = 0; expert < experts_; ++expert) {
    begin[table[expert].lane * slots_per_lane_ + table[expert].slot] = expert;
  }
}

std::span<const ExpertHome> ExpertPlacement::layer(int layer) const {
  CHECK(layer >= 0 && layer < layers_, "layer={} of {}", layer, layers_);
  return std::span(homes_).subspan(static_cast<std::size_t>(layer) * experts_, experts_);
}

std::span<const std::int32_t> ExpertPlacement::local_experts(int layer, int lane) const {
  CHECK(layer >= 0 && layer < layers_ && lane >= 0 && lane < lanes_, "layer={} lane={}", layer,
        lane);
  const auto first = (static_cast<std::size_t>(layer) * lanes_ + lane) * slots_per_lane_;
  return std::span(slot_experts_).subspan(first, slots_per_lane_);
}

}  // namespace millrace::parallel
