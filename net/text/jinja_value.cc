#include "net/text/jinja_value.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "net/text/utf8.h"

namespace millrace::text::jinja {

void fail(std::string message) {
  throw Failure{ErrorCode::kInvalidArgument, std::move(message), 0};
}

void fail_unsupported(std::string what, int line) {
  throw Failure{ErrorCode::kUnsupported, std::move(what) + " is not supported in a chat template",
                line};
}

void fail_exhausted(std::string message) {
  throw Failure{ErrorCode::kResourceExhausted, std::move(message), 0};
}

Value Value::list(std::vector<Value> items, bool tuple) {
  auto list = std::make_shared<List>();
  for (const Value& item : items) list->nesting = std::max(list->nesting, item.nesting() + 1);
  if (list->nesting > kMaxNesting) fail_exhausted("values are nested too deeply");
  list->items = std::move(items);
  list->tuple = tuple;
  return Value(Data(ListPtr(std::move(list))));
}

Value Value::dict(std::vector<std::pair<std::string, Value>> items) {
  auto dict = std::make_shared<Dict>();
  boost::unordered_flat_map<std::string_view, std::size_t> seen;
  dict->items.reserve(items.size());  // keeps the views of `seen` and `index` valid
  for (auto& [key, value] : items) {
    dict->nesting = std::max(dict->nesting, value.nesting() + 1);
    if (const auto it = seen.find(key); it != seen.end()) {
      dict->items[it->second].second = std::move(value);
      continue;
    }
    dict->items.emplace_back(std::move(key), std::move(value));
    seen.emplace(dict->items.back().first, dict->items.size() - 1);
  }
  if (dict->nesting > kMaxNesting) fail_exhausted("values are nested too deeply");
  if (dict->items.size() > 8) dict->index = std::move(seen);
  return Value(Data(DictPtr(std::move(dict))));
}

const Value* Dict::find(std::string_view key) const {
  if (!index.empty()) {
    const auto it = index.find(key);
    return it == index.end() ? nullptr : &items[it->second].second;
  }
  for (const auto& [name, value] : items) {
    if (name == key) return &value;
  }
  return nullptr;
}

Value* Namespace::find(std::string_view name) {
  for (auto& [key, value] : attributes) {
    if (key == name) return &value;
  }
  return nullptr;
}

const char* Value::type_name() const {
  static constexpr const char* kNames[] = {"Undefined", "NoneType", "bool",  "int",
                                           "float",     "str",      "list",  "dict",
                                           "namespace", "loop",     "macro", "function"};
  if (list() && list()->tuple) return "tuple";
  return kNames[data_.index()];
}

bool Value::truthy() const {
  if (is_undefined() || is_none()) return false;
  if (const bool* b = as<bool>()) return *b;
  if (const Int* i = as<Int>()) return *i != 0;
  if (const double* d = as<double>()) return *d != 0;
  if (str()) return !str()->empty();
  if (list()) return !list()->items.empty();
  if (dict()) return !dict()->items.empty();
  return true;
}

int Value::nesting() const {
  if (list()) return list()->nesting;
  if (dict()) return dict()->nesting;
  return 0;
}

namespace {

double as_double(const Value& v) {
  if (const bool* b = v.as<bool>()) return *b;
  if (const Int* i = v.as<Int>()) return static_cast<double>(*i);
  return *v.as<double>();
}

Int as_int(const Value& v) {
  if (const bool* b = v.as<bool>()) return *b;
  return *v.as<Int>();
}

template <class T>
int order(const T& a, const T& b) {
  return a < b ? -1 : b < a ? 1 : 0;
}

}  // namespace

bool equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    if (a.as<double>() || b.as<double>()) return as_double(a) == as_double(b);
    return as_int(a) == as_int(b);
  }
  if (a.str() && b.str()) return *a.str() == *b.str();
  if (a.list() && b.list()) {
    return a.list()->tuple == b.list()->tuple &&
           std::equal(a.list()->items.begin(), a.list()->items.end(), b.list()->items.begin(),
                      b.list()->items.end(), equal);
  }
  if (a.dict() && b.dict()) {
    if (a.dict()->items.size() != b.dict()->items.size()) return false;
    for (const auto& [key, value] : a.dict()->items) {
      const Value* other = b.dict()->find(key);
      if (!other || !equal(value, *other)) return false;
    }
    return true;
  }
  if (a.as<Namespace*>() && b.as<Namespace*>()) return *a.as<Namespace*>() == *b.as<Namespace*>();
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

int compare(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    if (a.as<double>() || b.as<double>()) return order(as_double(a), as_double(b));
    return order(as_int(a), as_int(b));
  }
  // UTF-8 keeps the order of code points.
  if (a.str() && b.str()) return order(a.str()->compare(*b.str()), 0);
  if (a.list() && b.list() && a.list()->tuple == b.list()->tuple) {
    const auto &x = a.list()->items, &y = b.list()->items;
    for (std::size_t i = 0; i < x.size() && i < y.size(); ++i) {
      if (!equal(x[i], y[i])) return compare(x[i], y[i]);
    }
    return order(x.size(), y.size());
  }
  fail(fmt::format("'{}' and '{}' cannot be ordered", a.type_name(), b.type_name()));
}

}  // namespace millrace::text::jinja
