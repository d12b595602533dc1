// `value | name(...)`: the filters of jinja2/filters.py that chat templates use, with tojson as
// transformers defines it (no HTML escaping, UTF-8 kept).
#include "net/text/jinja_filters.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <unordered_map>

#include "net/text/jinja_runtime.h"
#include "net/text/utf8.h"

namespace millrace::text::jinja {

std::vector<std::optional<Value>> CallArgs::bind(std::string_view function,
                                                 const std::vector<std::string_view>& names,
                                                 std::size_t required) const {
  if (positional.size() > names.size()) {
    fail(fmt::format("{}() takes at most {} argument(s)", function, names.size()));
  }
  std::vector<std::optional<Value>> bound(names.size());
  for (std::size_t i = 0; i < positional.size(); ++i) bound[i] = positional[i];
  for (const auto& [name, value] : named) {
    const auto it = std::find(names.begin(), names.end(), name);
    if (it == names.end() || bound[static_cast<std::size_t>(it - names.begin())]) {
      fail(fmt::format("{}() got an unexpected argument '{}'", function, name));
    }
    bound[static_cast<std::size_t>(it - names.begin())] = value;
  }
  for (std::size_t i = 0; i < required; ++i) {
    if (!bound[i]) fail(fmt::format("{}() misses its argument '{}'", function, names[i]));
  }
  return bound;
}

namespace {

using R = Runtime&;
using V = const Value&;
using A = const CallArgs&;

bool flag(const std::optional<Value>& arg) { return arg && arg->truthy(); }

Int int_of(const std::optional<Value>& arg, Int otherwise, const char* filter) {
  if (!arg) return otherwise;
  if (const Int* i = arg->as<Int>()) return *i;
  fail(fmt::format("{} needs an integer, not '{}'", filter, arg->type_name()));
}

Value tojson(R runtime, V value, A args) {
  const auto bound = args.bind("tojson", {"ensure_ascii", "indent", "separators", "sort_keys"});
  int indent = -1;
  if (bound[1] && !bound[1]->is_none()) {
    indent = static_cast<int>(std::clamp<Int>(int_of(bound[1], 0, "tojson"), 0, 64));
  }
  std::string item = indent < 0 ? ", " : ",", key = ": ";
  if (bound[2] && !bound[2]->is_none()) {
    const List* pair = bound[2]->list();
    if (!pair || pair->items.size() != 2 || !pair->items[0].str() || !pair->items[1].str()) {
      fail("tojson needs separators as a pair of strings");
    }
    item = *pair->items[0].str();
    key = *pair->items[1].str();
  }
  if (value.is_undefined()) fail_undefined(value);
  runtime.charge_value(value);
  return runtime.string(to_json(value, indent, item, key, flag(bound[0]), flag(bound[3])));
}

Value trim(R runtime, V value, A args) {
  const auto bound = args.bind("trim", {"chars"});
  const std::string text = runtime.text(value);
  CallArgs method_args;
  if (bound[0]) method_args.positional.push_back(*bound[0]);
  return find_method("strip")->on_string(runtime, text, method_args);
}

Value join(R runtime, V value, A args) {
  const auto bound = args.bind("join", {"d", "attribute"});
  const std::string separator = bound[0] ? runtime.text(*bound[0]) : "";
  std::string out;
  bool first = true;
  for (const Value& item : iterate(runtime, value)) {
    if (!first) out += separator;
    first = false;
    if (bound[1] && !bound[1]->is_none()) {
      out += runtime.text(item_of(runtime, item, *bound[1], nullptr));
    } else {
      out += runtime.text(item);
    }
    if (out.size() > runtime.limits().max_output_bytes) {
      fail_exhausted("the rendered text becomes too long");
    }
  }
  return runtime.string(std::move(out));
}

Value default_of(R, V value, A args) {
  const auto bound = args.bind("default", {"default_value", "boolean"});
  const bool missing = value.is_undefined() || (flag(bound[1]) && !value.truthy());
  if (!missing) return value;
  return bound[0] ? *bound[0] : Value::string("");
}

Value first(R runtime, V value, A args) {
  args.bind("first", {});
  const std::vector<Value> items = iterate(runtime, value);
  return items.empty() ? Value() : items.front();
}

Value last(R runtime, V value, A args) {
  args.bind("last", {});
  const std::vector<Value> items = iterate(runtime, value);
  return items.empty() ? Value() : items.back();
}

Value reverse(R runtime, V value, A args) {
  args.bind("reverse", {});
  const std::vector<Value> items = iterate(runtime, value);
  if (!value.str()) return runtime.list({items.rbegin(), items.rend()});
  std::string out;
  for (auto it = items.rbegin(); it != items.rend(); ++it) out += *it->str();
  return runtime.string(std::move(out));
}

// Case mapping beyond ASCII needs tables that change one letter into several; refused rather than
// done halfway.
std::string ascii_text(R runtime, V value, const char* filter) {
  std::string text = runtime.text(value);
  for (const char c : text) {
    if (static_cast<unsigned char>(c) >= 0x80) {
      fail(fmt::format("'{}' of text outside ASCII is not supported in a chat template", filter));
    }
  }
  return text;
}

char to_upper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; }
char to_lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

Value upper(R runtime, V value, A args) {
  args.bind("upper", {});
  std::string text = ascii_text(runtime, value, "upper");
  std::transform(text.begin(), text.end(), text.begin(), to_upper);
  return Value::string(std::move(text));
}

Value lower(R runtime, V value, A args) {
  args.bind("lower", {});
  std::string text = ascii_text(runtime, value, "lower");
  std::transform(text.begin(), text.end(), text.begin(), to_lower);
  return Value::string(std::move(text));
}

Value capitalize(R runtime, V value, A args) {
  args.bind("capitalize", {});
  std::string text = ascii_text(runtime, value, "capitalize");
  std::transform(text.begin(), text.end(), text.begin(), to_lower);
  if (!text.empty()) text[0] = to_upper(text[0]);
  return Value::string(std::move(text));
}

Value replace(R runtime, V value, A args) {
  const auto bound = args.bind("replace", {"old", "new", "count"}, 2);
  const std::string text = runtime.text(value), from = runtime.text(*bound[0]),
                    to = runtime.text(*bound[1]);
  Int left = bound[2] && !bound[2]->is_none() ? int_of(bound[2], -1, "replace") : -1;
  std::string out;
  std::size_t at = 0;
  const auto put = [&](std::string_view part) {
    if (out.size() + part.size() > runtime.limits().max_output_bytes) {
      fail_exhausted("the rendered text becomes too long");
    }
    out += part;
  };
  for (; left != 0; --left) {
    const std::size_t hit = find_substring(text, from, at);
    if (hit == std::string::npos) break;
    runtime.charge(1);
    put(std::string_view(text).substr(at, hit - at));
    put(to);
    at = hit + from.size();
    if (!from.empty()) continue;
    // An empty pattern stands between all characters, and at both ends.
    if (at >= text.size()) break;
    std::size_t length = 0;
    decode_code_point(text, at, &length);
    put(std::string_view(text).substr(at, length));
    at += length;
  }
  if (at < text.size()) put(std::string_view(text).substr(at));
  return runtime.string(std::move(out));
}

// int('12') and float('1.5'); anything else gives the default.
std::string_view number_text(const Value& value) { return strip_right(strip_left(*value.str())); }

Value to_integer(R, V value, A args) {
  const auto bound = args.bind("int", {"default"});
  const Value otherwise = bound[0] ? *bound[0] : Value::integer(0);
  if (const Int* i = value.as<Int>()) return Value::integer(*i);
  if (const bool* b = value.as<bool>()) return Value::integer(*b);
  if (const double* d = value.as<double>()) {
    return std::abs(*d) < 1e30 ? Value::integer(static_cast<Int>(*d)) : otherwise;
  }
  if (!value.str()) return otherwise;
  std::string_view text = number_text(value);
  if (text.starts_with("+")) text.remove_prefix(1);
  std::int64_t parsed = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), parsed);
  if (result.ec == std::errc() && result.ptr == text.data() + text.size()) {
    return Value::integer(parsed);
  }
  double real = 0;
  const auto again = std::from_chars(text.data(), text.data() + text.size(), real);
  const bool number = again.ec == std::errc() && again.ptr == text.data() + text.size();
  return number && std::abs(real) < 1e30 ? Value::integer(static_cast<Int>(real)) : otherwise;
}

