#include "net/text/jinja_runtime.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace millrace::text::jinja {
namespace {

double to_double(const Value& v) {
  if (const bool* b = v.as<bool>()) return *b;
  if (const Int* i = v.as<Int>()) return static_cast<double>(*i);
  return *v.as<double>();
}

Int to_int(const Value& v) {
  if (const bool* b = v.as<bool>()) return *b;
  return *v.as<Int>();
}

[[noreturn]] void fail_overflow() { fail("an integer became too large"); }

Value power(const Value& a, const Value& b) {
  if (a.as<double>() || b.as<double>() || to_int(b) < 0) {
    return Value::number(std::pow(to_double(a), to_double(b)));
  }
  Int result = 1, base = to_int(a);
  for (Int n = to_int(b); n > 0; n >>= 1) {
    if ((n & 1) && __builtin_mul_overflow(result, base, &result)) fail_overflow();
    if (n > 1 && __builtin_mul_overflow(base, base, &base)) fail_overflow();
  }
  return Value::integer(result);
}

Value int_arithmetic(BinaryOp op, Int a, Int b) {
  Int result = 0;
  bool overflow = false;
  switch (op) {
    case BinaryOp::kAdd:
      overflow = __builtin_add_overflow(a, b, &result);
      break;
    case BinaryOp::kSub:
      overflow = __builtin_sub_overflow(a, b, &result);
      break;
    case BinaryOp::kMul:
      overflow = __builtin_mul_overflow(a, b, &result);
      break;
    default: {  // floor division and its remainder, rounded to minus infinity as in Python
      if (b == 0) fail("division by zero");
      if (b == -1) {
        overflow = op == BinaryOp::kFloorDiv && __builtin_sub_overflow(Int{0}, a, &result);
        break;
      }
      Int quotient = a / b, remainder = a % b;
      if (remainder != 0 && (remainder < 0) != (b < 0)) {
        --quotient;
        remainder += b;
      }
      result = op == BinaryOp::kFloorDiv ? quotient : remainder;
    }
  }
  if (overflow) fail_overflow();
  return Value::integer(result);
}

Value arithmetic(BinaryOp op, const Value& a, const Value& b) {
  if (op == BinaryOp::kPow) return power(a, b);
  const bool real = a.as<double>() || b.as<double>();
  if (!real && op != BinaryOp::kDiv) return int_arithmetic(op, to_int(a), to_int(b));
  const double x = to_double(a), y = to_double(b);
  if (op == BinaryOp::kAdd) return Value::number(x + y);
  if (op == BinaryOp::kSub) return Value::number(x - y);
  if (op == BinaryOp::kMul) return Value::number(x * y);
  if (y == 0) fail("division by zero");
  if (op == BinaryOp::kDiv) return Value::number(x / y);
  double remainder = std::fmod(x, y);
  if (remainder != 0 && (remainder < 0) != (y < 0)) remainder += y;
  if (op == BinaryOp::kMod) return Value::number(remainder);
  return Value::number(std::floor((x - remainder) / y + 0.5));
}

Value repeat(Runtime& runtime, const Value& sequence, const Value& count) {
  const Int n = std::max<Int>(to_int(count), 0);
  if (const std::string* s = sequence.str()) {
    if (!s->empty() && n > static_cast<Int>(runtime.limits().max_output_bytes / s->size())) {
      fail_exhausted("the rendered text becomes too long");
    }
    runtime.charge_bytes(s->size() * static_cast<std::size_t>(n));
    std::string out;
    out.reserve(s->size() * static_cast<std::size_t>(n));
    for (Int i = 0; i < n && !s->empty(); ++i) out += *s;
    return Value::string(std::move(out));
  }
  const List& list = *sequence.list();
  if (!list.items.empty() && n > static_cast<Int>(runtime.limits().max_steps / list.items.size())) {
    fail_exhausted("a list becomes too long");
  }
  runtime.charge_items(list.items.size() * static_cast<std::size_t>(n));
  std::vector<Value> out;
  for (Int i = 0; i < n && !list.items.empty(); ++i) {
    out.insert(out.end(), list.items.begin(), list.items.end());
  }
  return Value::list(std::move(out), list.tuple);
}

bool is_integer(const Value& v) { return v.as<Int>() || v.as<bool>(); }
bool is_sequence(const Value& v) { return v.str() || v.list(); }

const char* op_text(BinaryOp op) {
  static constexpr const char* kText[] = {"+", "-", "*", "/", "//", "%", "**"};
  return kText[static_cast<int>(op)];
}

}  // namespace

void fail_undefined(const Value& value) {
  const Undefined* undefined = value.as<Undefined>();
  const std::string* name = undefined ? undefined->name : nullptr;
  fail(name ? fmt::format("'{}' is undefined", *name) : "the value is undefined");
}

