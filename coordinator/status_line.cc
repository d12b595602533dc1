#include "coordinator/status_line.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace millrace {

namespace {
constexpr std::string_view kPrefix = "millrace-status ";

// Takes a number and the space before the next one off `text`.
template <class T>
bool take_number(std::string_view& text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc()) return false;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  if (text.starts_with(' ')) text.remove_prefix(1);
  return true;
}

std::optional<StatusLine> parse_beat(std::string_view text) {
  StatusLine line{StatusLine::Kind::kBeat, 0, "", {}};
  const bool numbers = take_number(text, line.beat.gateways) &&
                       take_number(text, line.beat.sequences) &&
                       take_number(text, line.beat.stalled_ms);
  if (!numbers || !text.empty()) return std::nullopt;
  return line;
}

}  // namespace

std::string format_status_line(const StatusLine& line) {
  switch (line.kind) {
    case StatusLine::Kind::kLoading:
      return fmt::format("{}loading {:.4f}", kPrefix, line.loaded);
    case StatusLine::Kind::kReady:
      return fmt::format("{}ready", kPrefix);
    case StatusLine::Kind::kBeat:
      return fmt::format("{}beat {} {} {}", kPrefix, line.beat.gateways, line.beat.sequences,
                         line.beat.stalled_ms);
    case StatusLine::Kind::kFailed:
      break;
  }
  std::string text = line.text;
  std::replace(text.begin(), text.end(), '\n', ' ');
  return fmt::format("{}failed {}", kPrefix, text);
}

std::optional<StatusLine> parse_status_line(std::string_view text) {
  if (!text.starts_with(kPrefix)) return std::nullopt;
  text.remove_prefix(kPrefix.size());
  const std::string_view word = text.substr(0, text.find(' '));
  const std::string_view rest = word.size() < text.size() ? text.substr(word.size() + 1) : "";
  if (word == "ready") return StatusLine{StatusLine::Kind::kReady, 0, "", {}};
  if (word == "beat") return parse_beat(rest);
  if (word == "failed") return StatusLine{StatusLine::Kind::kFailed, 0, std::string(rest), {}};
  if (word != "loading") return std::nullopt;
  double loaded = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), loaded);
  if (error != std::errc() || end != rest.data() + rest.size()) return std::nullopt;
  return StatusLine{StatusLine::Kind::kLoading, std::clamp(loaded, 0.0, 1.0), "", {}};
}

}  // namespace millrace
