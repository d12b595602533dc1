// Gathers what a cell measures of itself: steps as the coordinator sees them, and the reports of
// its workers. snapshot() is what gateways are told.
//
// note_*() are called by the scheduler's thread; snapshot() by any.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "coordinator/request.h"

namespace millrace {

class Telemetry {
 public:
  using Clock = std::chrono::steady_clock;

  // Ratios describe the time since the last window was closed; a window is at least this long.
  static constexpr std::chrono::seconds kWindow{5};

  Telemetry();

  void note_start_phase(std::string name, std::chrono::duration<float> time);
  // A plan with `tokens` > 0 has gone out, or come back from a step that began at `begin`. Plans
  // may overlap.
  void note_sent(Clock::time_point now);
  void note_finished(Clock::time_point begin, Clock::time_point now, std::uint64_t tokens);
  void note_report(const WorkerReport& report, Clock::time_point now);

  CellTelemetry snapshot() const;

 private:
  using Place = std::pair<std::uint32_t, std::uint32_t>;  // stage, lane

  void close_window(Clock::time_point now);
  void close_layers(std::uint32_t stage);

  mutable std::mutex mutex_;
  CellTelemetry data_;
  std::map<Place, WorkerReport> latest_, window_start_;
  std::map<std::uint32_t, CellTelemetry::Imbalance> imbalance_;
  int under_way_ = 0;
  Clock::time_point busy_since_{};
  Clock::time_point window_begin_;
  std::uint64_t window_busy_ns_ = 0;
};

}  // namespace millrace