Value to_float(R, V value, A args) {
  const auto bound = args.bind("float", {"default"});
  const Value otherwise = bound[0] ? *bound[0] : Value::number(0);
  if (const Int* i = value.as<Int>()) return Value::number(static_cast<double>(*i));
  if (const bool* b = value.as<bool>()) return Value::number(*b);
  if (value.as<double>()) return value;
  if (!value.str()) return otherwise;
  std::string_view text = number_text(value);
  if (text.starts_with("+")) text.remove_prefix(1);
  double parsed = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), parsed);
  const bool number = result.ec == std::errc() && result.ptr == text.data() + text.size();
  return number ? Value::number(parsed) : otherwise;
}

Value absolute(R, V value, A args) {
  args.bind("abs", {});
  if (const double* d = value.as<double>()) return Value::number(std::abs(*d));
  if (const bool* b = value.as<bool>()) return Value::integer(*b);
  if (const Int* i = value.as<Int>()) return *i < 0 ? negative(value) : value;
  fail(fmt::format("abs needs a number, not '{}'", value.type_name()));
}

Value items(R runtime, V value, A args) {
  args.bind("items", {});
  if (value.is_undefined()) return Value::list({});
  if (!value.dict()) fail("items needs a mapping");
  return find_method("items")->on_dict(runtime, *value.dict(), {});
}

