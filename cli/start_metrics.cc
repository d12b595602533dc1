#include "cli/start_metrics.h"

#include <vector>

#include "coordinator/cell_health.h"

namespace millrace {

namespace {

constexpr CellPhase kPhases[] = {CellPhase::kStarting, CellPhase::kLoading, CellPhase::kReady,
                                 CellPhase::kBackoff, CellPhase::kStopped};

}  // namespace

StartMetrics::StartMetrics(Exporter& exporter, const std::string& cell)
    : loaded_(exporter.gauge<Metric::kCellLoaded>(cell)),
      starts_(exporter.counter<Metric::kCellStarts>(cell)) {
  for (const CellPhase phase : kPhases) {
    states_[static_cast<std::size_t>(phase)] =
        exporter.gauge<Metric::kCellStartState>(cell, to_string(phase));
  }
}

void StartMetrics::update(const SupervisorStatus& status) {
  for (const CellPhase phase : kPhases) {
    states_[static_cast<std::size_t>(phase)].set(phase == status.phase ? 1 : 0);
  }
  switch (status.phase) {
    case CellPhase::kReady:
      loaded_.set(1);
      break;
    case CellPhase::kLoading:
      loaded_.set(status.loaded);
      break;
    default:
      loaded_.set(0);
  }
  if (status.epoch == epoch_) return;
  epoch_ = status.epoch;
  starts_.add();
}

std::string StartMetrics::render(const Exporter& exporter) {
  const std::vector<std::string> names = {std::string(describe(Metric::kCellStartState).name),
                                          std::string(describe(Metric::kCellLoaded).name),
                                          std::string(describe(Metric::kCellStarts).name)};
  return exporter.render(names);
}

}  // namespace millrace
