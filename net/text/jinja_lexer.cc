#include "net/text/jinja_lexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "net/text/utf8.h"

namespace millrace::text::jinja {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

std::string normalize_line_ends(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\r') {
      out += text[i];
    } else {
      out += '\n';
      if (i + 1 < text.size() && text[i + 1] == '\n') ++i;
    }
  }
  return out;
}

[[noreturn]] void fail_at(int line, std::string message) {
  throw Failure{ErrorCode::kInvalidArgument, std::move(message), line};
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize_line_ends(source)) {
    if (!source_.empty() && source_.back() == '\n') source_.pop_back();
  }

  std::vector<Token> run() {
    while (at_ < source_.size()) text();
    add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  void add(TokenKind kind, std::string text) {
    tokens_.push_back({kind, std::move(text), Value(), line_});
  }

  bool looking_at(std::string_view what) const {
    return std::string_view(source_).substr(at_, what.size()) == what;
  }

  void advance(std::size_t bytes) {
    for (const char c : std::string_view(source_).substr(at_, bytes)) line_ += c == '\n';
    at_ += bytes;
  }

  void skip_space() {
    std::size_t length = 0;
    while (at_ < source_.size() && is_python_space(decode_code_point(source_, at_, &length))) {
      advance(length);
    }
  }

  // Text up to the next tag, then the tag.
  void text() {
    std::size_t tag = at_;
    for (;; ++tag) {
      tag = source_.find('{', tag);
      if (tag == std::string::npos || tag + 1 >= source_.size()) {
        emit_text(source_.substr(at_));
        advance(source_.size() - at_);
        return;
      }
      const char next = source_[tag + 1];
      if (next == '%' || next == '{' || next == '#') break;
    }
    std::string_view before = std::string_view(source_).substr(at_, tag - at_);
    const char kind = source_[tag + 1];
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    if (sign == '-') {
      before = strip_right(before);
    } else if (sign != '+' && kind != '{') {
      before = strip_line_start(before);
    }
    emit_text(std::string(before));
    advance(tag - at_ + 2);
    if (sign == '-' || sign == '+') advance(1);
    if (kind == '#') {
      comment();
    } else {
      tag_body(kind == '{');
    }
  }

  void emit_text(std::string text) {
    if (!text.empty()) add(TokenKind::kText, std::move(text));
  }

  // lstrip_blocks: white space between the start of the line and a block tag goes.
  std::string_view strip_line_start(std::string_view before) const {
    const auto line_end = before.rfind('\n');
    const std::size_t start = line_end == std::string_view::npos ? 0 : line_end + 1;
    if (start == 0 && !line_starting_) return before;
    return strip_left(before.substr(start)).empty() ? before.substr(0, start) : before;
  }

  // Behind a closing mark of a block or comment; `sign` is what stood before the mark.
  void close(char sign, bool block) {
    const std::size_t from = at_;
    advance(2);
    if (sign == '-') {
      skip_space();
    } else if (sign != '+' && block && at_ < source_.size() && source_[at_] == '\n') {
      advance(1);
    }
    line_starting_ = at_ > from && source_[at_ - 1] == '\n';
  }

  void comment() {
    const int begin = line_;
    const auto end = source_.find("#}", at_);
    if (end == std::string::npos) fail_at(begin, "a comment is not closed");
    const char sign = end > at_ ? source_[end - 1] : '\0';
    advance(end - at_);
    close(sign, true);
  }

  void tag_body(bool print) {
    const int begin = line_;
    add(print ? TokenKind::kPrintBegin : TokenKind::kBlockBegin, "");
    const std::string_view mark = print ? "}}" : "%}";
    std::string open;  // brackets that wait for their partner; inside them }} is no end
    for (;;) {
      skip_space();
      if (at_ >= source_.size()) fail_at(begin, "a tag is not closed");
      const char c = source_[at_];
      const bool sign = (c == '-' || (c == '+' && !print)) &&
                        std::string_view(source_).substr(at_ + 1, 2) == mark;
      if (open.empty() && (sign || looking_at(mark))) {
        if (sign) advance(1);
        add(print ? TokenKind::kPrintEnd : TokenKind::kBlockEnd, "");
        close(sign ? c : '\0', !print);
        return;
      }
      token(open);
    }
  }

  void token(std::string& open) {
    const char c = source_[at_];
    if (is_name_start(c)) {
      name();
    } else if (is_digit(c)) {
      number();
    } else if (c == '\'' || c == '"') {
      string(c);
    } else {
      operation(open);
    }
  }

  void name() {
    std::size_t end = at_;
    while (end < source_.size() && (is_name_start(source_[end]) || is_digit(source_[end]))) ++end;
    const bool first = tokens_.back().kind == TokenKind::kBlockBegin;
    std::string text = source_.substr(at_, end - at_);
    if (first && text == "raw") fail_unsupported("the block 'raw'", line_);
    add(TokenKind::kName, std::move(text));
    advance(end - at_);
  }

  void number() {
    std::size_t end = at_;
    const auto digits = [&] {
      while (end < source_.size() && is_digit(source_[end])) ++end;
    };
    const auto digit_at = [&](std::size_t i) { return i < source_.size() && is_digit(source_[i]); };
    digits();
    bool real = false;
    if (end < source_.size() && source_[end] == '.' && digit_at(end + 1)) {
      real = true;
      ++end;
      digits();
    }
    if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      const std::size_t skip =
          end + 1 < source_.size() && (source_[end + 1] == '+' || source_[end + 1] == '-');
      if (digit_at(end + 1 + skip)) {
        real = true;
        end += 1 + skip;
        digits();
      }
    }
    const std::string text = source_.substr(at_, end - at_);
    if (end < source_.size() && (is_name_start(source_[end]) || source_[end] == '_')) {
      fail_unsupported(fmt::format("the number '{}{}'", text, source_[end]), line_);
    }
    add(TokenKind::kNumber, text);
    tokens_.back().number = real ? real_value(text) : int_value(text);
    advance(end - at_);
  }

  Value real_value(const std::string& text) const {
    double value = 0;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
    if (result.ec != std::errc())
      fail_at(line_, fmt::format("the number {} is out of range", text));
    return Value::number(value);
  }

  Value int_value(const std::string& text) const {
    std::int64_t value = 0;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
    if (result.ec != std::errc()) fail_at(line_, fmt::format("the number {} is too large", text));
    if (text.size() > 1 && text[0] == '0' && value != 0) {
      fail_at(line_, fmt::format("the number {} begins with 0", text));
    }
    return Value::integer(value);
  }

  void string(char quote) {
    const int begin = line_;
    std::string value;
    std::size_t i = at_ + 1;
    for (; i < source_.size() && source_[i] != quote; ++i) {
      if (source_[i] == '\\' && i + 1 < source_.size()) {
        i = escape(i + 1, value);
      } else {
        value += source_[i];
      }
    }
    if (i >= source_.size()) fail_at(begin, "a string is not closed");
    advance(i + 1 - at_);
    add(TokenKind::kString, std::move(value));
  }

  // Python's escapes. `i` is the character after the backslash; returns the last one consumed.
  std::size_t escape(std::size_t i, std::string& value) {
    const char c = source_[i];
    static constexpr std::string_view kFrom = "abfnrtv\\'\"", kTo = "\a\b\f\n\r\t\v\\'\"";
    if (const auto named = kFrom.find(c); named != std::string_view::npos) {
      value += kTo[named];
      return i;
    }
    if (c == '\n') return i;
    if (c >= '0' && c <= '7') return code(i, i, 3, 8, value, false);
    if (c == 'x') return code(i + 1, i + 1, 2, 16, value, true);
    if (c == 'u') return code(i + 1, i + 1, 4, 16, value, true);
    if (c == 'U') return code(i + 1, i + 1, 8, 16, value, true);
    if (c == 'N') fail_unsupported("the escape \\N", line_);
    value += '\\';
    value += c;
    return i;
  }

  std::size_t code(std::size_t begin, std::size_t i, std::size_t count, int base,
                   std::string& value, bool exact) {
    std::uint32_t c = 0;
    const std::size_t most = std::min(begin + count, source_.size());
    const auto result = std::from_chars(source_.data() + i, source_.data() + most, c, base);
    const auto end = static_cast<std::size_t>(result.ptr - source_.data());
    if (result.ec != std::errc() || (exact && end != begin + count) || c > 0x10FFFF ||
        (c >= 0xD800 && c < 0xE000)) {
      fail_at(line_, "a bad escape in a string");
    }
    append_code_point(value, c);
    return end - 1;
  }

  void operation(std::string& open) {
    static constexpr std::array<std::string_view, 26> kOperators = {
        "==", "!=", ">=", "<=", "//", "**", "+", "-", "/", "*", "%", "~", "[",
        "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};
    for (const std::string_view op : kOperators) {
      if (!looking_at(op)) continue;
      if (op == "(" || op == "[" || op == "{") open += op;
      if (op == ")" || op == "]" || op == "}") {
        const char partner = op == ")" ? '(' : op == "]" ? '[' : '{';
        if (open.empty() || open.back() != partner) {
          fail_at(line_, fmt::format("unexpected '{}'", op));
        }
        open.pop_back();
      }
      add(TokenKind::kOperator, std::string(op));
      advance(op.size());
      return;
    }
    fail_at(line_, fmt::format("unexpected character '{}' in a tag", source_[at_]));
  }

  std::string source_;
  std::size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  // the last tag ended with a line end, or there was none yet
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace millrace::text::jinja
