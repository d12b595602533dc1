// A cell whose ranks are threads of this process.
#pragma once

#include <atomic>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cli/cell_ranks.h"
#include "cli/cell_setup.h"
#include "parallel/thread_communicator.h"

namespace millrace {

class EmbeddedCell {
 public:
  // `setup` must outlive it. `index` is the cell's among the grid.cells of this machine. Starts the
  // threads; `hooks.on_ready` is called on one of them.
  EmbeddedCell(const CellSetup& setup, CoordinatorHooks hooks, int index = 0);
  ~EmbeddedCell();  // stop()

  // Ends the cell and joins its threads. Idempotent.
  void stop();

  // Waits for ready; false when the cell failed before, see failure().
  bool wait_ready();
  std::string failure() const;  // empty while all is well

 private:
  void run_rank(int rank);
  void fail(const std::string& reason);

  const CellSetup& setup_;
  const int index_;
  CoordinatorHooks hooks_;
  parallel::ThreadGroup group_;
  std::promise<bool> ready_;
  std::shared_future<bool> ready_future_;
  std::atomic<bool> settled_ = false;
  std::atomic<bool> stopping_ = false;
  mutable std::mutex mutex_;
  Cell* cell_ = nullptr;  // while it runs
  std::string failure_;
  std::vector<std::thread> threads_;
};

}  // namespace millrace
