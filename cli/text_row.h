// One line of a terminal, built from left to right: styles, columns and a width that is kept.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace millrace::cli {

enum class Ink { kPlain, kStrong, kQuiet, kGood, kRaised, kBad };

// Printable ASCII alone; every other byte becomes '?'. For texts from elsewhere.
std::string printable(std::string_view text);

class TextRow {
 public:
  TextRow(int width, bool color) : width_(width), color_(color) {}

  // Appends UTF-8 whose characters each take one column; what is beyond the width is dropped.
  TextRow& put(std::string_view text, Ink ink = Ink::kPlain);
  // Blanks up to `column`, one blank at least unless the row is empty.
  TextRow& to(int column);

  int column() const { return column_; }
  int room() const { return width_ - column_; }
  const std::string& text() const { return text_; }

 private:
  int width_;
  bool color_;
  int column_ = 0;
  std::string text_;
};

// One character for each value, its height value / full; `unicode` decides the ramp. Values below 0
// count as 0, above `full` as full.
std::string bars(std::span<const double> values, double full, bool unicode);

// A meter of `columns` characters in brackets, 0 to 1.
std::string meter(double ratio, int columns, bool unicode);

}  // namespace millrace::cli
