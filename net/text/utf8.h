// UTF-8 as the text layer needs it: validation, code points, Python's notion of white space, and
// the replacement of malformed bytes that Unicode recommends (one U+FFFD per maximal subpart,
// chapter 3.9), which is also what the Hugging Face `tokenizers` library does when it decodes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace millrace::text {

inline constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// Offset of the first byte that is not part of well-formed UTF-8, or nullopt. Surrogates, overlong
// forms, values above U+10FFFF and a truncated last character all count as malformed.
std::optional<std::size_t> find_invalid_utf8(std::string_view text);

// The character at `at` of well-formed UTF-8; `length` receives its bytes.
char32_t decode_code_point(std::string_view text, std::size_t at, std::size_t* length);

void append_code_point(std::string& out, char32_t c);

std::size_t count_code_points(std::string_view text);

// Byte offset of code point `index`, at most text.size().
std::size_t code_point_offset(std::string_view text, std::size_t index);

// str.isspace() of Python for one character; `str.strip()` removes exactly these.
bool is_python_space(char32_t c);

// The White_Space property of Unicode (Rust's char::is_whitespace, Oniguruma's \s).
bool is_unicode_white_space(char32_t c);

std::string_view strip_left(std::string_view text);
std::string_view strip_right(std::string_view text);

// Turns a stream of bytes into well-formed UTF-8. Bytes that could still become a character are
// held until it is complete or known to be malformed. The concatenation of everything push() and
// flush() return does not depend on how the bytes were cut.
class Utf8Repair {
 public:
  void push(std::string_view bytes, std::string& out);
  // Ends the stream: a held, truncated character becomes one U+FFFD.
  void flush(std::string& out);
  bool empty() const { return held_.empty(); }

 private:
  std::string held_;  // at most three bytes
};

}  // namespace millrace::text
