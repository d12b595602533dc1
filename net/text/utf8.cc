#include "net/text/utf8.h"

#include <cstring>

namespace millrace::text {
namespace {

enum class Shape { kComplete, kTruncated, kMalformed };

// Looks at the bytes from `at`. kComplete: `length` is the character's size. kTruncated: all bytes
// that are there form the beginning of a character. kMalformed: `length` is the maximal subpart.
Shape inspect(std::string_view text, std::size_t at, std::size_t* length) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(at);
  *length = 1;
  if (lead < 0x80) return Shape::kComplete;
  std::size_t need = 0;
  unsigned low = 0x80, high = 0xBF;  // range of the second byte, Unicode table 3-7
  if (lead >= 0xC2 && lead <= 0xDF) {
    need = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    need = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    need = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return Shape::kMalformed;
  }
  for (std::size_t i = 1; i < need; ++i) {
    if (at + i >= text.size()) return Shape::kTruncated;
    const unsigned char b = byte(at + i);
    if (b < (i == 1 ? low : 0x80u) || b > (i == 1 ? high : 0xBFu)) return Shape::kMalformed;
    *length = i + 1;
  }
  return Shape::kComplete;
}

std::size_t skip_ascii(std::string_view text, std::size_t at) {
  while (at + 8 <= text.size()) {
    std::uint64_t word;
    std::memcpy(&word, text.data() + at, 8);
    if (word & 0x8080808080808080ull) break;
    at += 8;
  }
  while (at < text.size() && static_cast<unsigned char>(text[at]) < 0x80) ++at;
  return at;
}

}  // namespace

std::optional<std::size_t> find_invalid_utf8(std::string_view text) {
  for (std::size_t at = skip_ascii(text, 0); at < text.size();) {
    std::size_t length = 0;
    if (inspect(text, at, &length) != Shape::kComplete) return at;
    at = skip_ascii(text, at + length);
  }
  return std::nullopt;
}

char32_t decode_code_point(std::string_view text, std::size_t at, std::size_t* length) {
  const auto byte = [&](std::size_t i) -> char32_t {
    return static_cast<unsigned char>(text[at + i]);
  };
  const char32_t lead = byte(0);
  if (lead < 0x80) return *length = 1, lead;
  if (lead < 0xE0) return *length = 2, (lead & 0x1F) << 6 | (byte(1) & 0x3F);
  if (lead < 0xF0) {
    return *length = 3, (lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
  }
  return *length = 4,
         (lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
}

void append_code_point(std::string& out, char32_t c) {
  const auto put = [&](char32_t b) { out.push_back(static_cast<char>(b)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6), put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12), put(0x80 | (c >> 6 & 0x3F)), put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18), put(0x80 | (c >> 12 & 0x3F)), put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

std::size_t count_code_points(std::string_view text) {
  std::size_t n = 0;
  for (char c : text) n += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return n;
}

std::size_t code_point_offset(std::string_view text, std::size_t index) {
  std::size_t at = 0;
  for (; index > 0 && at < text.size(); --index) {
    ++at;
    while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) ++at;
  }
  return at;
}

bool is_unicode_white_space(char32_t c) {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_python_space(char32_t c) { return is_unicode_white_space(c) || (c >= 0x1C && c <= 0x1F); }

std::string_view strip_left(std::string_view text) {
  while (!text.empty()) {
    std::size_t length = 0;
    if (!is_python_space(decode_code_point(text, 0, &length))) break;
    text.remove_prefix(length);
  }
  return text;
}

std::string_view strip_right(std::string_view text) {
  while (!text.empty()) {
    std::size_t at = text.size() - 1, length = 0;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
    if (!is_python_space(decode_code_point(text, at, &length))) break;
    text = text.substr(0, at);
  }
  return text;
}

void Utf8Repair::push(std::string_view bytes, std::string& out) {
  std::string joined;
  if (!held_.empty()) {
    joined = std::move(held_);
    held_.clear();
    joined.append(bytes);
    bytes = joined;
  }
  for (std::size_t at = 0; at < bytes.size();) {
    std::size_t length = 0;
    switch (inspect(bytes, at, &length)) {
      case Shape::kComplete:
        out.append(bytes.substr(at, length));
        break;
      case Shape::kMalformed:
        out.append(kReplacement);
        break;
      case Shape::kTruncated:
        held_.assign(bytes.substr(at));
        return;
    }
    at += length;
  }
}

void Utf8Repair::flush(std::string& out) {
  if (!held_.empty()) out.append(kReplacement);
  held_.clear();
}

}  // namespace millrace::text
