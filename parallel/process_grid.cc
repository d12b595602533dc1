#include "parallel/process_grid.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <vector>

#include "config/check.h"

namespace millrace::parallel {

namespace {

using HostName = std::array<char, 256>;

// Collective over `world`.
void find_local_workers(Communicator& world, CellComms& comms) {
  HostName mine{};
  gethostname(mine.data(), mine.size() - 1);
  std::vector<HostName> all(static_cast<std::size_t>(world.size()));
  world.all_gather(std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all)));
  const auto workers = all.begin() + ProcessGrid::kCoordinatorRank + 1;
  comms.local_workers = static_cast<int>(std::count(workers, all.end(), mine));
  if (world.rank() == ProcessGrid::kCoordinatorRank) return;
  comms.local_index = static_cast<int>(std::count(workers, all.begin() + world.rank(), mine));
}

}  // namespace

Result<ProcessGrid> ProcessGrid::make(int stages, int lanes, int world_size) {
  if (stages < 1) return invalid("grid.stages", fmt::format("is {}; use 1 or more", stages));
  if (lanes < 1) return invalid("grid.lanes", fmt::format("is {}; use 1 or more", lanes));
  const std::int64_t needed = 1 + static_cast<std::int64_t>(stages) * lanes;
  if (needed != world_size) {
    return invalid("grid.stages",
                   fmt::format("{} stages x {} lanes and a coordinator need {} ranks, but {} were "
                               "started; start {} or change grid.stages and grid.lanes",
                               stages, lanes, needed, world_size, needed));
  }
  return ProcessGrid(stages, lanes);
}

int ProcessGrid::rank_of(GridPosition position) const {
  CHECK(position.stage >= 0 && position.stage < stages_ && position.lane >= 0 &&
            position.lane < lanes_,
        "stage={} of {} lane={} of {}", position.stage, stages_, position.lane, lanes_);
  return 1 + position.stage * lanes_ + position.lane;
}

std::optional<GridPosition> ProcessGrid::position_of(int world_rank) const {
  CHECK(world_rank >= 0 && world_rank < world_size(), "rank={} of {}", world_rank, world_size());
  if (world_rank == kCoordinatorRank) return std::nullopt;
  return GridPosition{(world_rank - 1) / lanes_, (world_rank - 1) % lanes_};
}

std::optional<int> ProcessGrid::previous_rank(GridPosition position) const {
  if (first_stage(position)) return std::nullopt;
  return rank_of({position.stage - 1, position.lane});
}

std::optional<int> ProcessGrid::next_rank(GridPosition position) const {
  if (last_stage(position)) return std::nullopt;
  return rank_of({position.stage + 1, position.lane});
}

CellComms make_cell_comms(Communicator& world, const ProcessGrid& grid) {
  CHECK(world.size() == grid.world_size(), "world of {} for a grid of {}", world.size(),
        grid.world_size());
  constexpr int kNotMember = -1;
  CellComms comms{.grid = grid, .world = &world, .position = grid.position_of(world.rank())};
  const GridPosition at = comms.position.value_or(GridPosition{kNotMember, kNotMember});
  comms.stage = world.split(at.stage, at.lane);
  comms.column = world.split(at.lane, at.stage);
  find_local_workers(world, comms);
  return comms;
}

}  // namespace millrace::parallel
