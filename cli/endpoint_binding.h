// Joins a cell's coordinator to the gateways it serves: requests in, events and heartbeats out.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "cli/cell_ranks.h"
#include "net/cell_endpoint.h"

namespace millrace {

class EndpointBinding {
 public:
  EndpointBinding(const CellSetup& setup, std::uint64_t epoch, std::string cell_id,
                  std::vector<std::string> gateways);

  // Adds to `hooks` what the binding does when the cell is ready, ends, or has events. Between
  // on_ready and on_ended, the hooks' own, the three below may be called from any thread.
  void bind(CoordinatorHooks& hooks);

  std::uint32_t gateways() const { return endpoint_->stats().connected; }
  // Of the cell, which says in its status that it drains.
  void announce_drain() { endpoint_->announce_drain(); }
  bool drain_confirmed() const { return endpoint_->drain_confirmed(); }

 private:
  void start(Cell& cell);
  void stop();

  const CellSetup& setup_;
  std::uint64_t epoch_;
  std::string cell_id_;
  std::vector<std::string> gateways_;
  std::string transport_;
  std::unique_ptr<net::CellEndpoint> endpoint_;
};

}  // namespace millrace
