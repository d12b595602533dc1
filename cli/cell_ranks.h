// What the ranks of a cell do, whether they are threads or processes.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "cli/cell_setup.h"
#include "coordinator/cell.h"
#include "parallel/communicator.h"

namespace millrace {

// A worker rank: loads its part, reports, serves plans until shutdown. `cell_index` is the cell's
// among the grid.cells of this machine. Whatever fails is an exception, after the coordinator was
// told why where that was still possible.
void run_worker_rank(const CellSetup& setup, parallel::Communicator& world, int cell_index);

struct CoordinatorHooks {
  std::function<void(double share)> on_loading;
  // Before on_ready: what carries rows between workers (StepExecutor::transport()).
  std::function<void(const std::string& transport)> on_transport;
  // All workers are ready; the cell runs until Cell::stop(). Called on the rank's own thread.
  std::function<void(Cell& cell)> on_ready;
  std::function<void()> on_ended;  // after on_ready: the cell is about to be destroyed
  std::function<bool()> give_up;   // asked while loading: true ends the start with an exception
  CellCallbacks cell;
  std::vector<CellTelemetry::StartPhase> start_phases;  // that came before the rank's own
};

// The coordinator rank. Returns true after Cell::stop(), false after a failure that on_failure was
// told; throws when the cell never became ready.
bool run_coordinator_rank(const CellSetup& setup, parallel::Communicator& world,
                          const CoordinatorHooks& hooks);

}  // namespace millrace