Value indent(R runtime, V value, A args) {
  const auto bound = args.bind("indent", {"width", "first", "blank"});
  std::string pad;
  if (bound[0] && bound[0]->str()) {
    pad = *bound[0]->str();
  } else {
    pad.assign(static_cast<std::size_t>(std::clamp<Int>(int_of(bound[0], 4, "indent"), 0, 1000)),
               ' ');
  }
  // jinja2 appends a line end and then splits into lines, so a last empty line stays.
  const std::string text = runtime.text(value);
  std::string out = flag(bound[1]) ? pad : "";
  std::size_t at = 0;
  for (bool first_line = true;; first_line = false) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = std::string_view(text).substr(at, end - at);
    runtime.charge(1);
    if (!first_line && (!line.empty() || flag(bound[2]))) out += pad;
    out += line;
    if (out.size() > runtime.limits().max_output_bytes) {
      fail_exhausted("the rendered text becomes too long");
    }
    if (end == text.size()) break;
    out += '\n';
    at = end + 1;
  }
  return runtime.string(std::move(out));
}

// --- map, select, reject and their attr forms: all take the name of a filter or a test.

Value attribute_path(R runtime, Value object, const Value& path) {
  if (!path.str()) return item_of(runtime, object, path, nullptr);
  std::string_view rest = *path.str();
  for (;;) {
    const std::size_t dot = std::min(rest.find('.'), rest.size());
    const std::string part(rest.substr(0, dot));
    const bool digits = !part.empty() && part.size() < 10 &&
                        part.find_first_not_of("0123456789") == std::string::npos;
    const Value key = digits ? Value::integer(std::stoi(part)) : Value::string(part);
    object = item_of(runtime, object, key, nullptr);
    if (dot == rest.size()) return object;
    rest.remove_prefix(dot + 1);
  }
}

