#include "config/gguf_file.h"

#include <fmt/format.h>

#include <cmath>
#include <optional>

#include "config/gguf_values.h"

namespace millrace {

using gguf_detail::decode_scalar;
using gguf_detail::packed_bytes;

namespace {

std::optional<std::int64_t> as_int(const GgufValue& value) {
  if (const auto* i = std::get_if<std::int64_t>(&value.value)) return *i;
  if (const auto* u = std::get_if<std::uint64_t>(&value.value)) {
    if (*u <= static_cast<std::uint64_t>(INT64_MAX)) return static_cast<std::int64_t>(*u);
  }
  return std::nullopt;
}

std::string found(const GgufValue& value) {
  if (const auto* array = std::get_if<GgufArray>(&value.value)) {
    return fmt::format("an array of {} {}", array->count, gguf_type_name(array->element_type));
  }
  if (const auto* i = std::get_if<std::int64_t>(&value.value)) return fmt::format("{}", *i);
  if (const auto* u = std::get_if<std::uint64_t>(&value.value)) return fmt::format("{}", *u);
  if (const auto* d = std::get_if<double>(&value.value)) return fmt::format("{}", *d);
  return fmt::format("a {}", gguf_type_name(value.type));
}

}  // namespace

const char* gguf_type_name(GgufType type) {
  static constexpr const char* kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                           "bool", "string", "array", "u64", "i64", "f64"};
  const auto index = static_cast<std::size_t>(type);
  return index < std::size(kNames) ? kNames[index] : "unknown type";
}

const GgmlTypeInfo* ggml_type_info(std::uint32_t type) {
  struct Row {
    GgmlType type;
    GgmlTypeInfo info;
  };
  static constexpr Row kRows[] = {
      {GgmlType::kF32, {"F32", 1, 4}},       {GgmlType::kF16, {"F16", 1, 2}},
      {GgmlType::kBF16, {"BF16", 1, 2}},     {GgmlType::kQ4_0, {"Q4_0", 32, 18}},
      {GgmlType::kQ4_1, {"Q4_1", 32, 20}},   {GgmlType::kQ5_0, {"Q5_0", 32, 22}},
      {GgmlType::kQ5_1, {"Q5_1", 32, 24}},   {GgmlType::kQ8_0, {"Q8_0", 32, 34}},
      {GgmlType::kQ2_K, {"Q2_K", 256, 84}},  {GgmlType::kQ3_K, {"Q3_K", 256, 110}},
      {GgmlType::kQ4_K, {"Q4_K", 256, 144}}, {GgmlType::kQ5_K, {"Q5_K", 256, 176}},
      {GgmlType::kQ6_K, {"Q6_K", 256, 210}}, {GgmlType::kP8_0, {"P8_0", 32, 34}},
      {GgmlType::kP4_0, {"P4_0", 32, 18}},   {GgmlType::kP4_1, {"P4_1", 32, 20}},
      {GgmlType::kP4_K, {"P4_K", 256, 144}}, {GgmlType::kP5_K, {"P5_K", 256, 176}},
      {GgmlType::kP6_K, {"P6_K", 256, 210}},
  };
  for (const Row& row : kRows) {
    if (static_cast<std::uint32_t>(row.type) == type) return &row.info;
  }
  return nullptr;
}

const GgufValue* GgufFile::find(std::string_view key) const {
  const auto it = metadata_.find(key);
  return it == metadata_.end() ? nullptr : &it->second;
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  const auto it = tensor_index_.find(name);
  return it == tensor_index_.end() ? nullptr : &tensors_[it->second];
}

namespace {

Error missing_key(const GgufFile& file, std::string_view key) {
  return {ErrorCode::kNotFound, std::string(key),
          fmt::format("{}: the metadata has no such key", file.path())};
}

Error wrong_type(const GgufFile& file, std::string_view key, std::string_view expected,
                 const GgufValue& value) {
  return invalid(std::string(key),
                 fmt::format("{}: expected {}, found {}", file.path(), expected, found(value)));
}

// The array under `key` whose element type satisfies `accept`.
template <class Accept>
Result<const GgufArray*> get_array(const GgufFile& file, std::string_view key,
                                   std::string_view expected, Accept accept) {
  const GgufValue* value = file.find(key);
  if (value == nullptr) return missing_key(file, key);
  const auto* array = std::get_if<GgufArray>(&value->value);
  if (array == nullptr || !accept(array->element_type)) {
    return wrong_type(file, key, expected, *value);
  }
  return array;
}

bool is_float(GgufType type) { return type == GgufType::kF32 || type == GgufType::kF64; }
bool is_int(GgufType type) {
  return !is_float(type) && type != GgufType::kBool && type != GgufType::kString &&
         type != GgufType::kArray;
}

}  // namespace

Result<std::int64_t> GgufFile::get_int(std::string_view key, std::int64_t min,
                                       std::int64_t max) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return missing_key(*this, key);
  const auto number = as_int(*value);
  if (!number || *number < min || *number > max) {
    const bool bounded = min != INT64_MIN || max != INT64_MAX;
    return wrong_type(*this, key,
                      bounded ? fmt::format("an integer from {} to {}", min, max) : "an integer",
                      *value);
  }
  return *number;
}

Result<double> GgufFile::get_float(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return missing_key(*this, key);
  const auto* number = std::get_if<double>(&value->value);
  if (number == nullptr || !std::isfinite(*number)) {
    return wrong_type(*this, key, "a finite float", *value);
  }
  return *number;
}

Result<bool> GgufFile::get_bool(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return missing_key(*this, key);
  const auto* flag = std::get_if<bool>(&value->value);
  if (flag == nullptr) return wrong_type(*this, key, "a bool", *value);
  return *flag;
}

Result<std::string_view> GgufFile::get_string(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return missing_key(*this, key);
  const auto* text = std::get_if<std::string_view>(&value->value);
  if (text == nullptr) return wrong_type(*this, key, "a string", *value);
  return *text;
}

Result<std::vector<std::int64_t>> GgufFile::get_int_array(std::string_view key) const {
  auto array = get_array(*this, key, "an array of integers", is_int);
  if (!array) return array.error();
  std::vector<std::int64_t> out;
  out.reserve((*array)->count);
  const std::uint64_t size = packed_bytes((*array)->element_type);
  for (std::uint64_t i = 0; i < (*array)->count; ++i) {
    const GgufValue value =
        decode_scalar((*array)->element_type, (*array)->packed.data() + i * size);
    const auto number = as_int(value);
    if (!number) return wrong_type(*this, key, "integers below 2^63", value);
    out.push_back(*number);
  }
  return out;
}

Result<std::vector<double>> GgufFile::get_float_array(std::string_view key) const {
  auto array = get_array(*this, key, "an array of floats", is_float);
  if (!array) return array.error();
  std::vector<double> out;
  out.reserve((*array)->count);
  const std::uint64_t size = packed_bytes((*array)->element_type);
  for (std::uint64_t i = 0; i < (*array)->count; ++i) {
    out.push_back(std::get<double>(
        decode_scalar((*array)->element_type, (*array)->packed.data() + i * size).value));
  }
  return out;
}

Result<std::span<const std::string_view>> GgufFile::get_string_array(std::string_view key) const {
  auto array = get_array(*this, key, "an array of strings",
                         [](GgufType type) { return type == GgufType::kString; });
  if (!array) return array.error();
  return std::span<const std::string_view>((*array)->strings);
}

}  // namespace millrace
