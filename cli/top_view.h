// What `millrace top` shows: one answer of /status.json (docs/status.md) as lines for a terminal.
//
// The answer comes from another program, perhaps of another version: whatever is missing or of
// another type reads as unknown and is drawn as "-", and its texts reach the terminal as printable
// ASCII only, so no answer can steer the terminal.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace millrace::cli {

struct TopStyle {
  int width = 80;       // columns; no line is wider, 40 at least
  bool color = true;    // SGR sequences
  bool unicode = true;  // block elements, else ASCII
};

struct TopFrame {
  std::vector<std::string> head;  // the service as a whole, always in view
  std::vector<std::string> body;  // the cells, those in trouble first
};

// `notice` (why figures may be old, say) stands in the second line when it is not empty.
TopFrame draw_status(const nlohmann::json& status, const std::string& url,
                     const std::string& notice, const TopStyle& style);

// Before there is any answer.
TopFrame draw_waiting(const std::string& url, const std::string& notice, const TopStyle& style);

}  // namespace millrace::cli
