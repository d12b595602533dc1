#include "cli/embedded_cell.h"

#include <spdlog/spdlog.h>

namespace millrace {

namespace {

parallel::CommOptions comm_options(const CellSetup& setup) {
  parallel::CommOptions options;
  options.deadline = std::chrono::milliseconds(setup.config.deadlines.collective_ms);
  return options;
}

}  // namespace

EmbeddedCell::EmbeddedCell(const CellSetup& setup, CoordinatorHooks hooks, int index)
    : setup_(setup),
      index_(index),
      hooks_(std::move(hooks)),
      group_(1 + setup.config.grid.stages * setup.config.grid.lanes, comm_options(setup)),
      ready_future_(ready_.get_future().share()) {
  for (int rank = 0; rank < group_.size(); ++rank) {
    threads_.emplace_back([this, rank] { run_rank(rank); });
  }
}

EmbeddedCell::~EmbeddedCell() { stop(); }

void EmbeddedCell::stop() {
  stopping_ = true;
  {
    const std::lock_guard lock(mutex_);
    if (cell_ != nullptr) cell_->stop();
  }
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

bool EmbeddedCell::wait_ready() { return ready_future_.get(); }

std::string EmbeddedCell::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

void EmbeddedCell::fail(const std::string& reason) {
  {
    const std::lock_guard lock(mutex_);
    if (!failure_.empty()) return;  // the first reason is the cause
    failure_ = reason;
  }
  group_.abort(reason);
  if (!settled_.exchange(true)) ready_.set_value(false);
}

void EmbeddedCell::run_rank(int rank) {
  try {
    const std::unique_ptr<parallel::Communicator> world = group_.take(rank);
    if (rank != 0) {
      run_worker_rank(setup_, *world, index_);
      return;
    }
    CoordinatorHooks hooks = hooks_;
    hooks.give_up = [this] { return stopping_.load(); };
    hooks.on_ready = [this](Cell& cell) {
      {
        const std::lock_guard lock(mutex_);
        cell_ = &cell;
      }
      if (stopping_) cell.stop();
      if (hooks_.on_ready) hooks_.on_ready(cell);
      if (!settled_.exchange(true)) ready_.set_value(true);
    };
    hooks.cell.on_failure = [this](const std::string& reason) {
      fail(reason);
      if (hooks_.cell.on_failure) hooks_.cell.on_failure(reason);
    };
    hooks.on_ended = [this] {
      if (hooks_.on_ended) hooks_.on_ended();
      const std::lock_guard lock(mutex_);
      cell_ = nullptr;
    };
    run_coordinator_rank(setup_, *world, hooks);
  } catch (const std::exception& e) {
    if (!stopping_) spdlog::error("rank {}: {}", rank, e.what());
    fail(e.what());
    if (rank == 0 && hooks_.cell.on_failure && !stopping_) hooks_.cell.on_failure(e.what());
  }
}

}  // namespace millrace
