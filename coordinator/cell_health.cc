#include "coordinator/cell_health.h"

#include <fmt/format.h>

namespace millrace {

namespace {

// Longer than the longest thing that the supervisor does in one go: killing for certain takes up to
// ten seconds, removing what lay in memory may take some.
constexpr std::chrono::milliseconds kStuck{60'000};

std::string why_not_up(const SupervisorStatus& status) {
  switch (status.phase) {
    case CellPhase::kReady:
      return "";
    case CellPhase::kStarting:
      return "the ranks are starting";
    case CellPhase::kLoading:
      return fmt::format("loading, {:.0f} %", 100 * status.loaded);
    case CellPhase::kBackoff:
      return "waits to start again: " + status.last_failure;
    case CellPhase::kStopped:
      break;
  }
  return "stopped";
}

}  // namespace

std::string_view to_string(CellPhase phase) {
  switch (phase) {
    case CellPhase::kStarting:
      return "starting";
    case CellPhase::kLoading:
      return "loading";
    case CellPhase::kReady:
      return "ready";
    case CellPhase::kBackoff:
      return "backoff";
    case CellPhase::kStopped:
      break;
  }
  return "stopped";
}

std::string why_not_started(const SupervisorStatus& status) {
  return status.ever_ready ? "" : why_not_up(status);
}

std::string why_not_ready(const SupervisorStatus& status,
                          std::chrono::milliseconds progress_limit) {
  if (status.draining) return "draining";
  if (std::string why = why_not_up(status); !why.empty()) return why;
  if (status.beat.gateways == 0) return "no gateway is linked";
  if (status.beat.stalled_ms > static_cast<std::uint64_t>(progress_limit.count())) {
    return fmt::format("no step for {} ms", status.beat.stalled_ms);
  }
  return "";
}

std::string why_not_live(const SupervisorStatus& status) {
  if (status.turn_age <= kStuck) return "";
  return fmt::format("the supervisor has not turned for {} ms", status.turn_age.count());
}

}  // namespace millrace
