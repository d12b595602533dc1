// One line of the status channel between rank 0 of a cell and its supervisor
// (coordinator/supervisor.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace millrace {

// How a ready cell is.
struct CellBeat {
  std::uint32_t gateways = 0;    // linked
  std::uint64_t sequences = 0;   // running and waiting
  std::uint64_t stalled_ms = 0;  // since the last finished step; 0 without work

  bool operator==(const CellBeat&) const = default;
};

struct StatusLine {
  enum class Kind { kLoading, kReady, kBeat, kFailed };
  Kind kind = Kind::kBeat;
  double loaded = 0;  // share in [0, 1], with kLoading
  std::string text;   // the reason, with kFailed
  CellBeat beat;      // with kBeat

  bool operator==(const StatusLine&) const = default;
};

// "millrace-status beat 2 5 0", without the line end.
std::string format_status_line(const StatusLine& line);

// nullopt for a line that is none of ours.
std::optional<StatusLine> parse_status_line(std::string_view text);

}  // namespace millrace