void Runtime::charge_value(const Value& value) {
  if (value.str()) return charge_bytes(value.str()->size());
  charge(1);
  if (const List* list = value.list()) {
    for (const Value& item : list->items) charge_value(item);
  } else if (const Dict* dict = value.dict()) {
    for (const auto& [key, item] : dict->items) {
      charge_bytes(key.size());
      charge_value(item);
    }
  }
}

std::string Runtime::text(const Value& value) {
  charge_value(value);
  std::string out = to_text(value);
  if (!value.str()) charge_bytes(out.size());
  return out;
}

std::size_t find_substring(std::string_view text, std::string_view needle, std::size_t from) {
  if (from > text.size()) return std::string_view::npos;
  if (needle.empty()) return from;
  const void* hit = memmem(text.data() + from, text.size() - from, needle.data(), needle.size());
  if (!hit) return std::string_view::npos;
  return static_cast<std::size_t>(static_cast<const char*>(hit) - text.data());
}

Value binary(Runtime& runtime, BinaryOp op, const Value& a, const Value& b) {
  if (a.is_undefined()) fail_undefined(a);
  if (b.is_undefined()) fail_undefined(b);
  if (a.is_number() && b.is_number()) return arithmetic(op, a, b);
  if (op == BinaryOp::kAdd && a.str() && b.str()) {
    runtime.charge_bytes(a.str()->size() + b.str()->size());
    return Value::string(*a.str() + *b.str());
  }
  if (op == BinaryOp::kAdd && a.list() && b.list() && a.list()->tuple == b.list()->tuple) {
    std::vector<Value> items = a.list()->items;
    items.insert(items.end(), b.list()->items.begin(), b.list()->items.end());
    return runtime.list(std::move(items), a.list()->tuple);
  }
  if (op == BinaryOp::kMul && is_sequence(a) && is_integer(b)) return repeat(runtime, a, b);
  if (op == BinaryOp::kMul && is_integer(a) && is_sequence(b)) return repeat(runtime, b, a);
  fail(fmt::format("unsupported operand types for {}: '{}' and '{}'", op_text(op), a.type_name(),
                   b.type_name()));
}

Value negative(const Value& a) {
  if (a.is_undefined()) fail_undefined(a);
  if (const double* d = a.as<double>()) return Value::number(-*d);
  if (!is_integer(a)) fail(fmt::format("bad operand type for -: '{}'", a.type_name()));
  return int_arithmetic(BinaryOp::kSub, 0, to_int(a));
}

namespace {

bool contains(Runtime& runtime, const Value& container, const Value& item) {
  if (const std::string* text = container.str()) {
    if (item.is_undefined()) fail_undefined(item);
    if (!item.str()) fail(fmt::format("'in <string>' needs a string, not '{}'", item.type_name()));
    runtime.charge_bytes(text->size());
    return find_substring(*text, *item.str()) != std::string_view::npos;
  }
  if (const List* list = container.list()) {
    for (const Value& other : list->items) {
      runtime.charge_value(other);
      if (equal(item, other)) return true;
    }
    return false;
  }
  if (const Dict* dict = container.dict()) {
    if (item.list() || item.dict()) fail(fmt::format("unhashable type: '{}'", item.type_name()));
    return item.str() && dict->find(*item.str());
  }
  if (container.is_undefined()) return false;  // iterates over nothing
  fail(fmt::format("'{}' is not a container", container.type_name()));
}

}  // namespace

bool compare_values(Runtime& runtime, CompareOp op, const Value& a, const Value& b) {
  if (op == CompareOp::kIn) return contains(runtime, b, a);
  if (op == CompareOp::kNotIn) return !contains(runtime, b, a);
  if (a.nesting() > 0 && b.nesting() > 0) runtime.charge_value(a);
  if (a.str() && b.str()) runtime.charge_bytes(std::min(a.str()->size(), b.str()->size()));
  if (op == CompareOp::kEq) return equal(a, b);
  if (op == CompareOp::kNe) return !equal(a, b);
  if (a.is_undefined()) fail_undefined(a);
  if (b.is_undefined()) fail_undefined(b);
  const bool nan = (a.as<double>() && std::isnan(*a.as<double>())) ||
                   (b.as<double>() && std::isnan(*b.as<double>()));
  const int order = compare(a, b);
  if (nan) return false;
  switch (op) {
    case CompareOp::kLt:
      return order < 0;
    case CompareOp::kLe:
      return order <= 0;
    case CompareOp::kGt:
      return order > 0;
    default:
      return order >= 0;
  }
}

}  // namespace millrace::text::jinja
