// Values of the template interpreter, with the semantics of the Python values they stand for.
#pragma once

#include <boost/unordered/unordered_flat_map.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "config/result.h"

namespace millrace::text::jinja {

// Ends a rendering or a load. Thrown only inside the interpreter, whose recursion it has to unwind,
// and caught in ChatTemplate, which turns it into a Result.
struct Failure {
  ErrorCode code = ErrorCode::kInvalidArgument;
  std::string message;
  int line = 0;  // 0 until somebody who knows it fills it in
};

[[noreturn]] void fail(std::string message);  // the template or its input is wrong
[[noreturn]] void fail_unsupported(std::string what, int line);  // outside the subset
[[noreturn]] void fail_exhausted(std::string message);           // a limit of RenderLimits

class Value;
struct List;
struct Dict;
struct Namespace;
struct LoopState;
struct MacroNode;

// Python's integers have no bounds; these have 128 bits and leaving them is an error, never a wrap.
using Int = __int128;

struct Undefined {
  const std::string* name = nullptr;  // what was looked up; lives as long as the template
  bool operator==(const Undefined&) const { return true; }
};
struct None {
  bool operator==(const None&) const { return true; }
};
enum class Builtin { kNamespace, kRange, kDict, kRaiseException, kStrftimeNow };

using StringPtr = std::shared_ptr<const std::string>;
using ListPtr = std::shared_ptr<const List>;
using DictPtr = std::shared_ptr<const Dict>;

class Value {
 public:
  using Data = std::variant<Undefined, None, bool, Int, double, StringPtr, ListPtr, DictPtr,
                            Namespace*, std::shared_ptr<LoopState>, const MacroNode*, Builtin>;

  Value() : data_(Undefined()) {}
  explicit Value(Data data) : data_(std::move(data)) {}
  static Value none() { return Value(Data(None())); }
  static Value boolean(bool b) { return Value(Data(b)); }
  static Value integer(Int i) { return Value(Data(i)); }
  static Value number(double d) { return Value(Data(d)); }
  static Value string(std::string s) {
    return Value(Data(std::make_shared<const std::string>(std::move(s))));
  }
  // Nesting deeper than kMaxNesting is refused: printing, comparing and freeing recurse.
  static Value list(std::vector<Value> items, bool tuple = false);
  static Value dict(std::vector<std::pair<std::string, Value>> items);

  template <class T>
  const T* as() const {
    return std::get_if<T>(&data_);
  }
  bool is_undefined() const { return as<Undefined>() != nullptr; }
  bool is_none() const { return as<None>() != nullptr; }
  const std::string* str() const {
    const StringPtr* s = as<StringPtr>();
    return s ? s->get() : nullptr;
  }
  const List* list() const {
    const ListPtr* l = as<ListPtr>();
    return l ? l->get() : nullptr;
  }
  const Dict* dict() const {
    const DictPtr* d = as<DictPtr>();
    return d ? d->get() : nullptr;
  }
  bool is_number() const { return as<bool>() || as<Int>() || as<double>(); }

  const char* type_name() const;  // as in Python: "str", "list", ...
  bool truthy() const;
  int nesting() const;  // 0 for anything but a list or a dict

 private:
  Data data_;
};

inline constexpr int kMaxNesting = 200;

struct List {
  std::vector<Value> items;
  bool tuple = false;
  int nesting = 1;
};

// Keys are strings, in order of insertion; a repeated key keeps its place and takes the last value.
struct Dict {
  std::vector<std::pair<std::string, Value>> items;
  boost::unordered_flat_map<std::string_view, std::size_t> index;  // only from 9 entries on
  int nesting = 1;

  const Value* find(std::string_view key) const;
};

struct Namespace {
  std::vector<std::pair<std::string, Value>> attributes;

  Value* find(std::string_view name);
};

// State of a running `for`, visible as `loop`.
struct LoopState {
  std::vector<Value> items;
  std::size_t index0 = 0;
};

// str() and repr() of Python. Values that only the template can make and nobody prints on purpose
// (macros, namespaces, loops) are refused.
std::string to_text(const Value& value);
std::string to_repr(const Value& value);
std::string float_repr(double value);
std::string int_text(Int value);

// == of Python, and -1, 0, 1 for <, ==, > (refused for types that Python does not order).
bool equal(const Value& a, const Value& b);
int compare(const Value& a, const Value& b);

// json.dumps(value, ensure_ascii=False); indent < 0 means one line.
std::string to_json(const Value& value, int indent, std::string_view item_separator,
                    std::string_view key_separator, bool ensure_ascii, bool sort_keys);

}  // namespace millrace::text::jinja
