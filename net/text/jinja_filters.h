// Filters, tests and methods of the template language, by name. Semantics of jinja2 3.1's filters
// and tests and of Python's str, dict and list methods.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "net/text/jinja_value.h"

namespace millrace::text::jinja {

class Runtime;  // limits and the work done so far: jinja_runtime.h

struct CallArgs {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // Arguments in the order of `names`; nullopt where none was given. Refuses surplus, unknown and
  // doubled ones; the first `required` must be there.
  std::vector<std::optional<Value>> bind(std::string_view function,
                                         const std::vector<std::string_view>& names,
                                         std::size_t required = 0) const;
};

struct FilterEntry {
  Value (*apply)(Runtime& runtime, const Value& value, const CallArgs& args);
};
struct TestEntry {
  bool (*apply)(const Value& value, const std::vector<Value>& args);
  std::size_t arguments;
};
struct MethodEntry {
  Value (*on_string)(Runtime& runtime, const std::string& self, const CallArgs& args);
  Value (*on_dict)(Runtime& runtime, const Dict& self, const CallArgs& args);
  Value (*on_list)(Runtime& runtime, const List& self, const CallArgs& args);
};

// nullptr for a name that is not supported.
const FilterEntry* find_filter(std::string_view name);
const TestEntry* find_test(std::string_view name);
const MethodEntry* find_method(std::string_view name);

}  // namespace millrace::text::jinja
