#include "cli/text_row.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "net/text/utf8.h"

namespace millrace::cli {

namespace {

using Ramp = std::array<std::string_view, 9>;
constexpr Ramp kBlocks = {" ",      "\u2581", "\u2582", "\u2583", "\u2584",
                          "\u2585", "\u2586", "\u2587", "\u2588"};
constexpr Ramp kAscii = {" ", ".", ":", "-", "=", "+", "*", "#", "@"};

std::string_view sgr(Ink ink) {
  switch (ink) {
    case Ink::kPlain:
      return "";
    case Ink::kStrong:
      return "\x1b[1m";
    case Ink::kQuiet:
      return "\x1b[2m";
    case Ink::kGood:
      return "\x1b[32m";
    case Ink::kRaised:
      return "\x1b[33m";
    case Ink::kBad:
      return "\x1b[1;31m";
  }
  return "";
}

}  // namespace

std::string printable(std::string_view text) {
  std::string out(text);
  std::ranges::replace_if(
      out, [](char c) { return c < ' ' || c > '~'; }, '?');
  return out;
}

TextRow& TextRow::put(std::string_view text, Ink ink) {
  if (room() <= 0 || text.empty()) return *this;
  const auto fitting = static_cast<std::size_t>(room());
  const std::string_view shown = text.substr(0, text::code_point_offset(text, fitting));
  const std::string_view style = color_ ? sgr(ink) : "";
  text_.append(style).append(shown);
  if (!style.empty()) text_ += "\x1b[0m";
  column_ += static_cast<int>(text::count_code_points(shown));
  return *this;
}

TextRow& TextRow::to(int column) {
  const int blanks = std::max(column - column_, column_ > 0 ? 1 : 0);
  return put(std::string(static_cast<std::size_t>(blanks), ' '));
}

std::string bars(std::span<const double> values, double full, bool unicode) {
  const Ramp& ramp = unicode ? kBlocks : kAscii;
  const double top = static_cast<double>(ramp.size() - 1);
  std::string out;
  for (const double value : values) {
    double height = full > 0 ? std::clamp(value / full, 0.0, 1.0) * top : 0;
    if (value > 0) height = std::max(1.0, height);  // little is not nothing
    out += ramp[static_cast<std::size_t>(std::lround(height))];
  }
  return out;
}

std::string meter(double ratio, int columns, bool unicode) {
  const int filled = static_cast<int>(std::lround(std::clamp(ratio, 0.0, 1.0) * columns));
  std::string out = "[";
  for (int i = 0; i < columns; ++i) {
    out += i >= filled ? std::string_view(" ") : unicode ? kBlocks.back() : std::string_view("|");
  }
  return out + "]";
}

}  // namespace millrace::cli
