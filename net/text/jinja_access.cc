// Looking into values: items, attributes, slices, iteration.
#include <fmt/format.h>

#include <algorithm>

#include "net/text/jinja_runtime.h"
#include "net/text/utf8.h"

namespace millrace::text::jinja {
namespace {

bool is_integer(const Value& v) { return v.as<Int>() || v.as<bool>(); }

Int to_int(const Value& v) {
  if (const bool* b = v.as<bool>()) return *b;
  return *v.as<Int>();
}

// Resolved bounds of a slice of `size` items, as PySlice_AdjustIndices does it.
struct Bounds {
  Int from, to, step;
};

Bounds slice_bounds(Int size, const Value& from, const Value& to, const Value& step) {
  const auto given = [](const Value& v) { return !v.is_none(); };
  for (const Value* v : {&from, &to, &step}) {
    if (given(*v) && !is_integer(*v)) fail("slice indices must be integers or None");
  }
  Bounds bounds{0, 0, given(step) ? to_int(step) : 1};
  if (bounds.step == 0) fail("slice step cannot be zero");
  const bool back = bounds.step < 0;
  const Int low = back ? -1 : 0, high = back ? size - 1 : size;
  const auto clamp = [&](const Value& v, Int otherwise) {
    if (!given(v)) return otherwise;
    Int i = to_int(v);
    if (i < 0) i += size;
    return std::min(std::max(i, low), high);
  };
  bounds.from = clamp(from, back ? high : low);
  bounds.to = clamp(to, back ? low : high);
  return bounds;
}

Value slice_string(Runtime& runtime, const std::string& text, const Bounds& b) {
  runtime.charge_bytes(text.size());
  if (b.step == 1) {
    if (b.from >= b.to) return Value::string("");
    const std::string_view view(text);
    const std::size_t begin = code_point_offset(view, static_cast<std::size_t>(b.from));
    const std::size_t end =
        begin + code_point_offset(view.substr(begin), static_cast<std::size_t>(b.to - b.from));
    return Value::string(text.substr(begin, end - begin));
  }
  std::vector<std::string_view> characters;
  for (std::size_t at = 0, length = 0; at < text.size(); at += length) {
    decode_code_point(text, at, &length);
    characters.push_back(std::string_view(text).substr(at, length));
  }
  std::string out;
  for (Int i = b.from; b.step > 0 ? i < b.to : i > b.to; i += b.step) {
    out += characters[static_cast<std::size_t>(i)];
  }
  return Value::string(std::move(out));
}

}  // namespace

std::vector<Value> iterate(Runtime& runtime, const Value& value) {
  std::vector<Value> items;
  if (const List* list = value.list()) {
    runtime.charge_items(list->items.size());
    items = list->items;
  } else if (const Dict* dict = value.dict()) {
    for (const auto& item : dict->items) items.push_back(runtime.string(item.first));
  } else if (const std::string* text = value.str()) {
    runtime.charge(text->size());
    for (std::size_t at = 0, length = 0; at < text->size(); at += length) {
      decode_code_point(*text, at, &length);
      items.push_back(Value::string(text->substr(at, length)));
    }
  } else if (!value.is_undefined()) {
    fail(fmt::format("'{}' object is not iterable", value.type_name()));
  }
  return items;
}

std::size_t length_of(const Value& value) {
  if (value.str()) return count_code_points(*value.str());
  if (value.list()) return value.list()->items.size();
  if (value.dict()) return value.dict()->items.size();
  if (value.is_undefined()) return 0;
  fail(fmt::format("object of type '{}' has no length", value.type_name()));
}

Value item_of(Runtime& runtime, const Value& object, const Value& key, const std::string* name) {
  if (object.is_undefined()) fail_undefined(object);
  const Value missing(Value::Data(Undefined{name}));
  if (const Dict* dict = object.dict()) {
    const Value* found = key.str() ? dict->find(*key.str()) : nullptr;
    return found ? *found : missing;
  }
  if (Namespace* const* ns = object.as<Namespace*>(); ns && key.str()) {
    const Value* found = (*ns)->find(*key.str());
    return found ? *found : missing;
  }
  if (!is_integer(key) || !(object.list() || object.str())) return missing;
  if (object.str()) runtime.charge_bytes(object.str()->size());
  const auto size = static_cast<Int>(length_of(object));
  Int index = to_int(key);
  if (index < 0) index += size;
  if (index < 0 || index >= size) return missing;
  const auto at = static_cast<std::size_t>(index);
  if (object.list()) return object.list()->items[at];
  std::size_t length = 0;
  const std::size_t offset = code_point_offset(*object.str(), at);
  decode_code_point(*object.str(), offset, &length);
  return Value::string(object.str()->substr(offset, length));
}

Value attribute_of(const Value& object, const std::string& name) {
  if (object.is_undefined()) fail_undefined(object);
  const Value missing(Value::Data(Undefined{&name}));
  if (const Dict* dict = object.dict()) {
    // Python looks for the method first, so the entry is out of reach under this spelling.
    if (name == "items" || name == "keys" || name == "values" || name == "get" || name == "pop" ||
        name == "copy" || name == "update" || name == "clear" || name == "setdefault" ||
        name == "popitem" || name == "fromkeys") {
      fail(fmt::format("'.{}' of a dict is its method; write ['{}'] for the entry", name, name));
    }
    const Value* found = dict->find(name);
    return found ? *found : missing;
  }
  if (Namespace* const* ns = object.as<Namespace*>()) {
    const Value* found = (*ns)->find(name);
    return found ? *found : missing;
  }
  if (const auto* loop = object.as<std::shared_ptr<LoopState>>()) {
    const LoopState& state = **loop;
    const auto size = static_cast<Int>(state.items.size()), index = static_cast<Int>(state.index0);
    if (name == "index0") return Value::integer(index);
    if (name == "index") return Value::integer(index + 1);
    if (name == "revindex") return Value::integer(size - index);
    if (name == "revindex0") return Value::integer(size - index - 1);
    if (name == "first") return Value::boolean(index == 0);
    if (name == "last") return Value::boolean(index + 1 == size);
    if (name == "length") return Value::integer(size);
    // jinja2 counts the depth of recursive loops only, which are refused.
    if (name == "depth") return Value::integer(1);
    if (name == "depth0") return Value::integer(0);
    if (name == "previtem") return index > 0 ? state.items[state.index0 - 1] : missing;
    if (name == "nextitem") return index + 1 < size ? state.items[state.index0 + 1] : missing;
    fail(fmt::format("'loop.{}' is not supported in a chat template", name));
  }
  return missing;
}

Value slice(Runtime& runtime, const Value& object, const Value& from, const Value& to,
            const Value& step) {
  if (object.is_undefined()) fail_undefined(object);
  if (const List* list = object.list()) {
    const Bounds b = slice_bounds(static_cast<Int>(list->items.size()), from, to, step);
    std::vector<Value> items;
    for (Int i = b.from; b.step > 0 ? i < b.to : i > b.to; i += b.step) {
      items.push_back(list->items[static_cast<std::size_t>(i)]);
    }
    return runtime.list(std::move(items), list->tuple);
  }
  if (!object.str()) fail(fmt::format("'{}' object cannot be sliced", object.type_name()));
  const std::string& text = *object.str();
  return slice_string(runtime, text,
                      slice_bounds(static_cast<Int>(count_code_points(text)), from, to, step));
}

}  // namespace millrace::text::jinja
