// Methods of strings, dicts and lists: the reading ones of Python. Those that change an object are
// missing on purpose; transformers' sandbox forbids them too.
#include <fmt/format.h>

#include <unordered_map>

#include "net/text/jinja_filters.h"
#include "net/text/jinja_runtime.h"
#include "net/text/utf8.h"

namespace millrace::text::jinja {
namespace {

const std::string& string_arg(const std::optional<Value>& arg, const char* method) {
  if (!arg || !arg->str()) {
    fail(fmt::format("{}() needs a string, not '{}'", method, arg ? arg->type_name() : "nothing"));
  }
  return *arg->str();
}

Int int_arg(const std::optional<Value>& arg, Int otherwise, const char* method) {
  if (!arg) return otherwise;
  if (const Int* i = arg->as<Int>()) return *i;
  fail(fmt::format("{}() needs an integer, not '{}'", method, arg->type_name()));
}

bool given(const std::optional<Value>& arg) { return arg && !arg->is_none(); }

// str.split() without a separator: runs of white space separate, none at the ends.
std::vector<Value> split_words(std::string_view text, Int limit) {
  std::vector<Value> words;
  text = strip_left(text);
  while (!text.empty()) {
    if (limit >= 0 && static_cast<Int>(words.size()) == limit) {
      words.push_back(Value::string(std::string(strip_right(text))));
      break;
    }
    std::size_t end = 0, length = 0;
    while (end < text.size() && !is_python_space(decode_code_point(text, end, &length))) {
      end += length;
    }
    words.push_back(Value::string(std::string(text.substr(0, end))));
    text = strip_left(text.substr(end));
  }
  return words;
}

Value split(Runtime& runtime, const std::string& self, const CallArgs& args) {
  const auto bound = args.bind("split", {"sep", "maxsplit"});
  const Int limit = int_arg(bound[1], -1, "split");
  runtime.charge_bytes(self.size());
  if (!given(bound[0])) return runtime.list(split_words(self, limit));
  const std::string& separator = string_arg(bound[0], "split");
  if (separator.empty()) fail("empty separator");
  std::vector<Value> parts;
  std::size_t at = 0;
  while (limit < 0 || static_cast<Int>(parts.size()) < limit) {
    const std::size_t hit = find_substring(self, separator, at);
    if (hit == std::string::npos) break;
    runtime.charge(1);
    parts.push_back(Value::string(self.substr(at, hit - at)));
    at = hit + separator.size();
  }
  parts.push_back(Value::string(self.substr(at)));
  return Value::list(std::move(parts));
}

Value rsplit(Runtime& runtime, const std::string& self, const CallArgs& args) {
  const auto bound = args.bind("rsplit", {"sep", "maxsplit"}, 1);
  const std::string& separator = string_arg(bound[0], "rsplit");
  const Int limit = int_arg(bound[1], -1, "rsplit");
  if (separator.empty()) fail("empty separator");
  runtime.charge_bytes(self.size());
  std::vector<Value> parts;
  std::size_t end = self.size();
  while ((limit < 0 || static_cast<Int>(parts.size()) < limit) && end >= separator.size()) {
    const std::size_t hit = self.rfind(separator, end - separator.size());
    if (hit == std::string::npos) break;
    runtime.charge(separator.size());
    parts.push_back(
        Value::string(self.substr(hit + separator.size(), end - hit - separator.size())));
    end = hit;
  }
  parts.push_back(Value::string(self.substr(0, end)));
  return Value::list({parts.rbegin(), parts.rend()});
}

// Removes characters of `set` (white space when not given) from one or both ends.
Value strip_ends(Runtime& runtime, const std::string& self, const CallArgs& args, bool left,
                 bool right) {
  const auto bound = args.bind("strip", {"chars"});
  runtime.charge_bytes(self.size());
  std::string_view text = self;
  if (!given(bound[0])) {
    if (left) text = strip_left(text);
    if (right) text = strip_right(text);
    return Value::string(std::string(text));
  }
  const std::string& set = string_arg(bound[0], "strip");
  const auto in_set = [&](std::string_view c) { return set.find(c) != std::string::npos; };
  std::size_t length = 0;
  while (left && !text.empty()) {
    decode_code_point(text, 0, &length);
    if (!in_set(text.substr(0, length))) break;
    text.remove_prefix(length);
  }
  while (right && !text.empty()) {
    std::size_t at = text.size() - 1;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
    if (!in_set(text.substr(at))) break;
    text = text.substr(0, at);
  }
  return Value::string(std::string(text));
}

// startswith and endswith take one string or a tuple of them.
template <class Test>
Value any_affix(const CallArgs& args, const char* method, Test test) {
  const auto bound = args.bind(method, {"affix"}, 1);
  if (const List* list = bound[0]->list(); list && list->tuple) {
    for (const Value& item : list->items) {
      if (test(string_arg(item, method))) return Value::boolean(true);
    }
    return Value::boolean(false);
  }
  return Value::boolean(test(string_arg(bound[0], method)));
}

Value replace(Runtime& runtime, const std::string& self, const CallArgs& args) {
  const auto bound = args.bind("replace", {"old", "new", "count"}, 2);
  CallArgs filter_args;
  filter_args.positional = {Value::string(string_arg(bound[0], "replace")),
                            Value::string(string_arg(bound[1], "replace"))};
  if (bound[2]) filter_args.positional.push_back(*bound[2]);
  return find_filter("replace")->apply(runtime, Value::string(self), filter_args);
}

template <const char* const& Name>
Value through_filter(Runtime& runtime, const std::string& self, const CallArgs& args) {
  args.bind(Name, {});
  return find_filter(Name)->apply(runtime, Value::string(self), {});
}
constexpr const char* kUpper = "upper";
constexpr const char* kLower = "lower";
constexpr const char* kCapitalize = "capitalize";

Value find_in(Runtime& runtime, const std::string& self, const CallArgs& args) {
  const auto bound = args.bind("find", {"sub"}, 1);
  runtime.charge_bytes(self.size());
  const std::size_t hit = find_substring(self, string_arg(bound[0], "find"));
  if (hit == std::string::npos) return Value::integer(-1);
  return Value::integer(static_cast<Int>(count_code_points(std::string_view(self).substr(0, hit))));
}

Value count_in(Runtime& runtime, const std::string& self, const CallArgs& args) {
  const auto bound = args.bind("count", {"sub"}, 1);
  const std::string& needle = string_arg(bound[0], "count");
  runtime.charge_bytes(self.size());
  if (needle.empty()) return Value::integer(static_cast<Int>(count_code_points(self)) + 1);
  Int n = 0;
  for (std::size_t at = 0; (at = find_substring(self, needle, at)) != std::string::npos; ++n) {
    runtime.charge(1);
    at += needle.size();
  }
  return Value::integer(n);
}

Value join_with(Runtime& runtime, const std::string& self, const CallArgs& args) {
  const auto bound = args.bind("join", {"iterable"}, 1);
  std::string out;
  bool first = true;
  for (const Value& item : iterate(runtime, *bound[0])) {
    if (!item.str()) fail(fmt::format("join() needs strings, not '{}'", item.type_name()));
    runtime.charge_bytes(out.size() > 64 ? item.str()->size() + self.size() : 0);
    if (!first) out += self;
    out += *item.str();
    first = false;
  }
  return runtime.string(std::move(out));
}

Value get(Runtime&, const Dict& self, const CallArgs& args) {
  const auto bound = args.bind("get", {"key", "default"}, 1);
  const Value* found = bound[0]->str() ? self.find(*bound[0]->str()) : nullptr;
  return found ? *found : bound[1] ? *bound[1] : Value::none();
}

Value items(Runtime& runtime, const Dict& self, const CallArgs& args) {
  args.bind("items", {});
  std::vector<Value> out;
  for (const auto& [key, value] : self.items) {
    out.push_back(Value::list({runtime.string(key), value}, true));
  }
  return runtime.list(std::move(out));
}

Value keys(Runtime& runtime, const Dict& self, const CallArgs& args) {
  args.bind("keys", {});
  std::vector<Value> out;
  for (const auto& item : self.items) out.push_back(runtime.string(item.first));
  return runtime.list(std::move(out));
}

Value values(Runtime& runtime, const Dict& self, const CallArgs& args) {
  args.bind("values", {});
  std::vector<Value> out;
  for (const auto& item : self.items) out.push_back(item.second);
  return runtime.list(std::move(out));
}

Value list_count(Runtime& runtime, const List& self, const CallArgs& args) {
  const auto bound = args.bind("count", {"value"}, 1);
  runtime.charge_items(self.items.size());
  Int n = 0;
  for (const Value& item : self.items) n += equal(item, *bound[0]);
  return Value::integer(n);
}

Value list_index(Runtime& runtime, const List& self, const CallArgs& args) {
  const auto bound = args.bind("index", {"value"}, 1);
  runtime.charge_items(self.items.size());
  for (std::size_t i = 0; i < self.items.size(); ++i) {
    if (equal(self.items[i], *bound[0])) return Value::integer(static_cast<Int>(i));
  }
  fail("index() of a value that is not in the list");
}

const std::unordered_map<std::string_view, MethodEntry>& methods() {
  using R = Runtime&;
  using S = const std::string&;
  using A = const CallArgs&;
  static const std::unordered_map<std::string_view, MethodEntry> kTable = {
      {"split", {split, nullptr, nullptr}},
      {"rsplit", {rsplit, nullptr, nullptr}},
      {"strip", {[](R r, S s, A a) { return strip_ends(r, s, a, true, true); }, nullptr, nullptr}},
      {"lstrip",
       {[](R r, S s, A a) { return strip_ends(r, s, a, true, false); }, nullptr, nullptr}},
      {"rstrip",
       {[](R r, S s, A a) { return strip_ends(r, s, a, false, true); }, nullptr, nullptr}},
      {"startswith",
       {[](R, S s, A a) {
          return any_affix(a, "startswith", [&](S prefix) { return s.starts_with(prefix); });
        },
        nullptr, nullptr}},
      {"endswith",
       {[](R, S s, A a) {
          return any_affix(a, "endswith", [&](S suffix) { return s.ends_with(suffix); });
        },
        nullptr, nullptr}},
      {"replace", {replace, nullptr, nullptr}},
      {"upper", {through_filter<kUpper>, nullptr, nullptr}},
      {"lower", {through_filter<kLower>, nullptr, nullptr}},
      {"capitalize", {through_filter<kCapitalize>, nullptr, nullptr}},
      {"find", {find_in, nullptr, nullptr}},
      {"count", {count_in, nullptr, list_count}},
      {"join", {join_with, nullptr, nullptr}},
      {"index", {nullptr, nullptr, list_index}},
      {"get", {nullptr, get, nullptr}},
      {"items", {nullptr, items, nullptr}},
      {"keys", {nullptr, keys, nullptr}},
      {"values", {nullptr, values, nullptr}},
  };
  return kTable;
}

}  // namespace

const MethodEntry* find_method(std::string_view name) {
  const auto it = methods().find(name);
  return it == methods().end() ? nullptr : &it->second;
}

}  // namespace millrace::text::jinja
