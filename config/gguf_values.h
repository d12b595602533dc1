// Decoding of single GGUF values, shared by the parser and the getters. Internal to config.
#pragma once

#include <cstdint>
#include <cstring>

#include "config/gguf_file.h"

namespace millrace::gguf_detail {

// Bytes of one array element of this type; 0 for strings and arrays, which have no fixed size.
inline std::uint64_t packed_bytes(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool:
      return 1;
    case GgufType::kU16:
    case GgufType::kI16:
      return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32:
      return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      return 0;
  }
  return 0;
}

template <class T>
T load(const std::byte* data) {
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

// A number or bool of the given type; the variant alternative is the widest of its kind.
inline GgufValue decode_scalar(GgufType type, const std::byte* data) {
  GgufValue result{type, false};
  switch (type) {
    case GgufType::kU8:
      result.value = static_cast<std::uint64_t>(load<std::uint8_t>(data));
      break;
    case GgufType::kU16:
      result.value = static_cast<std::uint64_t>(load<std::uint16_t>(data));
      break;
    case GgufType::kU32:
      result.value = static_cast<std::uint64_t>(load<std::uint32_t>(data));
      break;
    case GgufType::kU64:
      result.value = load<std::uint64_t>(data);
      break;
    case GgufType::kI8:
      result.value = static_cast<std::int64_t>(load<std::int8_t>(data));
      break;
    case GgufType::kI16:
      result.value = static_cast<std::int64_t>(load<std::int16_t>(data));
      break;
    case GgufType::kI32:
      result.value = static_cast<std::int64_t>(load<std::int32_t>(data));
      break;
    case GgufType::kI64:
      result.value = load<std::int64_t>(data);
      break;
    case GgufType::kF32:
      result.value = static_cast<double>(load<float>(data));
      break;
    case GgufType::kF64:
      result.value = load<double>(data);
      break;
    case GgufType::kBool:
      result.value = load<std::uint8_t>(data) != 0;
      break;
    case GgufType::kString:
    case GgufType::kArray:
      break;
  }
  return result;
}

}  // namespace millrace::gguf_detail