Value map(R runtime, V value, A args) {
  std::vector<Value> out;
  if (args.positional.empty()) {
    const auto bound = args.bind("map", {"attribute", "default"}, 1);
    for (const Value& item : iterate(runtime, value)) {
      Value found = attribute_path(runtime, item, *bound[0]);
      out.push_back(found.is_undefined() && bound[1] ? *bound[1] : std::move(found));
    }
    return runtime.list(std::move(out));
  }
  const std::string* name = args.positional[0].str();
  const FilterEntry* filter = name ? find_filter(*name) : nullptr;
  if (!filter) fail("map needs the name of a supported filter");
  CallArgs rest = args;
  rest.positional.erase(rest.positional.begin());
  for (const Value& item : iterate(runtime, value)) {
    runtime.charge(1);
    out.push_back(filter->apply(runtime, item, rest));
  }
  return runtime.list(std::move(out));
}

Value choose(R runtime, V value, A args, bool keep, bool by_attribute) {
  std::size_t next = 0;
  const auto& given = args.positional;
  if (!args.named.empty() || (by_attribute && given.empty()))
    fail("select got unexpected arguments");
  const Value attribute = by_attribute ? given[next++] : Value();
  const TestEntry* test = nullptr;
  std::vector<Value> rest;
  if (next < given.size()) {
    test = given[next].str() ? find_test(*given[next].str()) : nullptr;
    if (!test) fail("select needs the name of a supported test");
    rest.assign(given.begin() + static_cast<std::ptrdiff_t>(next) + 1, given.end());
    if (rest.size() != test->arguments) fail("select got a wrong number of arguments for its test");
  }
  std::vector<Value> out;
  for (const Value& item : iterate(runtime, value)) {
    runtime.charge(1);
    const Value subject = by_attribute ? attribute_path(runtime, item, attribute) : item;
    const bool holds = test ? test->apply(subject, rest) : subject.truthy();
    if (holds == keep) out.push_back(item);
  }
  return runtime.list(std::move(out));
}

const std::unordered_map<std::string_view, FilterEntry>& filters() {
  static const FilterEntry kLength{[](R r, V v, A a) {
    a.bind("length", {});
    r.charge_bytes(v.str() ? v.str()->size() : 0);
    return Value::integer(static_cast<Int>(length_of(v)));
  }};
  static const std::unordered_map<std::string_view, FilterEntry> kTable = {
      {"tojson", {tojson}},
      {"trim", {trim}},
      {"join", {join}},
      {"string", {[](R r, V v, A a) {
         a.bind("string", {});
         return v.str() ? v : Value::string(r.text(v));
       }}},
      {"safe", {[](R r, V v, A a) {
         a.bind("safe", {});
         return v.str() ? v : Value::string(r.text(v));
       }}},
      {"length", kLength},
      {"count", kLength},
      {"default", {default_of}},
      {"d", {default_of}},
      {"first", {first}},
      {"last", {last}},
      {"reverse", {reverse}},
      {"list", {[](R r, V v, A a) {
         a.bind("list", {});
         return r.list(iterate(r, v));
       }}},
      {"items", {items}},
      {"upper", {upper}},
      {"lower", {lower}},
      {"capitalize", {capitalize}},
      {"replace", {replace}},
      {"int", {to_integer}},
      {"float", {to_float}},
      {"abs", {absolute}},
      {"indent", {indent}},
      {"map", {map}},
      {"select", {[](R r, V v, A a) { return choose(r, v, a, true, false); }}},
      {"reject", {[](R r, V v, A a) { return choose(r, v, a, false, false); }}},
      {"selectattr", {[](R r, V v, A a) { return choose(r, v, a, true, true); }}},
      {"rejectattr", {[](R r, V v, A a) { return choose(r, v, a, false, true); }}},
  };
  return kTable;
}

}  // namespace

const FilterEntry* find_filter(std::string_view name) {
  const auto it = filters().find(name);
  return it == filters().end() ? nullptr : &it->second;
}

}  // namespace millrace::text::jinja
