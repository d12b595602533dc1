// How the start of a cell's ranks goes, as metrics: what a gateway cannot know, for the cell has
// not dialled it yet.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "coordinator/supervisor.h"
#include "monitoring/exporter.h"

namespace millrace {

class StartMetrics {
 public:
  // `exporter` outlives it.
  StartMetrics(Exporter& exporter, const std::string& cell);

  // From one thread at a time; as often as one likes.
  void update(const SupervisorStatus& status);

  // These metrics alone, for a process that exports no others.
  static std::string render(const Exporter& exporter);

 private:
  std::array<Gauge, 5> states_;  // by CellPhase
  Gauge loaded_;
  Counter starts_;
  std::uint64_t epoch_ = 0;  // the last start that was counted
};

}  // namespace millrace
