// The ranks of a cell: rank 0 coordinates, the others form P stages x E lanes.
//
// World rank = 1 + stage * lanes + lane. Lanes of a stage exchange tokens (ExpertExchange); the
// ranks of one lane over all stages pass activations on (PipelineLink).
#pragma once

#include <memory>
#include <optional>

#include "config/result.h"
#include "parallel/communicator.h"

namespace millrace::parallel {

struct GridPosition {
  int stage = 0;
  int lane = 0;

  bool operator==(const GridPosition&) const = default;
};

class ProcessGrid {
 public:
  static constexpr int kCoordinatorRank = 0;

  // Errors name "grid.stages" or "grid.lanes": not positive, or not fitting `world_size` ranks.
  static Result<ProcessGrid> make(int stages, int lanes, int world_size);

  int stages() const { return stages_; }
  int lanes() const { return lanes_; }
  int workers() const { return stages_ * lanes_; }
  int world_size() const { return 1 + workers(); }

  int rank_of(GridPosition position) const;                       // CHECKs the position
  std::optional<GridPosition> position_of(int world_rank) const;  // nothing for the coordinator

  bool first_stage(GridPosition position) const { return position.stage == 0; }
  bool last_stage(GridPosition position) const { return position.stage == stages_ - 1; }
  std::optional<int> previous_rank(GridPosition position) const;  // world rank, same lane
  std::optional<int> next_rank(GridPosition position) const;

 private:
  ProcessGrid(int stages, int lanes) : stages_(stages), lanes_(lanes) {}

  int stages_;
  int lanes_;
};

// The communicators of one rank of a cell. `world` must outlive it.
struct CellComms {
  ProcessGrid grid;
  Communicator* world = nullptr;         // control plane: plans and results; rank 0 coordinates
  std::optional<GridPosition> position;  // nothing on the coordinator
  std::unique_ptr<Communicator> stage;   // the lanes of my stage, rank = lane; null on rank 0
  std::unique_ptr<Communicator> column;  // the stages of my lane, rank = stage; null on rank 0
  // Of this machine, told apart by host name.
  int local_index = 0;    // workers of lower rank
  int local_workers = 0;  // all workers
};

// Collective over `world`, whose size must be grid.world_size(). Throws CommError.
CellComms make_cell_comms(Communicator& world, const ProcessGrid& grid);

}  // namespace millrace::parallel
