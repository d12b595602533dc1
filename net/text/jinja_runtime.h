// Limits of one rendering and the operators that are bounded by them.
#pragma once

#include <string>
#include <vector>

#include "net/text/chat_template.h"
#include "net/text/jinja_ast.h"
#include "net/text/jinja_value.h"

namespace millrace::text::jinja {

class Runtime {
 public:
  explicit Runtime(const RenderLimits& limits) : limits_(limits) {}

  const RenderLimits& limits() const { return limits_; }

  // Every piece of work is charged before it is done, so no single operation can overrun by much.
  void charge(std::size_t steps) {
    steps_ += steps;
    if (steps_ > limits_.max_steps) fail_exhausted("the template takes too many steps");
  }
  void charge_bytes(std::size_t bytes) {
    if (bytes > limits_.max_output_bytes) fail_exhausted("the rendered text becomes too long");
    charge(1 + bytes / 32);
  }
  void charge_items(std::size_t items) { charge(1 + items); }

  Value string(std::string text) {
    charge_bytes(text.size());
    return Value::string(std::move(text));
  }
  Value list(std::vector<Value> items, bool tuple = false) {
    charge_items(items.size());
    return Value::list(std::move(items), tuple);
  }
  // to_text with its cost; containers are charged for their size first.
  std::string text(const Value& value);
  void charge_value(const Value& value);

 private:
  const RenderLimits& limits_;
  std::size_t steps_ = 0;
};

// Operators of Python; a Failure names the types.
Value binary(Runtime& runtime, BinaryOp op, const Value& a, const Value& b);
bool compare_values(Runtime& runtime, CompareOp op, const Value& a, const Value& b);
Value negative(const Value& a);

// What iterating over a value yields: items, characters, keys; nothing for an undefined value.
std::vector<Value> iterate(Runtime& runtime, const Value& value);
Value item_of(Runtime& runtime, const Value& object, const Value& key, const std::string* name);
Value attribute_of(const Value& object, const std::string& name);
Value slice(Runtime& runtime, const Value& object, const Value& from, const Value& to,
            const Value& step);
std::size_t length_of(const Value& value);

// Position of `needle` at or after `from`, npos when there is none. Linear time, unlike
// std::string::find, whose worst case a message could provoke.
std::size_t find_substring(std::string_view text, std::string_view needle, std::size_t from = 0);

// Throws that `value` is undefined, in jinja2's words.
[[noreturn]] void fail_undefined(const Value& value);

}  // namespace millrace::text::jinja
