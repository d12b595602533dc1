// str(), repr() and json.dumps() of Python for template values.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <new>

#include "net/text/jinja_value.h"
#include "net/text/utf8.h"

namespace millrace::text::jinja {
namespace {

// What str.isprintable() denies: the categories Other and Separator, except the space. PCRE2 has
// the table (Unicode 14 in Debian 12, which is also that of Python 3.11).
bool is_printable(char32_t c) {
  static pcre2_code* const other = [] {
    int error = 0;
    PCRE2_SIZE at = 0;
    const auto* pattern = reinterpret_cast<PCRE2_SPTR>("[\\p{C}\\p{Z}]");
    pcre2_code* code =
        pcre2_compile(pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &error, &at, nullptr);
    if (!code) throw std::bad_alloc();
    return code;
  }();
  if (c < 0x7F) return c >= 0x20;
  thread_local std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> data(
      pcre2_match_data_create(1, nullptr), pcre2_match_data_free);
  std::string text;
  append_code_point(text, c);
  return pcre2_match(other, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0,
                     PCRE2_ANCHORED, data.get(), nullptr) < 0;
}

void append_string_repr(std::string& out, std::string_view text) {
  const bool double_quotes =
      text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
  const char quote = double_quotes ? '"' : '\'';
  out += quote;
  for (std::size_t at = 0, length = 0; at < text.size(); at += length) {
    const char32_t c = decode_code_point(text, at, &length);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (is_printable(c)) {
      out.append(text.substr(at, length));
    } else if (c < 0x100) {
      out += fmt::format("\\x{:02x}", static_cast<std::uint32_t>(c));
    } else if (c < 0x10000) {
      out += fmt::format("\\u{:04x}", static_cast<std::uint32_t>(c));
    } else {
      out += fmt::format("\\U{:08x}", static_cast<std::uint32_t>(c));
    }
  }
  out += quote;
}

void append_repr(std::string& out, const Value& value) {
  if (value.str()) {
    append_string_repr(out, *value.str());
  } else if (const List* list = value.list()) {
    out += list->tuple ? '(' : '[';
    for (std::size_t i = 0; i < list->items.size(); ++i) {
      if (i > 0) out += ", ";
      append_repr(out, list->items[i]);
    }
    if (list->tuple && list->items.size() == 1) out += ',';
    out += list->tuple ? ')' : ']';
  } else if (const Dict* dict = value.dict()) {
    out += '{';
    for (std::size_t i = 0; i < dict->items.size(); ++i) {
      if (i > 0) out += ", ";
      append_string_repr(out, dict->items[i].first);
      out += ": ";
      append_repr(out, dict->items[i].second);
    }
    out += '}';
  } else if (value.is_undefined()) {
    out += "Undefined";
  } else {
    out += to_text(value);
  }
}

struct JsonStyle {
  int indent;
  std::string_view item_separator, key_separator;
  bool ensure_ascii, sort_keys;
};

void append_json_escape(std::string& out, char32_t c) {
  if (c >= 0x10000) {
    c -= 0x10000;
    out += fmt::format("\\u{:04x}\\u{:04x}", 0xD800u + static_cast<unsigned>(c >> 10),
                       0xDC00u + static_cast<unsigned>(c & 0x3FF));
  } else {
    out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
  }
}

void append_json_string(std::string& out, std::string_view text, bool ensure_ascii) {
  static constexpr std::string_view kShort = "\"\\\b\f\n\r\t", kLetters = "\"\\bfnrt";
  out += '"';
  for (std::size_t at = 0, length = 0; at < text.size(); at += length) {
    const char32_t c = decode_code_point(text, at, &length);
    const auto named = c < 0x80 ? kShort.find(static_cast<char>(c)) : std::string_view::npos;
    if (named != std::string_view::npos) {
      out += '\\';
      out += kLetters[named];
    } else if (c < 0x20 || (ensure_ascii && c >= 0x7F)) {
      append_json_escape(out, c);
    } else {
      out.append(text.substr(at, length));
    }
  }
  out += '"';
}

void break_line(std::string& out, const JsonStyle& style, int level) {
  if (style.indent < 0) return;
  out += '\n';
  out.append(static_cast<std::size_t>(style.indent) * level, ' ');
}

void append_json(std::string& out, const Value& value, const JsonStyle& style, int level);

template <class Items, class Each>
void append_json_items(std::string& out, const Items& items, const JsonStyle& style, int level,
                       Each each) {
  bool first = true;
  for (const auto& item : items) {
    if (!first) out += style.item_separator;
    first = false;
    break_line(out, style, level + 1);
    each(item);
  }
  if (!first) break_line(out, style, level);
}

void append_json(std::string& out, const Value& value, const JsonStyle& style, int level) {
  if (value.str()) {
    append_json_string(out, *value.str(), style.ensure_ascii);
  } else if (value.is_none()) {
    out += "null";
  } else if (const bool* b = value.as<bool>()) {
    out += *b ? "true" : "false";
  } else if (const double* d = value.as<double>()) {
    out += std::isnan(*d)   ? "NaN"
           : std::isinf(*d) ? (*d < 0 ? "-Infinity" : "Infinity")
                            : float_repr(*d);
  } else if (const Int* i = value.as<Int>()) {
    out += int_text(*i);
  } else if (const List* list = value.list()) {
    out += '[';
    append_json_items(out, list->items, style, level,
                      [&](const Value& item) { append_json(out, item, style, level + 1); });
    out += ']';
  } else if (const Dict* dict = value.dict()) {
    using Item = std::pair<std::string, Value>;
    std::vector<const Item*> items;
    for (const Item& item : dict->items) items.push_back(&item);
    if (style.sort_keys) {
      std::sort(items.begin(), items.end(),
                [](const Item* x, const Item* y) { return x->first < y->first; });
    }
    out += '{';
    append_json_items(out, items, style, level, [&](const Item* item) {
      append_json_string(out, item->first, style.ensure_ascii);
      out += style.key_separator;
      append_json(out, item->second, style, level + 1);
    });
    out += '}';
  } else {
    fail(fmt::format("a value of type {} cannot be written as JSON", value.type_name()));
  }
}

}  // namespace

// Python's repr(float): the shortest digits that read back, with an exponent below 1e-4 and from
// 1e16.
std::string float_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[40];
  const auto end =
      std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  const std::string_view text(buffer, static_cast<std::size_t>(end - buffer));
  const auto e = text.find('e');
  int exponent = 0;
  const char* digits_begin = text.data() + e + 1 + (text[e + 1] == '+');
  std::from_chars(digits_begin, end, exponent);
  if (exponent < -4 || exponent >= 16) {
    return fmt::format("{}e{}{:02d}", text.substr(0, e), exponent < 0 ? '-' : '+',
                       std::abs(exponent));
  }
  const auto fixed =
      std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::fixed).ptr;
  std::string out(buffer, fixed);
  if (out.find('.') == std::string::npos) out += ".0";
  return out;
}

std::string int_text(Int value) { return fmt::format("{}", value); }

std::string to_repr(const Value& value) {
  std::string out;
  append_repr(out, value);
  return out;
}

std::string to_text(const Value& value) {
  if (value.is_undefined()) return "";
  if (value.is_none()) return "None";
  if (value.str()) return *value.str();
  if (const bool* b = value.as<bool>()) return *b ? "True" : "False";
  if (const Int* i = value.as<Int>()) return int_text(*i);
  if (const double* d = value.as<double>()) return float_repr(*d);
  if (value.list() || value.dict()) return to_repr(value);
  fail(fmt::format("a {} cannot be printed", value.type_name()));
}

std::string to_json(const Value& value, int indent, std::string_view item_separator,
                    std::string_view key_separator, bool ensure_ascii, bool sort_keys) {
  std::string out;
  append_json(out, value, {indent, item_separator, key_separator, ensure_ascii, sort_keys}, 0);
  return out;
}

}  // namespace millrace::text::jinja
