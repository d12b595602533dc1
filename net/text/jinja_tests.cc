// `value is name(...)`: the tests of jinja2/tests.py that chat templates use.
#include <fmt/format.h>

#include <unordered_map>

#include "net/text/jinja_filters.h"

namespace millrace::text::jinja {
namespace {

using Args = std::vector<Value>;

Int integer_of(const Value& v, const char* test) {
  if (const Int* i = v.as<Int>()) return *i;
  if (const bool* b = v.as<bool>()) return *b;
  fail(fmt::format("the test '{}' needs an integer, not '{}'", test, v.type_name()));
}

bool is_iterable(const Value& v) { return v.str() || v.list() || v.dict() || v.is_undefined(); }

int ordered(const Value& a, const Args& args) { return compare(a, args[0]); }

bool contained(const Value& v, const Args& args) {
  if (const std::string* text = args[0].str()) {
    if (!v.str()) fail("the test 'in' on a string needs a string");
    return text->find(*v.str()) != std::string::npos;
  }
  if (const List* list = args[0].list()) {
    for (const Value& item : list->items) {
      if (equal(item, v)) return true;
    }
    return false;
  }
  if (const Dict* dict = args[0].dict()) return v.str() && dict->find(*v.str());
  fail(fmt::format("'{}' is not a container", args[0].type_name()));
}

const std::unordered_map<std::string_view, TestEntry>& tests() {
  using V = const Value&;
  using A = const Args&;
  static const TestEntry kEqual{[](V v, A a) { return equal(v, a[0]); }, 1};
  static const TestEntry kNotEqual{[](V v, A a) { return !equal(v, a[0]); }, 1};
  static const TestEntry kLess{[](V v, A a) { return ordered(v, a) < 0; }, 1};
  static const TestEntry kLessEqual{[](V v, A a) { return ordered(v, a) <= 0; }, 1};
  static const TestEntry kGreater{[](V v, A a) { return ordered(v, a) > 0; }, 1};
  static const TestEntry kGreaterEqual{[](V v, A a) { return ordered(v, a) >= 0; }, 1};
  static const std::unordered_map<std::string_view, TestEntry> kTable = {
      {"defined", {[](V v, A) { return !v.is_undefined(); }, 0}},
      {"undefined", {[](V v, A) { return v.is_undefined(); }, 0}},
      {"none", {[](V v, A) { return v.is_none(); }, 0}},
      {"string", {[](V v, A) { return v.str() != nullptr; }, 0}},
      {"mapping", {[](V v, A) { return v.dict() != nullptr; }, 0}},
      {"sequence", {[](V v, A) { return is_iterable(v); }, 0}},
      {"iterable", {[](V v, A) { return is_iterable(v); }, 0}},
      {"number", {[](V v, A) { return v.is_number(); }, 0}},
      {"boolean", {[](V v, A) { return v.as<bool>() != nullptr; }, 0}},
      {"integer", {[](V v, A) { return v.as<Int>() != nullptr; }, 0}},
      {"float", {[](V v, A) { return v.as<double>() != nullptr; }, 0}},
      {"true", {[](V v, A) { return v.as<bool>() && *v.as<bool>(); }, 0}},
      {"false", {[](V v, A) { return v.as<bool>() && !*v.as<bool>(); }, 0}},
      {"odd", {[](V v, A) { return integer_of(v, "odd") % 2 != 0; }, 0}},
      {"even", {[](V v, A) { return integer_of(v, "even") % 2 == 0; }, 0}},
      {"divisibleby",
       {[](V v, A a) {
          const Int divisor = integer_of(a[0], "divisibleby");
          if (divisor == 0) fail("division by zero");
          return integer_of(v, "divisibleby") % divisor == 0;
        },
        1}},
      {"in", {contained, 1}},
      {"eq", kEqual},
      {"equalto", kEqual},
      {"ne", kNotEqual},
      {"lt", kLess},
      {"lessthan", kLess},
      {"le", kLessEqual},
      {"gt", kGreater},
      {"greaterthan", kGreater},
      {"ge", kGreaterEqual},
  };
  return kTable;
}

}  // namespace

const TestEntry* find_test(std::string_view name) {
  const auto it = tests().find(name);
  return it == tests().end() ? nullptr : &it->second;
}

}  // namespace millrace::text::jinja
