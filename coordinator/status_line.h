// One line of the status channel between rank 0 of a cell and its supervisor
// (coordinator/supervisor.h).
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace millrace {

struct StatusLine {
  enum class Kind { kLoading, kReady, kBeat, kFailed };
  Kind kind = Kind::kBeat;
  double loaded = 0;  // share in [0, 1], with kLoading
  std::string text;   // the reason, with kFailed

  bool operator==(const StatusLine&) const = default;
};

// "millrace-status beat", without the line end.
std::string format_status_line(const StatusLine& line);

// nullopt for a line that is none of ours.
std::optional<StatusLine> parse_status_line(std::string_view text);

}  // namespace millrace
